//! Strict parsers for the values that end up in rules: ports, CIDRs, interfaces, owners, marks.
//! Nothing that these parsers did not build may reach a backend; a bad item is an error that
//! names the flag, never a silently different rule.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// Why a flag or variable value was refused. The process exits with 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a port number (1..65535 for listeners, 0..65535 in lists) or `low-high`/`low:high`.
    #[error("invalid value for {field}: {value:?} is not a port or port range")]
    Port {
        /// Configuration name as logged, e.g. `INBOUND_PORTS_INCLUDE`.
        field: &'static str,
        /// The refused item.
        value: String,
    },
    /// Not `address/prefix-length`.
    #[error("invalid value for {field}: {value:?} is not a CIDR")]
    Cidr {
        /// Configuration name as logged.
        field: &'static str,
        /// The refused item.
        value: String,
    },
    /// `*` where only CIDRs make sense.
    #[error("invalid value for {field}")]
    Wildcard {
        /// Configuration name as logged.
        field: &'static str,
    },
    /// Not a kernel interface name (at most 15 bytes, letters first; a trailing `+` matches a prefix).
    #[error("invalid value for {field}: {value:?} is not an interface name")]
    Interface {
        /// Configuration name as logged.
        field: &'static str,
        /// The refused item.
        value: String,
    },
    /// Not an id, `low-high` id range or user/group name.
    #[error("invalid value for {field}: {value:?} is not an id or name")]
    Owner {
        /// Configuration name as logged.
        field: &'static str,
        /// The refused item.
        value: String,
    },
    /// Not an unsigned number that fits.
    #[error("invalid value for {field}: {value:?} is not a decimal number")]
    Number {
        /// Configuration name as logged.
        field: &'static str,
        /// The refused item.
        value: String,
    },
    /// More include groups than the owner match is allowed to carry.
    #[error(
        "number of owner groups whose outgoing traffic should be redirected to Envoy cannot exceed 64, got {count}: {groups:?}"
    )]
    TooManyGroups {
        /// How many were given.
        count: usize,
        /// All of them.
        groups: Vec<String>,
    },
    /// `FORCE_IPTABLES_BINARY` is neither empty nor `legacy` nor `nft`.
    #[error("invalid FORCE_IPTABLES_BINARY value {0:?}: must be empty, \"legacy\" or \"nft\"")]
    Binary(String),
    /// The loopback CIDR is not an IPv4 loopback prefix of /8../32.
    #[error(
        "invalid ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR {0:?}: must be an IPv4 loopback CIDR with a prefix of 8 to 32"
    )]
    LoopbackCidr(String),
}

/// A destination port or an inclusive range of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// First port.
    pub low: u16,
    /// Last port; equal to `low` for a single port.
    pub high: u16,
}

impl PortRange {
    /// A range of one port.
    #[must_use]
    pub const fn single(port: u16) -> Self {
        Self {
            low: port,
            high: port,
        }
    }

    /// Whether this is one port.
    #[must_use]
    pub const fn is_single(self) -> bool {
        self.low == self.high
    }
}

/// An interface name, possibly a prefix (`eth+` matches `eth0`, `eth1`, …).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Interface {
    /// Name without the wildcard mark.
    pub name: String,
    /// Whether `name` is only a prefix.
    pub prefix: bool,
}

/// A user or group: number, inclusive range, or name to be looked up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OwnerId {
    /// Numeric id.
    Number(u32),
    /// Inclusive range of ids.
    Range(u32, u32),
    /// Name of the passwd or group file.
    Name(String),
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(id) => write!(f, "{id}"),
            Self::Range(low, high) => write!(f, "{low}-{high}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// `*`, or a list, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Selection<T> {
    /// Empty value.
    #[default]
    None,
    /// The whole value was `*`.
    All,
    /// The items.
    Some(Vec<T>),
}

impl<T> Selection<T> {
    /// Listed items; empty for `All` and `None`.
    pub fn items(&self) -> &[T] {
        match self {
            Self::Some(items) => items,
            Self::All | Self::None => &[],
        }
    }

    /// Whether nothing is selected.
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

/// Splits at commas, trims ASCII blanks, drops empty items.
pub fn split_list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(|item| item.trim_matches([' ', '\t']))
        .filter(|item| !item.is_empty())
}

fn parse_all<T>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, ValueError>,
) -> Result<Vec<T>, ValueError> {
    split_list(text).map(parse).collect()
}

