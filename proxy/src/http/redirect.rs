//! Redirects and path rewriting.

use outrigger_config::route::{PathMatch, Redirect, RedirectPath, RegexRewrite, Route};

use crate::http::headers::Headers;
use crate::http::local_reply::LocalReply;
use crate::http::request::split_port;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// 301 to the same place by https (`require_tls`).
#[must_use]
pub fn to_https(headers: &Headers) -> LocalReply {
    let location = format!(
        "https://{}{}",
        text(headers.authority()),
        text(headers.path())
    );
    LocalReply::new(301, "direct_response").header("location", location)
}

/// The path with the matched prefix replaced, query kept.
#[must_use]
pub fn replace_prefix(route: &Route, path: &[u8], with: &str) -> Vec<u8> {
    let end = memchr::memchr(b'?', path).unwrap_or(path.len());
    let matched = match &route.matcher.path {
        PathMatch::Prefix(p) | PathMatch::PathSeparatedPrefix(p) => p.len(),
        PathMatch::Exact(_) | PathMatch::Regex(_) => end,
        PathMatch::Connect => 0,
    };
    let mut out = with.as_bytes().to_vec();
    out.extend_from_slice(path.get(matched..).unwrap_or_default());
    out
}

/// The path rewritten by a regex over it without the query.
#[must_use]
pub fn replace_regex(rewrite: &RegexRewrite, path: &[u8]) -> Vec<u8> {
    let end = memchr::memchr(b'?', path).unwrap_or(path.len());
    let Ok(plain) = std::str::from_utf8(&path[..end]) else {
        return path.to_vec();
    };
    let mut out = rewrite
        .pattern
        .search
        .replace_all(plain, &*rewrite.substitution)
        .into_owned()
        .into_bytes();
    out.extend_from_slice(&path[end..]);
    out
}

/// The `location` of a redirect action.
#[must_use]
pub fn location(action: &Redirect, route: &Route, headers: &Headers) -> String {
    let original = headers.path();
    let query_at = memchr::memchr(b'?', original).unwrap_or(original.len());
    let query = &original[query_at..];
    let path = match &action.path {
        RedirectPath::Keep => original.to_vec(),
        RedirectPath::Full(path) if path.contains('?') => path.as_bytes().to_vec(),
        RedirectPath::Full(path) => [path.as_bytes(), query].concat(),
        RedirectPath::Prefix(with) => replace_prefix(route, original, with),
        RedirectPath::Regex(rewrite) => replace_regex(rewrite, original),
    };
    let path = if action.strip_query {
        let own = matches!(&action.path, RedirectPath::Full(p) if p.contains('?'));
        let end = memchr::memchr(b'?', &path)
            .filter(|_| !own)
            .unwrap_or(path.len());
        path[..end].to_vec()
    } else {
        path
    };
    let scheme = action
        .scheme
        .as_deref()
        .map_or_else(|| text(headers.scheme()), str::to_owned);
    let (host, port) = split_port(headers.authority());
    let new_host = action
        .host
        .as_deref()
        .map_or_else(|| text(host), str::to_owned);
    let port = match (action.port, port) {
        (Some(port), _) => Some(port.to_string()),
        (None, Some(port))
            if action.host.is_none() && !default_port_changes(action, headers, port) =>
        {
            Some(text(port))
        }
        _ => None,
    };
    let port = port.map(|p| format!(":{p}")).unwrap_or_default();
    format!("{scheme}://{new_host}{port}{}", text(&path))
}

/// The old scheme's default port makes no sense with the new scheme.
fn default_port_changes(action: &Redirect, headers: &Headers, port: &[u8]) -> bool {
    let changed = action
        .scheme
        .as_deref()
        .is_some_and(|s| s.as_bytes() != headers.scheme());
    let default: &[u8] = if headers.scheme() == b"https" {
        b"443"
    } else {
        b"80"
    };
    changed && port == default
}
