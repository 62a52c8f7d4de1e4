//! nf_tables expressions: typed form, netlink encoding, decoding of what the kernel reports, and
//! the listing that `nft --debug=netlink` prints. All registers are register 1 (0 for verdicts).

use std::fmt::{self, Write as _};

use super::wire::{Attributes, attribute, attributes, be32, text};

/// The only data register used.
const REG: u32 = 1;

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
}

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_JUMP: u32 = -3_i32 as u32;
const NFT_RETURN: u32 = -5_i32 as u32;
/// NF_NAT_RANGE_PROTO_SPECIFIED: the port register is meant.
const NAT_PROTO_SPECIFIED: u32 = 2;

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
    /// Reported by the kernel, never written by us.
    Unknown(String),
}

/// What a lookup needs to be written: the batch-local id and name of its set.
pub const ANONYMOUS_SET: &str = "__set%d";

/// Encodes expressions as the body of NFTA_RULE_EXPRESSIONS. `set_ids` gives the batch id of
/// every lookup in order.
#[must_use]
pub fn encode(exprs: &[Expr], set_ids: &mut impl Iterator<Item = u32>) -> Attributes {
    let mut list = Attributes::default();
    for expr in exprs {
        list.nest(1, |element| {
            element.text(1, kernel_name(expr));
            element.nest(2, |data| encode_one(expr, data, set_ids));
        });
    }
    list
}

fn kernel_name(expr: &Expr) -> &str {
    match expr {
        Expr::MetaLoad(_) | Expr::MetaSet(_) => "meta",
        Expr::CtLoad(_) | Expr::CtSet(_) => "ct",
        Expr::Payload { .. } => "payload",
        Expr::Cmp { .. } => "cmp",
        Expr::Mask(_) => "bitwise",
        Expr::Immediate(_) | Expr::Verdict(_) => "immediate",
        Expr::Counter => "counter",
        Expr::Redir => "redir",
        Expr::Tproxy { .. } => "tproxy",
        Expr::Lookup { .. } => "lookup",
        Expr::Unknown(name) => name,
    }
}

fn encode_one(expr: &Expr, data: &mut Attributes, set_ids: &mut impl Iterator<Item = u32>) {
    match expr {
        Expr::MetaLoad(key) => {
            data.be32(2, *key as u32).be32(1, REG);
        }
        Expr::MetaSet(key) => {
            data.be32(2, *key as u32).be32(3, REG);
        }
        Expr::CtLoad(key) => {
            data.be32(2, *key as u32).be32(1, REG);
        }
        Expr::CtSet(key) => {
            data.be32(2, *key as u32).be32(4, REG);
        }
        Expr::Payload { base, offset, len } => {
            data.be32(1, REG).be32(2, *base as u32);
            data.be32(3, *offset).be32(4, *len);
        }
        Expr::Cmp { op, data: value } => {
            data.be32(1, REG).be32(2, *op as u32);
            data.nest(3, |d| {
                d.bytes(1, value);
            });
        }
        Expr::Mask(mask) => {
            let len = u32::try_from(mask.len()).unwrap_or(0);
            data.be32(1, REG).be32(2, REG).be32(3, len);
            data.nest(4, |d| {
                d.bytes(1, mask);
            });
            data.nest(5, |d| {
                d.bytes(1, &vec![0; mask.len()]);
            });
        }
        Expr::Immediate(value) => {
            data.be32(1, REG).nest(2, |d| {
                d.bytes(1, value);
            });
        }
        Expr::Verdict(verdict) => {
            data.be32(1, 0).nest(2, |d| {
                d.nest(2, |v| encode_verdict(verdict, v));
            });
        }
        Expr::Counter => {
            data.bytes(1, &0_u64.to_be_bytes())
                .bytes(2, &0_u64.to_be_bytes());
        }
        Expr::Redir => {
            data.be32(1, REG).be32(3, NAT_PROTO_SPECIFIED);
        }
        Expr::Tproxy { family } => {
            data.be32(1, *family).be32(3, REG);
        }
        Expr::Lookup { not, .. } => {
            data.text(1, ANONYMOUS_SET).be32(2, REG);
            data.be32(4, set_ids.next().unwrap_or(0));
            data.be32(5, u32::from(*not));
        }
        // Callers refuse states that hold unknown expressions; the kernel would too.
        Expr::Unknown(_) => {}
    }
}

