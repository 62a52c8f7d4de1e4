//! The parts of resolv.conf a stub resolver acts upon.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// libc's limit on servers.
const MAX_SERVERS: usize = 3;

/// Parsed `/etc/resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// `nameserver` lines (at most three, port 53).
    pub servers: Vec<SocketAddr>,
    /// `search` or `domain` (the last line wins).
    pub search: Vec<String>,
    /// `options ndots:n`, default 1, at most 15.
    pub ndots: usize,
    /// `options timeout:n` seconds, default 5, at most 30.
    pub timeout: Duration,
    /// `options attempts:n`, default 2, at most 5.
    pub attempts: u32,
}

impl ResolvConf {
    /// Reads the file; a missing one names no server.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        Self::parse(&std::fs::read_to_string(path).unwrap_or_default())
    }

    /// Parses the text; what is not understood is skipped, as libc does.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut conf = Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        };
        for line in text.lines() {
            let mut words = line
                .split(['#', ';'])
                .next()
                .unwrap_or_default()
                .split_whitespace();
            match words.next() {
                Some("nameserver") => conf.servers.extend(words.next().and_then(server)),
                Some("search" | "domain") => conf.search = words.map(str::to_owned).collect(),
                Some("options") => words.for_each(|word| conf.option(word)),
                _ => {}
            }
        }
        conf.servers.truncate(MAX_SERVERS);
        conf
    }

    fn option(&mut self, word: &str) {
        let Some((key, value)) = word.split_once(':') else {
            return;
        };
        let Ok(value) = value.parse::<u32>() else {
            return;
        };
        match key {
            "ndots" => self.ndots = value.min(15) as usize,
            "timeout" => self.timeout = Duration::from_secs(u64::from(value.clamp(1, 30))),
            "attempts" => self.attempts = value.clamp(1, 5),
            _ => {}
        }
    }

    /// Absolute names to try for `host`, in order.
    #[must_use]
    pub fn candidates(&self, host: &str) -> Vec<String> {
        if host.ends_with('.') {
            return vec![host.to_owned()];
        }
        let absolute = format!("{host}.");
        let searched = self
            .search
            .iter()
            .map(|domain| format!("{host}.{}.", domain.trim_matches('.')).replace("..", "."));
        let dots = host.bytes().filter(|&b| b == b'.').count();
        if dots >= self.ndots {
            std::iter::once(absolute).chain(searched).collect()
        } else {
            searched.chain(std::iter::once(absolute)).collect()
        }
    }
}

fn server(word: &str) -> Option<SocketAddr> {
    // A scoped link-local server (`fe80::1%eth0`) cannot be used without the interface; skip it.
    word.parse::<IpAddr>()
        .ok()
        .map(|ip| SocketAddr::new(ip, 53))
}
