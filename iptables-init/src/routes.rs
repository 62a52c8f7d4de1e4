//! Addresses, policy rules and routes that TPROXY and the IPv6 passthrough source need. Reads what
//! is there, plans the changes, makes them one by one; every change knows its inverse, and what
//! was removed is put back exactly as the kernel reported it.

mod netlink;

use std::fs;
use std::io;

use crate::rules::Family;
pub use netlink::RouteSocket;
use netlink::{local_default, mark_rule, passthrough_address};

/// What the configuration needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutePlan {
    /// IPv6 policy rule and route besides the IPv4 ones.
    pub ipv6: bool,
    /// `::6/128` on lo.
    pub address: bool,
    /// Mark and table of TPROXY, when inbound is captured that way.
    pub tproxy: Option<(u32, u32)>,
}

impl RoutePlan {
    /// Nothing is wanted.
    pub const NONE: Self = Self {
        ipv6: false,
        address: false,
        tproxy: None,
    };

    fn covers(&self, family: Family, mark: u32, table: u32) -> bool {
        self.tproxy == Some((mark, table)) && (self.ipv6 || family == Family::V4)
    }
}

/// Which policy rules count as ours when they are not wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// Those with one of these marks.
    Marks(Vec<u32>),
    /// Every rule that consists of a mark and looks up a table with only the local default route
    /// of lo; also the rule and the route of this mark and table, one without the other.
    Shape {
        /// Mark of the flags.
        mark: u32,
        /// Table of the flags.
        table: u32,
    },
}

/// Failure of a route step; that step took no effect.
#[derive(Debug, thiserror::Error)]
#[error("failed to configure routes: failed to {what}: {source}")]
pub struct RouteError {
    /// Which step.
    pub what: String,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Address,
    Rule,
    Route,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Address => "IPv6 inbound address",
            Self::Rule => "policy routing rule",
            Self::Route => "local default route",
        }
    }
}

/// One thing that exists or not: its kind and the body of its netlink message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    kind: Kind,
    body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Add,
    Remove,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    verb: Verb,
    item: Item,
}

impl Change {
    const fn add(item: Item) -> Self {
        let verb = Verb::Add;
        Self { verb, item }
    }

    const fn remove(item: Item) -> Self {
        let verb = Verb::Remove;
        Self { verb, item }
    }

    /// Makes the change.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn make(&self, socket: &RouteSocket) -> Result<(), RouteError> {
        let (verb, done) = match self.verb {
            Verb::Add => ("add", socket.add(&self.item)),
            Verb::Remove => ("remove", socket.remove(&self.item)),
        };
        done.map_err(|errno| RouteError {
            what: format!("{verb} {}", self.item.kind.name()),
            source: errno.into(),
        })
    }

    /// What takes this change back.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let verb = match self.verb {
            Verb::Add => Verb::Remove,
            Verb::Remove => Verb::Add,
        };
        let item = self.item.clone();
        Self { verb, item }
    }

    /// Whether this adds `::6`.
    #[must_use]
    pub fn adds_address(&self) -> bool {
        self.verb == Verb::Add && self.item.kind == Kind::Address
    }
}

/// Changes in the order in which they are safe: `add` before the rules that need it are written,
/// `remove` after the rules that needed it are gone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What is missing.
    pub add: Vec<Change>,
    /// What is left of earlier runs.
    pub remove: Vec<Change>,
}

/// Whether the loopback interface refuses IPv6 addresses and routes.
#[must_use]
pub fn loopback_ipv6_disabled() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|t| t.trim() == "1")
}

