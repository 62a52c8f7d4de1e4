//! Addresses, policy rules and routes that TPROXY and the IPv6 passthrough source need, through
//! rtnetlink. Looks before it adds, remembers what it added so that a failure can be undone.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::nft::wire::{Attributes, attribute, messages, push_message};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// RTN_LOCAL: deliver to this host.
const RTN_LOCAL: u8 = 2;
const RT_SCOPE_HOST: u8 = 254;
const RTPROT_BOOT: u8 = 3;
/// FR_ACT_TO_TBL.
const ACTION_TABLE: u8 = 1;
/// The loopback interface of a network namespace is always number 1.
const LOOPBACK_INDEX: u32 = 1;
/// Priority of the policy rule; the ambient agent uses the same number.
const RULE_PRIORITY: u32 = 32764;
/// Source address of the passthrough over IPv6.
const PASSTHROUGH_V6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6];

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

/// Failure of a route step; the steps before it have been undone.
#[derive(Debug, thiserror::Error)]
#[error("failed to configure routes: {what}: {source}")]
pub struct RouteError {
    /// Which step.
    pub what: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// One thing that exists or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Address,
    Rule { family: u8, mark: u32, table: u32 },
    Route { family: u8, table: u32 },
}

impl Item {
    const fn what(self) -> &'static str {
        match self {
            Self::Address => "IPv6 inbound address",
            Self::Rule { .. } => "policy routing rule",
            Self::Route { .. } => "local default route",
        }
    }
}

/// What an apply added; hand it to [`undo`] to take it back.
#[derive(Debug, Default)]
pub struct Added(Vec<Item>);

impl Added {
    /// Whether `::6` was added now.
    #[must_use]
    pub fn address(&self) -> bool {
        self.0.contains(&Item::Address)
    }

    /// Whether anything was added.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn items(plan: RoutePlan) -> Vec<Item> {
    let mut items = Vec::new();
    if plan.address {
        items.push(Item::Address);
    }
    if let Some((mark, table)) = plan.tproxy {
        let families: &[u8] = if plan.ipv6 {
            &[AF_INET, AF_INET6]
        } else {
            &[AF_INET]
        };
        for family in families.iter().copied() {
            items.push(Item::Rule {
                family,
                mark,
                table,
            });
            items.push(Item::Route { family, table });
        }
    }
    items
}

/// Whether the loopback interface refuses IPv6 addresses.
#[must_use]
pub fn loopback_ipv6_disabled() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|t| t.trim() == "1")
}

/// Adds what is missing.
///
/// # Errors
/// The first refused step; everything added before it has been removed again.
pub fn apply(plan: RoutePlan) -> Result<Added, RouteError> {
    let mut added = Added::default();
    for item in items(plan) {
        match add(item) {
            Ok(true) => added.0.push(item),
            Ok(false) => {}
            Err(source) => {
                undo(&added);
                let what = item.what();
                return Err(RouteError { what, source });
            }
        }
    }
    Ok(added)
}

/// Removes what [`apply`] added; best effort, as it runs on the way out of an error.
pub fn undo(added: &Added) {
    for item in added.0.iter().rev() {
        // The error that led here is the one to report.
        let _ = delete(*item);
    }
}

/// Removes everything the plan could have added, also duplicates that older programs left.
///
/// # Errors
/// A removal that fails for another reason than "not there".
pub fn cleanup(plan: RoutePlan) -> Result<(), RouteError> {
    for item in items(plan) {
        let what = item.what();
        // One deletion removes one rule; older versions added one per run.
        for _ in 0..1024 {
            if !delete(item).map_err(|source| RouteError { what, source })? {
                break;
            }
        }
    }
    Ok(())
}

