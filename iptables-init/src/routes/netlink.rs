//! The rtnetlink socket and the messages about lo's `::6` address, policy rules and local default
//! routes. Bytes of the kernel are read without trusting them.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::{Item, Kind};
use crate::nft::wire::{Attributes, attribute, messages, push_message};
use crate::rules::Family;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_L3MDEV: u16 = 19;
const FRA_UID_RANGE: u16 = 20;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
/// Selectors that our rules do not have.
const OTHER_SELECTORS: [u16; 9] = [
    FRA_DST,
    FRA_SRC,
    FRA_IIFNAME,
    FRA_OIFNAME,
    FRA_L3MDEV,
    FRA_UID_RANGE,
    FRA_IP_PROTO,
    FRA_SPORT_RANGE,
    FRA_DPORT_RANGE,
];
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// RTN_LOCAL: deliver to this host.
const RTN_LOCAL: u8 = 2;
const RT_SCOPE_HOST: u8 = 254;
const RTPROT_BOOT: u8 = 3;
/// RTM_F_CLONED: a cached copy, not a route.
const CLONED: u32 = 0x200;
/// FR_ACT_TO_TBL.
const ACTION_TABLE: u8 = 1;
/// The loopback interface of a network namespace is always number 1.
const LOOPBACK_INDEX: u32 = 1;
/// Priority of the policy rule; the ambient agent uses the same number.
const RULE_PRIORITY: u32 = 32764;
/// Source address of the passthrough over IPv6.
const PASSTHROUGH_V6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6];
/// Attempts at a dump that a concurrent change interrupts.
const ATTEMPTS: usize = 5;

const fn number(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

fn ne32(data: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(attribute(data, kind)?.try_into().ok()?))
}

/// The address as we add it.
pub(super) fn passthrough_address() -> Item {
    let mut a = Attributes::default();
    a.bytes(IFA_LOCAL, &PASSTHROUGH_V6)
        .bytes(IFA_ADDRESS, &PASSTHROUGH_V6);
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let mut body = vec![AF_INET6, 128, 0, 0];
    body.extend(LOOPBACK_INDEX.to_ne_bytes());
    body.extend(a.0);
    let kind = Kind::Address;
    Item { kind, body }
}

/// The policy rule as we add it.
pub(super) fn mark_rule(family: Family, mark: u32, table: u32) -> Item {
    let mut a = Attributes::default();
    a.bytes(FRA_PRIORITY, &RULE_PRIORITY.to_ne_bytes())
        .bytes(FRA_FWMARK, &mark.to_ne_bytes())
        .bytes(FRA_TABLE, &table.to_ne_bytes());
    // struct fib_rule_hdr; the table travels only as attribute, it may be above 255.
    let mut body = vec![number(family), 0, 0, 0, 0, 0, 0, ACTION_TABLE, 0, 0, 0, 0];
    body.extend(a.0);
    let kind = Kind::Rule;
    Item { kind, body }
}

/// The route as we add it.
pub(super) fn local_default(family: Family, table: u32) -> Item {
    let mut a = Attributes::default();
    a.bytes(RTA_TABLE, &table.to_ne_bytes())
        .bytes(RTA_OIF, &LOOPBACK_INDEX.to_ne_bytes());
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
    let family = number(family);
    let mut body = vec![family, 0, 0, 0, 0, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL];
    body.extend(0_u32.to_ne_bytes());
    body.extend(a.0);
    let kind = Kind::Route;
    Item { kind, body }
}

/// A policy rule: whether it is nothing but a mark, and the table it looks up.
pub(super) struct PolicyRule {
    pub(super) mark: Option<u32>,
    pub(super) table: u32,
    pub(super) item: Item,
}

fn parse_rule(body: &[u8], family: u8) -> Option<PolicyRule> {
    let header: [u8; 12] = body.get(..12)?.try_into().ok()?;
    let attributes = body.get(12..)?;
    if header[0] != family {
        return None;
    }
    let bare = header[1..4] == [0, 0, 0] && header[7] == ACTION_TABLE;
    let other = OTHER_SELECTORS
        .iter()
        .any(|kind| attribute(attributes, *kind).is_some());
    let whole = matches!(ne32(attributes, FRA_FWMASK), None | Some(u32::MAX));
    let mark = ne32(attributes, FRA_FWMARK).filter(|mark| *mark != 0);
    Some(PolicyRule {
        mark: mark.filter(|_| bare && !other && whole),
        table: ne32(attributes, FRA_TABLE).unwrap_or_else(|| header[4].into()),
        item: Item {
            kind: Kind::Rule,
            body: body.to_vec(),
        },
    })
}

/// A route: its table, and itself if it is the local default route of lo.
pub(super) struct TableRoute {
    pub(super) table: u32,
    pub(super) local_default: Option<Item>,
}

