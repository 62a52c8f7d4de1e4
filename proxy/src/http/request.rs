//! What happens to a request head before routing: validation, scheme, XFF, internal headers, XFCC, request id,
//! path. In Envoy's order.

use std::net::{IpAddr, SocketAddr};

use outrigger_config::http::{HttpConnectionManager as Config, StripPort, UnderscoresAction};

use crate::control::store::Options;
use crate::error::Flag;
use crate::http::headers::Headers;
use crate::http::local_reply::{LocalReply, is_grpc};
use crate::http::path::{self, Normalized};
use crate::http::trace_context;
use crate::http::xfcc;
use crate::stream_info::{Protocol, StreamInfo};
use crate::text::{self, Decimal};

/// Headers that only internal requests may carry.
const INTERNAL_ONLY: &[&[u8]] = &[
    b"x-envoy-internal",
    b"x-envoy-retry-on",
    b"x-envoy-retry-grpc-on",
    b"x-envoy-max-retries",
    b"x-envoy-upstream-alt-stat-name",
    b"x-envoy-upstream-rq-timeout-ms",
    b"x-envoy-upstream-rq-per-try-timeout-ms",
    b"x-envoy-upstream-rq-timeout-alt-response",
    b"x-envoy-expected-rq-timeout-ms",
    b"x-envoy-force-trace",
    b"x-envoy-ip-tags",
    b"x-envoy-retriable-status-codes",
    b"x-envoy-retriable-header-names",
    b"x-envoy-hedge-on-per-try-timeout",
];

/// Headers that edge requests lose too.
const EDGE_ONLY: &[&[u8]] = &[
    b"x-envoy-decorator-operation",
    b"x-envoy-downstream-service-cluster",
    b"x-envoy-downstream-service-node",
    b"x-envoy-original-path",
    b"x-envoy-original-host",
];

/// What later steps need to know of the request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    /// The trusted client is internal.
    pub internal: bool,
    /// The trace decision is "sampled".
    pub sampled: bool,
    /// The request is gRPC.
    pub grpc: bool,
}

const fn authority_table() -> [bool; 256] {
    let others = b"-._~%!$&'()*+,;=:[]@";
    let mut table = [false; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = (i as u8).is_ascii_alphanumeric() || i >= 0x80;
        i += 1;
    }
    let mut i = 0;
    while i < others.len() {
        table[others[i] as usize] = true;
        i += 1;
    }
    table
}

static AUTHORITY: [bool; 256] = authority_table();

/// Characters an authority may consist of.
#[must_use]
pub fn is_valid_authority(authority: &[u8]) -> bool {
    authority.iter().all(|c| AUTHORITY[usize::from(*c)])
}

/// Refuses heads that no route may see.
///
/// # Errors
/// The local reply.
pub fn validate(
    headers: &mut Headers,
    config: &Config,
    protocol: Protocol,
) -> Result<(), LocalReply> {
    let dpe =
        |status, details| LocalReply::new(status, details).flag(Flag::DownstreamProtocolError);
    if !headers.has_authority() || headers.authority().is_empty() {
        let default = (protocol == Protocol::Http10)
            .then(|| config.default_host_for_http_10.clone())
            .flatten();
        match default {
            Some(host) => headers.set_authority(host.as_bytes()),
            None => return Err(LocalReply::new(400, "missing_host_header").close()),
        }
    }
    let valid = is_valid_authority(headers.authority());
    if !valid {
        return Err(dpe(400, "http.invalid_authority")
            .body("Bad Request")
            .close());
    }
    if headers.method() == b"CONNECT" {
        return Ok(());
    }
    match headers.path().first() {
        None => Err(LocalReply::new(404, "missing_path_rejected").close()),
        Some(b'/') => Ok(()),
        Some(_) => Err(LocalReply::new(404, "absolute_path_rejected")),
    }
}

