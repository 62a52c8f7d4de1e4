//! Walks a packet through the hooks as the kernel does: raw, mangle, nat on each hook; a packet
//! that ends up on the loopback interface passes output and then prerouting. Pure.

use std::net::{IpAddr, SocketAddr};

use super::packet::{ConnState, Direction, Packet, Protocol};
use super::ruleset::{LoadedRule, Ruleset, loopback};
use super::{Pod, PodFacts};
use crate::nft::plan::NftMatch;
use crate::rules::{Action, Chain, Family, Flavor, Match, Ports, Table};
use crate::values::{Interface, OwnerId};

/// Tables of a hook in the order of their priorities (-300, -150, -100).
const ORDER: [Table; 3] = [Table::Raw, Table::Mangle, Table::Nat];

/// One rule that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Table.
    pub table: Table,
    /// Chain.
    pub chain: Chain,
    /// Position in the chain, from 1.
    pub number: usize,
    /// The rule's text.
    pub text: String,
    /// What came of it.
    pub answer: Answer,
}

/// What came of asking a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A condition does not hold: what the packet has instead.
    No(String),
    /// All conditions hold; the action and whether it ends the table.
    Yes {
        /// The action.
        action: Action,
        /// Nothing more is asked in this table (or, for a return, in this chain).
        ends: bool,
    },
}

/// Something that happened on a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A rule was asked.
    Rule(Step),
    /// The kernel did something by itself.
    Note(String),
}

/// One hook with everything that happened there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// [`Chain::Prerouting`] or [`Chain::Output`].
    pub hook: Chain,
    /// Interface on which the packet arrives or leaves.
    pub dev: String,
    /// In order.
    pub events: Vec<Event>,
}

impl Pass {
    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.events.iter().filter_map(|event| match event {
            Event::Rule(step) => Some(step),
            Event::Note(_) => None,
        })
    }
}

/// Where the packet ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Leaves the pod as it was.
    Leaves,
    /// Reaches a socket of this host as it was.
    Local,
    /// Reaches a listener at another address; SO_ORIGINAL_DST tells the destination.
    Redirected(SocketAddr),
    /// Reaches a transparent listener, which keeps the peer's address.
    Transparent {
        /// Port of the listener.
        port: u16,
        /// Local address that it sees: the destination, unless nat changes it as well.
        local: SocketAddr,
    },
    /// Passed on to another interface as it was.
    Forwarded,
    /// Nowhere.
    Dropped,
}

/// The whole story of one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The packet as asked, defaults filled in.
    pub packet: Packet,
    /// Hooks in order.
    pub passes: Vec<Pass>,
    /// The end.
    pub delivery: Delivery,
    /// Conntrack zone, when a rule sets one.
    pub zone: Option<u16>,
    /// Packet mark at the end.
    pub mark: u32,
    /// Connection mark at the end.
    pub connmark: u32,
    /// Routing table that the policy rule of TPROXY sends the packet to.
    pub route_table: Option<u32>,
}

impl Explanation {
    /// What decided: the rules that redirect or drop the packet, or, if none does, the rules that
    /// end the tables which might have. Empty: no rule applied.
    #[must_use]
    pub fn deciders(&self) -> Vec<&Step> {
        let takes = |step: &&Step| match step.answer {
            Answer::Yes { action, .. } => matches!(
                action,
                Action::Redirect(_) | Action::Tproxy { .. } | Action::Drop
            ),
            Answer::No(_) => false,
        };
        let taken: Vec<&Step> = self
            .passes
            .iter()
            .flat_map(Pass::steps)
            .filter(takes)
            .collect();
        if !taken.is_empty() {
            return taken;
        }
        let ends = |step: &&Step| matches!(step.answer, Answer::Yes { ends: true, .. });
        let mut spared = Vec::new();
        for pass in &self.passes {
            for table in ORDER {
                let last = pass
                    .steps()
                    .filter(|s| s.table == table)
                    .filter(ends)
                    .last();
                spared.extend(last);
            }
        }
        spared
    }
}

/// Where to go on after a chain.
enum Flow {
    /// The caller's next rule.
    Next,
    /// The table is done.
    Accept,
    /// The packet is gone.
    Drop,
}

