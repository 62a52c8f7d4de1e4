//! HTTP/1 body framing: decodes length, chunked and until-close bodies from a buffer.

use bytes::{Buf, Bytes, BytesMut};

use crate::http::h1::parse::{self, HeadError, Limits};
use crate::http::headers::Headers;

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// `content-length`.
    Length(u64),
    /// `transfer-encoding: chunked`.
    Chunked,
    /// Until the peer closes (responses only).
    UntilClose,
}

/// Decoder state.
#[derive(Debug)]
pub struct Decoder {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    Done,
}

/// A step of decoding.
#[derive(Debug)]
pub enum Step {
    /// Body bytes.
    Data(Bytes),
    /// The body is complete; trailers of a chunked one.
    End(Option<Headers>),
    /// Not enough bytes in the buffer.
    NeedMore,
}

/// Longest chunk-size line, extensions included.
const MAX_CHUNK_LINE: usize = 4096;

impl Decoder {
    /// A decoder for a framing.
    #[must_use]
    pub const fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// The body is complete.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Whether the peer's close ends the body properly.
    #[must_use]
    pub const fn ends_at_close(&self) -> bool {
        matches!(self.state, State::UntilClose | State::Done)
    }

    /// The peer closed.
    pub const fn finish(&mut self) {
        self.state = State::Done;
    }

    /// Takes the next piece out of `buf`.
    ///
    /// # Errors
    /// [`HeadError::Codec`] on bad chunk framing, or what a trailer line is refused for.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Step, HeadError> {
        loop {
            match self.state {
                State::Done => return Ok(Step::End(None)),
                State::Length(left) => {
                    if buf.is_empty() {
                        return Ok(Step::NeedMore);
                    }
                    let n = left.min(buf.len() as u64);
                    self.state = if left == n {
                        State::Done
                    } else {
                        State::Length(left - n)
                    };
                    return Ok(Step::Data(buf.split_to(n as usize).freeze()));
                }
                State::UntilClose => {
                    return Ok(if buf.is_empty() {
                        Step::NeedMore
                    } else {
                        Step::Data(buf.split().freeze())
                    });
                }
                State::ChunkSize => match chunk_size(buf)? {
                    None => return Ok(Step::NeedMore),
                    Some(0) => self.state = State::Trailers,
                    Some(n) => self.state = State::ChunkData(n),
                },
                State::ChunkData(left) => {
                    if buf.is_empty() {
                        return Ok(Step::NeedMore);
                    }
                    let n = left.min(buf.len() as u64);
                    self.state = if left == n {
                        State::ChunkEnd
                    } else {
                        State::ChunkData(left - n)
                    };
                    return Ok(Step::Data(buf.split_to(n as usize).freeze()));
                }
                State::ChunkEnd => match buf.as_ref() {
                    [b'\r', b'\n', ..] => {
                        buf.advance(2);
                        self.state = State::ChunkSize;
                    }
                    [b'\n', ..] => {
                        buf.advance(1);
                        self.state = State::ChunkSize;
                    }
                    [] | [b'\r'] => return Ok(Step::NeedMore),
                    _ => return Err(HeadError::Codec),
                },
                State::Trailers => {
                    let Some(trailers) = trailers(buf)? else {
                        return Ok(Step::NeedMore);
                    };
                    self.state = State::Done;
                    return Ok(Step::End(Some(trailers).filter(|t| !t.is_empty())));
                }
            }
        }
    }
}

/// Reads a chunk-size line; `None` = incomplete.
fn chunk_size(buf: &mut BytesMut) -> Result<Option<u64>, HeadError> {
    let Some(end) = memchr::memchr(b'\n', buf) else {
        return if buf.len() > MAX_CHUNK_LINE {
            Err(HeadError::Codec)
        } else {
            Ok(None)
        };
    };
    let line = &buf[..end];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let digits = line.iter().take_while(|c| c.is_ascii_hexdigit()).count();
    // Blanks may follow the size, then an extension; anything else is smuggling.
    let rest = line[digits..].trim_ascii_start();
    if digits == 0 || digits > 15 || !matches!(rest.first(), None | Some(b';')) {
        return Err(HeadError::Codec);
    }
    let size = line[..digits].iter().fold(0_u64, |n, c| {
        n * 16 + u64::from((*c as char).to_digit(16).unwrap_or(0))
    });
    buf.advance(end + 1);
    Ok(Some(size))
}

/// Reads the trailer section; `None` = incomplete.
fn trailers(buf: &mut BytesMut) -> Result<Option<Headers>, HeadError> {
    for empty in [&b"\r\n"[..], b"\n"] {
        if buf.starts_with(empty) {
            buf.advance(empty.len());
            return Ok(Some(Headers::new()));
        }
    }
    let Some(end) = parse::find_end(buf, &mut 0) else {
        return if buf.len() > 61_440 {
            Err(HeadError::TooLarge)
        } else {
            Ok(None)
        };
    };
    parse::trailers(
        buf,
        end,
        Limits {
            max_bytes: 61_440,
            max_headers: 100,
        },
    )
    .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(framing: Framing, input: &[u8]) -> Result<(Vec<u8>, bool), HeadError> {
        let mut decoder = Decoder::new(framing);
        let (mut buf, mut out) = (BytesMut::new(), Vec::new());
        // One byte at a time: every split point is a test.
        for byte in input {
            buf.extend_from_slice(&[*byte]);
            loop {
                match decoder.decode(&mut buf)? {
                    Step::Data(d) => out.extend_from_slice(&d),
                    Step::End(_) => return Ok((out, true)),
                    Step::NeedMore => break,
                }
            }
        }
        Ok((out, false))
    }

    #[test]
    fn decodes_chunks_with_extensions_and_trailers() {
        let body = b"3;x=y\r\nabc\r\nA \r\n0123456789\r\n0\r\nt: v\r\n\r\n";
        assert_eq!(
            decode_all(Framing::Chunked, body),
            Ok((b"abc0123456789".to_vec(), true))
        );
        assert_eq!(
            decode_all(Framing::Chunked, b"0\r\n\r\n"),
            Ok((Vec::new(), true))
        );
    }

    #[test]
    fn refuses_bad_chunks() {
        for bad in [
            &b"x\r\n"[..],
            b"3\r\nabcd\r\n",
            b"\r\n",
            b"-1\r\n",
            b"0x3\r\n",
            b"fffffffffffffffff\r\n",
        ] {
            assert_eq!(decode_all(Framing::Chunked, bad), Err(HeadError::Codec));
        }
    }

    #[test]
    fn stops_at_the_content_length() {
        assert_eq!(
            decode_all(Framing::Length(2), b"abc"),
            Ok((b"ab".to_vec(), true))
        );
        assert_eq!(
            decode_all(Framing::Length(4), b"abc"),
            Ok((b"abc".to_vec(), false))
        );
    }
}