/// Refuses or drops header names with underscores.
///
/// # Errors
/// The local reply.
pub fn underscores(
    headers: &mut Headers,
    action: UnderscoresAction,
    protocol: Protocol,
) -> Result<(), LocalReply> {
    match action {
        UnderscoresAction::Allow => {}
        UnderscoresAction::DropHeader => headers.retain(|n, _| !n.contains(&b'_')),
        UnderscoresAction::RejectRequest => {
            if headers.iter().any(|(n, _)| n.contains(&b'_')) {
                let details = if protocol == Protocol::Http2 {
                    "http2.unexpected_underscore"
                } else {
                    "http1.unexpected_underscore"
                };
                return Err(LocalReply::new(400, details)
                    .body("Bad Request")
                    .flag(Flag::DownstreamProtocolError)
                    .close());
            }
        }
    }
    Ok(())
}

/// Rewrites a validated head. `upgrade`: the request is an allowed upgrade and keeps its lines.
///
/// # Errors
/// The local reply.
pub fn prepare(
    headers: &mut Headers,
    config: &Config,
    options: &Options,
    info: &mut StreamInfo,
    upgrade: bool,
    random: impl Fn() -> u64,
) -> Result<Facts, LocalReply> {
    let connection = std::rc::Rc::clone(&info.connection);
    remove_hop_by_hop(headers, upgrade);
    let secure = connection.tls.is_some();
    if headers.scheme().is_empty() {
        headers.set_scheme(if secure { b"https" } else { b"http" });
    }
    if let Some(scheme) = &config.scheme_to_overwrite {
        headers.set_scheme(scheme.as_bytes());
    }
    let internal = forwarded_for(headers, config, options, info, secure);
    let edge = !internal && config.use_remote_address;
    if internal {
        headers.set(b"x-envoy-internal", b"true");
    } else {
        headers.retain(|n, _| !n.starts_with(b"x-envoy-") || !INTERNAL_ONLY.contains(&n));
    }
    if edge {
        headers.retain(|n, _| !EDGE_ONLY.contains(&n));
        headers.set(
            b"x-envoy-external-address",
            info.remote.ip().to_string().as_bytes(),
        );
    }
    xfcc::apply(
        headers,
        config.forward_client_cert,
        config.client_cert_details,
        connection.tls.as_deref(),
    );
    let sampled = request_id(headers, config, internal, edge, &random);
    if let Some(via) = &config.via {
        append_via(headers, via);
    }
    if let Some(zipkin) = options.zipkin.filter(|_| config.tracing.is_some()) {
        trace_context::propagate_b3(headers, zipkin, sampled, &random);
    }
    normalize_path(headers, config, options)?;
    strip_host(headers, config, connection.local.port());
    Ok(Facts {
        internal,
        sampled,
        grpc: is_grpc(headers),
    })
}

/// Adds to `via`, joining what is there.
pub fn append_via(headers: &mut Headers, via: &str) {
    match headers.get(b"via").map(<[u8]>::to_vec) {
        Some(mut old) => {
            old.extend_from_slice(b", ");
            old.extend_from_slice(via.as_bytes());
            headers.set(b"via", &old);
        }
        None => headers.append(b"via", via.as_bytes()),
    }
}

fn remove_hop_by_hop(headers: &mut Headers, upgrade: bool) {
    remove_nominated(headers);
    headers.retain(|name, value| match name {
        b"connection" | b"upgrade" => upgrade,
        b"keep-alive" | b"proxy-connection" | b"http2-settings" | b"transfer-encoding" => false,
        b"te" => value.eq_ignore_ascii_case(b"trailers"),
        _ => true,
    });
}

/// Removes the headers that `connection` names as meant for this hop only.
fn remove_nominated(headers: &mut Headers) {
    let own: &[&[u8]] = &[
        b"close",
        b"keep-alive",
        b"upgrade",
        b"te",
        b"http2-settings",
    ];
    let nominated: Vec<Vec<u8>> = headers
        .get_all(b"connection")
        .flat_map(|line| line.split(|c| *c == b','))
        .map(|token| token.trim_ascii().to_ascii_lowercase())
        .filter(|token| !token.is_empty() && !own.contains(&token.as_slice()))
        .collect();
    for name in nominated {
        headers.remove(&name);
    }
}

