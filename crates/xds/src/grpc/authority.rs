//! Request heads on a unix socket, made acceptable: gRPC libraries (C++, Python, Java and others)
//! send the socket's path as `:authority`, which is none, and the HTTP/2 library resets such streams.
//! Bytes that no authority may contain are replaced in place, so that lengths, and with them the
//! peer's header table, stay as they are. Nothing reads the authority of a local socket.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Client connection preface.
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// In the static table of HPACK; some libraries spell the name out all the same.
const AUTHORITY: &[u8] = b":authority";
const AUTHORITY_INDEX: u64 = 1;

/// A server's side of a connection.
#[derive(Debug)]
pub(super) struct LocalAuthority<T> {
    io: T,
    frames: Frames,
}

impl<T> LocalAuthority<T> {
    pub(super) fn new(io: T) -> Self {
        Self {
            io,
            frames: Frames::default(),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for LocalAuthority<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if polled.is_ready() {
            self.frames.correct(&mut buffer.filled_mut()[before..]);
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for LocalAuthority<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Where in the stream of frames the next byte stands. Keeps no bytes but a frame's header.
#[derive(Debug)]
struct Frames {
    /// Bytes of the preface still to come.
    preface: usize,
    header: [u8; FRAME_HEADER],
    header_len: usize,
    /// Bytes of the payload still to come.
    payload: usize,
    /// Of a HEADERS frame: whether the pad length comes next, priority bytes, padding at the end.
    pad_length_next: bool,
    priority: usize,
    padding: usize,
    /// Whether the payload holds a header block.
    block: bool,
    fields: Fields,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            preface: PREFACE,
            header: [0; FRAME_HEADER],
            header_len: 0,
            payload: 0,
            pad_length_next: false,
            priority: 0,
            padding: 0,
            block: false,
            fields: Fields::Start,
        }
    }
}

impl Frames {
    fn correct(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let skipped = self.skip(bytes.len() - at);
            if skipped > 0 {
                at += skipped;
                continue;
            }
            self.byte(&mut bytes[at]);
            at += 1;
        }
    }

    /// Bytes that need no look: the preface and payloads without a header block.
    fn skip(&mut self, available: usize) -> usize {
        let wanted = match self.preface {
            0 if self.payload > 0 && !self.block => &mut self.payload,
            0 => return 0,
            _ => &mut self.preface,
        };
        let skipped = available.min(*wanted);
        *wanted -= skipped;
        skipped
    }

    fn byte(&mut self, byte: &mut u8) {
        if self.payload == 0 {
            self.header[self.header_len] = *byte;
            self.header_len += 1;
            if self.header_len == FRAME_HEADER {
                self.start();
            }
            return;
        }
        self.payload -= 1;
        if self.pad_length_next {
            self.pad_length_next = false;
            self.padding = usize::from(*byte);
        } else if self.priority > 0 {
            self.priority -= 1;
        } else if self.payload >= self.padding {
            self.fields.byte(byte);
        }
    }

    fn start(&mut self) {
        let [a, b, c, kind, flags, ..] = self.header;
        self.header_len = 0;
        self.payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.block = matches!(kind, HEADERS | CONTINUATION);
        self.pad_length_next = kind == HEADERS && flags & PADDED != 0;
        self.priority = if kind == HEADERS && flags & PRIORITY != 0 {
            5
        } else {
            0
        };
        self.padding = 0;
        if kind == HEADERS {
            self.fields = Fields::Start;
        }
    }
}

/// Where in a header block the next byte stands. Broken blocks are the library's to refuse.
#[derive(Debug, Clone, Copy)]
enum Fields {
    /// A field's first byte.
    Start,
    /// The rest of a number, so far and shifted; then what it was for.
    Number(u64, u32, Purpose),
    /// The first byte of a text's length.
    Length(Place),
    /// Bytes of a text still to come.
    Text(u64, Place, bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// An entry of the table, or the table's size: nothing follows.
    Nothing,
    /// The name of a literal field.
    Name,
    /// The length of a text, and whether its bytes are plain.
    Length(Place, bool),
}

/// Which text of a literal field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The name, and how much of it is that of the authority; `None` when it is another.
    Name(Option<usize>),
    /// The value, and whether it is the authority.
    Value(bool),
}

impl Fields {
    fn byte(&mut self, byte: &mut u8) {
        *self = match *self {
            Self::Start => Self::start(*byte),
            Self::Number(so_far, shift, purpose) => {
                let part = u64::from(*byte & 0x7f);
                let number = so_far.saturating_add(part.checked_shl(shift).unwrap_or(u64::MAX));
                match *byte & 0x80 {
                    0 => Self::after(number, purpose),
                    _ => Self::Number(number, shift.saturating_add(7), purpose),
                }
            }
            Self::Length(place) => {
                Self::prefixed(*byte, 0x7f, Purpose::Length(place, *byte & 0x80 == 0))
            }
            Self::Text(left, Place::Name(matched), plain) => {
                let matched = matched.filter(|n| plain && AUTHORITY.get(*n) == Some(&*byte));
                Self::text(left - 1, Place::Name(matched.map(|n| n + 1)), plain)
            }
            Self::Text(left, Place::Value(authority), plain) => {
                let known = b".-_~:[]";
                if authority && plain && !(byte.is_ascii_alphanumeric() || known.contains(byte)) {
                    *byte = b'-';
                }
                Self::text(left - 1, Place::Value(authority), plain)
            }
        };
    }

