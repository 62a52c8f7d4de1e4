//! HTTP/1 heads: finds the end, parses in place, lower-cases names, decides the body framing. Every refusal is
//! one of Envoy's.

use bytes::{Bytes, BytesMut};

use crate::http::h1::body::Framing;
use crate::http::headers::{Headers, Text};

/// Limits of a head.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the head.
    pub max_bytes: usize,
    /// Header lines.
    pub max_headers: usize,
}

/// Why a head was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not HTTP/1.
    #[error("http1.codec_error")]
    Codec,
    /// A control character in a value or the target.
    #[error("http1.invalid_characters")]
    InvalidCharacters,
    /// More bytes than allowed.
    #[error("http1.headers_too_large")]
    TooLarge,
    /// More lines than allowed.
    #[error("http1.too_many_headers")]
    TooMany,
    /// Both framings.
    #[error("http1.content_length_and_chunked_not_allowed")]
    LengthAndChunked,
    /// A transfer coding other than chunked.
    #[error("http1.invalid_transfer_encoding")]
    TransferEncoding,
}

/// A parsed request head.
#[derive(Debug)]
pub struct Request {
    /// Method, target (in `:path`), `host` (in `:authority`, joined by `,` if repeated), lines.
    pub headers: Headers,
    /// Body framing.
    pub framing: Framing,
    /// `HTTP/1.minor`; other majors are an error except for 2 (see `http2_version`).
    pub minor: u8,
    /// The line said another major version.
    pub other_major: bool,
    /// `connection: close`, or HTTP/1.0 without keep-alive.
    pub close: bool,
    /// Value of `upgrade` when `connection` lists it.
    pub upgrade: Option<Vec<u8>>,
    /// `expect: 100-continue`.
    pub expect_continue: bool,
    /// The target was in absolute form; scheme of it.
    pub absolute: Option<Vec<u8>>,
    /// Some header name holds an underscore.
    pub has_underscore: bool,
}

/// A parsed response head.
#[derive(Debug)]
pub struct Response {
    /// Status and lines.
    pub headers: Headers,
    /// Body framing as far as the head tells (HEAD and CONNECT are the caller's business).
    pub framing: Framing,
    /// The connection cannot be reused.
    pub close: bool,
}

/// Finds the end of a head: index just after the empty line. `from` is where the last search stopped.
#[must_use]
pub fn find_end(buf: &[u8], from: &mut usize) -> Option<usize> {
    let mut at = from.saturating_sub(3);
    while let Some(i) = memchr::memchr(b'\n', &buf[at..]) {
        let end = at + i;
        match (buf.get(end + 1), buf.get(end + 2)) {
            (Some(b'\n'), _) => return Some(end + 2),
            (Some(b'\r'), Some(b'\n')) => return Some(end + 3),
            _ => at = end + 1,
        }
    }
    *from = buf.len();
    None
}

/// `tchar` of RFC 9110 5.6.2.
pub(crate) const fn is_token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(
            b,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

const fn token_table() -> [bool; 256] {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = is_token_byte(i as u8);
        i += 1;
    }
    table
}

static TOKEN: [bool; 256] = token_table();

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|c| TOKEN[usize::from(*c)])
}

/// Lower-cases the name that `line` starts with; its length. `None` when it is empty, holds something else than
/// token characters or ends without a colon.
fn take_name(line: &mut [u8]) -> Option<usize> {
    for (i, c) in line.iter_mut().enumerate() {
        if TOKEN[usize::from(*c)] {
            *c = c.to_ascii_lowercase();
        } else {
            return (*c == b':' && i > 0).then_some(i);
        }
    }
    None
}

/// No control characters but tab.
fn is_value(text: &[u8]) -> bool {
    let visible = |c: u8| (c >= 0x20) & (c != 0x7f);
    // Without an early end a chunk is one vector operation; only a chunk with a control character is looked at
    // again.
    text.chunks(16).all(|c| {
        c.iter().fold(true, |ok, c| ok & visible(*c))
            || c.iter().all(|c| *c == b'\t' || visible(*c))
    })
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t' | b'\r'] = text {
        text = rest;
    }
    text
}