fn encode_verdict(verdict: &Verdict, out: &mut Attributes) {
    match verdict {
        Verdict::Accept => out.be32(1, NF_ACCEPT),
        Verdict::Drop => out.be32(1, NF_DROP),
        Verdict::Return => out.be32(1, NFT_RETURN),
        Verdict::Jump(chain) => out.be32(1, NFT_JUMP).text(2, chain),
    };
}

/// Answers the keys of a set by name and batch id.
pub type SetKeys<'a> = dyn FnMut(&str, Option<u32>) -> Vec<Vec<u8>> + 'a;

/// Decodes NFTA_RULE_EXPRESSIONS. `set` answers the keys of a set by name and batch id.
#[must_use]
pub fn decode(list: &[u8], set: &mut SetKeys<'_>) -> Vec<Expr> {
    attributes(list)
        .filter(|(kind, _)| *kind == 1)
        .map(|(_, element)| {
            let name = text(element, 1).unwrap_or_default();
            let data = attribute(element, 2).unwrap_or_default();
            decode_one(&name, data, set).unwrap_or(Expr::Unknown(name))
        })
        .collect()
}

fn decode_one(name: &str, data: &[u8], set: &mut SetKeys<'_>) -> Option<Expr> {
    let reg = |kind| be32(data, kind) == Some(REG);
    let value = |kind| attribute(attribute(data, kind)?, 1).map(<[u8]>::to_vec);
    match name {
        "meta" => {
            let key = be32(data, 2)?;
            let key = Meta::ALL.into_iter().find(|k| *k as u32 == key)?;
            match (reg(1), reg(3)) {
                (true, false) => Some(Expr::MetaLoad(key)),
                (false, true) => Some(Expr::MetaSet(key)),
                _ => None,
            }
        }
        "ct" => {
            let key = be32(data, 2)?;
            let key = Ct::ALL.into_iter().find(|k| *k as u32 == key)?;
            match (reg(1), reg(4)) {
                (true, false) => Some(Expr::CtLoad(key)),
                (false, true) => Some(Expr::CtSet(key)),
                _ => None,
            }
        }
        "payload" if reg(1) => {
            let base = match be32(data, 2)? {
                1 => Base::Network,
                2 => Base::Transport,
                _ => return None,
            };
            let (offset, len) = (be32(data, 3)?, be32(data, 4)?);
            Some(Expr::Payload { base, offset, len })
        }
        "cmp" if reg(1) => {
            let op = be32(data, 2)?;
            let op = Op::ALL.into_iter().find(|o| *o as u32 == op)?;
            Some(Expr::Cmp {
                op,
                data: value(3)?,
            })
        }
        "bitwise" if reg(1) && reg(2) => {
            let zero = value(5)?.iter().all(|b| *b == 0);
            zero.then_some(Expr::Mask(value(4)?))
        }
        "immediate" if be32(data, 1) == Some(0) => {
            let verdict = attribute(attribute(data, 2)?, 2)?;
            Some(Expr::Verdict(match be32(verdict, 1)? {
                NF_ACCEPT => Verdict::Accept,
                NF_DROP => Verdict::Drop,
                NFT_RETURN => Verdict::Return,
                NFT_JUMP => Verdict::Jump(text(verdict, 2)?),
                _ => return None,
            }))
        }
        "immediate" if reg(1) => Some(Expr::Immediate(value(2)?)),
        "counter" => Some(Expr::Counter),
        "redir" if reg(1) && attribute(data, 2).is_none_or(|_| reg(2)) => {
            (be32(data, 3) == Some(NAT_PROTO_SPECIFIED)).then_some(Expr::Redir)
        }
        "tproxy" if reg(3) && attribute(data, 2).is_none() => Some(Expr::Tproxy {
            family: be32(data, 1)?,
        }),
        "lookup" if reg(2) => Some(Expr::Lookup {
            keys: set(&text(data, 1)?, be32(data, 4)),
            not: be32(data, 5) == Some(1),
        }),
        _ => None,
    }
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
            },
            Self::Counter => f.write_str("[ counter pkts 0 bytes 0 ]"),
            Self::Redir => f.write_str("[ redir proto_min reg 1 flags 0x2 ]"),
            Self::Tproxy { family } => {
                let family = if *family == 10 { "ip6" } else { "ip" };
                write!(f, "[ tproxy {family} port reg 1 ]")
            }
            Self::Lookup { not, .. } => {
                write!(
                    f,
                    "[ lookup reg 1 set {ANONYMOUS_SET} {:#x} ]",
                    u32::from(*not)
                )
            }
            Self::Unknown(name) => write!(f, "[ unknown {name} ]"),
        }
    }
}
