//! Rendering of one operator or one format into bytes. Shared by access logs and header formatters; allocates
//! nothing beyond the output.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use outrigger_config::format::{Format, HeaderOperand, Operator, Segment, TimeFormat};

use super::{LogContext, time};
use crate::http::headers::Headers;
use crate::stream_info::TlsInfo;
use crate::text::{self, Decimal};
use crate::upstream::host::HostAddress;

/// What a missing operand renders as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// `-` (access logs).
    Dash,
    /// Nothing (header values, `omit_empty_values`).
    Empty,
}

impl Missing {
    /// The rule of a text log format.
    #[must_use]
    pub const fn of(format: &Format) -> Self {
        if format.omit_empty_values {
            Self::Empty
        } else {
            Self::Dash
        }
    }
}

/// Appends the rendered format.
pub fn render(format: &Format, context: &LogContext<'_>, out: &mut Vec<u8>, missing: Missing) {
    for segment in &format.segments {
        match segment {
            Segment::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Segment::Operator(op) => {
                if !operator(op, context, out) && missing == Missing::Dash {
                    out.push(b'-');
                }
            }
        }
    }
}

/// Whether a JSON log prints the operator as a number.
#[must_use]
pub const fn is_number(op: &Operator) -> bool {
    matches!(
        op,
        Operator::ResponseCode
            | Operator::BytesReceived
            | Operator::BytesSent
            | Operator::Duration
            | Operator::RequestDuration
            | Operator::RequestTxDuration
            | Operator::ResponseDuration
            | Operator::ResponseTxDuration
            | Operator::UpstreamLocalPort
            | Operator::UpstreamRemotePort
            | Operator::UpstreamRequestAttemptCount
            | Operator::DownstreamRemotePort
            | Operator::DownstreamLocalPort
            | Operator::ConnectionId
            | Operator::GrpcStatusNumber
    )
}

/// Milliseconds between two instants, 0 if they are reversed.
#[must_use]
pub fn millis(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u64::MAX)
}