/// Lines of a head with their offsets, obs-folds already joined with one blank.
struct Lines<'a> {
    buf: &'a mut [u8],
    at: usize,
}

impl Lines<'_> {
    /// Range of the next line without its end; `None` at the empty line.
    fn next(&mut self) -> Option<(usize, usize)> {
        let start = self.at;
        let i = memchr::memchr(b'\n', self.buf.get(self.at..)?)?;
        let mut end = self.at + i;
        self.at = end + 1;
        let folded = end > start
            && self.buf.get(start) != Some(&b'\r')
            && matches!(self.buf.get(self.at), Some(b' ' | b'\t'));
        if folded {
            return self.unfold(start, end);
        }
        if end > start && self.buf[end - 1] == b'\r' {
            end -= 1;
        }
        (end > start).then_some((start, end))
    }

    /// Joins a continuation line: the line end and the indent become one blank.
    fn unfold(&mut self, start: usize, end: usize) -> Option<(usize, usize)> {
        let cr = end > start && self.buf[end - 1] == b'\r';
        let from = if cr { end - 1 } else { end };
        let mut to = self.at;
        while matches!(self.buf.get(to), Some(b' ' | b'\t')) {
            to += 1;
        }
        // Shift what came before to the right so that exactly one blank is left.
        let shift = to - from - 1;
        self.buf.copy_within(start..from, start + shift);
        self.buf[from + shift] = b' ';
        self.continued(start + shift, to)
    }

    /// The rest of a folded line that now starts at `start` and continues at `at`.
    fn continued(&mut self, start: usize, at: usize) -> Option<(usize, usize)> {
        self.at = at;
        let saved = start;
        let i = memchr::memchr(b'\n', self.buf.get(self.at..)?)?;
        let end = self.at + i;
        self.at = end + 1;
        if matches!(self.buf.get(self.at), Some(b' ' | b'\t')) {
            // Fold again: treat what is joined so far as one line by stepping back to its start.
            self.at = saved;
            return self.next();
        }
        let end = if end > start && self.buf[end - 1] == b'\r' {
            end - 1
        } else {
            end
        };
        Some((start, end))
    }
}

/// What header lines say about framing and connection, gathered in one pass.
#[derive(Default)]
struct Facts {
    length: Option<u64>,
    chunked: bool,
    connection_close: bool,
    connection_keep_alive: bool,
    connection_upgrade: bool,
    upgrade: Option<Vec<u8>>,
    expect_continue: bool,
    host: Option<Text>,
    more_hosts: Vec<Vec<u8>>,
    underscore: bool,
}

fn contains_token(value: &[u8], token: &[u8]) -> bool {
    value
        .split(|c| *c == b',')
        .any(|t| trim(t).eq_ignore_ascii_case(token))
}

fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    value.iter().try_fold(0_u64, |n, c| {
        c.is_ascii_digit().then(|| n * 10 + u64::from(c - b'0'))
    })
}

/// Parses the header lines of `lines` into `headers`.
fn parse_lines(
    lines: &mut Lines<'_>,
    headers: &mut Headers,
    limits: Limits,
    request: bool,
) -> Result<Facts, HeadError> {
    let mut facts = Facts::default();
    let mut count = 0;
    while let Some((start, end)) = lines.next() {
        count += 1;
        if count > limits.max_headers {
            return Err(HeadError::TooMany);
        }
        let line = &mut lines.buf[start..end];
        let colon = take_name(line).ok_or(HeadError::Codec)?;
        let (name, rest) = line.split_at(colon);
        let value = trim(&rest[1..]);
        if !is_value(value) {
            return Err(HeadError::InvalidCharacters);
        }
        let value_start =
            start + colon + 1 + (value.as_ptr() as usize - rest[1..].as_ptr() as usize);
        let value_text = Text::head(value_start, value.len());
        if request && name.contains(&b'_') {
            facts.underscore = true;
        }
        let keep = facts.observe(name, value, value_text, request)?;
        if keep {
            headers.push_head(Text::head(start, colon), value_text);
        }
    }
    Ok(facts)
}

