//! First line of an HTTP/1 request or the HTTP/2 preface, for the HTTP inspector. Pure and made for hostile
//! input.

use crate::http::h1::parse::is_token_byte;

/// Most bytes looked at for a first line.
pub const MAX_FIRST_LINE: usize = 64 * 1024;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstLine {
    /// Cannot be told yet.
    NeedMore,
    /// No HTTP.
    NotHttp,
    /// `HTTP/1.0` (or 0.9-like minor versions other than 1).
    Http10,
    /// `HTTP/1.1`.
    Http11,
    /// The HTTP/2 connection preface.
    Http2,
}

/// Looks at everything read so far.
#[must_use]
pub fn parse_first_line(bytes: &[u8]) -> FirstLine {
    let n = bytes.len().min(PREFACE.len());
    if bytes[..n] == PREFACE[..n] {
        return if n == PREFACE.len() {
            FirstLine::Http2
        } else {
            FirstLine::NeedMore
        };
    }
    // Blank lines before the request are allowed.
    let start = bytes
        .iter()
        .position(|b| !matches!(b, b'\r' | b'\n'))
        .unwrap_or(bytes.len());
    let line = &bytes[start..];
    let end = memchr::memchr(b'\n', line);
    let text = end.map_or(line, |e| &line[..e]);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let whole = end.is_some();
    let undecided = if bytes.len() < MAX_FIRST_LINE {
        FirstLine::NeedMore
    } else {
        FirstLine::NotHttp
    };
    let Some(space) = memchr::memchr(b' ', text) else {
        let plausible = !whole && text.iter().all(|b| is_token_byte(*b));
        return if plausible {
            undecided
        } else {
            FirstLine::NotHttp
        };
    };
    let (method, rest) = (&text[..space], &text[space + 1..]);
    if method.is_empty() || !method.iter().all(|b| is_token_byte(*b)) {
        return FirstLine::NotHttp;
    }
    if rest.iter().any(|b| *b < 0x20 || *b == 0x7f) || rest.first() == Some(&b' ') {
        return FirstLine::NotHttp;
    }
    if !whole {
        return undecided;
    }
    let Some(space) = memchr::memchr(b' ', rest) else {
        return FirstLine::NotHttp;
    };
    match &rest[space + 1..] {
        b"HTTP/1.1" => FirstLine::Http11,
        b"HTTP/1.0" => FirstLine::Http10,
        _ => FirstLine::NotHttp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines_are_classified() {
        use FirstLine::{Http2, Http10, Http11, NeedMore, NotHttp};
        let cases: [(&[u8], FirstLine); 15] = [
            (b"", NeedMore),
            (b"GE", NeedMore),
            (b"GET / HTTP/1.1", NeedMore),
            (b"GET / HTTP/1.1\r\n", Http11),
            (b"\r\nGET / HTTP/1.1\n", Http11),
            (b"GET / HTTP/1.0\r\n", Http10),
            (b"GET / HTTP/3.0\r\n", NotHttp),
            (b"GET /\r\n", NotHttp),
            (b"hello\r\n", NotHttp),
            (b"\x00\x01", NotHttp),
            (b"PRI * HTTP/2.0\r\n", NeedMore),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http2),
            (b"PRI * HTTP/2.0\r\n\r\nXM\r\n\r\n", NotHttp),
            (b" GET / HTTP/1.1\r\n", NotHttp),
            (b"GET  / HTTP/1.1\r\n", NotHttp),
        ];
        for (bytes, expected) in cases {
            assert_eq!(
                parse_first_line(bytes),
                expected,
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    #[test]
    fn an_endless_line_is_given_up() {
        assert_eq!(
            parse_first_line(&vec![b'A'; MAX_FIRST_LINE]),
            FirstLine::NotHttp
        );
    }
}