/// Reads what is there and plans the changes that make it `wanted`.
///
/// # Errors
/// The kernel refuses to answer.
pub fn plan(
    socket: &RouteSocket,
    wanted: RoutePlan,
    ours: &Ownership,
) -> Result<Changes, RouteError> {
    let mut changes = Changes::default();
    let failed = |what: &'static str| {
        move |errno: nix::errno::Errno| RouteError {
            what: format!("read {what}"),
            source: errno.into(),
        }
    };
    let address = socket.passthrough_address().map_err(failed("addresses"))?;
    match address {
        Some(item) if !wanted.address => changes.remove.push(Change::remove(item)),
        None if wanted.address => changes.add.push(Change::add(passthrough_address())),
        _ => {}
    }
    for family in [Family::V4, Family::V6] {
        plan_family(socket, wanted, ours, family, &mut changes).map_err(failed("routes"))?;
    }
    Ok(changes)
}

/// What a table holds.
struct Content {
    table: u32,
    local_default: Option<Item>,
    others: bool,
}

fn plan_family(
    socket: &RouteSocket,
    wanted: RoutePlan,
    ours: &Ownership,
    family: Family,
    changes: &mut Changes,
) -> Result<(), nix::errno::Errno> {
    let rules = socket.rules(family)?;
    let want = wanted
        .tproxy
        .filter(|(mark, table)| wanted.covers(family, *mark, *table));
    let mut tables: Vec<u32> = rules
        .iter()
        .filter(|rule| rule.mark.is_some())
        .map(|rule| rule.table)
        .chain(want.map(|(_, table)| table))
        .collect();
    if let Ownership::Shape { table, .. } = ours {
        tables.push(*table);
    }
    if tables.is_empty() {
        return Ok(());
    }
    let contents = read_tables(socket, family, &tables)?;
    let content = |table: u32| contents.iter().find(|c| c.table == table);
    let mut kept = Vec::new();
    let mut have_wanted = false;
    for rule in rules {
        let is_wanted = rule.mark.is_some_and(|m| want == Some((m, rule.table)));
        let only_ours = content(rule.table).is_none_or(|c| !c.others);
        let stale = match (ours, rule.mark) {
            (_, None) => false,
            (Ownership::Marks(marks), Some(mark)) => only_ours && marks.contains(&mark),
            (Ownership::Shape { mark, table }, Some(of_rule)) => {
                let shaped = content(rule.table).is_some_and(|c| c.local_default.is_some());
                (only_ours && shaped) || (of_rule == *mark && rule.table == *table)
            }
        };
        // Older programs added one more equal rule per run; one of them is enough.
        if (is_wanted && have_wanted) || (stale && !is_wanted) {
            changes.remove.push(Change::remove(rule.item));
            continue;
        }
        have_wanted |= is_wanted;
        kept.push(rule.table);
    }
    let still_used = |table: u32| kept.contains(&table);
    for content in &contents {
        let ours = !content.others && !still_used(content.table);
        if let Some(item) = content.local_default.clone().filter(|_| ours)
            && want.is_none_or(|(_, table)| table != content.table)
        {
            changes.remove.push(Change::remove(item));
        }
    }
    if let Some((mark, table)) = want {
        if content(table).is_none_or(|c| c.local_default.is_none()) {
            changes.add.push(Change::add(local_default(family, table)));
        }
        if !have_wanted {
            changes
                .add
                .push(Change::add(mark_rule(family, mark, table)));
        }
    }
    Ok(())
}

/// Contents of the tables that hold anything.
fn read_tables(
    socket: &RouteSocket,
    family: Family,
    tables: &[u32],
) -> Result<Vec<Content>, nix::errno::Errno> {
    let mut contents: Vec<Content> = Vec::new();
    for route in socket.routes(family, tables)? {
        let at = contents.iter().position(|c| c.table == route.table);
        let index = at.unwrap_or_else(|| {
            contents.push(Content {
                table: route.table,
                local_default: None,
                others: false,
            });
            contents.len() - 1
        });
        let content = &mut contents[index];
        match route.local_default {
            Some(item) if content.local_default.is_none() => content.local_default = Some(item),
            _ => content.others = true,
        }
    }
    Ok(contents)
}
