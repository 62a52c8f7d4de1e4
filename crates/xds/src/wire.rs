//! Reading of top-level protobuf fields without decoding the message (resource bodies stay bytes).
//! Must never panic or read out of bounds on hostile input.

use bytes::{Buf, Bytes};

/// Why a buffer is not a protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The buffer ends inside a field.
    #[error("message ends inside a field")]
    Truncated,
    /// A varint longer than ten bytes.
    #[error("varint longer than 64 bits")]
    VarintOverflow,
    /// Field number zero or a wire type that proto3 does not use.
    #[error("illegal field key {0}")]
    IllegalKey(u64),
    /// A string field that is not UTF-8.
    #[error("string field {0} is not UTF-8")]
    NotUtf8(u32),
}

/// The value of one top-level field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2: string, bytes, message or packed list.
    Bytes(Bytes),
    /// Wire type 5.
    Fixed32(u32),
}

/// Iterator over the top-level fields of a message; ends after the first error.
#[derive(Debug, Clone)]
pub struct Fields {
    buf: Bytes,
    failed: bool,
}

impl Fields {
    /// Starts at the first field of `message`; slices share its memory.
    #[must_use]
    pub const fn new(message: Bytes) -> Self {
        Self {
            buf: message,
            failed: false,
        }
    }

    /// What has not been read yet.
    #[must_use]
    pub fn rest(self) -> Bytes {
        self.buf
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            if !self.buf.has_remaining() {
                return Err(WireError::Truncated);
            }
            let byte = self.buf.get_u8();
            if shift == 63 && byte > 1 {
                return Err(WireError::VarintOverflow);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::VarintOverflow)
    }

    fn take(&mut self, len: u64) -> Result<Bytes, WireError> {
        let len = usize::try_from(len).map_err(|_| WireError::Truncated)?;
        if len > self.buf.len() {
            return Err(WireError::Truncated);
        }
        Ok(self.buf.split_to(len))
    }

    fn field(&mut self) -> Result<(u32, Value), WireError> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| WireError::IllegalKey(key))?;
        if number == 0 {
            return Err(WireError::IllegalKey(key));
        }
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(self.take(8)?.get_u64_le()),
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Fixed32(self.take(4)?.get_u32_le()),
            _ => return Err(WireError::IllegalKey(key)),
        };
        Ok((number, value))
    }
}

impl Iterator for Fields {
    type Item = Result<(u32, Value), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || !self.buf.has_remaining() {
            return None;
        }
        let field = self.field();
        self.failed = field.is_err();
        Some(field)
    }
}

/// The string in field `number` (the last occurrence wins, as protobuf has it); empty if absent.
///
/// # Errors
/// If the message is malformed or the field is not UTF-8.
pub fn string_field(message: &Bytes, number: u32) -> Result<String, WireError> {
    utf8(number, &bytes_field(message, number)?.unwrap_or_default())
}

/// The bytes, string or message in field `number` (the last occurrence), if it is there.
///
/// # Errors
/// If the message is malformed.
pub fn bytes_field(message: &Bytes, number: u32) -> Result<Option<Bytes>, WireError> {
    let mut found = None;
    for field in Fields::new(message.clone()) {
        if let (n, Value::Bytes(value)) = field?
            && n == number
        {
            found = Some(value);
        }
    }
    Ok(found)
}

/// `bytes` of field `number` as text.
///
/// # Errors
/// If it is not UTF-8.
pub fn utf8(number: u32, bytes: &Bytes) -> Result<String, WireError> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| WireError::NotUtf8(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_occurrence_of_a_string_field_wins() {
        let message = Bytes::from_static(b"\x0a\x01a\x10\x05\x0a\x02bc");
        assert_eq!(string_field(&message, 1), Ok("bc".to_owned()));
        assert_eq!(string_field(&message, 7), Ok(String::new()));
    }

    #[test]
    fn malformed_messages_are_errors_not_panics() {
        for (bytes, error) in [
            (&b"\x0a\x05a"[..], WireError::Truncated),
            (b"\x0a", WireError::Truncated),
            (b"\x02\x00", WireError::IllegalKey(2)),
            (b"\x0b", WireError::IllegalKey(11)),
            (b"\x0d\x00", WireError::Truncated),
            (
                b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                WireError::VarintOverflow,
            ),
            (
                b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                WireError::Truncated,
            ),
            (b"\x0a\x01\xff", WireError::NotUtf8(1)),
        ] {
            assert_eq!(
                string_field(&Bytes::copy_from_slice(bytes), 1),
                Err(error),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn every_truncation_of_a_valid_message_is_handled() {
        let whole =
            b"\x0a\x01a\x11\x01\x02\x03\x04\x05\x06\x07\x08\x1d\x01\x02\x03\x04\x20\x96\x01";
        for end in 0..whole.len() {
            let fields: Vec<_> = Fields::new(Bytes::copy_from_slice(&whole[..end])).collect();
            assert!(fields.len() <= 4);
        }
        assert_eq!(
            Fields::new(Bytes::from_static(whole))
                .filter(Result::is_ok)
                .count(),
            4
        );
    }
}
