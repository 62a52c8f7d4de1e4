//! Filter chain selection: the match rules of a listener compiled into nested buckets, one level per step of
//! Envoy's order. At every level the most specific bucket that exists is taken, and there is no way back.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::{FilterChain, FilterChainMatch, Listener, SourceType};
use crate::ConfigError;

/// What is known of a connection when its chain is chosen.
#[derive(Debug, Clone, Copy)]
pub struct ChainInput<'a> {
    /// Local address, restored to the original destination.
    pub destination: SocketAddr,
    /// SNI as sent; `None` or empty = none.
    pub server_name: Option<&'a str>,
    /// `tls` or `raw_buffer`.
    pub transport_protocol: &'a str,
    /// Detected or offered protocols in the client's order.
    pub application_protocols: &'a [&'a str],
    /// Address of the direct peer.
    pub direct_source: IpAddr,
    /// Remote address (that of the PROXY header when there was one).
    pub source: SocketAddr,
}

/// Result of a selection.
#[derive(Debug, Clone, Copy)]
pub enum Selected<'a> {
    /// One of `filter_chains`.
    Chain(&'a Arc<FilterChain>),
    /// The `default_filter_chain`.
    Default(&'a Arc<FilterChain>),
    /// None: the connection is reset with flag NR.
    None,
}

impl<'a> Selected<'a> {
    /// The chosen chain, default or not.
    #[must_use]
    pub fn chain(self) -> Option<&'a Arc<FilterChain>> {
        match self {
            Selected::Chain(c) | Selected::Default(c) => Some(c),
            Selected::None => None,
        }
    }
}

/// The compiled match rules of one listener.
#[derive(Debug, Default)]
pub struct FilterChainTable {
    ports: Keyed<u16, Prefixes<Names>>,
    default: Option<Arc<FilterChain>>,
}

/// Buckets by exact key, and the bucket of rules that do not look.
#[derive(Debug)]
struct Keyed<K, T> {
    exact: HashMap<K, T>,
    any: Option<Box<T>>,
}

/// Buckets by prefix, longest first.
#[derive(Debug)]
struct Prefixes<T> {
    nets: Vec<(IpNet, T)>,
    any: Option<Box<T>>,
}

/// Buckets by server name; suffixes keep their leading dot.
#[derive(Debug, Default)]
struct Names {
    exact: HashMap<Box<str>, Transports>,
    suffix: HashMap<Box<str>, Transports>,
    any: Option<Box<Transports>>,
}

type Transports = Keyed<Box<str>, Protocols>;
type Protocols = Keyed<Box<str>, Prefixes<SourceTypes>>;

/// Buckets by source type.
#[derive(Debug, Default)]
struct SourceTypes {
    local: Option<Sources>,
    external: Option<Sources>,
    any: Option<Sources>,
}

type Sources = Prefixes<Keyed<u16, Leaf>>;

/// The chain at the end of a path.
#[derive(Debug, Default)]
struct Leaf(Option<Arc<FilterChain>>);

impl<K, T> Default for Keyed<K, T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            any: None,
        }
    }
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self {
            nets: Vec::new(),
            any: None,
        }
    }
}

impl<K: std::hash::Hash + Eq, T: Default> Keyed<K, T> {
    fn any_mut(&mut self) -> &mut T {
        self.any.get_or_insert_with(Box::default)
    }
}

impl<T: Default> Prefixes<T> {
    fn net_mut(&mut self, net: IpNet) -> &mut T {
        let at = match self.nets.iter().position(|(n, _)| *n == net) {
            Some(at) => at,
            None => {
                let at = self
                    .nets
                    .partition_point(|(n, _)| n.prefix_len() >= net.prefix_len());
                self.nets.insert(at, (net, T::default()));
                at
            }
        };
        &mut self.nets[at].1
    }

    fn any_mut(&mut self) -> &mut T {
        self.any.get_or_insert_with(Box::default)
    }

    fn get(&self, ip: IpAddr) -> Option<&T> {
        self.nets
            .iter()
            .find(|(n, _)| n.contains(&ip))
            .map(|(_, t)| t)
            .or(self.any.as_deref())
    }