fn decimal<T: FromStr>(text: &str) -> Option<T> {
    // FromStr accepts a leading plus sign; the rule languages do not.
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A listener port: decimal, not 0.
pub fn parse_port(field: &'static str, text: &str) -> Result<u16, ValueError> {
    decimal::<u16>(text.trim())
        .filter(|port| *port != 0)
        .ok_or_else(|| ValueError::Port {
            field,
            value: text.to_owned(),
        })
}

/// One list item: `80`, `8000:8010` or `8000-8010`.
pub fn parse_port_range(field: &'static str, text: &str) -> Result<PortRange, ValueError> {
    let (low, high) = text.split_once([':', '-']).unwrap_or((text, text));
    match (decimal::<u16>(low), decimal::<u16>(high)) {
        (Some(low), Some(high)) if low <= high => Ok(PortRange { low, high }),
        _ => Err(ValueError::Port {
            field,
            value: text.to_owned(),
        }),
    }
}

/// A port list.
pub fn parse_ports(field: &'static str, text: &str) -> Result<Vec<PortRange>, ValueError> {
    parse_all(text, |item| parse_port_range(field, item))
}

/// A port list, or `*` as the whole value.
pub fn parse_port_selection(
    field: &'static str,
    text: &str,
) -> Result<Selection<PortRange>, ValueError> {
    selection(text, || parse_ports(field, text))
}

fn selection<T>(
    text: &str,
    parse: impl FnOnce() -> Result<Vec<T>, ValueError>,
) -> Result<Selection<T>, ValueError> {
    if text.trim() == "*" {
        return Ok(Selection::All);
    }
    let items = parse()?;
    Ok(if items.is_empty() {
        Selection::None
    } else {
        Selection::Some(items)
    })
}

/// One `address/prefix`; host bits are kept, an IPv4-mapped address is refused by no one.
pub fn parse_cidr(field: &'static str, text: &str) -> Result<IpNet, ValueError> {
    text.parse().map_err(|_| ValueError::Cidr {
        field,
        value: text.to_owned(),
    })
}

/// A CIDR list; `*` is refused.
pub fn parse_cidrs(field: &'static str, text: &str) -> Result<Vec<IpNet>, ValueError> {
    if text.trim() == "*" {
        return Err(ValueError::Wildcard { field });
    }
    parse_all(text, |item| parse_cidr(field, item))
}

/// A CIDR list, or `*` as the whole value.
pub fn parse_cidr_selection(
    field: &'static str,
    text: &str,
) -> Result<Selection<IpNet>, ValueError> {
    selection(text, || parse_cidrs(field, text))
}

/// One interface name: what the injector admits, plus a trailing `+`.
pub fn parse_interface(field: &'static str, text: &str) -> Result<Interface, ValueError> {
    let (name, prefix) = match text.strip_suffix('+') {
        Some(name) => (name, true),
        None => (text, false),
    };
    let starts_with_letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
    let legal = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    // 15 = IFNAMSIZ minus the terminating zero.
    if !starts_with_letter || !legal || text.len() > 15 {
        return Err(ValueError::Interface {
            field,
            value: text.to_owned(),
        });
    }
    Ok(Interface {
        name: name.to_owned(),
        prefix,
    })
}

/// An interface list.
pub fn parse_interfaces(field: &'static str, text: &str) -> Result<Vec<Interface>, ValueError> {
    parse_all(text, |item| parse_interface(field, item))
}

/// One user or group.
pub fn parse_owner(field: &'static str, text: &str) -> Result<OwnerId, ValueError> {
    let refused = || ValueError::Owner {
        field,
        value: text.to_owned(),
    };
    if let Some(id) = decimal::<u32>(text) {
        return Ok(OwnerId::Number(id));
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        let (low, high) = text.split_once('-').ok_or_else(refused)?;
        return match (decimal::<u32>(low), decimal::<u32>(high)) {
            (Some(low), Some(high)) if low <= high => Ok(OwnerId::Range(low, high)),
            _ => Err(refused()),
        };
    }
    // useradd's portable form, with upper case and dots as directories of real systems have them.
    let body = text.strip_suffix('$').unwrap_or(text);
    let starts_well = body.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let legal = body
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if !starts_well || !legal || text.len() > 32 {
        return Err(refused());
    }
    Ok(OwnerId::Name(text.to_owned()))
}

/// An owner list.
pub fn parse_owners(field: &'static str, text: &str) -> Result<Vec<OwnerId>, ValueError> {
    parse_all(text, |item| parse_owner(field, item))
}

/// An include list of groups (`*` = everybody); unlike other lists an empty value means "nobody",
/// which [`Selection::Some`] of an empty list expresses.
pub fn parse_group_selection(
    field: &'static str,
    text: &str,
) -> Result<Selection<OwnerId>, ValueError> {
    if text.trim() == "*" {
        return Ok(Selection::All);
    }
    let groups = parse_owners(field, text)?;
    // The kernel side would allow more; 64 is the documented limit of the reference.
    if groups.len() > 64 {
        return Err(ValueError::TooManyGroups {
            count: groups.len(),
            groups: groups.iter().map(OwnerId::to_string).collect(),
        });
    }
    Ok(Selection::Some(groups))
}

/// A decimal number of 32 bits (marks and routing tables).
pub fn parse_u32(field: &'static str, text: &str) -> Result<u32, ValueError> {
    decimal(text.trim()).ok_or_else(|| ValueError::Number {
        field,
        value: text.to_owned(),
    })
}

/// The IPv4 range that counts as "this host": inside 127.0.0.0/8, prefix 8..32.
pub fn parse_loopback_cidr(text: &str) -> Result<IpNet, ValueError> {
    let refused = || ValueError::LoopbackCidr(text.to_owned());
    let net: IpNet = text.parse().map_err(|_| refused())?;
    match net.addr() {
        IpAddr::V4(addr) if addr.is_loopback() && net.prefix_len() >= 8 => Ok(net),
        _ => Err(refused()),
    }
}

#[cfg(test)]
mod tests;
