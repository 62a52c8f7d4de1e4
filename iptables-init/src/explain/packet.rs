//! The packet that is asked about: its grammar, its defaults, and what is wrong with a bad one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Pod;
use crate::host::OwnerNames;
use crate::rules::Family;
use crate::values::{parse_interface, parse_owner};

/// The grammar, for `--help` and errors.
pub const GRAMMAR: &str = "out|in tcp|udp [from ADDRESS[:PORT]] [to] [ADDRESS]:PORT \
    [uid=ID] [gid=ID] [dev=NAME] [state=new|established|related|invalid] [mark=N] [connmark=N]";

/// Where a packet without `from` comes from: documentation ranges, so never the pod's own.
const STRANGER: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
);
/// Source port when none is given; no rule names it.
const EPHEMERAL: u16 = 40000;
/// User and group of an application when none is given.
const APPLICATION: u32 = 1000;
/// The pod's interface in every CNI plugin's default.
const INTERFACE: &str = "eth0";

/// Whether the packet starts in the pod or arrives at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Sent by a process of the pod.
    Out,
    /// Received on an interface that is not the loopback one.
    In,
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// What conntrack makes of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnState {
    /// First packet of a connection; the default.
    New,
    /// A later packet, in either direction.
    Established,
    /// First packet of a connection that another one announced.
    Related,
    /// Fits no connection.
    Invalid,
}

impl ConnState {
    /// The nat table only sees packets that start a connection.
    #[must_use]
    pub const fn asks_nat(self) -> bool {
        matches!(self, Self::New | Self::Related)
    }
}

impl fmt::Display for ConnState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Related => "related",
            Self::Invalid => "invalid",
        })
    }
}

/// One packet with everything that a rule can ask of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it starts.
    pub direction: Direction,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Source.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
    /// User and group of the sending process; `None` for a packet that arrives.
    pub owner: Option<(u32, u32)>,
    /// Interface on which it leaves or arrives.
    pub dev: String,
    /// Connection state.
    pub state: ConnState,
    /// Packet mark, for instance from SO_MARK.
    pub mark: u32,
    /// Mark of its connection.
    pub connmark: u32,
}

impl Packet {
    /// Address family.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self.to {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6,
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Out => "out",
            Direction::In => "in",
        };
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(
            f,
            "{direction} {protocol} from {} to {}",
            self.from, self.to
        )?;
        if let Some((uid, gid)) = self.owner {
            write!(f, " uid={uid} gid={gid}")?;
        }
        write!(f, " dev={} state={}", self.dev, self.state)?;
        if self.mark != 0 {
            write!(f, " mark={}", self.mark)?;
        }
        if self.connmark != 0 {
            write!(f, " connmark={}", self.connmark)?;
        }
        Ok(())
    }
}

/// Why a packet cannot be explained. The process exits with 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PacketError {
    #[error("--explain: {0:?} is not a direction; a packet is: {GRAMMAR}")]
    Direction(String),
    #[error("--explain: {0:?} is not a protocol (tcp or udp); a packet is: {GRAMMAR}")]
    Protocol(String),
    #[error(
        "--explain: {0:?} is not an address with a port (10.1.2.3:80, [fd00::1]:80, or :80 for the pod itself)"
    )]
    Address(String),
    #[error("--explain: the destination is missing; a packet is: {GRAMMAR}")]
    NoDestination,
    #[error("--explain: {0} is given twice")]
    Twice(String),
    #[error(
        "--explain: {0:?} is neither an address nor one of uid=, gid=, dev=, state=, mark=, connmark="
    )]
    Word(String),
    #[error("--explain: invalid value {value:?} for {key}")]
    Value { key: &'static str, value: String },
    #[error("--explain: source {from} and destination {to} are of different families")]
    Families { from: IpAddr, to: IpAddr },
    #[error("--explain: the pod has no {0} address; name one")]
    NoPodAddress(&'static str),
    #[error("--explain: an arriving packet has no {0}; only processes of the pod do")]
    OwnerOfArrival(&'static str),
    #[error("--explain: a packet over lo starts in the pod: ask with `out`")]
    ArrivalOnLo,
}

/// What was written, before defaults.
#[derive(Default)]
struct Words {
    from: Option<(Option<IpAddr>, Option<u16>)>,
    to: Option<(Option<IpAddr>, Option<u16>)>,
    uid: Option<u32>,
    gid: Option<u32>,
    dev: Option<String>,
    state: Option<ConnState>,
    mark: Option<u32>,
    connmark: Option<u32>,
}

/// Parses a packet; `pod` fills what is left out, `names` resolves users and groups.
///
/// # Errors
/// The first word that is not in [`GRAMMAR`], or a combination that cannot happen.
pub fn parse(text: &str, pod: &Pod, names: &OwnerNames) -> Result<Packet, PacketError> {
    let mut words = text.split_ascii_whitespace();
    let direction = match words.next().unwrap_or_default() {
        "out" => Direction::Out,
        "in" => Direction::In,
        other => return Err(PacketError::Direction(other.to_owned())),
    };
    let protocol = match words.next().unwrap_or_default() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(PacketError::Protocol(other.to_owned())),
    };
    let mut given = Words::default();
    while let Some(word) = words.next() {
        match (word, word.split_once('=')) {
            ("from", _) => {
                let value = words.next().unwrap_or_default();
                once("from", &mut given.from, address(value)?)?;
            }
            ("to", _) => {
                let value = words.next().unwrap_or_default();
                once("the destination", &mut given.to, address(value)?)?;
            }
            (_, Some((key, value))) => keyed(&mut given, key, value, names)?,
            (word, None) if word.contains([':', '.']) => {
                once("the destination", &mut given.to, address(word)?)?;
            }
            (word, None) => return Err(PacketError::Word(word.to_owned())),
        }
    }
    complete(direction, protocol, given, pod)
}

fn once<T>(what: &str, slot: &mut Option<T>, value: T) -> Result<(), PacketError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(PacketError::Twice(what.to_owned())),
    }
}

