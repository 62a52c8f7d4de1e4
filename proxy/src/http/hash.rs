//! Hash policies of a route.

use outrigger_config::route::{HashPolicy, HashPolicyKind};
use xxhash_rust::xxh64::xxh64;

use crate::http::headers::Headers;
use crate::http::route::query_parameter;
use crate::stream_info::StreamInfo;

/// Hash of a request and the cookie to set when one was generated.
#[derive(Debug, Default)]
pub struct Hashed {
    /// `None` = no policy produced one.
    pub hash: Option<u64>,
    /// Value of `set-cookie`.
    pub set_cookie: Option<String>,
}

/// Evaluates the policies in order; a terminal one that produced a hash ends it.
#[must_use]
pub fn evaluate(
    policies: &[HashPolicy],
    headers: &Headers,
    info: &StreamInfo,
    random: impl Fn() -> u64,
) -> Hashed {
    let mut out = Hashed::default();
    for policy in policies {
        let new = match &policy.kind {
            HashPolicyKind::Header(name) => headers.get(name.as_bytes()).map(|v| xxh64(v, 0)),
            HashPolicyKind::SourceIp => Some(xxh64(
                info.remote.ip().to_canonical().to_string().as_bytes(),
                0,
            )),
            HashPolicyKind::QueryParameter(name) => {
                query_parameter(headers.path(), name.as_bytes()).map(|v| xxh64(v, 0))
            }
            HashPolicyKind::Cookie { name, ttl, path } => match cookie(headers, name) {
                Some(value) => Some(xxh64(value, 0)),
                None => ttl.map(|ttl| {
                    let value = format!("{:016x}", random());
                    let mut text = format!("{name}=\"{value}\"");
                    if !ttl.is_zero() {
                        text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
                    }
                    if !path.is_empty() {
                        text.push_str(&format!("; Path={path}"));
                    }
                    text.push_str("; HttpOnly");
                    out.set_cookie = Some(text);
                    xxh64(value.as_bytes(), 0)
                }),
            },
        };
        if let Some(new) = new {
            out.hash = Some(out.hash.map_or(new, |old| old.rotate_left(1) ^ new));
            if policy.terminal {
                break;
            }
        }
    }
    out
}

/// Value of a request cookie without quotes.
fn cookie<'a>(headers: &'a Headers, name: &str) -> Option<&'a [u8]> {
    headers
        .iter()
        .filter(|(n, _)| *n == b"cookie")
        .flat_map(|(_, line)| line.split(|c| *c == b';'))
        .find_map(|pair| {
            let pair = pair.trim_ascii();
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(
                value
                    .strip_prefix(b"\"")
                    .and_then(|v| v.strip_suffix(b"\""))
                    .unwrap_or(value),
            )
        })
}
