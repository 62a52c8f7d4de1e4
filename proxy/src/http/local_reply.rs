//! Every response the proxy itself makes, in its HTTP and gRPC shapes, with Envoy's status, body and details.

use std::borrow::Cow;

use crate::error::Flag;
use crate::http::headers::Headers;

/// A response made here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalReply {
    /// HTTP status.
    pub status: u16,
    /// Body, `text/plain`.
    pub body: Cow<'static, str>,
    /// Response code details.
    pub details: Cow<'static, str>,
    /// Response flag.
    pub flag: Option<Flag>,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// The connection closes after it.
    pub close: bool,
}

impl LocalReply {
    /// A reply without body, flag or close.
    #[must_use]
    pub const fn new(status: u16, details: &'static str) -> Self {
        Self {
            status,
            body: Cow::Borrowed(""),
            details: Cow::Borrowed(details),
            flag: None,
            headers: Vec::new(),
            close: false,
        }
    }

    /// With a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Cow<'static, str>>) -> Self {
        self.body = body.into();
        self
    }

    /// With a flag.
    #[must_use]
    pub const fn flag(mut self, flag: Flag) -> Self {
        self.flag = Some(flag);
        self
    }

    /// Closing the connection.
    #[must_use]
    pub const fn close(mut self) -> Self {
        self.close = true;
        self
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The response head and body. gRPC requests get 200 with `grpc-status` and `grpc-message` and no body.
    #[must_use]
    pub fn into_response(self, grpc: bool) -> (Headers, Cow<'static, str>) {
        let mut headers = Headers::new();
        if grpc {
            headers.set_status(200);
            headers.append(b"content-type", b"application/grpc");
            headers.append(
                b"grpc-status",
                grpc_status(self.status).to_string().as_bytes(),
            );
            if !self.body.is_empty() {
                headers.append(b"grpc-message", percent_encode(&self.body).as_bytes());
            }
            for (name, value) in &self.headers {
                headers.append(name.as_bytes(), value.as_bytes());
            }
            return (headers, Cow::Borrowed(""));
        }
        headers.set_status(self.status);
        for (name, value) in &self.headers {
            headers.append(name.as_bytes(), value.as_bytes());
        }
        if !self.body.is_empty() {
            headers.append(b"content-length", self.body.len().to_string().as_bytes());
            headers.append(b"content-type", b"text/plain");
        }
        (headers, self.body)
    }
}

/// HTTP status to gRPC status, as Envoy maps local replies.
#[must_use]
pub const fn grpc_status(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// gRPC percent encoding of a message.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Whether a request (or response) is gRPC by its content type.
#[must_use]
pub fn is_grpc(headers: &Headers) -> bool {
    headers.get(b"content-type").is_some_and(|v| {
        v.strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_request_gets_a_trailers_only_answer() {
        let reply = LocalReply::new(503, "no_healthy_upstream").body("no healthy upstream");
        let (headers, body) = reply.into_response(true);
        assert_eq!(headers.status(), 200);
        assert_eq!(headers.get(b"grpc-status"), Some(&b"14"[..]));
        assert_eq!(
            headers.get(b"grpc-message"),
            Some(&b"no healthy upstream"[..])
        );
        assert!(body.is_empty());
    }

    #[test]
    fn a_body_brings_length_and_type() {
        let (headers, body) = LocalReply::new(404, "route_not_found")
            .body("é")
            .into_response(false);
        assert_eq!(headers.get(b"content-length"), Some(&b"2"[..]));
        assert_eq!(headers.get(b"content-type"), Some(&b"text/plain"[..]));
        assert_eq!(body, "é");
    }
}