/// XFF handling; sets the trusted remote address and returns whether it is internal.
fn forwarded_for(
    headers: &mut Headers,
    config: &Config,
    options: &Options,
    info: &mut StreamInfo,
    secure: bool,
) -> bool {
    let proto: &[u8] = if secure { b"https" } else { b"http" };
    let direct = info.connection.remote;
    if config.use_remote_address {
        let trusted = if config.xff_num_trusted_hops > 0 {
            nth_from_right(headers, config.xff_num_trusted_hops as usize - 1)
        } else {
            None
        };
        info.remote = trusted.map_or(direct, |ip| SocketAddr::new(ip, 0));
        if !config.skip_xff_append {
            let peer = direct.ip().to_canonical();
            let shown = if peer.is_loopback() {
                options.local_address.unwrap_or(peer)
            } else {
                peer
            };
            append_xff(headers, shown);
        }
        if config.xff_num_trusted_hops > 0 {
            headers.set_if_absent(b"x-forwarded-proto", proto);
        } else {
            headers.set(b"x-forwarded-proto", proto);
        }
    } else {
        let hops = config.xff_num_trusted_hops as usize;
        if let Some(ip) = nth_from_right(headers, hops) {
            info.remote = SocketAddr::new(ip, 0);
        }
        headers.set_if_absent(b"x-forwarded-proto", proto);
    }
    if config.append_x_forwarded_port {
        let port = Decimal::new(u64::from(info.connection.local.port()));
        headers.set_if_absent(b"x-forwarded-port", port.as_bytes());
    }
    // More than one address in XFF means that it came through another proxy: not internal (Envoy).
    let ip = info.remote.ip().to_canonical();
    config.internal_cidrs.iter().any(|net| net.contains(&ip))
}

fn append_xff(headers: &mut Headers, ip: IpAddr) {
    let mut list = Vec::with_capacity(64);
    for line in headers.get_all(b"x-forwarded-for") {
        list.extend_from_slice(line);
        list.push(b',');
    }
    if list == b"," {
        list.clear();
    }
    text::ip(ip, &mut list);
    headers.set(b"x-forwarded-for", &list);
}

/// The `n`th address of XFF from the right, 0 = last.
fn nth_from_right(headers: &Headers, n: usize) -> Option<IpAddr> {
    let value = headers.get_all(b"x-forwarded-for").last()?;
    let part = value.rsplit(|c| *c == b',').nth(n)?;
    std::str::from_utf8(part).ok()?.trim().parse().ok()
}

/// Generates or keeps `x-request-id`; returns the trace decision.
fn request_id(
    headers: &mut Headers,
    config: &Config,
    internal: bool,
    edge: bool,
    random: &impl Fn() -> u64,
) -> bool {
    const NAME: &[u8] = b"x-request-id";
    let replace = edge && !config.preserve_external_request_id;
    if config.generate_request_id && (replace || !headers.contains(NAME)) {
        headers.set(NAME, &uuid_v4(random(), random()));
    }
    let Some(tracing) = &config.tracing else {
        return false;
    };
    if !tracing.use_request_id {
        return percent(tracing.random_sampling, random())
            && percent(tracing.overall_sampling, random());
    }
    let Some(id) = headers
        .get(NAME)
        .filter(|id| is_uuid(id))
        .map(<[u8]>::to_vec)
    else {
        return false;
    };
    let mut reason = id[14];
    if reason == b'4' {
        if internal && headers.contains(b"x-envoy-force-trace") {
            reason = b'a';
        } else if headers.contains(b"x-client-trace-id")
            && percent(tracing.client_sampling, random())
        {
            reason = b'b';
        } else if percent(tracing.random_sampling, random()) {
            reason = b'9';
        }
    }
    if reason != b'4' && !percent(tracing.overall_sampling, random()) {
        reason = b'4';
    }
    if reason != id[14] {
        let mut id = id;
        id[14] = reason;
        headers.set(NAME, &id);
    }
    matches!(reason, b'9' | b'a' | b'b')
}

fn percent(share: f64, random: u64) -> bool {
    ((random % 10_000) as f64) < share * 100.0
}