impl Facts {
    /// Takes note of framing and connection headers; false if the line is not kept as a header.
    fn observe(
        &mut self,
        name: &[u8],
        value: &[u8],
        text: Text,
        request: bool,
    ) -> Result<bool, HeadError> {
        match name {
            b"content-length" => {
                let length = parse_length(value).ok_or(HeadError::Codec)?;
                if self.length.replace(length).is_some() {
                    return Err(HeadError::Codec);
                }
            }
            b"transfer-encoding" => {
                if !value.eq_ignore_ascii_case(b"chunked") || self.chunked {
                    return Err(HeadError::TransferEncoding);
                }
                self.chunked = true;
                return Ok(false);
            }
            b"connection" => {
                self.connection_close |= contains_token(value, b"close");
                self.connection_keep_alive |= contains_token(value, b"keep-alive");
                self.connection_upgrade |= contains_token(value, b"upgrade");
            }
            b"upgrade" => self.upgrade = Some(value.to_vec()),
            b"expect" if request => {
                self.expect_continue |= value.eq_ignore_ascii_case(b"100-continue");
            }
            b"host" if request => {
                if self.host.is_some() {
                    self.more_hosts.push(value.to_vec());
                } else {
                    self.host = Some(text);
                }
                return Ok(false);
            }
            _ => {}
        }
        Ok(true)
    }

    fn framing(&self) -> Result<Framing, HeadError> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(HeadError::LengthAndChunked),
            (true, None) => Ok(Framing::Chunked),
            (false, Some(0)) => Ok(Framing::None),
            (false, Some(n)) => Ok(Framing::Length(n)),
            (false, None) => Ok(Framing::None),
        }
    }
}

/// Parses `buf[..end]` (from [`find_end`]) as a request and takes those bytes out of `buf`.
///
/// # Errors
/// See [`HeadError`].
pub fn request(buf: &mut BytesMut, end: usize, limits: Limits) -> Result<Request, HeadError> {
    let mut head = buf.split_to(end);
    let mut headers = Headers::with_head(Bytes::new(), 24);
    let mut lines = Lines {
        buf: &mut head,
        at: 0,
    };
    let (start, stop) = lines.next().ok_or(HeadError::Codec)?;
    let line = &lines.buf[start..stop];
    let first = memchr::memchr(b' ', line).ok_or(HeadError::Codec)?;
    let last = memchr::memrchr(b' ', line)
        .filter(|l| *l > first)
        .ok_or(HeadError::Codec)?;
    let (method, target, version) = (&line[..first], &line[first + 1..last], &line[last + 1..]);
    if !is_token(method) {
        return Err(HeadError::Codec);
    }
    let [
        b'H',
        b'T',
        b'T',
        b'P',
        b'/',
        major @ b'0'..=b'9',
        b'.',
        minor @ b'0'..=b'9',
    ] = version
    else {
        return Err(HeadError::Codec);
    };
    let (other_major, minor) = (*major != b'1', minor - b'0');
    if target.iter().any(|c| *c < 0x20 || *c == 0x7f) {
        return Err(HeadError::InvalidCharacters);
    }
    if target.is_empty() || target.contains(&b' ') {
        return Err(HeadError::Codec);
    }
    let connect = method == b"CONNECT";
    headers.set_method_text(Text::head(start, first));
    let target_at = start + first + 1;
    let target_len = target.len();
    let absolute = (!connect).then(|| absolute_form(target)).flatten();
    let facts = parse_lines(&mut lines, &mut headers, limits, true)?;
    if let Some(host) = facts.host {
        headers.set_authority_text(host);
    }
    headers.attach_head(head.freeze());
    if !facts.more_hosts.is_empty() {
        let mut joined = headers.authority().to_vec();
        for host in &facts.more_hosts {
            joined.push(b',');
            joined.extend_from_slice(host);
        }
        headers.set_authority(&joined);
    }
    let mut scheme = None;
    if connect {
        headers.set_authority_text(Text::head(target_at, target_len));
    } else if let Some((s, host, path)) = absolute {
        scheme = Some(s);
        headers.set_authority(&host);
        headers.set_path(&path);
    } else {
        headers.set_path_text(Text::head(target_at, target_len));
    }
    let framing = facts.framing()?;
    let old = minor == 0 && !other_major;
    Ok(Request {
        framing,
        minor,
        other_major,
        close: facts.connection_close || (old && !facts.connection_keep_alive),
        upgrade: facts.upgrade.filter(|_| facts.connection_upgrade),
        expect_continue: facts.expect_continue,
        absolute: scheme,
        has_underscore: facts.underscore,
        headers,
    })
}

