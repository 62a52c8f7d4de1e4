//! Settings of the DNS server.

use std::path::PathBuf;
use std::time::Duration;

use super::Environment;
use crate::dns::DEFAULT_ADDRESS;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The name servers of a machine whose resolv.conf names this agent.
const SAVED_RESOLV_CONF: &str = "/var/lib/istio/resolv.conf";

/// Settings of the DNS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOptions {
    /// `DNS_PROXY_ADDR`.
    pub address: String,
    /// Read once, at the start.
    pub resolv_conf: PathBuf,
    /// The machine's resolver (port 53, as root): names are resolved before istiod is there.
    pub forward_before_sync: bool,
    /// `DNS_FORWARD_PARALLEL`.
    pub parallel: bool,
    /// `DNS_FORWARD_TIMEOUT`.
    pub timeout: Duration,
}

/// `None` if nothing asks for the server. `root`: whether the agent may bind port 53.
pub(super) fn dns_options(
    environment: &Environment,
    sidecar: bool,
    root: bool,
) -> Option<DnsOptions> {
    let capture = environment.boolean("ISTIO_META_DNS_CAPTURE", false) && sidecar;
    if !capture && !environment.boolean("ISTIO_META_ENABLE_DNS_SERVER", false) {
        return None;
    }
    let mut address = environment.text_or("DNS_PROXY_ADDR", DEFAULT_ADDRESS);
    if address.ends_with(":53") && !root {
        tracing::error!("DNS_PROXY_ADDR={address} needs root; using {DEFAULT_ADDRESS}");
        address.clear();
    }
    if address.is_empty() {
        DEFAULT_ADDRESS.clone_into(&mut address);
    }
    // The agent takes the place of the machine's resolver.
    let machine = address.ends_with(":53");
    let saved = PathBuf::from(SAVED_RESOLV_CONF);
    let resolv_conf = if machine && saved.exists() {
        saved
    } else {
        PathBuf::from(RESOLV_CONF)
    };
    let default = Duration::from_secs(5);
    let mut timeout = environment.duration("DNS_FORWARD_TIMEOUT", default);
    if timeout.is_zero() {
        tracing::warn!("DNS_FORWARD_TIMEOUT=0 leaves no time to answer; using {default:?}");
        timeout = default;
    }
    Some(DnsOptions {
        address,
        resolv_conf,
        forward_before_sync: machine,
        parallel: environment.boolean("DNS_FORWARD_PARALLEL", false),
        timeout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)], sidecar: bool, root: bool) -> Option<DnsOptions> {
        let environment = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        dns_options(&environment.collect(), sidecar, root)
    }

    #[test]
    fn the_server_runs_where_it_is_asked_for() {
        const CAPTURE: (&str, &str) = ("ISTIO_META_DNS_CAPTURE", "true");
        const SERVER: (&str, &str) = ("ISTIO_META_ENABLE_DNS_SERVER", "1");
        for (variables, sidecar, runs) in [
            (&[][..], true, false),
            (&[CAPTURE], true, true),
            (&[CAPTURE], false, false),
            (&[SERVER], true, true),
            (&[SERVER], false, true),
            (&[("ISTIO_META_DNS_CAPTURE", "maybe")], true, false),
        ] {
            let found = options(variables, sidecar, false);
            assert_eq!(found.is_some(), runs, "{variables:?} {sidecar}");
        }
    }

    #[test]
    fn port_53_is_for_root() {
        for (address, root, want, machine) in [
            ("", false, "localhost:15053", false),
            ("127.0.0.1:53", true, "127.0.0.1:53", true),
            ("127.0.0.1:53", false, "localhost:15053", false),
            ("10.0.0.1:15053", true, "10.0.0.1:15053", false),
            (":5353", false, ":5353", false),
        ] {
            let variables = [
                ("ISTIO_META_DNS_CAPTURE", "true"),
                ("DNS_PROXY_ADDR", address),
            ];
            let found = options(&variables, true, root).expect("asked for");
            assert_eq!(found.address, want, "{address} {root}");
            assert_eq!(found.forward_before_sync, machine, "{address} {root}");
        }
    }

    #[test]
    fn a_timeout_leaves_time() {
        for (text, want) in [("", 5_000), ("200ms", 200), ("0s", 5_000), ("soon", 5_000)] {
            let variables = [
                ("ISTIO_META_DNS_CAPTURE", "true"),
                ("DNS_FORWARD_TIMEOUT", text),
            ];
            let found = options(&variables, true, false).expect("asked for");
            assert_eq!(found.timeout, Duration::from_millis(want), "{text}");
            assert!(!found.parallel);
        }
        let parallel = [
            ("ISTIO_META_DNS_CAPTURE", "true"),
            ("DNS_FORWARD_PARALLEL", "true"),
        ];
        assert!(options(&parallel, true, false).expect("asked for").parallel);
    }
}