fn is_uuid(id: &[u8]) -> bool {
    id.len() == 36
        && id.iter().enumerate().all(|(i, c)| match i {
            8 | 13 | 18 | 23 => *c == b'-',
            _ => c.is_ascii_hexdigit(),
        })
}

/// A version 4 UUID from 128 random bits. Request ids need uniqueness, not secrecy.
#[must_use]
pub fn uuid_v4(high: u64, low: u64) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bits = (u128::from(high) << 64) | u128::from(low);
    bits = (bits & !(0xf << 76)) | (0x4 << 76);
    bits = (bits & !(0x3 << 62)) | (0x2 << 62);
    let mut out = [b'-'; 36];
    let mut shift = 128;
    for (i, c) in out.iter_mut().enumerate() {
        if !matches!(i, 8 | 13 | 18 | 23) {
            shift -= 4;
            *c = HEX[(bits >> shift) as usize & 15];
        }
    }
    out
}

fn normalize_path(
    headers: &mut Headers,
    config: &Config,
    options: &Options,
) -> Result<(), LocalReply> {
    if !headers.has_path() {
        return Ok(());
    }
    let options = path::Options {
        normalize: config.normalize_path,
        merge_slashes: config.merge_slashes,
        escaped_slashes: config.escaped_slashes,
        reject_fragment: options.reject_path_with_fragment,
    };
    let changed = match path::normalize(headers.path(), &options) {
        Normalized::Path(std::borrow::Cow::Borrowed(_)) => None,
        Normalized::Path(std::borrow::Cow::Owned(path)) => Some(path),
        Normalized::Reject => {
            // The log shows what the path would have been.
            if let Some(shown) = path::unescape_slashes(headers.path()) {
                headers.set_path(&shown);
            }
            return Err(LocalReply::new(400, "path_normalization_failed").close());
        }
        Normalized::Redirect(_) if is_grpc(headers) => {
            return Err(LocalReply::new(400, "path_normalization_failed").close());
        }
        Normalized::Redirect(path) => {
            headers.set_path(&path);
            return Err(LocalReply::new(307, "path_normalization_failed")
                .header("location", String::from_utf8_lossy(&path).into_owned()));
        }
    };
    if let Some(path) = changed {
        headers.set_path(&path);
    }
    Ok(())
}

fn strip_host(headers: &mut Headers, config: &Config, local_port: u16) {
    if config.strip_host_port == StripPort::No && !config.strip_trailing_host_dot {
        return;
    }
    let authority = headers.authority();
    let (mut host, port) = split_port(authority);
    if config.strip_trailing_host_dot {
        host = host.strip_suffix(b".").unwrap_or(host);
    }
    let keep = port.filter(|p| match config.strip_host_port {
        StripPort::No => true,
        StripPort::Any => false,
        StripPort::Matching => *p != local_port.to_string().as_bytes(),
    });
    let mut new = host.to_vec();
    if let Some(port) = keep {
        new.push(b':');
        new.extend_from_slice(port);
    }
    if new != authority {
        headers.set_authority(&new);
    }
}

/// Host and port of an authority; brackets of IPv6 stay with the host.
#[must_use]
pub fn split_port(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memrchr(b':', authority) {
        Some(at) if !authority[at..].contains(&b']') && at + 1 < authority.len() => {
            let port = &authority[at + 1..];
            if port.iter().all(u8::is_ascii_digit) {
                (&authority[..at], Some(port))
            } else {
                (authority, None)
            }
        }
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_have_version_and_variant() {
        let id = uuid_v4(u64::MAX, u64::MAX);
        assert_eq!(&id, b"ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert!(is_uuid(&id));
        assert!(!is_uuid(b"abc"));
    }

    #[test]
    fn splits_ports_off_authorities() {
        let table = [
            ("a:80", ("a", Some("80"))),
            ("a", ("a", None)),
            ("[::1]:80", ("[::1]", Some("80"))),
            ("[::1]", ("[::1]", None)),
            ("a:", ("a:", None)),
            ("a:b", ("a:b", None)),
        ];
        for (input, (host, port)) in table {
            let want = (host.as_bytes(), port.map(str::as_bytes));
            assert_eq!(split_port(input.as_bytes()), want);
        }
    }
}
