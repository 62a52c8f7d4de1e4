//! The settings a CNI plugin uses for a pod: from annotations and the proxy container instead of
//! flags and this process's environment. Pure; [`crate::run::run`] applies them.

use std::collections::BTreeMap;

use crate::cli::{Cli, Environment, Settings};
use crate::values::split_list;

/// What the plugin knows of a pod.
#[derive(Debug, Clone, Default)]
pub struct CniPod<'a> {
    /// Path of the pod's network namespace.
    pub network_namespace: &'a str,
    /// Annotations of the pod.
    pub annotations: BTreeMap<&'a str, &'a str>,
    /// Environment of the `istio-proxy` container.
    pub proxy_env: BTreeMap<&'a str, &'a str>,
    /// `runAsUser` of that container; absent or 0 means 1337.
    pub run_as_user: Option<u32>,
    /// `runAsGroup` of that container; absent or 0 means 1337.
    pub run_as_group: Option<u32>,
    /// Use nftables through netlink instead of iptables.
    pub native_nftables: bool,
    /// Where a dry run writes its rules; the run is dry if this is not empty.
    pub dry_run_file: &'a str,
}

/// An annotation that the plugin refuses; the pod must not start then.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid sidecar.istio.io/interceptionMode {0:?}: must be REDIRECT or TPROXY")]
pub struct CniError(String);

/// Only the proxy's variables that the plugin reads.
struct ProxyEnv<'a>(&'a BTreeMap<&'a str, &'a str>);

impl Environment for ProxyEnv<'_> {
    fn var(&self, name: &str) -> Option<String> {
        let read = ["ISTIO_META_DNS_CAPTURE", "ISTIO_DUAL_STACK", "INVALID_DROP"];
        let value = self.0.get(name).filter(|_| read.contains(&name))?;
        Some((*value).to_owned())
    }
}

/// Port that the status server has, never captured in either direction.
const STATUS: &str = "15020";
/// Ports of the proxy that are never captured inbound.
const ALWAYS_EXCLUDED: [&str; 3] = [STATUS, "15021", "15090"];

/// The settings for a pod. Values of annotations are checked later, as those of flags are.
///
/// # Errors
/// The interception mode is neither REDIRECT nor TPROXY.
pub fn settings(pod: &CniPod<'_>) -> Result<Settings, CniError> {
    let traffic = |name: &str, default: &str| {
        let name = format!("traffic.sidecar.istio.io/{name}");
        let value = pod.annotations.get(name.as_str()).copied();
        value.unwrap_or(default).to_owned()
    };
    let id = |id: Option<u32>| id.filter(|id| *id != 0).unwrap_or(1337).to_string();
    let mode = pod.annotations.get("sidecar.istio.io/interceptionMode");
    let mode = mode.copied().unwrap_or("REDIRECT");
    if !matches!(mode, "REDIRECT" | "TPROXY") {
        return Err(CniError(mode.to_owned()));
    }
    let excluded = traffic("excludeInboundPorts", STATUS);
    let mut ports: Vec<&str> = Vec::new();
    for port in split_list(&excluded).chain(ALWAYS_EXCLUDED) {
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    let reroute = pod.annotations.get("istio.io/reroute-virtual-interfaces");
    let defaults = Settings::resolve(Cli::default(), &ProxyEnv(&pod.proxy_env));
    Ok(Settings {
        proxy_uid: id(pod.run_as_user),
        proxy_gid: id(pod.run_as_group),
        mode: mode.to_owned(),
        service_cidr: traffic("includeOutboundIPRanges", "*"),
        service_exclude_cidr: traffic("excludeOutboundIPRanges", ""),
        inbound_ports: traffic("includeInboundPorts", "*"),
        inbound_exclude_ports: ports.join(","),
        outbound_ports: traffic("includeOutboundPorts", ""),
        outbound_ports_exclude: traffic("excludeOutboundPorts", STATUS),
        exclude_interfaces: traffic("excludeInterfaces", ""),
        kube_virt_interfaces: reroute.map_or_else(
            || traffic("kubevirtInterfaces", ""),
            |interfaces| (*interfaces).to_owned(),
        ),
        // The node's resolv.conf is not the pod's.
        capture_all_dns: defaults.redirect_dns,
        network_namespace: pod.network_namespace.to_owned(),
        cni_mode: true,
        native_nftables: pod.native_nftables,
        dry_run: !pod.dry_run_file.is_empty(),
        dry_run_file: pod.dry_run_file.to_owned(),
        ..defaults
    })
}
