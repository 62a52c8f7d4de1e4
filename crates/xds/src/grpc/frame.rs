//! gRPC's five-byte message prefix, both ways. Must never trust the announced length.

use bytes::{BufMut, Bytes, BytesMut};

/// Length of the prefix: a flag and a big-endian length.
pub(super) const PREFIX: usize = 5;
/// What is allocated at once on the word of the peer; more grows with the data.
const TRUSTED: usize = 64 * 1024;

/// Bytes that are not gRPC messages this side accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The message is longer than the receiver's limit.
    #[error("message of {length} bytes, the limit is {limit}")]
    TooLarge {
        /// Announced length in bytes.
        length: usize,
        /// Limit in bytes.
        limit: usize,
    },
    /// The compression flag is set although no encoding was offered.
    #[error("compressed message without negotiated encoding")]
    Compressed,
}

/// The prefix of a message of `length` bytes.
pub(super) fn prefix(length: usize) -> [u8; PREFIX] {
    // A message of 4 GiB cannot be built: callers hold it in memory under a lower limit.
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [0, length[0], length[1], length[2], length[3]]
}

/// A message, or a piece of one that is too long to be collected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A message that is not longer than the limit asked for.
    Whole(Bytes),
    /// The beginning of a longer one.
    Start {
        /// Length of the whole message, bytes.
        length: usize,
        /// Its first bytes, as many as the limit asked for.
        first: Bytes,
    },
    /// What follows; the message ends where its announced length is reached.
    More(Bytes),
}

/// Collects messages from chunks of a body.
#[derive(Debug)]
pub(super) struct Deframer {
    limit: usize,
    chunk: Bytes,
    prefix: [u8; PREFIX],
    prefix_len: usize,
    message: Option<(usize, BytesMut)>,
    /// Bytes that are left of a message whose start was given out.
    rest: usize,
}

impl Deframer {
    pub(super) const fn new(limit: usize) -> Self {
        Self {
            limit,
            chunk: Bytes::new(),
            prefix: [0; PREFIX],
            prefix_len: 0,
            message: None,
            rest: 0,
        }
    }

    /// Adds a chunk. The previous one must be used up (`next_message` returned `None`).
    pub(super) fn push(&mut self, chunk: Bytes) {
        debug_assert!(
            self.chunk.is_empty(),
            "chunks are pushed one after the other"
        );
        self.chunk = chunk;
    }

    /// True if the body may end here.
    pub(super) const fn at_boundary(&self) -> bool {
        self.prefix_len == 0 && self.message.is_none() && self.rest == 0
    }

    /// As [`Self::next_message`], but a message over `whole` bytes comes in pieces.
    pub(super) fn next_part(&mut self, whole: usize) -> Result<Option<Part>, FrameError> {
        if self.rest > 0 {
            let piece = self.chunk.split_to(self.rest.min(self.chunk.len()));
            self.rest -= piece.len();
            return Ok((!piece.is_empty()).then_some(Part::More(piece)));
        }
        if self.message.is_none() && !self.read_prefix()? {
            return Ok(None);
        }
        let Some((length, mut buf)) = self.message.take_if(|(length, _)| *length > whole) else {
            return Ok(self.next_message()?.map(Part::Whole));
        };
        let missing = whole.saturating_sub(buf.len());
        buf.put(self.chunk.split_to(missing.min(self.chunk.len())));
        if buf.len() < whole {
            self.message = Some((length, buf));
            return Ok(None);
        }
        self.prefix_len = 0;
        self.rest = length - buf.len();
        Ok(Some(Part::Start {
            length,
            first: buf.freeze(),
        }))
    }

    pub(super) fn next_message(&mut self) -> Result<Option<Bytes>, FrameError> {
        if self.message.is_none() && !self.read_prefix()? {
            return Ok(None);
        }
        let Some((length, mut buf)) = self.message.take() else {
            return Ok(None);
        };
        let missing = length - buf.len();
        if buf.is_empty() && self.chunk.len() >= length {
            self.prefix_len = 0;
            return Ok(Some(self.chunk.split_to(length)));
        }
        let part = self.chunk.split_to(missing.min(self.chunk.len()));
        buf.put(part);
        if buf.len() == length {
            self.prefix_len = 0;
            return Ok(Some(buf.freeze()));
        }
        self.message = Some((length, buf));
        Ok(None)
    }

