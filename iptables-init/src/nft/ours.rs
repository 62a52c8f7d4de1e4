//! Recognises rules of ours in iptables-nft's tables by their kernel expressions. The same rule
//! differs between versions of the programs (wrapped extensions or native expressions), so rules
//! are reduced to words first. Pure.

use super::expr::{Base, Ct, Expr, Meta, Op, Verdict, decode};
use super::wire::{attribute, text};

/// Mark of loopback packets that come from the proxy in TPROXY mode.
const PROXY_LOOPBACK_MARK: u32 = 1338;

/// Whether a chain of an iptables table is ours.
#[must_use]
pub fn is_own_chain(name: &str) -> bool {
    name.starts_with("ISTIO_")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    /// Compares an incoming interface.
    Input,
    /// Compares an outgoing interface.
    Output,
    /// Compares the outgoing interface with `lo`.
    OutLo,
    Tcp,
    Destination,
    Mark,
    ConnMark,
    Owner,
    Return,
    SaveOrRestoreMark,
    SetProxyMark,
    /// Anything our rules do not have.
    Other,
}

/// Whether a rule of a built-in chain that does not jump to a chain of ours has the shape of one
/// that this program writes. Only meaningful beside chains of ours: others write such rules too.
#[must_use]
pub fn is_own_rule(table: &str, chain: &str, exprs: &[Expr]) -> bool {
    use Word::{
        ConnMark, Destination, Input, Mark, OutLo, Output, Owner, Return, SaveOrRestoreMark,
        SetProxyMark, Tcp,
    };
    let words = words(exprs);
    let excluded = match chain {
        "PREROUTING" => words == [Input, Return],
        "OUTPUT" => words == [Output, Return] || words == [OutLo, Return],
        _ => return false,
    };
    let in_mangle: &[&[Word]] = match chain {
        "PREROUTING" => &[&[Tcp, Mark, SaveOrRestoreMark]],
        _ => &[
            &[OutLo, Tcp, Mark, Return],
            &[OutLo, Tcp, Destination, Owner, SetProxyMark],
            &[Tcp, ConnMark, SaveOrRestoreMark],
        ],
    };
    match table {
        "nat" => excluded,
        "mangle" => excluded || in_mangle.contains(&words.as_slice()),
        _ => false,
    }
}

/// The words of a rule, sorted.
fn words(exprs: &[Expr]) -> Vec<Word> {
    let mut words = Vec::new();
    for (index, expr) in exprs.iter().enumerate() {
        let next = exprs.get(index + 1);
        let word = match expr {
            Expr::MetaLoad(Meta::Iifname) => Word::Input,
            Expr::MetaLoad(Meta::Oifname) => match next {
                Some(Expr::Cmp { data, .. }) if data.starts_with(b"lo\0") => Word::OutLo,
                _ => Word::Output,
            },
            Expr::MetaLoad(Meta::Mark) => Word::Mark,
            Expr::MetaLoad(Meta::Skuid | Meta::Skgid) => Word::Owner,
            Expr::MetaLoad(Meta::L4proto) | Expr::Payload { .. } => payload_word(expr, next),
            Expr::CtLoad(Ct::Mark) => Word::ConnMark,
            Expr::Verdict(Verdict::Return) => Word::Return,
            // The values of the loads above.
            Expr::Cmp { .. } | Expr::Mask(_) | Expr::Counter => continue,
            Expr::Unknown { name, data } => extension_word(name, data),
            _ => Word::Other,
        };
        words.push(word);
    }
    words.sort_unstable();
    words
}

fn payload_word(load: &Expr, next: Option<&Expr>) -> Word {
    let tcp = matches!(next, Some(Expr::Cmp { op: Op::Eq, data }) if data[..] == [6]);
    match load {
        Expr::MetaLoad(Meta::L4proto) if tcp => Word::Tcp,
        Expr::Payload { base, offset, len } => match (base, offset, len) {
            // The protocol field of either family.
            (Base::Network, 9 | 6, 1) if tcp => Word::Tcp,
            (Base::Network, 16, 1..=4) | (Base::Network, 24, 1..=16) => Word::Destination,
            _ => Word::Other,
        },
        _ => Word::Other,
    }
}