struct Walk<'a> {
    facts: &'a PodFacts<'a>,
    rules: &'a Ruleset,
    packet: &'a Packet,
    to: SocketAddr,
    dev: String,
    hook: Chain,
    mark: u32,
    connmark: u32,
    zone: Option<u16>,
    /// Conntrack has seen the packet: zones no longer take effect.
    tracked: bool,
    /// A destination is chosen for the connection, possibly the old one.
    translated: bool,
    redirected: bool,
    transparent: Option<u16>,
    route_table: Option<u32>,
    events: Vec<Event>,
    passes: Vec<Pass>,
}

/// Follows one packet.
#[must_use]
pub fn walk(packet: &Packet, rules: &Ruleset, facts: &PodFacts<'_>) -> Explanation {
    let mut w = Walk {
        facts,
        rules,
        packet,
        to: packet.to,
        dev: packet.dev.clone(),
        hook: Chain::Output,
        mark: packet.mark,
        connmark: packet.connmark,
        zone: None,
        tracked: false,
        translated: !packet.state.asks_nat(),
        redirected: false,
        transparent: None,
        route_table: None,
        events: Vec::new(),
        passes: Vec::new(),
    };
    let delivery = match packet.direction {
        Direction::Out => w.output(),
        Direction::In => w.prerouting(),
    };
    Explanation {
        packet: packet.clone(),
        passes: w.passes,
        delivery,
        zone: w.zone,
        mark: w.mark,
        connmark: w.connmark,
        route_table: w.route_table,
    }
}

