//! Netlink framing: messages, attributes, bounded readers. Knows nothing of nf_tables; bytes of
//! the kernel are read without trusting any length.

/// Set in an attribute type that has attributes inside.
const NESTED: u16 = 1 << 15;
/// Attribute type without the flag bits.
const TYPE_MASK: u16 = 0x3fff;

/// Writer of attributes; lengths are patched when a nest closes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Attributes(pub Vec<u8>);

impl Attributes {
    /// Opaque bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // Values are names, keys and rule bodies; the kernel's 16-bit limit is checked by it.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Zero-terminated text.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Big-endian 32-bit number, as all nf_tables numbers are.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Attributes inside an attribute.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// Iterates `(type, payload)` of an attribute area; stops at the first malformed length.
pub fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(data.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(data.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = data.get(4..length)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// First attribute of a type.
#[must_use]
pub fn attribute(data: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(data).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// Big-endian 32-bit attribute.
#[must_use]
pub fn be32(data: &[u8], wanted: u16) -> Option<u32> {
    Some(u32::from_be_bytes(
        attribute(data, wanted)?.try_into().ok()?,
    ))
}

/// Big-endian 64-bit attribute.
#[must_use]
pub fn be64(data: &[u8], wanted: u16) -> Option<u64> {
    Some(u64::from_be_bytes(
        attribute(data, wanted)?.try_into().ok()?,
    ))
}

/// Zero-terminated text attribute.
#[must_use]
pub fn text(data: &[u8], wanted: u16) -> Option<String> {
    let bytes = attribute(data, wanted)?;
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// One netlink message: header fields and payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// nlmsg_type.
    pub kind: u16,
    /// nlmsg_flags.
    pub flags: u16,
    /// nlmsg_seq.
    pub sequence: u32,
    /// Everything after the header.
    pub payload: &'a [u8],
}

/// Size of struct nlmsghdr.
const HEADER: usize = 16;

/// Iterates the messages of one datagram.
pub fn messages(mut data: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(data.get(..4)?.try_into().ok()?)).ok()?;
        let message = Message {
            kind: u16::from_ne_bytes(data.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(data.get(6..8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(data.get(8..12)?.try_into().ok()?),
            payload: data.get(HEADER..length)?,
        };
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Appends one message; the payload starts with the protocol's own header.
pub fn push_message(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, payload: &[u8]) {
    let length = u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_a_round_trip_with_padding_and_nesting() {
        let mut a = Attributes::default();
        a.text(1, "lo").nest(2, |b| {
            b.be32(3, 7);
        });
        assert_eq!(text(&a.0, 1).as_deref(), Some("lo"));
        assert_eq!(attribute(&a.0, 2).and_then(|inner| be32(inner, 3)), Some(7));
    }

    #[test]
    fn lying_lengths_end_the_walk() {
        assert_eq!(attributes(&[200, 0, 1, 0, 1]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(
            messages(&[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).count(),
            0
        );
    }
}
