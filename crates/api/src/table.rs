//! Reader of the descriptor table that `build.rs` wrote. Plain offsets into read-only bytes: no start-up cost and
//! no private memory.

static BLOB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

const HEADER: usize = 20;

/// Wire type of a field, `FieldDescriptorProto.Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Double,
    Float,
    Int64,
    UInt64,
    Int32,
    Fixed64,
    Fixed32,
    Bool,
    String,
    Message,
    Bytes,
    UInt32,
    Enum,
    SFixed32,
    SFixed64,
    SInt32,
    SInt64,
}

/// Types whose JSON form is special.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WellKnown {
    Any,
    Duration,
    Timestamp,
    Struct,
    Value,
    ListValue,
    /// A wrapper and the kind of its `value = 1`.
    Wrapper(Kind),
    FieldMask,
    Empty,
    NullValue,
}

impl WellKnown {
    const fn from_number(n: u8) -> Option<Self> {
        Some(match n {
            1 => Self::Any,
            2 => Self::Duration,
            3 => Self::Timestamp,
            4 => Self::Struct,
            5 => Self::Value,
            6 => Self::ListValue,
            7 => Self::Wrapper(Kind::Bool),
            8 => Self::Wrapper(Kind::Int32),
            9 => Self::Wrapper(Kind::Int64),
            10 => Self::Wrapper(Kind::UInt32),
            11 => Self::Wrapper(Kind::UInt64),
            12 => Self::Wrapper(Kind::Float),
            13 => Self::Wrapper(Kind::Double),
            14 => Self::Wrapper(Kind::String),
            15 => Self::Wrapper(Kind::Bytes),
            16 => Self::FieldMask,
            17 => Self::Empty,
            18 => Self::NullValue,
            _ => return None,
        })
    }

    /// By full message name.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        let short = name.strip_prefix("google.protobuf.")?;
        const NAMES: [&str; 17] = [
            "Any",
            "Duration",
            "Timestamp",
            "Struct",
            "Value",
            "ListValue",
            "BoolValue",
            "Int32Value",
            "Int64Value",
            "UInt32Value",
            "UInt64Value",
            "FloatValue",
            "DoubleValue",
            "StringValue",
            "BytesValue",
            "FieldMask",
            "Empty",
        ];
        let at = NAMES.iter().position(|n| *n == short)?;
        Self::from_number(at as u8 + 1)
    }
}

/// A message of the table, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message(u32);

/// An enum of the table, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Enum(u32);

/// A field of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) repeated: bool,
    pub(crate) presence: bool,
    pub(crate) sensitive: bool,
    /// Number of its oneof within the message, 0 if it is in none.
    pub(crate) oneof: u8,
    pub(crate) well_known: Option<WellKnown>,
    index: u32,
}

fn u16_at(at: usize) -> u16 {
    BLOB.get(at..at + 2)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u16::from_le_bytes)
}

fn u32_at(at: usize) -> u32 {
    BLOB.get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn count(i: usize) -> usize {
    u32_at(i * 4) as usize
}

fn fields_at() -> usize {
    HEADER + count(0) * 16
}

fn enums_at() -> usize {
    fields_at() + count(1) * 16
}

fn values_at() -> usize {
    enums_at() + count(2) * 12
}

fn text_bytes(offset: u32, len: usize) -> &'static [u8] {
    let at = values_at() + count(3) * 12 + offset as usize;
    BLOB.get(at..at + len).unwrap_or_default()
}

fn text(offset: u32, len: usize) -> &'static str {
    std::str::from_utf8(text_bytes(offset, len)).unwrap_or_default()
}