fn keyed(given: &mut Words, key: &str, value: &str, names: &OwnerNames) -> Result<(), PacketError> {
    let bad = |key| PacketError::Value {
        key,
        value: value.to_owned(),
    };
    let number = |key| value.parse::<u32>().map_err(|_| bad(key));
    match key {
        "uid" => {
            let id = parse_owner("uid", value).ok();
            let uid = id.and_then(|id| names.user(&id).ok());
            let uid = uid.filter(|(low, high)| low == high).map(|(id, _)| id);
            once("uid", &mut given.uid, uid.ok_or_else(|| bad("uid"))?)
        }
        "gid" => {
            let id = parse_owner("gid", value).ok();
            let gid = id.and_then(|id| names.group(&id).ok());
            let gid = gid.filter(|(low, high)| low == high).map(|(id, _)| id);
            once("gid", &mut given.gid, gid.ok_or_else(|| bad("gid"))?)
        }
        "dev" => {
            let name = parse_interface("dev", value).ok();
            let name = name.filter(|name| !name.prefix).ok_or_else(|| bad("dev"))?;
            once("dev", &mut given.dev, name.name)
        }
        "state" => {
            let state = match value {
                "new" => ConnState::New,
                "established" => ConnState::Established,
                "related" => ConnState::Related,
                "invalid" => ConnState::Invalid,
                _ => return Err(bad("state")),
            };
            once("state", &mut given.state, state)
        }
        "mark" => once("mark", &mut given.mark, number("mark")?),
        "connmark" => once("connmark", &mut given.connmark, number("connmark")?),
        _ => Err(PacketError::Word(format!("{key}={value}"))),
    }
}

/// `IP`, `IP:PORT`, `[IPv6]:PORT` or `:PORT`.
fn address(text: &str) -> Result<(Option<IpAddr>, Option<u16>), PacketError> {
    let refused = || PacketError::Address(text.to_owned());
    if let Ok(full) = text.parse::<SocketAddr>() {
        return Ok((Some(full.ip().to_canonical()), Some(full.port())));
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(text).parse::<IpAddr>() {
        return Ok((Some(ip.to_canonical()), None));
    }
    let port = text.strip_prefix(':').ok_or_else(refused)?;
    Ok((None, Some(port.parse().map_err(|_| refused())?)))
}

fn complete(
    direction: Direction,
    protocol: Protocol,
    given: Words,
    pod: &Pod,
) -> Result<Packet, PacketError> {
    let (to_ip, to_port) = given.to.ok_or(PacketError::NoDestination)?;
    let to_port = to_port
        .ok_or_else(|| PacketError::Address(to_ip.map(|ip| ip.to_string()).unwrap_or_default()))?;
    let (from_ip, from_port) = given.from.unwrap_or_default();
    let family = match to_ip
        .or(from_ip)
        .or_else(|| pod.addresses.first().map(|(_, ip)| *ip))
    {
        Some(IpAddr::V6(_)) => Family::V6,
        _ => Family::V4,
    };
    let dev = given.dev.as_deref();
    let own = || {
        dev.and_then(|dev| pod.address_on(dev, family))
            .or_else(|| pod.address(family))
            .ok_or(PacketError::NoPodAddress(match family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            }))
    };
    let to_ip = to_ip.map_or_else(own, Ok)?;
    let from_ip = match (from_ip, direction) {
        (Some(ip), _) => ip,
        (None, Direction::In) => match family {
            Family::V4 => IpAddr::V4(STRANGER.0),
            Family::V6 => IpAddr::V6(STRANGER.1),
        },
        // The kernel's choice: a local destination is also the source, 127.0.0.1 for all of 127/8.
        (None, Direction::Out) if to_ip.is_loopback() => match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::V6 => to_ip,
        },
        (None, Direction::Out) if pod.is_local(to_ip) => to_ip,
        (None, Direction::Out) => own()?,
    };
    if from_ip.is_ipv4() != to_ip.is_ipv4() {
        return Err(PacketError::Families {
            from: from_ip,
            to: to_ip,
        });
    }
    let dev = given.dev.unwrap_or_else(|| {
        let loops = direction == Direction::Out && pod.is_local(to_ip);
        if loops { "lo" } else { INTERFACE }.to_owned()
    });
    let owner = match direction {
        Direction::Out => {
            let uid = given.uid.unwrap_or(APPLICATION);
            Some((uid, given.gid.unwrap_or(uid)))
        }
        Direction::In if given.uid.is_some() => return Err(PacketError::OwnerOfArrival("uid")),
        Direction::In if given.gid.is_some() => return Err(PacketError::OwnerOfArrival("gid")),
        Direction::In if dev == "lo" => return Err(PacketError::ArrivalOnLo),
        Direction::In => None,
    };
    Ok(Packet {
        direction,
        protocol,
        from: SocketAddr::new(from_ip, from_port.unwrap_or(EPHEMERAL)),
        to: SocketAddr::new(to_ip, to_port),
        owner,
        dev,
        state: given.state.unwrap_or(ConnState::New),
        mark: given.mark.unwrap_or(0),
        connmark: given.connmark.unwrap_or(0),
    })
}