    /// Every bucket that `nets` names, or the one for no prefix.
    fn for_each(
        &mut self,
        nets: &[IpNet],
        mut f: impl FnMut(&mut T) -> Result<(), Overlap>,
    ) -> Result<(), Overlap> {
        if nets.is_empty() {
            return f(self.any_mut());
        }
        nets.iter().try_for_each(|n| f(self.net_mut(*n)))
    }
}

/// Two chains lead to the same leaf.
struct Overlap;

impl FilterChainTable {
    /// Compiles the chains of `listener`.
    ///
    /// # Errors
    /// Two chains with the same or overlapping rules, in Envoy's words.
    pub fn build(listener: &Listener) -> Result<Self, ConfigError> {
        let address = listener
            .addresses
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        let mut table = Self {
            ports: Keyed::default(),
            default: listener.default_filter_chain.clone(),
        };
        let mut seen: HashMap<&FilterChainMatch, &FilterChain> = HashMap::new();
        for (i, chain) in listener.filter_chains.iter().enumerate() {
            let refuse = |reason: String| ConfigError {
                path: format!("filter_chains[{i}].filter_chain_match"),
                reason: format!("error adding listener '{address}': {reason}"),
            };
            if let Some(other) = seen.insert(&chain.filter_chain_match, chain) {
                return Err(refuse(format!(
                    "filter chain '{}' has the same matching rules defined as '{}'. duplicate \
                     matcher is: {}",
                    chain.name,
                    other.name,
                    match_json(&chain.filter_chain_match)
                )));
            }
            table.insert(chain).map_err(|Overlap| {
                refuse(
                    "multiple filter chains with overlapping matching rules are defined".to_owned(),
                )
            })?;
        }
        Ok(table)
    }

    fn insert(&mut self, chain: &Arc<FilterChain>) -> Result<(), Overlap> {
        let m = &chain.filter_chain_match;
        let prefixes = match m.destination_port {
            Some(p) => self.ports.exact.entry(p).or_default(),
            None => self.ports.any_mut(),
        };
        prefixes.for_each(&m.prefix_ranges, |names| insert_names(names, chain))
    }

    /// Chooses the chain of a connection. Does not allocate for a lower-case SNI.
    #[must_use]
    pub fn select(&self, input: &ChainInput<'_>) -> Selected<'_> {
        match (self.find(input), &self.default) {
            (Some(chain), _) => Selected::Chain(chain),
            (None, Some(default)) => Selected::Default(default),
            (None, None) => Selected::None,
        }
    }

    fn find(&self, input: &ChainInput<'_>) -> Option<&Arc<FilterChain>> {
        let destination = input.destination.ip().to_canonical();
        let names = self
            .ports
            .exact
            .get(&input.destination.port())
            .or(self.ports.any.as_deref())?
            .get(destination)?;
        let transports = names.get(input.server_name.unwrap_or_default())?;
        let protocols = transports
            .exact
            .get(input.transport_protocol)
            .or(transports.any.as_deref())?;
        let types = input
            .application_protocols
            .iter()
            .find_map(|p| protocols.exact.get(*p))
            .or(protocols.any.as_deref())?
            .get(input.direct_source.to_canonical())?;
        let source = input.source.ip().to_canonical();
        let local = source.is_loopback() || source == destination;
        let specific = if local { &types.local } else { &types.external };
        let ports = specific.as_ref().or(types.any.as_ref())?.get(source)?;
        ports
            .exact
            .get(&input.source.port())
            .or(ports.any.as_deref())?
            .0
            .as_ref()
    }
}

impl Names {
    fn get(&self, sni: &str) -> Option<&Transports> {
        if sni.is_empty() || (self.exact.is_empty() && self.suffix.is_empty()) {
            return self.any.as_deref();
        }
        if sni.bytes().any(|b| b.is_ascii_uppercase()) {
            return self.get_lower(&sni.to_ascii_lowercase());
        }
        self.get_lower(sni)
    }

