//! From a planned rule to kernel expressions. Adds the family and protocol comparisons that the
//! nft text leaves out, because in an `inet` table nothing else guards a header field. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use super::expr::{Base, Ct, Expr, Meta, Op, Verdict};
use super::plan::{NftMatch, NftRule, NftTable, base_chain, table_name};
use super::state::{ChainState, TableState};
use crate::host::{OwnerError, OwnerNames};
use crate::rules::{Action, Family, Match, Ports};
use crate::values::Interface;

/// NFPROTO_IPV4.
const NFPROTO_IPV4: u8 = 2;
/// NFPROTO_IPV6.
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
/// Bit of conntrack state INVALID.
const CT_INVALID: u32 = 1;
/// Bits of ESTABLISHED and RELATED.
const CT_ESTABLISHED_RELATED: u32 = 2 | 4;
/// IFNAMSIZ.
const IFNAMSIZ: usize = 16;

/// The wanted kernel state.
///
/// # Errors
/// A user or group that cannot be resolved to a number.
pub fn compile(tables: &[NftTable], names: &OwnerNames) -> Result<Vec<TableState>, OwnerError> {
    let mut states = Vec::new();
    for table in tables {
        let mut chains = Vec::new();
        for chain in &table.chains {
            let rules = table.chain_rules(*chain);
            chains.push(ChainState {
                name: chain.nft_name().to_owned(),
                base: base_chain(table.table, *chain).map(Into::into),
                rules: rules
                    .into_iter()
                    .map(|rule| compile_rule(rule, names))
                    .collect::<Result<_, _>>()?,
            });
        }
        states.push(TableState {
            name: table_name(table.table).to_owned(),
            chains,
        });
    }
    Ok(states)
}

/// Expressions of one rule.
///
/// # Errors
/// A user or group that cannot be resolved to a number.
pub fn compile_rule(rule: &NftRule, names: &OwnerNames) -> Result<Vec<Expr>, OwnerError> {
    let mut c = Compiler {
        exprs: Vec::new(),
        names,
        implied: None,
    };
    for matching in &rule.matches {
        match matching {
            NftMatch::Address { source, not, net } => c.address(*source, *not, *net),
            NftMatch::Other(matching) => c.matching(matching)?,
        }
    }
    c.action(rule);
    Ok(c.exprs)
}

struct Compiler<'a> {
    exprs: Vec<Expr>,
    names: &'a OwnerNames,
    /// Protocol that is compared only when the port match comes.
    implied: Option<u8>,
}

