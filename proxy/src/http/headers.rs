//! Request and response heads. Names are lower case; pseudo-headers have slots of their own. Values point
//! into the bytes they were read from, additions into one append area: a head costs two allocations.

use bytes::Bytes;

/// A piece of text in one of the two areas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Text {
    start: u32,
    /// Length, with the top bit set for the append area.
    len: u32,
}

const EXTRA: u32 = 1 << 31;

/// First size of the append area: what a sidecar adds to a head.
const EXTRA_SIZE: usize = 256;

impl Text {
    /// A range of the head bytes. Heads are limited to far less than 2 GiB by the codecs.
    #[must_use]
    pub const fn head(start: usize, len: usize) -> Self {
        Self {
            start: start as u32,
            len: len as u32 & !EXTRA,
        }
    }

    /// No bytes.
    pub const EMPTY: Self = Self { start: 0, len: 0 };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    name: Text,
    value: Text,
}

/// The head (or trailers) of a message.
#[derive(Debug, Clone, Default)]
pub struct Headers {
    head: Bytes,
    extra: Vec<u8>,
    entries: Vec<Entry>,
    method: Option<Text>,
    path: Option<Text>,
    authority: Option<Text>,
    scheme: Option<Text>,
    status: u16,
}

impl Headers {
    /// No headers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Headers over the bytes they were parsed from, with room for `entries` of them.
    #[must_use]
    pub fn with_head(head: Bytes, entries: usize) -> Self {
        // Four more lines than came in is what a sidecar adds to a request.
        Self {
            head,
            entries: Vec::with_capacity(entries + 4),
            ..Self::default()
        }
    }

    /// Gives the head bytes after the entries were pushed (for parsers that fill ranges first).
    pub fn attach_head(&mut self, head: Bytes) {
        self.head = head;
    }

    /// Adds a line whose name and value are ranges of the head.
    pub fn push_head(&mut self, name: Text, value: Text) {
        self.entries.push(Entry { name, value });
    }

    fn text(&self, t: Text) -> &[u8] {
        let (area, len): (&[u8], u32) = if t.len & EXTRA == 0 {
            (&self.head, t.len)
        } else {
            (&self.extra, t.len & !EXTRA)
        };
        area.get(t.start as usize..(t.start + len) as usize)
            .unwrap_or_default()
    }

    /// Copies text into the append area.
    fn store(&mut self, text: &[u8]) -> Text {
        if self.extra.capacity() == 0 {
            self.extra.reserve(EXTRA_SIZE.max(text.len()));
        }
        let start = self.extra.len() as u32;
        self.extra.extend_from_slice(text);
        Text {
            start,
            len: text.len() as u32 | EXTRA,
        }
    }

    /// Response status; 0 in requests.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// Sets the response status.
    pub const fn set_status(&mut self, status: u16) {
        self.status = status;
    }

    /// `:method`, empty when absent.
    #[must_use]
    pub fn method(&self) -> &[u8] {
        self.method.map_or(b"", |t| self.text(t))
    }