impl Walk<'_> {
    fn output(&mut self) -> Delivery {
        self.hook = Chain::Output;
        if self.dev != "lo" && self.policy_route() {
            "lo".clone_into(&mut self.dev);
        }
        let (mark, to) = (self.mark, self.to);
        if !self.hook_accepts() {
            return Delivery::Dropped;
        }
        let mut after = self.dev.clone();
        if self.to != to && self.pod().is_local(self.to.ip()) && after != "lo" {
            "lo".clone_into(&mut after);
            self.note("routed again: the new destination is this host, so it leaves on lo");
        }
        if self.mark != mark && after != "lo" && self.policy_route() {
            "lo".clone_into(&mut after);
        }
        if after == "lo" && self.lacks_loopback() {
            self.note("IPv6 is disabled on lo: what goes there is dropped");
            self.finish_pass();
            return Delivery::Dropped;
        }
        self.finish_pass();
        self.dev = after;
        if self.dev == "lo" {
            return self.prerouting();
        }
        Delivery::Leaves
    }

    fn prerouting(&mut self) -> Delivery {
        self.hook = Chain::Prerouting;
        if !self.hook_accepts() {
            return Delivery::Dropped;
        }
        let local = self.pod().is_local(self.to.ip());
        if let Some(table) = self.policy_table() {
            self.route_table = Some(table);
            let mark = self.mark;
            self.note(&format!(
                "ip rule fwmark {mark} lookup {table}: delivered to this host"
            ));
        }
        let here = local || self.route_table.is_some();
        if self.transparent.is_some() && !here {
            self.note("IPv6 is disabled on lo, so TPROXY has no route: what is not for this host is dropped");
        }
        self.finish_pass();
        match self.transparent {
            // The kernel forwards nothing that has a socket already.
            Some(_) if !here => Delivery::Dropped,
            Some(port) => Delivery::Transparent {
                port,
                local: self.to,
            },
            None if self.redirected => Delivery::Redirected(self.to),
            None if here => Delivery::Local,
            None => Delivery::Forwarded,
        }
    }

    fn pod(&self) -> &Pod {
        self.facts.pod
    }

    /// Whether there is no loopback for the packet's family.
    fn lacks_loopback(&self) -> bool {
        self.packet.family() == Family::V6 && self.pod().loopback_ipv6_disabled
    }

    fn note(&mut self, text: &str) {
        self.events.push(Event::Note(text.to_owned()));
    }

    fn finish_pass(&mut self) {
        self.passes.push(Pass {
            hook: self.hook,
            dev: self.dev.clone(),
            events: std::mem::take(&mut self.events),
        });
    }

    /// Table that the policy rule names for the packet's mark, if that rule exists.
    fn policy_table(&self) -> Option<u32> {
        let config = self.facts.config;
        let v4 = self.packet.family() == Family::V4;
        let family = v4 || (config.ipv6 && !self.lacks_loopback());
        let exists = config.tproxy && !config.inbound_ports.is_none() && family;
        (exists && self.mark == config.mark).then_some(self.facts.route_table)
    }

    /// On output: whether the mark sends the packet to the loopback interface.
    fn policy_route(&mut self) -> bool {
        let Some(table) = self.policy_table() else {
            return false;
        };
        self.route_table = Some(table);
        let mark = self.mark;
        self.note(&format!(
            "ip rule fwmark {mark} lookup {table}: leaves on lo"
        ));
        true
    }

    /// Asks the three tables; `false` when the packet was dropped.
    fn hook_accepts(&mut self) -> bool {
        for table in ORDER {
            if table == Table::Nat && self.translated {
                self.note(if self.packet.state.asks_nat() {
                    "nat is not asked again: the destination of this connection is chosen"
                } else {
                    "nat is not asked: only the first packet of a connection is"
                });
                continue;
            }
            match self.chain(table, self.hook) {
                Flow::Next | Flow::Accept => {}
                Flow::Drop => {
                    self.finish_pass();
                    return false;
                }
            }
            if table == Table::Nat {
                self.translated = true;
            }
            // Conntrack looks between raw and mangle.
            self.tracked |= table == Table::Raw && self.packet.state != ConnState::Invalid;
        }
        true
    }

    fn chain(&mut self, table: Table, chain: Chain) -> Flow {
        let rules = self.rules;
        for (index, rule) in rules.chain(table, chain).iter().enumerate() {
            let failing = rule.matches.iter().find(|m| !self.holds(m));
            let answer = match failing {
                Some(matching) => Answer::No(self.instead(matching)),
                None => Answer::Yes {
                    action: rule.action,
                    ends: ends(rule),
                },
            };
            let matched = failing.is_none();
            self.events.push(Event::Rule(Step {
                table,
                chain,
                number: index + 1,
                text: rule.text.clone(),
                answer,
            }));
            if !matched {
                continue;
            }
            if let Some(flow) = self.act(table, rule.action) {
                return flow;
            }
        }
        Flow::Next
    }

    /// Performs an action; `None` goes on with the next rule of the chain.
    fn act(&mut self, table: Table, action: Action) -> Option<Flow> {
        match action {
            Action::Return => return Some(Flow::Next),
            Action::Accept => return Some(Flow::Accept),
            Action::Drop => return Some(Flow::Drop),
            Action::Jump(chain) => match self.chain(table, chain) {
                Flow::Next => {}
                flow => return Some(flow),
            },
            Action::Redirect(port) => {
                self.to = SocketAddr::new(self.redirect_ip(), port);
                self.redirected = true;
                return Some(Flow::Accept);
            }
            Action::Tproxy { port, mark } => {
                self.mark = mark;
                self.transparent = Some(port);
                return Some(Flow::Accept);
            }
            Action::SetMark(mark) => self.mark = mark,
            Action::SaveMark if self.tracked => self.connmark = self.mark,
            Action::RestoreMark if self.tracked => self.mark = self.connmark,
            // Without a connection there is no mark to copy.
            Action::SaveMark | Action::RestoreMark => {}
            // The first zone stays, and a packet that came over lo has its connection already.
            Action::Zone(zone) if !self.tracked => {
                self.zone.get_or_insert(zone);
            }
            Action::Zone(_) => {}
        }
        None
    }

    /// REDIRECT goes to the loopback address on output, else to the receiving interface's own.
    fn redirect_ip(&self) -> IpAddr {
        let family = self.packet.family();
        match self.hook {
            Chain::Output => loopback(family),
            // An interface that is not there (yet) is taken to have the destination.
            _ => self
                .pod()
                .address_on(&self.dev, family)
                .unwrap_or_else(|| self.to.ip()),
        }
    }

    fn holds(&self, matching: &NftMatch) -> bool {
        let matching = match matching {
            // Contains is false across families, but so is the comparison before an inversion.
            NftMatch::Address { source, not, net } => {
                let ip = if *source { self.packet.from } else { self.to }.ip();
                let same_family = ip.is_ipv4() == net.addr().is_ipv4();
                return same_family && net.contains(&ip) != *not;
            }
            NftMatch::Other(matching) => matching,
        };
        let input = self.hook == Chain::Prerouting;
        match matching {
            Match::InInterface(interface) => input && names(interface, &self.dev),
            Match::OutInterface(interface) => !input && names(interface, &self.dev),
            Match::InLo => input && self.dev == "lo",
            Match::OutLo => !input && self.dev == "lo",
            Match::Tcp | Match::TcpImplied => self.packet.protocol == Protocol::Tcp,
            Match::Udp => self.packet.protocol == Protocol::Udp,
            Match::DestinationPort { not, ports } => {
                let port = self.to.port();
                let inside = match ports {
                    Ports::Range(range) => (range.low..=range.high).contains(&port),
                    Ports::Pair(a, b) => port == *a || port == *b,
                };
                inside != *not
            }
            Match::SourcePort(port) => self.packet.from.port() == *port,
            Match::Established => matches!(
                self.packet.state,
                ConnState::Established | ConnState::Related
            ),
            Match::Invalid => self.packet.state == ConnState::Invalid,
            Match::Mark { not, mark } => (self.mark == *mark) != *not,
            Match::ConnMark(mark) => self.tracked && self.connmark == *mark,
            Match::User { not, id } => self.owner(self.packet.owner.map(|o| o.0), id, *not),
            Match::Group { not, id } => self.owner(self.packet.owner.map(|o| o.1), id, *not),
            // Both backends resolve addresses when the rules are loaded.
            Match::Source(_) | Match::Destination { .. } => false,
        }
    }

    fn owner(&self, have: Option<u32>, id: &OwnerId, not: bool) -> bool {
        let Some(have) = have else {
            // A packet without a socket: nft gives up on the rule, iptables inverts.
            return not && self.rules.flavor == Flavor::Iptables;
        };
        let same = match id {
            OwnerId::Number(number) => have == *number,
            OwnerId::Range(low, high) => (*low..=*high).contains(&have),
            // Resolved when the rules are loaded.
            OwnerId::Name(_) => false,
        };
        same != not
    }

    /// What the packet has instead of what a condition wants.
    fn instead(&self, matching: &NftMatch) -> String {
        let (from, to) = (self.packet.from, self.to);
        let matching = match matching {
            NftMatch::Address { source: true, .. } => return format!("comes from {}", from.ip()),
            NftMatch::Address { source: false, .. } => return format!("goes to {}", to.ip()),
            NftMatch::Other(matching) => matching,
        };
        let owner = |what: &str, id: Option<u32>| match id {
            Some(id) => format!("{what} is {id}"),
            None => format!("has no {what}"),
        };
        match matching {
            Match::InInterface(_) | Match::InLo => format!("arrives on {}", self.dev),
            Match::OutInterface(_) | Match::OutLo => format!("leaves on {}", self.dev),
            Match::Tcp | Match::TcpImplied => "is UDP".to_owned(),
            Match::Udp => "is TCP".to_owned(),
            Match::DestinationPort { .. } => format!("goes to port {}", to.port()),
            Match::SourcePort(_) => format!("comes from port {}", from.port()),
            Match::Established | Match::Invalid => format!("state is {}", self.packet.state),
            Match::Mark { .. } => format!("mark is {}", self.mark),
            Match::ConnMark(_) => format!("connection mark is {}", self.connmark),
            Match::User { .. } => owner("user", self.packet.owner.map(|o| o.0)),
            Match::Group { .. } => owner("group", self.packet.owner.map(|o| o.1)),
            Match::Source(_) => format!("comes from {}", from.ip()),
            Match::Destination { .. } => format!("goes to {}", to.ip()),
        }
    }
}

/// Whether the action leaves the chain for good.
const fn ends(rule: &LoadedRule) -> bool {
    matches!(
        rule.action,
        Action::Return
            | Action::Accept
            | Action::Drop
            | Action::Redirect(_)
            | Action::Tproxy { .. }
    )
}

fn names(interface: &Interface, dev: &str) -> bool {
    if interface.prefix {
        dev.starts_with(&interface.name)
    } else {
        dev == interface.name
    }
}