impl Compiler<'_> {
    fn compare(&mut self, load: Expr, not: bool, data: impl Into<Vec<u8>>) {
        let op = if not { Op::Neq } else { Op::Eq };
        let data = data.into();
        self.exprs.extend([load, Expr::Cmp { op, data }]);
    }

    fn address(&mut self, source: bool, not: bool, net: IpNet) {
        let (nfproto, offset, octets) = match net.addr() {
            IpAddr::V4(ip) => (
                NFPROTO_IPV4,
                if source { 12 } else { 16 },
                ip.octets().to_vec(),
            ),
            IpAddr::V6(ip) => (
                NFPROTO_IPV6,
                if source { 8 } else { 24 },
                ip.octets().to_vec(),
            ),
        };
        self.compare(Expr::MetaLoad(Meta::Nfproto), false, [nfproto]);
        let base = Base::Network;
        let bits = usize::from(net.prefix_len());
        if bits > 0 && bits.is_multiple_of(8) {
            // Whole bytes need no mask: load only them.
            let len = u32::from(net.prefix_len() / 8);
            let load = Expr::Payload { base, offset, len };
            self.compare(load, not, &octets[..bits / 8]);
            return;
        }
        let mask: Vec<u8> = (0..octets.len())
            .map(|i| {
                let ones = bits.saturating_sub(i * 8).min(8);
                // 8 - ones is 0..=8; a shift by 8 clears the byte.
                (0xff_u16 << (8 - ones)).to_le_bytes()[0]
            })
            .collect();
        let network: Vec<u8> = octets.iter().zip(&mask).map(|(a, m)| a & m).collect();
        let len = u32::try_from(octets.len()).unwrap_or(0);
        self.exprs.push(Expr::Payload { base, offset, len });
        self.compare(Expr::Mask(mask), not, network);
    }

    fn interface(&mut self, key: Meta, interface: &Interface) {
        let mut name = interface.name.as_bytes().to_vec();
        if !interface.prefix {
            name.resize(IFNAMSIZ, 0);
        }
        self.compare(Expr::MetaLoad(key), false, name);
    }

    fn lo(&mut self, key: Meta) {
        let lo = Interface {
            name: "lo".to_owned(),
            prefix: false,
        };
        self.interface(key, &lo);
    }

    fn port(&mut self, offset: u32, not: bool, ports: Ports) {
        if let Some(protocol) = self.implied.take() {
            self.compare(Expr::MetaLoad(Meta::L4proto), false, [protocol]);
        }
        let load = Expr::Payload {
            base: Base::Transport,
            offset,
            len: 2,
        };
        match ports {
            Ports::Range(range) if range.is_single() => {
                self.compare(load, not, range.low.to_be_bytes());
            }
            // Only lists of the user hold ranges, and none of those is inverted.
            Ports::Range(range) => {
                self.exprs.push(load);
                let low = range.low.to_be_bytes().to_vec();
                let high = range.high.to_be_bytes().to_vec();
                self.exprs.extend([
                    Expr::Cmp {
                        op: Op::Gte,
                        data: low,
                    },
                    Expr::Cmp {
                        op: Op::Lte,
                        data: high,
                    },
                ]);
            }
            Ports::Pair(a, b) => {
                let mut keys = vec![a.to_be_bytes().to_vec(), b.to_be_bytes().to_vec()];
                keys.sort();
                keys.dedup();
                self.exprs.extend([load, Expr::Lookup { keys, not }]);
            }
        }
    }

    fn state(&mut self, bits: u32) {
        self.exprs.push(Expr::CtLoad(Ct::State));
        self.compare(Expr::Mask(bits.to_ne_bytes().to_vec()), true, [0; 4]);
    }

    fn owner(&mut self, key: Meta, not: bool, (low, high): (u32, u32)) {
        let load = Expr::MetaLoad(key);
        if low == high {
            self.compare(load, not, low.to_ne_bytes());
            return;
        }
        let (from, to) = (low.to_be_bytes().to_vec(), high.to_be_bytes().to_vec());
        let range = Expr::Range { not, from, to };
        self.exprs.extend([load, Expr::HostToNetwork, range]);
    }

    fn matching(&mut self, matching: &Match) -> Result<(), OwnerError> {
        match matching {
            Match::InInterface(interface) => self.interface(Meta::Iifname, interface),
            Match::OutInterface(interface) => self.interface(Meta::Oifname, interface),
            Match::InLo => self.lo(Meta::Iifname),
            Match::OutLo => self.lo(Meta::Oifname),
            Match::Tcp => self.compare(Expr::MetaLoad(Meta::L4proto), false, [IPPROTO_TCP]),
            Match::TcpImplied => self.implied = Some(IPPROTO_TCP),
            Match::Udp => self.implied = Some(IPPROTO_UDP),
            Match::DestinationPort { not, ports } => self.port(2, *not, *ports),
            Match::SourcePort(port) => {
                let port = Ports::Range(crate::values::PortRange::single(*port));
                self.port(0, false, port);
            }
            Match::Established => self.state(CT_ESTABLISHED_RELATED),
            Match::Invalid => self.state(CT_INVALID),
            Match::Mark { not, mark } => {
                self.compare(Expr::MetaLoad(Meta::Mark), *not, mark.to_ne_bytes());
            }
            Match::ConnMark(mark) => {
                self.compare(Expr::CtLoad(Ct::Mark), false, mark.to_ne_bytes());
            }
            Match::User { not, id } => {
                let ids = self.names.user(id)?;
                self.owner(Meta::Skuid, *not, ids);
            }
            Match::Group { not, id } => {
                let ids = self.names.group(id)?;
                self.owner(Meta::Skgid, *not, ids);
            }
            // The plan has turned them into `NftMatch::Address`.
            Match::Source(_) | Match::Destination { .. } => {}
        }
        Ok(())
    }

    fn action(&mut self, rule: &NftRule) {
        let be_port = |port: u16| Expr::Immediate(port.to_be_bytes().to_vec());
        let set_mark = |mark: u32| {
            [
                Expr::Immediate(mark.to_ne_bytes().to_vec()),
                Expr::MetaSet(Meta::Mark),
            ]
        };
        let out = &mut self.exprs;
        if let Action::Tproxy { port, mark } = rule.action {
            let family = match rule.family {
                Family::V4 => u32::from(NFPROTO_IPV4),
                Family::V6 => u32::from(NFPROTO_IPV6),
            };
            out.extend([be_port(port), Expr::Tproxy { family }]);
            out.extend(set_mark(mark));
            out.extend([Expr::Counter, Expr::Verdict(Verdict::Accept)]);
            return;
        }
        out.push(Expr::Counter);
        match rule.action {
            Action::Return => out.push(Expr::Verdict(Verdict::Return)),
            Action::Accept | Action::Tproxy { .. } => out.push(Expr::Verdict(Verdict::Accept)),
            Action::Drop => out.push(Expr::Verdict(Verdict::Drop)),
            Action::Jump(chain) => {
                out.push(Expr::Verdict(Verdict::Jump(chain.nft_name().to_owned())));
            }
            Action::Redirect(port) => out.extend([be_port(port), Expr::Redir]),
            Action::SetMark(mark) => out.extend(set_mark(mark)),
            Action::SaveMark => out.extend([Expr::MetaLoad(Meta::Mark), Expr::CtSet(Ct::Mark)]),
            Action::RestoreMark => {
                out.extend([Expr::CtLoad(Ct::Mark), Expr::MetaSet(Meta::Mark)]);
            }
            Action::Zone(zone) => out.extend([
                Expr::Immediate(zone.to_ne_bytes().to_vec()),
                Expr::CtSet(Ct::Zone),
            ]),
        }
    }
}