/// Adds one item; `false` when it is there already.
fn add(item: Item) -> io::Result<bool> {
    match item {
        Item::Rule {
            family,
            mark,
            table,
        } if rule_exists(family, mark, table)? => return Ok(false),
        _ => {}
    }
    let (kind, _, body) = encode(item);
    match exchange(kind, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &body) {
        Ok(_) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn delete(item: Item) -> io::Result<bool> {
    let (_, kind, body) = encode(item);
    match exchange(kind, NLM_F_ACK, &body) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Message types for adding and deleting, and the body.
fn encode(item: Item) -> (u16, u16, Vec<u8>) {
    let mut a = Attributes::default();
    let ne = u32::to_ne_bytes;
    match item {
        Item::Address => {
            a.bytes(IFA_LOCAL, &PASSTHROUGH_V6)
                .bytes(IFA_ADDRESS, &PASSTHROUGH_V6);
            // struct ifaddrmsg: family, prefix length, flags, scope, index.
            let mut body = vec![AF_INET6, 128, 0, 0];
            body.extend(ne(LOOPBACK_INDEX));
            body.extend(a.0);
            (RTM_NEWADDR, RTM_DELADDR, body)
        }
        Item::Rule {
            family,
            mark,
            table,
        } => {
            a.bytes(FRA_FWMARK, &ne(mark)).bytes(FRA_TABLE, &ne(table));
            // struct fib_rule_hdr; the table above 255 travels only as attribute. The priority is
            // not part of a deletion, so that rules of older programs go too.
            let mut body = vec![family, 0, 0, 0, 0, 0, 0, ACTION_TABLE, 0, 0, 0, 0];
            body.extend(a.0);
            (RTM_NEWRULE, RTM_DELRULE, body)
        }
        Item::Route { family, table } => {
            a.bytes(RTA_TABLE, &ne(table))
                .bytes(RTA_OIF, &ne(LOOPBACK_INDEX));
            // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
            let mut body = vec![family, 0, 0, 0, 0, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL];
            body.extend(ne(0));
            body.extend(a.0);
            (RTM_NEWROUTE, RTM_DELROUTE, body)
        }
    }
}

fn rule_exists(family: u8, mark: u32, table: u32) -> io::Result<bool> {
    let body = vec![family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let number = |data: &[u8], kind| {
        attribute(data, kind)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_ne_bytes)
    };
    let rules = exchange(RTM_GETRULE, NLM_F_DUMP, &body).map_err(io::Error::from)?;
    Ok(rules.iter().any(|rule| {
        let attributes = rule.get(12..).unwrap_or_default();
        let plain = rule.get(1..3) == Some(&[0, 0]);
        let whole_mark = matches!(number(attributes, FRA_FWMASK), None | Some(u32::MAX));
        plain
            && whole_mark
            && number(attributes, FRA_FWMARK) == Some(mark)
            && number(attributes, FRA_TABLE) == Some(table)
    }))
}

fn open() -> Result<OwnedFd, Errno> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    // A bound for a kernel that does not answer.
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(10, 0))?;
    Ok(fd)
}

fn exchange(kind: u16, flags: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
    let fd = open()?;
    let mut body = body.to_vec();
    if kind == RTM_NEWRULE {
        let mut a = Attributes::default();
        a.bytes(FRA_PRIORITY, &RULE_PRIORITY.to_ne_bytes());
        body.extend(a.0);
    }
    let mut out = Vec::new();
    push_message(&mut out, kind, NLM_F_REQUEST | flags, 1, &body);
    send(fd.as_raw_fd(), &out, MsgFlags::empty())?;
    let mut answers = Vec::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let length = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for message in messages(&buffer[..length]) {
            match message.kind {
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => {
                    let code = message.payload.get(..4).and_then(|b| b.try_into().ok());
                    return match code.map_or(0, i32::from_ne_bytes) {
                        0 => Ok(answers),
                        code => Err(Errno::from_raw(code.saturating_neg())),
                    };
                }
                _ => answers.push(message.payload.to_vec()),
            }
        }
    }
}