    /// `:path` with the query, empty when absent.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.path.map_or(b"", |t| self.text(t))
    }

    /// `:path` without the query.
    #[must_use]
    pub fn path_without_query(&self) -> &[u8] {
        let path = self.path();
        memchr::memchr(b'?', path).map_or(path, |i| &path[..i])
    }

    /// `:authority`, empty when absent.
    #[must_use]
    pub fn authority(&self) -> &[u8] {
        self.authority.map_or(b"", |t| self.text(t))
    }

    /// `:scheme`, empty when absent.
    #[must_use]
    pub fn scheme(&self) -> &[u8] {
        self.scheme.map_or(b"", |t| self.text(t))
    }

    /// Whether `:path` is present.
    #[must_use]
    pub const fn has_path(&self) -> bool {
        self.path.is_some()
    }

    /// Whether `:authority` is present.
    #[must_use]
    pub const fn has_authority(&self) -> bool {
        self.authority.is_some()
    }

    /// Sets `:method` to a range of the head.
    pub const fn set_method_text(&mut self, t: Text) {
        self.method = Some(t);
    }

    /// Sets `:path` to a range of the head.
    pub const fn set_path_text(&mut self, t: Text) {
        self.path = Some(t);
    }

    /// Sets `:authority` to a range of the head.
    pub const fn set_authority_text(&mut self, t: Text) {
        self.authority = Some(t);
    }

    /// Sets `:method`.
    pub fn set_method(&mut self, v: &[u8]) {
        self.method = Some(self.store(v));
    }

    /// Sets `:path`.
    pub fn set_path(&mut self, v: &[u8]) {
        self.path = Some(self.store(v));
    }

    /// Removes `:path` (CONNECT).
    pub const fn clear_path(&mut self) {
        self.path = None;
    }

    /// Sets `:authority`.
    pub fn set_authority(&mut self, v: &[u8]) {
        self.authority = Some(self.store(v));
    }

    /// Sets `:scheme`.
    pub fn set_scheme(&mut self, v: &[u8]) {
        self.scheme = Some(self.store(v));
    }

    /// First value of a lower-case name; pseudo-headers and `host` (the authority) included. `:status` is not.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        if name.first() == Some(&b':') {
            return match name {
                b":method" => self.method,
                b":path" => self.path,
                b":authority" => self.authority,
                b":scheme" => self.scheme,
                _ => None,
            }
            .map(|t| self.text(t));
        }
        if name == b"host" && self.authority.is_some() {
            return Some(self.authority());
        }
        self.position(name)
            .map(|i| self.text(self.entries[i].value))
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        self.position_from(0, name)
    }

    fn position_from(&self, from: usize, name: &[u8]) -> Option<usize> {
        let rest = self.entries.get(from..)?;
        let found = rest.iter().position(|e| {
            (e.name.len & !EXTRA) as usize == name.len() && self.text(e.name) == name
        });
        found.map(|i| from + i)
    }

    /// Every value of a lower-case regular name, in order.
    pub fn get_all<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.iter().filter(move |(n, _)| *n == name).map(|(_, v)| v)
    }

    /// Whether a regular header is present.
    #[must_use]
    pub fn contains(&self, name: &[u8]) -> bool {
        self.position(name).is_some()
    }

    /// Appends the regular headers as lines of an HTTP/1 head. Lines that are still as they were read are copied
    /// in one piece.
    pub fn write_lines(&self, out: &mut Vec<u8>) {
        for e in &self.entries {
            let end = e.name.start + e.name.len;
            // Both in the head and two bytes apart; a length with the top bit set never fits.
            let as_read = e.value.start == end + 2 && (e.name.len | e.value.len) & EXTRA == 0;
            let line = e.name.start as usize..(e.value.start + (e.value.len & !EXTRA)) as usize;
            match self.head.get(line) {
                Some(line) if as_read && line[e.name.len as usize..].starts_with(b": ") => {
                    out.extend_from_slice(line);
                }
                _ => {
                    out.extend_from_slice(self.text(e.name));
                    out.extend_from_slice(b": ");
                    out.extend_from_slice(self.text(e.value));
                }
            }
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Regular headers in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + '_ {
        self.entries
            .iter()
            .map(|e| (self.text(e.name), self.text(e.value)))
    }

    /// Number of regular headers.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// No regular headers.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a line at the end.
    pub fn append(&mut self, name: &[u8], value: &[u8]) {
        let entry = Entry {
            name: self.store(name),
            value: self.store(value),
        };
        self.entries.push(entry);
    }

    /// Replaces the first line of that name (dropping further ones) or adds one.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.position(name) {
            Some(i) => {
                self.entries[i].value = self.store(value);
                if self.position_from(i + 1, name).is_some() {
                    let mut first = true;
                    self.retain(|n, _| n != name || std::mem::take(&mut first));
                }
            }
            None => self.append(name, value),
        }
    }

    /// Adds a line unless one of that name is there.
    pub fn set_if_absent(&mut self, name: &[u8], value: &[u8]) {
        if !self.contains(name) {
            self.append(name, value);
        }
    }

    /// Removes every line of that name; true if there was one.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        if self.position(name).is_none() {
            return false;
        }
        self.retain(|n, _| n != name);
        true
    }

    /// Keeps the lines for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let Self {
            head,
            extra,
            entries,
            ..
        } = self;
        entries.retain(|e| keep(resolve(head, extra, e.name), resolve(head, extra, e.value)));
    }

    /// Bytes of names and values, as `%REQUEST_HEADERS_BYTES%` counts them.
    #[must_use]
    pub fn byte_size(&self) -> usize {
        self.iter().map(|(n, v)| n.len() + v.len()).sum()
    }
}

fn resolve<'a>(head: &'a [u8], extra: &'a [u8], t: Text) -> &'a [u8] {
    let (area, len) = if t.len & EXTRA == 0 {
        (head, t.len)
    } else {
        (extra, t.len & !EXTRA)
    };
    area.get(t.start as usize..(t.start + len) as usize)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_replaces_the_first_line_and_drops_the_others() {
        let mut h = Headers::new();
        h.append(b"a", b"1");
        h.append(b"b", b"2");
        h.append(b"a", b"3");
        h.set(b"a", b"9");
        let all: Vec<_> = h.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
        assert_eq!(
            all,
            [
                (b"a".to_vec(), b"9".to_vec()),
                (b"b".to_vec(), b"2".to_vec())
            ]
        );
    }

    #[test]
    fn pseudo_headers_are_found_by_name_and_host_is_the_authority() {
        let mut h = Headers::new();
        h.set_path(b"/x?y");
        h.set_authority(b"example");
        assert_eq!(h.get(b":path"), Some(&b"/x?y"[..]));
        assert_eq!(h.path_without_query(), b"/x");
        assert_eq!(h.get(b"host"), Some(&b"example"[..]));
        assert!(h.is_empty());
    }

    #[test]
    fn lines_are_written_the_same_however_they_were_read_or_changed() {
        let head = b"one: 1\r\ntwo:2\r\nthree:  3\r\nfour: 4\r\nfive:\r\n";
        let mut h = Headers::with_head(Bytes::from_static(head), 5);
        for (name, value) in [(0, 5), (8, 12), (15, 23), (26, 32), (35, 40)] {
            let (text, end) = (&head[name..], &head[value..]);
            let colon = memchr::memchr(b':', text).expect("a line");
            let line = memchr::memchr(b'\r', end).expect("a line");
            h.push_head(Text::head(name, colon), Text::head(value, line));
        }
        h.set(b"four", b"44");
        h.append(b"six", b"6");
        let mut out = Vec::new();
        h.write_lines(&mut out);
        let want = b"one: 1\r\ntwo: 2\r\nthree: 3\r\nfour: 44\r\nfive: \r\nsix: 6\r\n";
        assert_eq!(out, want);
    }
}