/// Appends the operator's value; false (and nothing appended) when it has none.
pub fn operator(op: &Operator, context: &LogContext<'_>, out: &mut Vec<u8>) -> bool {
    let info = context.info;
    let connection = &info.connection;
    let upstream = &info.upstream;
    match op {
        Operator::Req(h) => header(context.request, h, out),
        Operator::Resp(h) => header(context.response, h, out),
        Operator::Trailer(h) => header(context.trailers, h, out),
        Operator::ReqWithoutQuery(h) => header_without_query(context.request, h, out),
        Operator::StartTime(format) => timestamp(format, info.start_time, out),
        Operator::EmitTime(format) => timestamp(format, SystemTime::now(), out),
        Operator::Protocol => optional(info.protocol.map(|p| p.as_str()), out),
        Operator::UpstreamProtocol => optional(upstream.protocol.map(|p| p.as_str()), out),
        Operator::ResponseCode => number(u64::from(info.response_code), out),
        Operator::ResponseCodeDetails => no_spaces(&info.details, out),
        Operator::ConnectionTerminationDetails => no_spaces(
            info.connection_termination_details.as_deref().unwrap_or(""),
            out,
        ),
        Operator::ResponseFlags => joined(info.flags.iter().map(|f| f.short()), out),
        Operator::ResponseFlagsLong => joined(info.flags.iter().map(|f| f.long()), out),
        Operator::BytesReceived => number(info.bytes_received, out),
        Operator::BytesSent => number(info.bytes_sent, out),
        Operator::Duration => span(Some(info.start), info.end, out),
        Operator::RequestDuration => span(Some(info.start), info.request_end, out),
        Operator::RequestTxDuration => span(Some(info.start), info.request_tx_end, out),
        Operator::ResponseDuration => span(Some(info.start), info.response_start, out),
        Operator::ResponseTxDuration => span(info.response_start, info.end, out),
        Operator::UpstreamHost => optional(upstream.host.as_ref().map(|h| &*h.address_text), out),
        Operator::UpstreamCluster => optional(upstream.observability_name.as_deref(), out),
        Operator::UpstreamClusterRaw => optional(upstream.cluster.as_deref(), out),
        Operator::UpstreamLocalAddress => address(upstream.local, Part::Whole, out),
        Operator::UpstreamLocalAddressWithoutPort => address(upstream.local, Part::Ip, out),
        Operator::UpstreamLocalPort => address(upstream.local, Part::Port, out),
        Operator::UpstreamRemoteAddress => upstream_remote(context, Part::Whole, out),
        Operator::UpstreamRemoteAddressWithoutPort => upstream_remote(context, Part::Ip, out),
        Operator::UpstreamRemotePort => upstream_remote(context, Part::Port, out),
        Operator::UpstreamRequestAttemptCount => number(u64::from(upstream.attempts), out),
        Operator::UpstreamTransportFailureReason => {
            no_spaces(upstream.transport_failure.as_deref().unwrap_or(""), out)
        }
        Operator::DownstreamTransportFailureReason => no_spaces(
            info.downstream_transport_failure.as_deref().unwrap_or(""),
            out,
        ),
        Operator::DownstreamRemoteAddress => address(Some(info.remote), Part::Whole, out),
        Operator::DownstreamRemoteAddressWithoutPort => address(Some(info.remote), Part::Ip, out),
        Operator::DownstreamRemotePort => address(Some(info.remote), Part::Port, out),
        Operator::DownstreamDirectRemoteAddress => {
            address(Some(connection.remote), Part::Whole, out)
        }
        Operator::DownstreamDirectRemoteAddressWithoutPort => {
            address(Some(connection.remote), Part::Ip, out)
        }
        Operator::DownstreamLocalAddress => address(Some(connection.local), Part::Whole, out),
        Operator::DownstreamLocalAddressWithoutPort => {
            address(Some(connection.local), Part::Ip, out)
        }
        Operator::DownstreamLocalPort => address(Some(connection.local), Part::Port, out),
        Operator::DownstreamDirectLocalAddress => {
            address(Some(connection.direct_local), Part::Whole, out)
        }
        Operator::ConnectionId => number(connection.id, out),
        Operator::RequestedServerName => optional(connection.server_name.as_deref(), out),
        Operator::RouteName => optional(info.route_name.as_deref(), out),
        Operator::FilterChainName => optional(Some(&*connection.filter_chain), out),
        Operator::Hostname => optional(Some(hostname()), out),
        Operator::Environment(value) => optional(value.as_deref(), out),
        Operator::GrpcStatus => grpc_status(info.grpc_status, out),
        Operator::GrpcStatusNumber => info
            .grpc_status
            .is_some_and(|code| number(u64::from(code), out)),
        Operator::StreamId => optional_bytes(context.request.get(b"x-request-id"), out),
        _ => tls_operator(op, connection.tls.as_ref(), upstream.tls.as_ref(), out),
    }
}

fn tls_operator(
    op: &Operator,
    downstream: Option<&Arc<TlsInfo>>,
    upstream: Option<&Arc<TlsInfo>>,
    out: &mut Vec<u8>,
) -> bool {
    let down = |f: fn(&TlsInfo) -> &str| downstream.map(|t| f(t));
    match op {
        Operator::DownstreamPeerUriSan => sans(downstream.map(|t| &*t.peer_uri_sans), out),
        Operator::DownstreamPeerDnsSan => sans(downstream.map(|t| &*t.peer_dns_sans), out),
        Operator::DownstreamPeerSubject => optional(down(|t| &t.peer_subject), out),
        Operator::DownstreamPeerIssuer => optional(down(|t| &t.peer_issuer), out),
        Operator::DownstreamPeerSerial => optional(down(|t| &t.peer_serial), out),
        Operator::DownstreamPeerFingerprint256 => optional(down(|t| &t.peer_fingerprint_256), out),
        Operator::DownstreamLocalUriSan => sans(downstream.map(|t| &*t.local_uri_sans), out),
        Operator::DownstreamLocalSubject => optional(down(|t| &t.local_subject), out),
        Operator::DownstreamTlsVersion => optional(down(|t| t.version), out),
        Operator::DownstreamTlsCipher => optional(down(|t| t.cipher), out),
        Operator::UpstreamPeerUriSan => sans(upstream.map(|t| &*t.peer_uri_sans), out),
        Operator::UpstreamLocalUriSan => sans(upstream.map(|t| &*t.local_uri_sans), out),
        Operator::UpstreamTlsVersion => optional(upstream.map(|t| t.version), out),
        Operator::UpstreamTlsCipher => optional(upstream.map(|t| t.cipher), out),
        // The enum is open; the parser refuses what is not rendered here.
        _ => false,
    }
}

