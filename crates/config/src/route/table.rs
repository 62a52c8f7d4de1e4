//! Virtual host selection: hash maps by exact domain, suffix and prefix wildcard, and the catch-all.

use std::collections::HashMap;
use std::sync::Arc;

use super::RouteConfiguration;

/// Longest authority that is lower-cased without an allocation.
const ON_STACK: usize = 256;

/// The compiled domains of one route configuration.
#[derive(Debug)]
pub struct RouteTable {
    config: Arc<RouteConfiguration>,
    exact: HashMap<Box<[u8]>, usize>,
    /// `*.suffix` without the star.
    suffixes: Wildcards,
    /// `prefix.*` without the star.
    prefixes: Wildcards,
    any: Option<usize>,
}

/// Wildcard texts, and their lengths from the longest to the shortest.
#[derive(Debug, Default)]
struct Wildcards {
    hosts: HashMap<Box<[u8]>, usize>,
    lengths: Vec<usize>,
}

impl Wildcards {
    fn insert(&mut self, text: &str, host: usize) {
        self.hosts.entry(text.as_bytes().into()).or_insert(host);
        if let Err(at) = self.lengths.binary_search_by(|l| text.len().cmp(l)) {
            self.lengths.insert(at, text.len());
        }
    }

    /// The longest text that `part` of the authority equals; the star stands for at least one character.
    fn find<'a>(
        &self,
        authority: &'a [u8],
        part: impl Fn(&'a [u8], usize) -> Option<&'a [u8]>,
    ) -> Option<usize> {
        self.lengths
            .iter()
            .filter(|l| **l < authority.len())
            .find_map(|l| self.hosts.get(part(authority, *l)?).copied())
    }
}

impl RouteTable {
    /// Compiles the domains of `config`. The parser has checked that they are unique; if one came twice, the
    /// first virtual host would keep it.
    #[must_use]
    pub fn build(config: Arc<RouteConfiguration>) -> Self {
        let mut table = Self {
            exact: HashMap::new(),
            suffixes: Wildcards::default(),
            prefixes: Wildcards::default(),
            any: None,
            config: Arc::clone(&config),
        };
        for (i, host) in config.virtual_hosts.iter().enumerate() {
            for domain in &host.domains {
                if &**domain == "*" {
                    table.any.get_or_insert(i);
                } else if let Some(suffix) = domain.strip_prefix('*') {
                    table.suffixes.insert(suffix, i);
                } else if let Some(prefix) = domain.strip_suffix('*') {
                    table.prefixes.insert(prefix, i);
                } else {
                    table.exact.entry(domain.as_bytes().into()).or_insert(i);
                }
            }
        }
        table
    }

    /// The configuration that was compiled.
    #[must_use]
    pub fn config(&self) -> &Arc<RouteConfiguration> {
        &self.config
    }

    /// Index of the virtual host of `authority`: exact domain, longest suffix wildcard, longest prefix
    /// wildcard, `*`. Allocates only for an authority that is longer than 256 bytes and not lower case.
    #[must_use]
    pub fn virtual_host(&self, authority: &[u8]) -> Option<usize> {
        let host = if self.config.ignore_port_in_host_matching {
            without_port(authority)
        } else {
            authority
        };
        if host.is_empty() {
            return self.any;
        }
        if !host.iter().any(u8::is_ascii_uppercase) {
            return self.lookup(host);
        }
        let mut buffer = [0; ON_STACK];
        match buffer.get_mut(..host.len()) {
            Some(lower) => {
                lower.copy_from_slice(host);
                lower.make_ascii_lowercase();
                self.lookup(lower)
            }
            None => self.lookup(&host.to_ascii_lowercase()),
        }
    }

    fn lookup(&self, host: &[u8]) -> Option<usize> {
        self.exact
            .get(host)
            .copied()
            .or_else(|| {
                self.suffixes
                    .find(host, |h, len| h.get(h.len().checked_sub(len)?..))
            })
            .or_else(|| self.prefixes.find(host, |h, len| h.get(..len)))
            .or(self.any)
    }
}

/// Cuts a port off; the brackets of an IPv6 address stay.
fn without_port(authority: &[u8]) -> &[u8] {
    let Some(colon) = authority.iter().rposition(|b| *b == b':') else {
        return authority;
    };
    let (host, port) = authority.split_at(colon);
    let digits = port.get(1..).unwrap_or_default();
    let is_port = !digits.is_empty() && digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit);
    // Without brackets, a second colon means a bare IPv6 address.
    let bare_v6 = host.contains(&b':') && !host.ends_with(b"]");
    if is_port && !bare_v6 { host } else { authority }
}

#[cfg(test)]
mod tests;
