//! Netlink form of expressions, and back: what the kernel reports is read without trusting it.

use super::{Base, Ct, Expr, Meta, Op, Verdict};
use crate::nft::wire::{Attributes, attribute, attributes, be32, text};

/// The only data register used.
const REG: u32 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_JUMP: u32 = -3_i32 as u32;
const NFT_GOTO: u32 = -4_i32 as u32;
const NFT_RETURN: u32 = -5_i32 as u32;
/// NF_NAT_RANGE_PROTO_SPECIFIED: the port register is meant.
const NAT_PROTO_SPECIFIED: u32 = 2;
/// NFT_BYTEORDER_HTON.
const HTON: u32 = 1;

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
        Expr::HostToNetwork => "byteorder",
        Expr::Range { .. } => "range",
        Expr::Unknown { name, .. } => name,
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
        Expr::HostToNetwork => {
            data.be32(1, REG).be32(2, REG);
            data.be32(3, HTON).be32(4, 4).be32(5, 4);
        }
        Expr::Range { not, from, to } => {
            data.be32(1, REG).be32(2, u32::from(*not));
            data.nest(3, |d| {
                d.bytes(1, from);
            });
            data.nest(4, |d| {
                d.bytes(1, to);
            });
        }
        Expr::Unknown { data: raw, .. } => data.0.extend_from_slice(raw),
    }
}

fn encode_verdict(verdict: &Verdict, out: &mut Attributes) {
    match verdict {
        Verdict::Accept => out.be32(1, NF_ACCEPT),
        Verdict::Drop => out.be32(1, NF_DROP),
        Verdict::Return => out.be32(1, NFT_RETURN),
        Verdict::Jump(chain) => out.be32(1, NFT_JUMP).text(2, chain),
        Verdict::Goto(chain) => out.be32(1, NFT_GOTO).text(2, chain),
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
            decode_one(&name, data, set).unwrap_or_else(|| Expr::Unknown {
                name,
                data: data.to_vec(),
            })
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
                NFT_GOTO => Verdict::Goto(text(verdict, 2)?),
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
        "byteorder" if reg(1) && reg(2) => {
            let hton = be32(data, 3) == Some(HTON) && be32(data, 4) == Some(4);
            hton.then_some(Expr::HostToNetwork)
        }
        "range" if reg(1) => Some(Expr::Range {
            not: be32(data, 2)? == 1,
            from: value(3)?,
            to: value(4)?,
        }),
        "lookup" if reg(2) => Some(Expr::Lookup {
            keys: set(&text(data, 1)?, be32(data, 4)),
            not: be32(data, 5) == Some(1),
        }),
        _ => None,
    }
}
