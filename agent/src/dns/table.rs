//! The name table of the mesh, made for look-ups by the bytes of a question: one sorted array of
//! names in one block of memory. Names with the search domain appended are not stored but derived.
//! A table never changes; a push makes a new one.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Range;

use super::wire::{MAX_NAME, encode_name};
use crate::xds_proxy::{NameInfo, NameTable};

/// The registry whose services have short names.
const KUBERNETES: &str = "Kubernetes";

/// Where the proxy stands: decides which short names exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Namespace of the pod.
    pub namespace: String,
    /// Domain of the proxy without its namespace, e.g. `svc.cluster.local`.
    pub domain: String,
    /// First search domain of resolv.conf.
    pub search: Option<String>,
}

impl Scope {
    /// From the proxy's domain (`--domain`), which may start with the namespace.
    #[must_use]
    pub fn new(namespace: &str, domain: &str, search: Option<&str>) -> Self {
        let inner = domain
            .strip_prefix(namespace)
            .filter(|_| !namespace.is_empty())
            .and_then(|rest| rest.strip_prefix('.').or(rest.is_empty().then_some("")));
        Self {
            namespace: namespace.to_owned(),
            domain: inner.unwrap_or(domain).to_owned(),
            search: search.map(str::to_owned),
        }
    }

    /// Further names of `host`, without the final dot. Only services of Kubernetes in the proxy's
    /// own domain have any: short names of another cluster would be ambiguous.
    #[must_use]
    pub fn alternate_names(&self, host: &str, info: &NameInfo) -> BTreeSet<String> {
        let inside = host.strip_suffix(self.domain.as_str());
        let inside = inside.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if info.registry != KUBERNETES || self.domain.is_empty() || !inside {
            return BTreeSet::new();
        }
        let (short, namespace) = (&info.shortname, &info.namespace);
        let label = self.domain.split('.').next().unwrap_or_default();
        let mut names = BTreeSet::new();
        if !short.is_empty() && !namespace.is_empty() {
            names.insert(format!("{short}.{namespace}"));
            names.insert(format!("{short}.{namespace}.{label}"));
            if *namespace == self.namespace {
                names.insert(short.clone());
            }
        }
        names.extend(info.alt_hosts.iter().map(|alt| {
            let name = alt.strip_suffix('.').unwrap_or(alt);
            name.to_owned()
        }));
        names.remove(host);
        names
    }
}

/// Addresses of an entry: ranges of the table's arrays.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    v4: Range<u32>,
    v6: Range<u32>,
}

/// One name: a piece of `names`.
#[derive(Debug, Clone, Copy)]
struct NameRef {
    at: u32,
    entry: u32,
    len: u8,
    /// A host's own name beats a derived one.
    derived: bool,
}

/// Names and addresses.
#[derive(Debug, Default)]
pub struct Table {
    names: Box<[u8]>,
    index: Box<[NameRef]>,
    entries: Box<[Entry]>,
    v4: Box<[[u8; 4]]>,
    v6: Box<[[u8; 16]]>,
    /// Search domain in wire form.
    search: Vec<u8>,
}

/// More names or addresses than the table can number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name table is too large")]
pub struct TooLarge;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<'t> {
    /// IPv4 addresses.
    pub v4: &'t [[u8; 4]],
    /// IPv6 addresses.
    pub v6: &'t [[u8; 16]],
    /// The name was found by leaving out the search domain.
    pub alias: Option<Alias>,
}

/// The name behind a name with the search domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// Its part of the question's name.
    pub name: Range<usize>,
    /// It is `*.` and that part.
    pub wildcard: bool,
}

/// `*` as a label.
pub const WILDCARD: &[u8] = b"\x01*";

#[derive(Default)]
struct Builder {
    names: Vec<u8>,
    index: Vec<NameRef>,
    entries: Vec<Entry>,
    v4: Vec<[u8; 4]>,
    v6: Vec<[u8; 16]>,
}

fn number(n: usize) -> Result<u32, TooLarge> {
    u32::try_from(n).map_err(|_| TooLarge)
}

impl Builder {
    /// False if no address can be read: such a host is not known to the mesh.
    fn entry(&mut self, info: &NameInfo) -> Result<bool, TooLarge> {
        let (v4, v6) = (number(self.v4.len())?, number(self.v6.len())?);
        for ip in info.ips.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()) {
            match ip.to_canonical() {
                IpAddr::V4(ip) => self.v4.push(ip.octets()),
                IpAddr::V6(ip) => self.v6.push(ip.octets()),
            }
        }
        let entry = Entry {
            v4: v4..number(self.v4.len())?,
            v6: v6..number(self.v6.len())?,
        };
        let usable = !entry.v4.is_empty() || !entry.v6.is_empty();
        if usable {
            self.entries.push(entry);
        }
        Ok(usable)
    }

    /// A name of the last entry. What is no DNS name cannot be asked for.
    fn name(&mut self, text: &str, derived: bool) -> Result<(), TooLarge> {
        // A lone `*` would match everything.
        let Some(name) = encode_name(text).filter(|name| name != WILDCARD) else {
            tracing::debug!(target: "dns", "{text:?} is no DNS name and is left out");
            return Ok(());
        };
        self.index.push(NameRef {
            at: number(self.names.len())?,
            entry: number(self.entries.len() - 1)?,
            len: u8::try_from(name.len()).map_err(|_| TooLarge)?,
            derived,
        });
        self.names.extend_from_slice(&name);
        Ok(())
    }
}