impl Message {
    /// The message of a full name.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        let (mut low, mut high) = (0, count(0));
        while low < high {
            let mid = (low + high) / 2;
            match Self(mid as u32).name().cmp(name) {
                std::cmp::Ordering::Less => low = mid + 1,
                std::cmp::Ordering::Greater => high = mid,
                std::cmp::Ordering::Equal => return Some(Self(mid as u32)),
            }
        }
        None
    }

    const fn at(self) -> usize {
        HEADER + self.0 as usize * 16
    }

    /// Full name.
    pub(crate) fn name(self) -> &'static str {
        text(u32_at(self.at()), usize::from(u16_at(self.at() + 4)))
    }

    /// Whether it is the entry of a map field.
    pub(crate) fn is_map_entry(self) -> bool {
        u32_at(self.at() + 12) & 1 != 0
    }

    /// The field of a number.
    pub(crate) fn field(self, number: u32) -> Option<Field> {
        let first = u32_at(self.at() + 8) as usize;
        let (mut low, mut high) = (first, first + usize::from(u16_at(self.at() + 6)));
        while low < high {
            let mid = (low + high) / 2;
            match u32_at(fields_at() + mid * 16).cmp(&number) {
                std::cmp::Ordering::Less => low = mid + 1,
                std::cmp::Ordering::Greater => high = mid,
                std::cmp::Ordering::Equal => return Field::at(mid),
            }
        }
        None
    }

    /// The field of a name, in its original or its lowerCamelCase form.
    pub(crate) fn field_by_name(self, name: &str) -> Option<Field> {
        let (base, first) = (fields_at(), u32_at(self.at() + 8) as usize);
        let matches = |i: &usize| {
            let at = base + i * 16;
            let len = usize::from(BLOB.get(at + 8).copied().unwrap_or(0));
            let known = text_bytes(u32_at(at + 4), len);
            known == name.as_bytes() || is_camel_of(name, known)
        };
        (first..first + usize::from(u16_at(self.at() + 6)))
            .find(matches)
            .and_then(Field::at)
    }
}

/// Whether `camel` is the JSON name of the proto name `snake`.
fn is_camel_of(camel: &str, snake: &[u8]) -> bool {
    let mut camel = camel.bytes();
    let mut upper = false;
    for &c in snake {
        if c == b'_' {
            upper = true;
            continue;
        }
        let want = if upper { c.to_ascii_uppercase() } else { c };
        upper = false;
        if camel.next() != Some(want) {
            return false;
        }
    }
    camel.next().is_none()
}

impl Field {
    fn at(i: usize) -> Option<Self> {
        let at = fields_at() + i * 16;
        let byte = |o: usize| BLOB.get(at + o).copied().unwrap_or(0);
        let kind = match byte(9) {
            1 => Kind::Double,
            2 => Kind::Float,
            3 => Kind::Int64,
            4 => Kind::UInt64,
            5 => Kind::Int32,
            6 => Kind::Fixed64,
            7 => Kind::Fixed32,
            8 => Kind::Bool,
            9 => Kind::String,
            11 => Kind::Message,
            12 => Kind::Bytes,
            13 => Kind::UInt32,
            14 => Kind::Enum,
            15 => Kind::SFixed32,
            16 => Kind::SFixed64,
            17 => Kind::SInt32,
            18 => Kind::SInt64,
            // Groups do not exist in proto3.
            _ => return None,
        };
        let flags = byte(10);
        Some(Self {
            number: u32_at(at),
            name: text(u32_at(at + 4), usize::from(byte(8))),
            kind,
            repeated: flags & 1 != 0,
            presence: flags & 2 != 0,
            sensitive: flags & 4 != 0,
            oneof: flags >> 3,
            well_known: WellKnown::from_number(byte(11)),
            index: u32_at(at + 12),
        })
    }

    /// The message type of the field, `None` for well-known types.
    pub(crate) fn message(&self) -> Option<Message> {
        ((self.index as usize) < count(0)).then_some(Message(self.index))
    }

    /// Whether JSON `null` is a value of this field and not its absence.
    pub(crate) const fn keeps_null(&self) -> bool {
        matches!(
            self.well_known,
            Some(WellKnown::Value | WellKnown::NullValue)
        )
    }

    /// The enum type of the field.
    pub(crate) fn enumeration(&self) -> Option<Enum> {
        ((self.index as usize) < count(2)).then_some(Enum(self.index))
    }

    /// Key and value fields when this is a map.
    pub(crate) fn map(&self) -> Option<(Self, Self)> {
        let entry = self
            .message()
            .filter(|m| self.repeated && m.is_map_entry())?;
        Some((entry.field(1)?, entry.field(2)?))
    }
}

impl Enum {
    fn values(self) -> impl Iterator<Item = (i32, &'static str)> {
        let at = enums_at() + self.0 as usize * 12;
        let first = u32_at(at + 8) as usize;
        (first..first + usize::from(u16_at(at + 6))).map(|i| {
            let at = values_at() + i * 12;
            (
                u32_at(at) as i32,
                text(u32_at(at + 4), u32_at(at + 8) as usize),
            )
        })
    }

    /// Name of a number.
    pub(crate) fn name_of(self, number: i32) -> Option<&'static str> {
        self.values()
            .find(|(n, _)| *n == number)
            .map(|(_, name)| name)
    }

    /// Number of a name.
    pub(crate) fn number_of(self, name: &str) -> Option<i32> {
        self.values()
            .find(|(_, n)| *n == name)
            .map(|(number, _)| number)
    }
}
