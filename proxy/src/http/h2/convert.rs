//! Heads between the `http` crate's types and ours. Connection-specific lines never cross (RFC 9113 8.2.2).

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode, Uri};

use crate::http::headers::{Headers, Text};

/// Lines that must not appear in HTTP/2.
fn is_connection_specific(name: &[u8]) -> bool {
    matches!(
        name,
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade"
    )
}

/// Copies a map into one head area. Cookie crumbs are joined with `; ` as HTTP/1 needs them.
#[must_use]
pub fn from_map(map: &HeaderMap) -> Headers {
    let size = map.iter().map(|(n, v)| n.as_str().len() + v.len()).sum();
    let mut area = BytesMut::with_capacity(size);
    let mut headers = Headers::with_head(Bytes::new(), map.len());
    let mut cookies: Vec<&[u8]> = Vec::new();
    for (name, value) in map {
        let name = name.as_str().as_bytes();
        if name == b"host" {
            continue;
        }
        if name == b"cookie" {
            cookies.push(value.as_bytes());
            continue;
        }
        let at = area.len();
        area.put_slice(name);
        area.put_slice(value.as_bytes());
        headers.push_head(
            Text::head(at, name.len()),
            Text::head(at + name.len(), value.len()),
        );
    }
    headers.attach_head(area.freeze());
    if !cookies.is_empty() {
        headers.append(b"cookie", &cookies.join(&b"; "[..]));
    }
    headers
}

/// A request head as ours. The authority falls back to `host`.
#[must_use]
pub fn from_request(parts: &http::request::Parts) -> Headers {
    let mut headers = from_map(&parts.headers);
    headers.set_method(parts.method.as_str().as_bytes());
    if parts.method != Method::CONNECT || parts.uri.path_and_query().is_some() {
        let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        headers.set_path(path.as_bytes());
    }
    if let Some(scheme) = parts.uri.scheme_str() {
        headers.set_scheme(scheme.as_bytes());
    }
    let host = parts
        .headers
        .get(http::header::HOST)
        .map(HeaderValue::as_bytes);
    if let Some(authority) = parts
        .uri
        .authority()
        .map(|a| a.as_str().as_bytes())
        .or(host)
    {
        headers.set_authority(authority);
    }
    headers
}

/// Our lines as a map; lines the `http` crate refuses are left out (our codecs let none through).
#[must_use]
pub fn to_map(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter() {
        if is_connection_specific(name) || (name == b"te" && value != b"trailers") {
            continue;
        }
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    map
}

/// A response head for `h2`.
///
/// # Errors
/// The status is not one.
pub fn to_response(headers: &Headers) -> Result<http::Response<()>, http::Error> {
    let mut response = http::Response::new(());
    *response.status_mut() = StatusCode::from_u16(headers.status())?;
    *response.headers_mut() = to_map(headers);
    Ok(response)
}

/// A request head for `h2`.
///
/// # Errors
/// Method, authority or path are not valid for HTTP/2.
pub fn to_request(headers: &Headers) -> Result<http::Request<()>, http::Error> {
    let mut uri = Uri::builder();
    if headers.has_path() {
        let scheme = if headers.scheme().is_empty() {
            b"http"
        } else {
            headers.scheme()
        };
        uri = uri.scheme(scheme).path_and_query(headers.path());
    }
    if headers.has_authority() {
        uri = uri.authority(headers.authority());
    }
    let mut request = http::Request::new(());
    *request.method_mut() = Method::from_bytes(headers.method())?;
    *request.uri_mut() = uri.build()?;
    *request.headers_mut() = to_map(headers);
    Ok(request)
}
