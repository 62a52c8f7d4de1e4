//! The wires between pods: one namespace with two bridges, a router between two networks.

use std::io;
use std::net::Ipv6Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::PodError;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Which of the two networks a pod is in. Pods of one reach each other directly; from the other
/// network only the gateway (`10.245.0.31`) can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// `10.244.0.0/16`, router and istiod at `10.244.0.1`.
    One,
    /// `10.245.0.0/16`, router at `10.245.0.1`.
    Two,
}

impl Network {
    /// The network that an address belongs to.
    pub fn of(ip: &str) -> Self {
        if ip.starts_with("10.245.") {
            Self::Two
        } else {
            Self::One
        }
    }

    fn bridge(self) -> &'static str {
        match self {
            Self::One => "br0",
            Self::Two => "br1",
        }
    }

    fn router(self) -> &'static str {
        match self {
            Self::One => "10.244.0.1",
            Self::Two => "10.245.0.1",
        }
    }
}

/// Namespaces of one lab. Dropping it deletes them.
#[derive(Debug)]
pub struct Fabric {
    prefix: String,
    cables: AtomicU32,
}

/// Runs a shell line, with its error output in the error.
pub(crate) fn sh(line: &str) -> Result<String, PodError> {
    let out = Command::new("sh")
        .args(["-ec", line])
        .stdin(Stdio::null())
        .output()
        .map_err(|source| PodError::Io {
            what: "sh".to_owned(),
            source,
        })?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let reason = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    Err(PodError::Command {
        line: line.to_owned(),
        reason,
    })
}

/// Beginning of the names of labs' temporary folders; the process id follows.
pub(super) const FOLDER: &str = "outrigger-lab-";

fn is_gone(pid: &str) -> bool {
    let number = !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
    number && !std::path::Path::new("/proc").join(pid).exists()
}

/// Deletes namespaces and folders of labs whose process is gone (it was killed).
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().into_string().unwrap_or_default();
        let owner = name.strip_prefix(FOLDER).and_then(|r| r.split_once('-'));
        if owner.is_some_and(|(pid, _)| is_gone(pid)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for name in entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
    {
        let owner = name.strip_prefix("orlab").and_then(|r| r.split('x').next());
        if owner.is_some_and(is_gone) {
            let _ = sh(&format!("ip netns del {name}"));
        }
    }
}

impl Fabric {
    /// Makes the router namespace.
    pub fn new() -> Result<Self, PodError> {
        if !nix::unistd::geteuid().is_root() {
            let source = io::Error::from(io::ErrorKind::PermissionDenied);
            return Err(PodError::Io {
                what: "pods need root".to_owned(),
                source,
            });
        }
        sweep();
        let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("orlab{}x{serial}", std::process::id());
        let fabric = Self {
            prefix,
            cables: AtomicU32::new(0),
        };
        let ns = fabric.name();
        // The bridges' own link addresses: one that is not set follows the ports, and a pod that has
        // resolved the old one loses its gateway when the next pod is plugged in.
        sh(&format!(
            "ip netns add {ns}; ip -n {ns} link set lo up\n\
             for b in br0:10.244.0.1 br1:10.245.0.1; do n=${{b%%:*}}\n\
             ip -n {ns} link add $n address 02:00:00:00:0b:0${{n#br}} type bridge; ip -n {ns} addr add ${{b##*:}}/16 dev ${{b%%:*}}\n\
             ip -n {ns} link set ${{b%%:*}} up; done\n\
             ip netns exec {ns} sysctl -qw net.ipv4.ip_forward=1\n\
             ip -n {ns} route add unreachable 10.96.0.0/16\n\
             ip -n {ns} rule add from 10.244.0.1/32 priority 99 lookup main\n\
             ip -n {ns} rule add from 10.244.0.0/16 to 10.245.0.31/32 priority 100 lookup main\n\
             ip -n {ns} rule add from 10.244.0.0/16 to 10.245.0.1/32 priority 101 lookup local\n\
             ip -n {ns} rule add from 10.244.0.0/16 to 10.245.0.0/16 priority 102 prohibit"
        ))?;
        Ok(fabric)
    }

    /// The router's namespace: the control plane listens there on 10.244.0.1.
    pub fn name(&self) -> String {
        format!("{}-fabric", self.prefix)
    }

    /// Makes a pod's namespace with `eth0` at `ip`, and at `ipv6` if given, and returns its name.
    pub fn plug(&self, pod: &str, ip: &str, ipv6: Option<Ipv6Addr>) -> Result<String, PodError> {
        let (ns, fabric) = (format!("{}-{pod}", self.prefix), self.name());
        let network = Network::of(ip);
        let (bridge, router) = (network.bridge(), network.router());
        let cable = format!("v{}", self.cables.fetch_add(1, Ordering::Relaxed));
        sh(&format!(
            "ip netns add {ns}; ip -n {ns} link set lo up\n\
             ip -n {fabric} link add {cable} type veth peer name eth0 netns {ns}\n\
             ip -n {fabric} link set {cable} master {bridge} up\n\
             ip -n {ns} addr add {ip}/16 dev eth0; ip -n {ns} link set eth0 up\n\
             ip -n {ns} route add default via {router}\n\
             ip netns exec {ns} sysctl -qw net.ipv4.ip_unprivileged_port_start=0"
        ))?;
        if let Some(ipv6) = ipv6 {
            // Neighbours are on the link; a service's address only has to be routable to be captured.
            sh(&format!(
                "ip -n {ns} addr add {ipv6}/64 dev eth0 nodad; ip -n {ns} -6 route add default dev eth0"
            ))?;
        }
        Ok(ns)
    }

    /// Deletes one pod's namespace.
    pub fn unplug(&self, ns: &str) {
        let _ = sh(&format!("ip netns del {ns}"));
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        self.unplug(&self.name());
    }
}