fn number(value: u64, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(Decimal::new(value).as_bytes());
    true
}

fn optional(value: Option<&str>, out: &mut Vec<u8>) -> bool {
    optional_bytes(value.map(str::as_bytes), out)
}

fn optional_bytes(value: Option<&[u8]>, out: &mut Vec<u8>) -> bool {
    match value {
        Some(v) if !v.is_empty() => {
            out.extend_from_slice(v);
            true
        }
        _ => false,
    }
}

/// Details and failure reasons: one token, so that a line splits at spaces.
fn no_spaces(value: &str, out: &mut Vec<u8>) -> bool {
    out.extend(
        value
            .bytes()
            .map(|b| if b.is_ascii_whitespace() { b'_' } else { b }),
    );
    !value.is_empty()
}

fn joined<'a>(names: impl Iterator<Item = &'a str>, out: &mut Vec<u8>) -> bool {
    let before = out.len();
    for name in names {
        if out.len() > before {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
    }
    out.len() > before
}

fn sans(names: Option<&[String]>, out: &mut Vec<u8>) -> bool {
    joined(names.unwrap_or_default().iter().map(String::as_str), out)
}

fn span(from: Option<Instant>, to: Option<Instant>, out: &mut Vec<u8>) -> bool {
    match (from, to) {
        (Some(from), Some(to)) => number(millis(from, to), out),
        _ => false,
    }
}

fn timestamp(format: &TimeFormat, at: SystemTime, out: &mut Vec<u8>) -> bool {
    match format {
        TimeFormat::Default => time::rfc3339_millis(at, out),
        TimeFormat::Strftime(format) => time::strftime(format, at, out),
    }
    true
}

fn value<'a>(headers: &'a Headers, operand: &HeaderOperand) -> Option<&'a [u8]> {
    headers
        .get(operand.name.as_bytes())
        .filter(|v| !v.is_empty())
        .or_else(|| {
            operand
                .alternative
                .as_ref()
                .and_then(|name| headers.get(name.as_bytes()))
        })
}

fn cut(value: &[u8], operand: &HeaderOperand) -> usize {
    operand
        .max_length
        .map_or(value.len(), |max| max.min(value.len()))
}

/// First value of the header, or of the alternative one.
fn header(headers: &Headers, operand: &HeaderOperand, out: &mut Vec<u8>) -> bool {
    let value = value(headers, operand);
    optional_bytes(value.map(|v| &v[..cut(v, operand)]), out)
}

fn header_without_query(headers: &Headers, operand: &HeaderOperand, out: &mut Vec<u8>) -> bool {
    let value = value(headers, operand).map(|v| {
        let end = v.iter().position(|b| *b == b'?').unwrap_or(v.len());
        &v[..end]
    });
    optional_bytes(value.map(|v| &v[..cut(v, operand)]), out)
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Whole,
    Ip,
    Port,
}

fn address(address: Option<SocketAddr>, part: Part, out: &mut Vec<u8>) -> bool {
    let Some(address) = address else { return false };
    match part {
        Part::Whole => text::socket_address(address, out),
        Part::Ip => text::ip(address.ip(), out),
        Part::Port => return number(u64::from(address.port()), out),
    }
    true
}

fn upstream_remote(context: &LogContext<'_>, part: Part, out: &mut Vec<u8>) -> bool {
    match context.info.upstream.host.as_ref().map(|h| &h.address) {
        Some(HostAddress::Tcp(a)) => address(Some(*a), part, out),
        Some(HostAddress::Pipe(path)) if !matches!(part, Part::Port) => optional(Some(path), out),
        Some(HostAddress::Pipe(_)) | None => false,
    }
}

fn hostname() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        nix::unistd::gethostname()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default()
    })
}

/// CamelCase name of a gRPC status; unknown codes as numbers.
fn grpc_status(code: Option<u32>, out: &mut Vec<u8>) -> bool {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    let Some(code) = code else { return false };
    match NAMES.get(code as usize) {
        Some(name) => optional(Some(name), out),
        None => number(u64::from(code), out),
    }
}
