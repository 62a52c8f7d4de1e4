//! Path normalisation as Envoy does it: dot segments, unreserved escapes, slashes.

use std::borrow::Cow;

use outrigger_config::http::EscapedSlashes;

/// What became of a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Normalized<'a> {
    /// Use this path.
    Path(Cow<'a, [u8]>),
    /// 307 to this path.
    Redirect(Vec<u8>),
    /// 400 `path_normalization_failed`.
    Reject,
}

/// Options of the connection manager.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// `normalize_path`.
    pub normalize: bool,
    /// `merge_slashes`.
    pub merge_slashes: bool,
    /// `path_with_escaped_slashes_action`.
    pub escaped_slashes: EscapedSlashes,
    /// `http_reject_path_with_fragment`.
    pub reject_fragment: bool,
}

const fn hex(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        b'A'..=b'F' => Some(c - b'A' + 10),
        _ => None,
    }
}

const fn is_unreserved(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'~')
}

/// Normalises a request target in origin form; the query is untouched.
#[must_use]
pub fn normalize<'a>(target: &'a [u8], options: &Options) -> Normalized<'a> {
    let mut target = Cow::Borrowed(target);
    if let Some(at) = memchr::memchr(b'#', &target) {
        if options.reject_fragment {
            return Normalized::Reject;
        }
        target = Cow::Owned(target[..at].to_vec());
    }
    let end = memchr::memchr(b'?', &target).unwrap_or(target.len());
    let clean = target[..end].iter().all(|c| !matches!(c, b'%' | b'\\'))
        && memchr::memmem::find(&target[..end], b"/.").is_none()
        && memchr::memmem::find(&target[..end], b"//").is_none()
        && target.first() == Some(&b'/');
    // The common case costs three scans and no allocation.
    if clean {
        return Normalized::Path(target);
    }
    let (path, query) = target.split_at(end);
    let mut path = path.to_vec();
    let mut redirect = false;
    if options.escaped_slashes != EscapedSlashes::KeepUnchanged {
        match (unescape_slashes(&path), options.escaped_slashes) {
            (None, _) => {}
            (Some(_), EscapedSlashes::RejectRequest) => return Normalized::Reject,
            (Some(p), EscapedSlashes::UnescapeAndRedirect) => {
                redirect = true;
                path = p;
            }
            (Some(p), _) => path = p,
        }
    }
    if options.normalize {
        if path.first() != Some(&b'/') {
            return Normalized::Reject;
        }
        path = remove_dot_segments(&decode_unreserved(&path));
    }
    if options.merge_slashes {
        path.dedup_by(|a, b| *a == b'/' && *b == b'/');
    }
    path.extend_from_slice(query);
    if redirect {
        Normalized::Redirect(path)
    } else {
        Normalized::Path(Cow::Owned(path))
    }
}

/// `%2F`, `%5C` decoded; `None` if there is none.
#[must_use]
pub fn unescape_slashes(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let (mut i, mut found) = (0, false);
    while i < path.len() {
        let escaped = match path.get(i..i + 3) {
            Some([b'%', b'2', b'f' | b'F']) => Some(b'/'),
            Some([b'%', b'5', b'c' | b'C']) => Some(b'\\'),
            _ => None,
        };
        out.push(escaped.unwrap_or(path[i]));
        found |= escaped.is_some();
        i += if escaped.is_some() { 3 } else { 1 };
    }
    found.then_some(out)
}

/// Escapes of unreserved characters decoded, backslashes turned into slashes, others kept as they are.
fn decode_unreserved(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut i = 0;
    while i < path.len() {
        let decoded = match path.get(i..i + 3) {
            Some([b'%', a, b]) => hex(*a)
                .zip(hex(*b))
                .map(|(a, b)| a * 16 + b)
                .filter(|c| is_unreserved(*c)),
            _ => None,
        };
        match decoded {
            Some(c) => {
                out.push(c);
                i += 3;
            }
            None => {
                out.push(if path[i] == b'\\' { b'/' } else { path[i] });
                i += 1;
            }
        }
    }
    out
}

/// RFC 3986 5.2.4.
fn remove_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<&[u8]> = Vec::new();
    let segments: Vec<&[u8]> = path.split(|c| *c == b'/').skip(1).collect();
    let last = segments.len().saturating_sub(1);
    for (i, segment) in segments.iter().enumerate() {
        match *segment {
            b"." if i == last => out.push(b""),
            b"." => {}
            b".." => {
                out.pop();
                if i == last {
                    out.push(b"");
                }
            }
            s => out.push(s),
        }
    }
    let mut joined = Vec::with_capacity(path.len());
    for segment in &out {
        joined.push(b'/');
        joined.extend_from_slice(segment);
    }
    if joined.is_empty() {
        joined.push(b'/');
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISTIO: Options = Options {
        normalize: true,
        merge_slashes: false,
        escaped_slashes: EscapedSlashes::KeepUnchanged,
        reject_fragment: false,
    };

    #[test]
    fn normalises_as_envoy_was_seen_to() {
        let table: &[(&str, &str)] = &[
            ("/a/../ok/./b//c%2Fd%2e", "/ok/b//c%2Fd."),
            ("/../ok", "/ok"),
            ("/%zz", "/%zz"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/plain?x=/../y", "/plain?x=/../y"),
            ("/ok#frag", "/ok"),
            ("/%2e%2e/x", "/x"),
        ];
        for (input, want) in table {
            match normalize(input.as_bytes(), &ISTIO) {
                Normalized::Path(p) => assert_eq!(String::from_utf8_lossy(&p), *want, "{input}"),
                other => panic!("{input}: {other:?}"),
            }
        }
    }

    #[test]
    fn escaped_slashes_follow_their_action() {
        let with = |escaped_slashes, merge_slashes| Options {
            escaped_slashes,
            merge_slashes,
            ..ISTIO
        };
        let path = b"/a%2Fb%5cc";
        assert_eq!(
            normalize(path, &with(EscapedSlashes::RejectRequest, false)),
            Normalized::Reject
        );
        assert_eq!(
            normalize(path, &with(EscapedSlashes::UnescapeAndRedirect, true)),
            Normalized::Redirect(b"/a/b/c".to_vec())
        );
        assert_eq!(
            normalize(path, &with(EscapedSlashes::UnescapeAndForward, false)),
            Normalized::Path(Cow::Owned(b"/a/b/c".to_vec()))
        );
    }
}