fn bytes_of<'t>(names: &'t [u8], name: &NameRef) -> &'t [u8] {
    let at = name.at as usize;
    &names[at..at + usize::from(name.len)]
}

impl Table {
    /// Makes the table for a proxy that stands in `scope`.
    ///
    /// # Errors
    /// If there are more than 2^32 bytes of names, or addresses.
    pub fn build(table: &NameTable, scope: &Scope) -> Result<Self, TooLarge> {
        let mut builder = Builder::default();
        for (host, info) in &table.table {
            if !builder.entry(info)? {
                continue;
            }
            builder.name(host, false)?;
            for name in scope.alternate_names(host, info) {
                builder.name(&name, true)?;
            }
        }
        let Builder {
            names, mut index, ..
        } = builder;
        // Two entries may claim a name: a host's own name first, then the order of hosts.
        index.sort_unstable_by(|a, b| {
            let by_name = bytes_of(&names, a).cmp(bytes_of(&names, b));
            by_name.then((a.derived, a.entry).cmp(&(b.derived, b.entry)))
        });
        index.dedup_by(|a, b| bytes_of(&names, a) == bytes_of(&names, b));
        Ok(Self {
            names: names.into(),
            index: index.into(),
            entries: builder.entries.into(),
            v4: builder.v4.into(),
            v6: builder.v6.into(),
            search: scope
                .search
                .as_deref()
                .and_then(encode_name)
                .unwrap_or_default(),
        })
    }

    /// Number of names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Looks up a name in wire form without the root's byte, in any case: the name itself, the
    /// name without the search domain, then `*.` before each parent, longest first.
    #[must_use]
    pub fn lookup(&self, asked: &[u8]) -> Option<Found<'_>> {
        let mut buffer = [0; MAX_NAME];
        let name = buffer.get_mut(..asked.len())?;
        name.copy_from_slice(asked);
        // Lengths are below 64 and are no letters.
        name.make_ascii_lowercase();
        if let Some(found) = self.find(name, 0, false) {
            return Some(found);
        }
        let mut parent = 0;
        loop {
            parent += 1 + usize::from(*name.get(parent)?);
            if parent >= name.len() {
                return None;
            }
            // The label left out was two bytes at least.
            let star = parent - WILDCARD.len();
            name[star..parent].copy_from_slice(WILDCARD);
            if let Some(found) = self.find(&name[star..], star, true) {
                return Some(found);
            }
        }
    }

    /// `name` itself or without the search domain. `offset`: its place in the question's name.
    fn find(&self, name: &[u8], offset: usize, wildcard: bool) -> Option<Found<'_>> {
        if let Some(entry) = self.exact(name) {
            return Some(self.found(entry, None));
        }
        let base = self.without_search(name)?;
        let entry = self.exact(base)?;
        let start = if wildcard { WILDCARD.len() } else { 0 };
        let alias = Alias {
            name: offset + start..offset + base.len(),
            wildcard,
        };
        Some(self.found(entry, Some(alias)))
    }

    fn found(&self, entry: &Entry, alias: Option<Alias>) -> Found<'_> {
        Found {
            v4: &self.v4[entry.v4.start as usize..entry.v4.end as usize],
            v6: &self.v6[entry.v6.start as usize..entry.v6.end as usize],
            alias,
        }
    }

    fn exact(&self, name: &[u8]) -> Option<&Entry> {
        let order = |r: &NameRef| -> Ordering { bytes_of(&self.names, r).cmp(name) };
        let at = self.index.binary_search_by(order).ok()?;
        self.entries.get(self.index[at].entry as usize)
    }

    /// The name that a resolver had before it appended the search domain. A name that already
    /// ended in it is not one the agent answers for.
    fn without_search<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let base = strip_labels(name, &self.search)?;
        (!base.is_empty() && strip_labels(base, &self.search).is_none()).then_some(base)
    }
}

/// `name` without the labels `suffix`, if it ends in them.
fn strip_labels<'n>(name: &'n [u8], suffix: &[u8]) -> Option<&'n [u8]> {
    let base = name.strip_suffix(suffix).filter(|_| !suffix.is_empty())?;
    // The cut must be between labels.
    let mut at = 0;
    while at < base.len() {
        at += 1 + usize::from(base[at]);
    }
    (at == base.len()).then_some(base)
}

#[cfg(test)]
mod tests;