/// A wrapped iptables extension: NFTA_MATCH and NFTA_TARGET have name 1, revision 2, info 3.
fn extension_word(kind: &str, data: &[u8]) -> Word {
    let name = text(data, 1).unwrap_or_default();
    let first = attribute(data, 3)
        .and_then(|info| info.get(..4)?.try_into().ok())
        .map(u32::from_ne_bytes);
    match (kind, name.as_str()) {
        ("match", "mark") => Word::Mark,
        ("match", "connmark") => Word::ConnMark,
        ("match", "owner") => Word::Owner,
        ("target", "CONNMARK") => Word::SaveOrRestoreMark,
        ("target", "MARK") if first == Some(PROXY_LOOPBACK_MARK) => Word::SetProxyMark,
        _ => Word::Other,
    }
}

/// The mark of a wrapped TPROXY target; its info starts with mask and value.
#[must_use]
pub fn tproxy_mark(target: &[u8]) -> Option<u32> {
    let info = attribute(target, 3).filter(|_| text(target, 1).as_deref() == Some("TPROXY"))?;
    Some(u32::from_ne_bytes(info.get(4..8)?.try_into().ok()?))
}

/// The transport protocol that a rule compares for equality.
#[must_use]
pub fn compared_protocol(raw: &[u8]) -> Option<u8> {
    let exprs = decode(raw, &mut |_, _| Vec::new());
    exprs.windows(2).find_map(|pair| {
        let [load, Expr::Cmp { op: Op::Eq, data }] = pair else {
            return None;
        };
        let protocol = matches!(
            load,
            Expr::MetaLoad(Meta::L4proto)
                | Expr::Payload {
                    base: Base::Network,
                    offset: 9 | 6,
                    len: 1,
                }
        );
        protocol.then_some(*data.first()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::wire::Attributes;

    fn extension(kind: &str, name: &str, info: &[u8]) -> Expr {
        let mut a = Attributes::default();
        a.text(1, name).be32(2, 0).bytes(3, info);
        Expr::Unknown {
            name: kind.to_owned(),
            data: a.0,
        }
    }

    fn cmp(data: &[u8]) -> Expr {
        let data = data.to_vec();
        Expr::Cmp { op: Op::Eq, data }
    }

    #[test]
    fn shapes_of_ours_are_found_and_others_are_not() {
        let lo = [Expr::MetaLoad(Meta::Oifname), cmp(b"lo\0")];
        let tcp = [Expr::MetaLoad(Meta::L4proto), cmp(&[6])];
        let owner = extension("match", "owner", &[0; 16]);
        let to = [
            Expr::Payload {
                base: Base::Network,
                offset: 16,
                len: 4,
            },
            cmp(&[127, 0, 0, 1]),
        ];
        let mark = |mark: u32| extension("target", "MARK", &mark.to_ne_bytes());
        let ours = [&lo[..], &to, &tcp, &[owner.clone(), mark(1338)]].concat();
        assert!(is_own_rule("mangle", "OUTPUT", &ours));
        assert!(!is_own_rule("nat", "OUTPUT", &ours));
        let other = [&lo[..], &to, &tcp, &[owner, mark(1)]].concat();
        assert!(!is_own_rule("mangle", "OUTPUT", &other));
        let back = Expr::Verdict(Verdict::Return);
        let input = [Expr::MetaLoad(Meta::Iifname), cmp(b"eth1\0"), back.clone()];
        assert!(is_own_rule("nat", "PREROUTING", &input));
        assert!(!is_own_rule("nat", "INPUT", &input));
        let with_port = [&input[..2], &tcp, &[back]].concat();
        assert!(!is_own_rule("nat", "PREROUTING", &with_port));
    }

    #[test]
    fn a_tproxy_target_gives_its_mark() {
        let info = [u32::MAX.to_ne_bytes(), 1444_u32.to_ne_bytes()].concat();
        let Expr::Unknown { data, .. } = extension("target", "TPROXY", &info) else {
            unreachable!("made above")
        };
        assert_eq!(tproxy_mark(&data), Some(1444));
        assert_eq!(tproxy_mark(&[]), None);
    }
}