    fn get_lower(&self, sni: &str) -> Option<&Transports> {
        self.exact
            .get(sni)
            .or_else(|| {
                // Longest suffix first; something must stand before its dot.
                sni.match_indices('.')
                    .filter(|(at, _)| *at > 0)
                    .find_map(|(at, _)| self.suffix.get(sni.get(at..)?))
            })
            .or(self.any.as_deref())
    }
}

fn insert_names(names: &mut Names, chain: &Arc<FilterChain>) -> Result<(), Overlap> {
    let m = &chain.filter_chain_match;
    if m.server_names.is_empty() {
        return insert_transport(names.any.get_or_insert_with(Box::default), chain);
    }
    m.server_names.iter().try_for_each(|name| {
        let bucket = match name.strip_prefix('*') {
            Some(suffix) => names.suffix.entry(suffix.into()).or_default(),
            None => names.exact.entry((&**name).into()).or_default(),
        };
        insert_transport(bucket, chain)
    })
}

fn insert_transport(transports: &mut Transports, chain: &Arc<FilterChain>) -> Result<(), Overlap> {
    let m = &chain.filter_chain_match;
    let protocols = if m.transport_protocol.is_empty() {
        transports.any_mut()
    } else {
        transports
            .exact
            .entry((&*m.transport_protocol).into())
            .or_default()
    };
    if m.application_protocols.is_empty() {
        return insert_sources(protocols.any_mut(), chain);
    }
    m.application_protocols
        .iter()
        .try_for_each(|p| insert_sources(protocols.exact.entry((&**p).into()).or_default(), chain))
}

fn insert_sources(
    direct: &mut Prefixes<SourceTypes>,
    chain: &Arc<FilterChain>,
) -> Result<(), Overlap> {
    let m = &chain.filter_chain_match;
    direct.for_each(&m.direct_source_prefix_ranges, |types| {
        let sources = match m.source_type {
            SourceType::Any => &mut types.any,
            SourceType::SameIpOrLoopback => &mut types.local,
            SourceType::External => &mut types.external,
        }
        .get_or_insert_default();
        sources.for_each(&m.source_prefix_ranges, |ports| {
            if m.source_ports.is_empty() {
                return insert_leaf(ports.any_mut(), chain);
            }
            m.source_ports
                .iter()
                .try_for_each(|p| insert_leaf(ports.exact.entry(*p).or_default(), chain))
        })
    })
}

fn insert_leaf(leaf: &mut Leaf, chain: &Arc<FilterChain>) -> Result<(), Overlap> {
    match leaf.0.replace(Arc::clone(chain)) {
        None => Ok(()),
        Some(_) => Err(Overlap),
    }
}

/// The match as protobuf's JSON prints it: set fields only, in field-number order.
fn match_json(m: &FilterChainMatch) -> serde_json::Value {
    let mut out = serde_json::Map::new();
    let nets = |list: &[IpNet]| -> serde_json::Value {
        list.iter()
            .map(|n| {
                serde_json::json!({
                    "address_prefix": n.addr().to_string(),
                    "prefix_len": n.prefix_len(),
                })
            })
            .collect()
    };
    let strings =
        |list: &[Arc<str>]| -> serde_json::Value { list.iter().map(|s| s.to_string()).collect() };
    let mut put = |key: &str, set: bool, value: serde_json::Value| {
        if set {
            out.insert(key.to_owned(), value);
        }
    };
    put(
        "prefix_ranges",
        !m.prefix_ranges.is_empty(),
        nets(&m.prefix_ranges),
    );
    put(
        "source_prefix_ranges",
        !m.source_prefix_ranges.is_empty(),
        nets(&m.source_prefix_ranges),
    );
    put(
        "source_ports",
        !m.source_ports.is_empty(),
        m.source_ports.clone().into(),
    );
    put(
        "destination_port",
        m.destination_port.is_some(),
        m.destination_port.into(),
    );
    put(
        "transport_protocol",
        !m.transport_protocol.is_empty(),
        m.transport_protocol.to_string().into(),
    );
    put(
        "application_protocols",
        !m.application_protocols.is_empty(),
        strings(&m.application_protocols),
    );
    put(
        "server_names",
        !m.server_names.is_empty(),
        strings(&m.server_names),
    );
    put(
        "source_type",
        m.source_type != SourceType::Any,
        match m.source_type {
            SourceType::Any => "ANY",
            SourceType::SameIpOrLoopback => "SAME_IP_OR_LOOPBACK",
            SourceType::External => "EXTERNAL",
        }
        .into(),
    );
    put(
        "direct_source_prefix_ranges",
        !m.direct_source_prefix_ranges.is_empty(),
        nets(&m.direct_source_prefix_ranges),
    );
    serde_json::Value::Object(out)
}

#[cfg(test)]
mod tests;