    /// True once a whole prefix is read and `message` is set.
    fn read_prefix(&mut self) -> Result<bool, FrameError> {
        let part = self
            .chunk
            .split_to((PREFIX - self.prefix_len).min(self.chunk.len()));
        self.prefix[self.prefix_len..self.prefix_len + part.len()].copy_from_slice(&part);
        self.prefix_len += part.len();
        if self.prefix_len < PREFIX {
            return Ok(false);
        }
        let [flag, a, b, c, d] = self.prefix;
        if flag != 0 {
            return Err(FrameError::Compressed);
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.limit {
            return Err(FrameError::TooLarge {
                length,
                limit: self.limit,
            });
        }
        let buf = if self.chunk.len() >= length {
            BytesMut::new()
        } else {
            BytesMut::with_capacity(length.min(TRUSTED))
        };
        self.message = Some((length, buf));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deframe(limit: usize, chunks: &[&[u8]]) -> Result<Vec<Bytes>, FrameError> {
        let mut deframer = Deframer::new(limit);
        let mut out = Vec::new();
        for chunk in chunks {
            deframer.push(Bytes::copy_from_slice(chunk));
            while let Some(message) = deframer.next_message()? {
                out.push(message);
            }
        }
        Ok(out)
    }

    #[test]
    fn messages_survive_any_split_of_the_body() {
        let mut body = Vec::new();
        for message in [&b""[..], b"a", b"hello", &[7; 300]] {
            body.extend_from_slice(&prefix(message.len()));
            body.extend_from_slice(message);
        }
        for size in 1..body.len() {
            let chunks: Vec<&[u8]> = body.chunks(size).collect();
            let messages = deframe(300, &chunks).expect("valid frames");
            assert_eq!(messages.len(), 4, "chunk size {size}");
            assert_eq!(messages[2], &b"hello"[..]);
            assert_eq!(messages[3], &[7; 300][..]);
        }
    }

    #[test]
    fn long_messages_come_in_pieces_and_short_ones_whole() {
        let mut body = Vec::new();
        for message in [&b"hello"[..], &[7; 300], b"", &[8; 65]] {
            body.extend_from_slice(&prefix(message.len()));
            body.extend_from_slice(message);
        }
        for size in 1..body.len() {
            let mut deframer = Deframer::new(300);
            let mut messages: Vec<(usize, Vec<u8>)> = Vec::new();
            for chunk in body.chunks(size) {
                deframer.push(Bytes::copy_from_slice(chunk));
                while let Some(part) = deframer.next_part(64).expect("valid frames") {
                    match part {
                        Part::Whole(message) => messages.push((message.len(), message.into())),
                        Part::Start { length, first } => {
                            assert_eq!(first.len(), 64);
                            messages.push((length, first.into()));
                        }
                        Part::More(piece) => {
                            messages.last_mut().expect("started").1.extend(piece);
                        }
                    }
                }
            }
            assert!(deframer.at_boundary(), "chunk size {size}");
            let lengths: Vec<usize> = messages.iter().map(|(length, _)| *length).collect();
            assert_eq!(lengths, [5, 300, 0, 65], "chunk size {size}");
            assert!(
                messages
                    .iter()
                    .all(|(length, bytes)| *length == bytes.len())
            );
            assert_eq!(messages[1].1, [7; 300]);
        }
    }

    #[test]
    fn refuses_long_and_compressed_messages_before_reading_them() {
        assert_eq!(
            deframe(9, &[&prefix(10)]),
            Err(FrameError::TooLarge {
                length: 10,
                limit: 9
            })
        );
        assert_eq!(
            deframe(9, &[&[1, 0, 0, 0, 1, 0]]),
            Err(FrameError::Compressed)
        );
    }
}