    fn start(byte: u8) -> Self {
        match byte {
            0x80.. => Self::prefixed(byte, 0x7f, Purpose::Nothing),
            0x40.. => Self::prefixed(byte, 0x3f, Purpose::Name),
            0x20.. => Self::prefixed(byte, 0x1f, Purpose::Nothing),
            _ => Self::prefixed(byte, 0x0f, Purpose::Name),
        }
    }

    /// A number begins in the low bits of a byte and goes on if they are all set.
    fn prefixed(byte: u8, mask: u8, purpose: Purpose) -> Self {
        let first = u64::from(byte & mask);
        if first < u64::from(mask) {
            Self::after(first, purpose)
        } else {
            Self::Number(first, 0, purpose)
        }
    }

    fn after(number: u64, purpose: Purpose) -> Self {
        match purpose {
            Purpose::Nothing => Self::Start,
            Purpose::Name if number == 0 => Self::Length(Place::Name(Some(0))),
            Purpose::Name => Self::Length(Place::Value(number == AUTHORITY_INDEX)),
            Purpose::Length(place, plain) => Self::text(number, place, plain),
        }
    }

    fn text(left: u64, place: Place, plain: bool) -> Self {
        match (left, place) {
            (0, Place::Name(matched)) => {
                Self::Length(Place::Value(matched == Some(AUTHORITY.len())))
            }
            (0, Place::Value(_)) => Self::Start,
            _ => Self::Text(left, place, plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// `:method: POST`, a size update, `:authority: value` twice, `long: …` with a new name.
    fn block(value: &[u8], long: &[u8]) -> Vec<u8> {
        let length = |n: usize| u8::try_from(n).expect("short");
        let mut out = vec![0x83, 0x3f, 0xe1, 0x1f, 0x41, length(value.len())];
        out.extend(value);
        out.extend([0x40, 10]);
        out.extend(AUTHORITY);
        out.push(length(value.len()));
        out.extend(value);
        out.extend([0x00, 4]);
        out.extend(b":aut");
        let rest = long.len() - 127;
        out.extend([0x7f, length(rest & 0x7f) | 0x80, length(rest >> 7)]);
        out.extend(long);
        out
    }

    fn stream(value: &[u8]) -> Vec<u8> {
        let long = vec![b'%'; 300];
        let block = block(value, &long);
        let padded = [&[3][..], &[0, 0, 0, 0, 7], &block, &[0x41, 1, b'%']].concat();
        let (first, second) = block.split_at(10);
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, &[0, 3, 0, 0, 0, 9]),
            frame(HEADERS, 0x4 | PADDED | PRIORITY, &padded),
            frame(0, 0, b"\x41\x01%"),
            frame(HEADERS, 0, first),
            frame(CONTINUATION, 4, second),
        ]
        .concat()
    }

    #[test]
    fn only_the_authority_changes_however_the_bytes_arrive() {
        let sent = stream(b"tmp%2Fa/b.sock");
        let want = stream(b"tmp-2Fa-b.sock");
        for piece in [1, 2, 3, 7, 64, sent.len()] {
            let mut frames = Frames::default();
            let mut bytes = sent.clone();
            for chunk in bytes.chunks_mut(piece) {
                frames.correct(chunk);
            }
            assert!(bytes == want, "pieces of {piece}");
        }
        let mut proper = stream(b"[::1]:15010");
        Frames::default().correct(&mut proper);
        assert!(proper == stream(b"[::1]:15010"));
    }

    #[test]
    fn broken_blocks_neither_panic_nor_change() {
        let mut seed: u64 = 0x2545_f491_4f6c_dd1d;
        for _ in 0..2_000 {
            let mut noise = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x40\x01\x04\0\0\0\x01".to_vec();
            for _ in 0..64 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                noise.push(seed.to_le_bytes()[3]);
            }
            // Only that it returns matters.
            Frames::default().correct(&mut noise);
        }
        let endless = [&[0x41][..], &[0xff; 200]].concat();
        let mut bytes = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(1, 4, &endless),
        ]
        .concat();
        let before = bytes.clone();
        Frames::default().correct(&mut bytes);
        assert_eq!(bytes, before);
    }
}