fn parse_route(body: &[u8], family: u8) -> Option<TableRoute> {
    let header: [u8; 12] = body.get(..12)?.try_into().ok()?;
    let attributes = body.get(12..)?;
    let flags = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
    if header[0] != family || flags & CLONED != 0 {
        return None;
    }
    let bare = header[1..4] == [0, 0, 0] && header[7] == RTN_LOCAL;
    let other = [RTA_DST, RTA_GATEWAY, RTA_MULTIPATH]
        .iter()
        .any(|kind| attribute(attributes, *kind).is_some());
    let on_loopback = ne32(attributes, RTA_OIF) == Some(LOOPBACK_INDEX);
    let item = Item {
        kind: Kind::Route,
        body: body.to_vec(),
    };
    Some(TableRoute {
        table: ne32(attributes, RTA_TABLE).unwrap_or_else(|| header[4].into()),
        local_default: (bare && !other && on_loopback).then_some(item),
    })
}

/// The socket; one request at a time, bounded waits.
#[derive(Debug)]
pub struct RouteSocket {
    fd: OwnedFd,
}

impl RouteSocket {
    /// Opens a socket in the current network namespace.
    ///
    /// # Errors
    /// A socket call fails.
    pub fn open() -> Result<Self, Errno> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // A bound for a kernel that does not answer.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(10, 0))?;
        Ok(Self { fd })
    }

    /// The `::6` address of lo, if it is there.
    pub(super) fn passthrough_address(&self) -> Result<Option<Item>, Errno> {
        let body = [AF_INET6, 0, 0, 0, 0, 0, 0, 0];
        let found = self.dump(RTM_GETADDR, &body, |body| {
            let header: [u8; 8] = body.get(..8)?.try_into().ok()?;
            let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
            let address = attribute(body.get(8..)?, IFA_ADDRESS)?;
            let ours =
                header[0] == AF_INET6 && index == LOOPBACK_INDEX && address == PASSTHROUGH_V6;
            // As we add it: the reported flags and times are the kernel's.
            ours.then(passthrough_address)
        })?;
        Ok(found.into_iter().next())
    }

    /// All policy rules of a family, in the order of their priority.
    pub(super) fn rules(&self, family: Family) -> Result<Vec<PolicyRule>, Errno> {
        let family = number(family);
        let body = [family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        self.dump(RTM_GETRULE, &body, |body| parse_rule(body, family))
    }

    /// All routes of a family in `tables`.
    pub(super) fn routes(&self, family: Family, tables: &[u32]) -> Result<Vec<TableRoute>, Errno> {
        let family = number(family);
        let body = [family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        self.dump(RTM_GETROUTE, &body, |body| {
            parse_route(body, family).filter(|route| tables.contains(&route.table))
        })
    }

    /// Adds an item that does not exist.
    pub(super) fn add(&self, item: &Item) -> Result<(), Errno> {
        let kind = match item.kind {
            Kind::Address => RTM_NEWADDR,
            Kind::Rule => RTM_NEWRULE,
            Kind::Route => RTM_NEWROUTE,
        };
        self.send(kind, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &item.body)?;
        self.answers(&mut |_| {})
    }

    /// Removes exactly this item.
    pub(super) fn remove(&self, item: &Item) -> Result<(), Errno> {
        let kind = match item.kind {
            Kind::Address => RTM_DELADDR,
            Kind::Rule => RTM_DELRULE,
            Kind::Route => RTM_DELROUTE,
        };
        self.send(kind, NLM_F_ACK, &item.body)?;
        self.answers(&mut |_| {})
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
        let mut out = Vec::new();
        push_message(&mut out, kind, NLM_F_REQUEST | flags, 1, body);
        send(self.fd.as_raw_fd(), &out, MsgFlags::empty()).map(drop)
    }

    /// Keeps of a dump what `select` finds. A kernel without the family has nothing.
    fn dump<T>(
        &self,
        kind: u16,
        body: &[u8],
        mut select: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Errno> {
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            self.send(kind, NLM_F_DUMP, body)?;
            match self.answers(&mut |payload| found.extend(select(payload))) {
                Ok(()) => return Ok(found),
                Err(Errno::EINTR) => {}
                Err(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => return Ok(Vec::new()),
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EINTR)
    }

    /// Reads to the end of one answer. EINTR: the dump is not one state.
    fn answers(&self, visit: &mut dyn FnMut(&[u8])) -> Result<(), Errno> {
        let mut buffer = vec![0; 64 * 1024];
        let mut interrupted = false;
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for message in messages(&buffer[..length]) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                let code = message.payload.get(..4).and_then(|b| b.try_into().ok());
                let code = code.map_or(0, i32::from_ne_bytes);
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR if code != 0 => {
                        return Err(Errno::from_raw(code.saturating_neg()));
                    }
                    NLMSG_DONE | NLMSG_ERROR if interrupted => return Err(Errno::EINTR),
                    NLMSG_DONE | NLMSG_ERROR => return Ok(()),
                    _ => visit(message.payload),
                }
            }
        }
    }
}
