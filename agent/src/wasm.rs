//! Wasm modules of extension configs: what istiod names by URL is fetched here and handed to the
//! proxy as a local file. Never gives out a module whose checksum or origin was not checked.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

mod cache;
mod client;
mod convert;
mod metrics;
mod module;
mod oci;
mod reference;

pub use cache::{ModuleRequest, PullPolicy, WasmCache};
pub use client::FetchError;
pub use convert::{ConvertError, convert};
pub use metrics::WasmMetrics;
pub use module::ModuleError;

use crate::istiod::{HttpsProxy, HttpsProxyError, RootSource};
use crate::resolver::Resolver;

/// Where modules are kept, as in the reference: the proxy reads them there.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/istio/data";

/// Settings of a [`WasmCache`].
#[derive(Debug, Clone)]
pub struct WasmConfig {
    /// Folder of the modules; default [`DEFAULT_DIRECTORY`].
    pub directory: PathBuf,
    /// `WASM_INSECURE_REGISTRIES`: hosts (`*` is all) whose certificate is not checked and that may
    /// speak plain HTTP.
    pub insecure_registries: Vec<String>,
    /// `WASM_MODULE_EXPIRY`, default 24 h: unused modules are removed after it.
    pub module_expiry: Duration,
    /// `WASM_PURGE_INTERVAL`, default 1 h.
    pub purge_interval: Duration,
    /// `WASM_HTTP_REQUEST_TIMEOUT`, default 15 s: of one attempt.
    pub request_timeout: Duration,
    /// `WASM_HTTP_REQUEST_MAX_RETRIES`, default 5: attempts in all.
    pub attempts: u32,
    /// `ISTIO_WASM_MAX_BINARY_SIZE_BYTES`, default 256 MiB: of a download and of a module.
    pub max_bytes: u64,
    /// `BLOCKED_CIDRS_IN_WASM_FETCH`: addresses that are never connected to, beside the link-local
    /// ones and the metadata servers of clouds.
    pub blocked: Vec<IpNet>,
    /// `HTTPS_PROXY` and `NO_PROXY`.
    pub https_proxy: (String, String),
    /// Trusted roots; default those of the system.
    pub roots: RootSource,
    /// Name lookup.
    pub resolver: Resolver,
}

impl Default for WasmConfig {
    fn default() -> Self {
        Self {
            directory: DEFAULT_DIRECTORY.into(),
            insecure_registries: Vec::new(),
            module_expiry: Duration::from_secs(24 * 3600),
            purge_interval: Duration::from_secs(3600),
            request_timeout: Duration::from_secs(15),
            attempts: 5,
            max_bytes: 256 << 20,
            blocked: Vec::new(),
            https_proxy: (String::new(), String::new()),
            roots: RootSource::System,
            resolver: Resolver::default(),
        }
    }
}

impl WasmConfig {
    /// True if `host` (perhaps with port) may be spoken to without checking who it is.
    fn is_insecure(&self, host: &str, port: u16) -> bool {
        let with_port = format!("{host}:{port}");
        let known = |rule: &String| rule == "*" || rule == host || *rule == with_port;
        self.insecure_registries.iter().any(known)
    }

    /// True if `ip` must not be connected to: a module's URL comes from configuration, and these
    /// addresses hand out the machine's credentials.
    fn is_blocked(&self, ip: IpAddr) -> bool {
        const METADATA_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(100, 100, 100, 200));
        let ip = ip.to_canonical();
        let built_in = match ip {
            IpAddr::V4(v4) => v4.is_link_local() || ip == METADATA_V4,
            // fe80::/10 and fd00:ec2::/32.
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments()[..2] == [0xfd00, 0x0ec2],
        };
        built_in || self.blocked.iter().any(|net| net.contains(&ip))
    }

    fn proxy(&self, host: &str, port: u16) -> Result<Option<HttpsProxy>, HttpsProxyError> {
        let (proxy, exceptions) = &self.https_proxy;
        HttpsProxy::for_host(proxy, exceptions, (host, port))
    }
}

/// The shared parts of a cache.
type Shared = Arc<WasmConfig>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_credentials_are_blocked_in_every_spelling() {
        let config = WasmConfig {
            blocked: vec!["10.1.0.0/16".parse().expect("block")],
            ..WasmConfig::default()
        };
        for (ip, blocked) in [
            ("169.254.169.254", true),
            ("::ffff:169.254.169.254", true),
            ("100.100.100.200", true),
            ("fe80::1", true),
            ("fd00:ec2::254", true),
            ("10.1.2.3", true),
            ("10.2.2.3", false),
            ("127.0.0.1", false),
            ("fd00:ec3::254", false),
        ] {
            let parsed = ip.parse().expect("address");
            assert_eq!(config.is_blocked(parsed), blocked, "{ip}");
        }
    }

    #[test]
    fn insecure_registries_are_hosts_with_or_without_port_or_all() {
        let config = |rules: &[&str]| WasmConfig {
            insecure_registries: rules.iter().map(|r| (*r).to_owned()).collect(),
            ..WasmConfig::default()
        };
        assert!(!config(&[]).is_insecure("a", 1));
        assert!(config(&["a"]).is_insecure("a", 1));
        assert!(config(&["b", "a:1"]).is_insecure("a", 1));
        assert!(!config(&["a:2"]).is_insecure("a", 1));
        assert!(config(&["*"]).is_insecure("a", 1));
    }
}