/// `scheme://host/path` split up; `None` when the target is not of that form.
fn absolute_form(target: &[u8]) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let at = memchr::memmem::find(target, b"://")?;
    let scheme = target[..at].to_ascii_lowercase();
    if !matches!(scheme.as_slice(), b"http" | b"https") {
        return None;
    }
    let rest = &target[at + 3..];
    let end = rest
        .iter()
        .position(|c| matches!(c, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    let mut path = rest[end..].to_vec();
    if path.first() != Some(&b'/') {
        path.insert(0, b'/');
    }
    Some((scheme, rest[..end].to_vec(), path))
}

/// Parses `buf[..end]` as a response and takes those bytes out of `buf`.
///
/// # Errors
/// See [`HeadError`].
pub fn response(buf: &mut BytesMut, end: usize, limits: Limits) -> Result<Response, HeadError> {
    let mut head = buf.split_to(end);
    let mut headers = Headers::with_head(Bytes::new(), 24);
    let mut lines = Lines {
        buf: &mut head,
        at: 0,
    };
    let (start, stop) = lines.next().ok_or(HeadError::Codec)?;
    let [
        b'H',
        b'T',
        b'T',
        b'P',
        b'/',
        b'1',
        b'.',
        minor @ b'0'..=b'9',
        b' ',
        rest @ ..,
    ] = &lines.buf[start..stop]
    else {
        return Err(HeadError::Codec);
    };
    let old = *minor == b'0';
    let [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', tail @ ..] = rest else {
        return Err(HeadError::Codec);
    };
    if !matches!(tail.first(), None | Some(b' ')) {
        return Err(HeadError::Codec);
    }
    let status = u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
    headers.set_status(status);
    let facts = parse_lines(&mut lines, &mut headers, limits, false)?;
    headers.attach_head(head.freeze());
    let no_body = status < 200 || status == 204 || status == 304;
    let framing = match (facts.chunked, facts.length) {
        (true, Some(_)) => return Err(HeadError::LengthAndChunked),
        _ if no_body => Framing::None,
        (true, None) => Framing::Chunked,
        (false, Some(0)) => Framing::None,
        (false, Some(n)) => Framing::Length(n),
        (false, None) => Framing::UntilClose,
    };
    let close = facts.connection_close || (old && !facts.connection_keep_alive);
    Ok(Response {
        headers,
        framing,
        close,
    })
}

/// Parses `buf[..end]` as a trailer section and takes those bytes out of `buf`.
///
/// # Errors
/// See [`HeadError`].
pub fn trailers(buf: &mut BytesMut, end: usize, limits: Limits) -> Result<Headers, HeadError> {
    let mut section = buf.split_to(end);
    let mut headers = Headers::with_head(Bytes::new(), 4);
    let mut lines = Lines {
        buf: &mut section,
        at: 0,
    };
    parse_lines(&mut lines, &mut headers, limits, false)?;
    headers.attach_head(section.freeze());
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        max_bytes: 61440,
        max_headers: 100,
    };

    fn parse(text: &[u8]) -> Result<Request, HeadError> {
        let mut buf = BytesMut::from(text);
        let mut from = 0;
        let end = find_end(&buf, &mut from).expect("complete head in the test");
        request(&mut buf, end, LIMITS)
    }

    #[test]
    fn parses_a_plain_request() {
        let r =
            parse(b"GET /a?b=c HTTP/1.1\r\nHost: X\r\nUser-Agent:  curl \r\n\r\n").expect("valid");
        assert_eq!(r.headers.method(), b"GET");
        assert_eq!(r.headers.path(), b"/a?b=c");
        assert_eq!(r.headers.authority(), b"X");
        assert_eq!(r.headers.get(b"user-agent"), Some(&b"curl"[..]));
        assert_eq!(r.framing, Framing::None);
        assert!(!r.close);
    }

    #[test]
    fn unfolds_with_one_blank_also_twice() {
        let r = parse(b"GET / HTTP/1.1\r\nhost: x\r\na: b\r\n   c\r\n\td\r\ne: f\r\n\r\n")
            .expect("valid");
        assert_eq!(r.headers.get(b"a"), Some(&b"b c d"[..]));
        assert_eq!(r.headers.get(b"e"), Some(&b"f"[..]));
    }

    #[test]
    fn refuses_as_envoy_does() {
        let table: &[(&[u8], HeadError)] = &[
            (b"G@T / HTTP/1.1\r\n\r\n", HeadError::Codec),
            (b"hello world\r\n\r\n", HeadError::Codec),
            (b"GET / HTTP/1.1\r\nna me: x\r\n\r\n", HeadError::Codec),
            (
                b"GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
                HeadError::Codec,
            ),
            (
                b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
                HeadError::Codec,
            ),
            (
                b"GET / HTTP/1.1\r\ncontent-length: +1\r\n\r\n",
                HeadError::Codec,
            ),
            (
                b"GET / HTTP/1.1\r\na: \x01\r\n\r\n",
                HeadError::InvalidCharacters,
            ),
            (b"GET /\x00 HTTP/1.1\r\n\r\n", HeadError::InvalidCharacters),
            (
                b"GET / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
                HeadError::LengthAndChunked,
            ),
            (
                b"GET / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n",
                HeadError::TransferEncoding,
            ),
            (
                b"GET / HTTP/1.1\r\ntransfer-encoding: xchunked\r\n\r\n",
                HeadError::TransferEncoding,
            ),
        ];
        for (text, error) in table {
            assert_eq!(
                parse(text).map(|_| ()),
                Err(*error),
                "{}",
                text.escape_ascii()
            );
        }
    }

    #[test]
    fn takes_the_authority_of_an_absolute_target_and_joins_two_hosts() {
        let r = parse(b"GET http://a.b/c HTTP/1.1\r\nhost: x\r\n\r\n").expect("valid");
        assert_eq!(
            (r.headers.authority(), r.headers.path()),
            (&b"a.b"[..], &b"/c"[..])
        );
        let r = parse(b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n").expect("valid");
        assert_eq!(r.headers.authority(), b"a,b");
    }

    #[test]
    fn accepts_bare_line_feeds() {
        let r = parse(b"GET / HTTP/1.1\nhost: x\n\n").expect("valid");
        assert_eq!(r.headers.authority(), b"x");
    }

    #[test]
    fn response_framing_follows_the_head() {
        let table: &[(&[u8], Framing)] = &[
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
                Framing::Length(3),
            ),
            (b"HTTP/1.1 200 OK\r\n\r\n", Framing::UntilClose),
            (b"HTTP/1.1 204 No Content\r\n\r\n", Framing::None),
            (
                b"HTTP/1.1 200\r\ntransfer-encoding: Chunked\r\n\r\n",
                Framing::Chunked,
            ),
        ];
        for (text, framing) in table {
            let mut buf = BytesMut::from(*text);
            let end = find_end(&buf, &mut 0).expect("complete");
            assert_eq!(
                response(&mut buf, end, LIMITS).expect("valid").framing,
                *framing
            );
        }
    }
}
