//! nf_tables expressions: typed form and the listing that `nft --debug=netlink` prints. All
//! registers are register 1 (0 for verdicts). `codec` has the netlink form.

mod codec;

use std::fmt::{self, Write as _};

pub use codec::{ANONYMOUS_SET, SetKeys, decode, encode};

/// Meta key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "kernel names")]
pub enum Meta {
    Mark = 3,
    Iifname = 6,
    Oifname = 7,
    Skuid = 10,
    Skgid = 11,
    Nfproto = 15,
    L4proto = 16,
}

impl Meta {
    const ALL: [Self; 7] = [
        Self::Mark,
        Self::Iifname,
        Self::Oifname,
        Self::Skuid,
        Self::Skgid,
        Self::Nfproto,
        Self::L4proto,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Mark => "mark",
            Self::Iifname => "iifname",
            Self::Oifname => "oifname",
            Self::Skuid => "skuid",
            Self::Skgid => "skgid",
            Self::Nfproto => "nfproto",
            Self::L4proto => "l4proto",
        }
    }
}

/// Conntrack key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "kernel names")]
pub enum Ct {
    State = 0,
    Mark = 3,
    Zone = 17,
}

impl Ct {
    const ALL: [Self; 3] = [Self::State, Self::Mark, Self::Zone];

    const fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Mark => "mark",
            Self::Zone => "zone",
        }
    }
}

/// Comparison operator with its kernel number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "kernel names")]
pub enum Op {
    Eq = 0,
    Neq = 1,
    Lte = 3,
    Gte = 5,
}

impl Op {
    const ALL: [Self; 4] = [Self::Eq, Self::Neq, Self::Lte, Self::Gte];

    const fn name(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Neq => "neq",
            Self::Lte => "lte",
            Self::Gte => "gte",
        }
    }
}

/// Payload base with its kernel number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "kernel names")]
pub enum Base {
    Network = 1,
    Transport = 2,
}

/// Verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "kernel names")]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    /// Jump without a way back; never written by us.
    Goto(String),
}

/// One expression.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields repeat the kernel's attribute names")]
pub enum Expr {
    MetaLoad(Meta),
    MetaSet(Meta),
    CtLoad(Ct),
    CtSet(Ct),
    Payload {
        base: Base,
        offset: u32,
        len: u32,
    },
    Cmp {
        op: Op,
        data: Vec<u8>,
    },
    /// `reg = (reg & mask) ^ 0`.
    Mask(Vec<u8>),
    Immediate(Vec<u8>),
    Verdict(Verdict),
    /// Packet and byte counter; its values are not part of the rule's identity.
    Counter,
    Redir,
    /// Transparent proxy; the family is AF_INET or AF_INET6.
    Tproxy {
        family: u32,
    },
    /// Anonymous set membership; keys in insertion order.
    Lookup {
        keys: Vec<Vec<u8>>,
        not: bool,
    },
    /// Turns the 32-bit number in the register big-endian, so that a range compares it in order.
    HostToNetwork,
    /// Inclusive range of the register's bytes.
    Range {
        not: bool,
        from: Vec<u8>,
        to: Vec<u8>,
    },
    /// Written by somebody else; kept so that it can be put back as it was.
    Unknown {
        name: String,
        data: Vec<u8>,
    },
}

/// Little-endian 32-bit words, as the debug listing shows register contents.
fn register_words(data: &[u8]) -> String {
    let mut out = String::new();
    for chunk in data.chunks(4) {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        let _ = write!(out, " 0x{:08x}", u32::from_le_bytes(word));
    }
    out
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MetaLoad(key) => write!(f, "[ meta load {} => reg 1 ]", key.name()),
            Self::MetaSet(key) => write!(f, "[ meta set {} with reg 1 ]", key.name()),
            Self::CtLoad(key) => write!(f, "[ ct load {} => reg 1 ]", key.name()),
            Self::CtSet(key) => write!(f, "[ ct set {} with reg 1 ]", key.name()),
            Self::Payload { base, offset, len } => {
                let base = match base {
                    Base::Network => "network",
                    Base::Transport => "transport",
                };
                write!(
                    f,
                    "[ payload load {len}b @ {base} header + {offset} => reg 1 ]"
                )
            }
            Self::Cmp { op, data } => {
                write!(f, "[ cmp {} reg 1{} ]", op.name(), register_words(data))
            }
            Self::Mask(mask) => {
                let zero = register_words(&vec![0; mask.len()]);
                let mask = register_words(mask);
                write!(f, "[ bitwise reg 1 = ( reg 1 &{mask} ) ^{zero} ]")
            }
            Self::Immediate(data) => write!(f, "[ immediate reg 1{} ]", register_words(data)),
            Self::Verdict(verdict) => match verdict {
                Verdict::Accept => f.write_str("[ immediate reg 0 accept ]"),
                Verdict::Drop => f.write_str("[ immediate reg 0 drop ]"),
                Verdict::Return => f.write_str("[ immediate reg 0 return ]"),
                Verdict::Jump(chain) => write!(f, "[ immediate reg 0 jump -> {chain} ]"),
                Verdict::Goto(chain) => write!(f, "[ immediate reg 0 goto -> {chain} ]"),
            },
            Self::Counter => f.write_str("[ counter pkts 0 bytes 0 ]"),
            Self::Redir => f.write_str("[ redir proto_min reg 1 flags 0x2 ]"),
            Self::Tproxy { family } => {
                let family = if *family == 10 { "ip6" } else { "ip" };
                write!(f, "[ tproxy {family} port reg 1 ]")
            }
            Self::HostToNetwork => f.write_str("[ byteorder reg 1 = hton(reg 1, 4, 4) ]"),
            Self::Range { not, from, to } => {
                let op = if *not { Op::Neq } else { Op::Eq }.name();
                let (from, to) = (register_words(from), register_words(to));
                write!(f, "[ range {op} reg 1{from}{to} ]")
            }
            Self::Lookup { not, .. } => {
                write!(
                    f,
                    "[ lookup reg 1 set {ANONYMOUS_SET} {:#x} ]",
                    u32::from(*not)
                )
            }
            Self::Unknown { name, .. } => write!(f, "[ unknown {name} ]"),
        }
    }
}
