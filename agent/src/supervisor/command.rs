//! The proxy's command line and process attributes. Builds and spawns; watches nothing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bootstrap_templates::{CompliancePolicy, Node};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

use crate::options::Options;

/// Cipher list of Envoy's Google gRPC client under a FIPS policy.
const FIPS_CIPHERS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
                            ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384";
/// Access logs reach the reader after a second instead of Envoy's ten.
const FILE_FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// User and group of the proxy in every image and rule set.
const PROXY_USER: u32 = 1337;

/// How to start the proxy.
#[derive(Debug, Clone)]
pub struct ProxyCommand {
    /// Program.
    pub binary: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables added to the agent's own.
    pub environment: Vec<(&'static str, &'static str)>,
    /// User and group, if not the agent's: an agent that is root for port 53 starts the proxy
    /// as the user that the redirect rules leave alone.
    pub user: Option<(u32, u32)>,
}

impl ProxyCommand {
    /// The command for `bootstrap`.
    pub fn new(options: &Options, node: &Node, bootstrap: &Path) -> Self {
        let mut arguments = fixed_arguments(options, node, bootstrap);
        arguments.extend(log_arguments(
            &options.args.proxy_log_level,
            &options.args.proxy_component_log_level,
        ));
        if options.node.skip_deprecated_logs {
            arguments.push("--skip-deprecated-logs".into());
        }
        if options.core_dump {
            arguments.push("--enable-core-dump".into());
        }
        if let Some(overlay) = options
            .bootstrap_override
            .as_deref()
            .and_then(|p| read_override(p, options))
        {
            arguments.extend(["--config-yaml".into(), overlay.into()]);
        }
        if let Some(concurrency) = options.settings.concurrency.filter(|n| *n > 0) {
            arguments.extend(["--concurrency".into(), concurrency.to_string().into()]);
        }
        let fips = matches!(
            options.compliance,
            Some(CompliancePolicy::Fips140v2 | CompliancePolicy::Fips140v3)
        );
        let dns = options.node.dns_proxy_addr.as_deref().unwrap_or_default();
        let drop = dns.ends_with(":53") && nix::unistd::geteuid().is_root();
        Self {
            user: drop.then_some((PROXY_USER, PROXY_USER)),
            binary: PathBuf::from(&options.settings.binary_path),
            arguments,
            environment: fips
                .then_some(("GRPC_SSL_CIPHER_SUITES", FIPS_CIPHERS))
                .into_iter()
                .collect(),
        }
    }
}

fn fixed_arguments(options: &Options, node: &Node, bootstrap: &Path) -> Vec<OsString> {
    let settings = &options.settings;
    let family = if node.ips.iter().all(std::net::IpAddr::is_ipv6) {
        "v6"
    } else {
        "v4"
    };
    let drain = settings.drain_duration.unwrap_or_default().as_secs();
    let flush = settings
        .file_flush_interval
        .unwrap_or(FILE_FLUSH_INTERVAL)
        .as_millis();
    let mut arguments: Vec<OsString> = vec![
        "-c".into(),
        bootstrap.into(),
        "--drain-time-s".into(),
        drain.to_string().into(),
        "--drain-strategy".into(),
        "immediate".into(),
        "--local-address-ip-version".into(),
        family.into(),
        "--file-flush-interval-msec".into(),
        flush.to_string().into(),
        "--disable-hot-restart".into(),
        "--allow-unknown-static-fields".into(),
    ];
    if settings.file_flush_min_size_kb > 0 {
        let size = settings.file_flush_min_size_kb.to_string();
        arguments.extend(["--file-flush-min-size-kb".into(), size.into()]);
    }
    arguments
}

/// `info,misc:error` is a level and components; the component flag only counts if the level flag
/// names none.
fn log_arguments(level: &str, components: &str) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    let mut base = String::new();
    let mut items: Vec<&str> = Vec::new();
    for item in level
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        match item.matches(':').count() {
            0 => base = item.to_owned(),
            1 => items.push(item),
            _ => tracing::warn!("dropping invalid log level: {item}"),
        }
    }
    if !base.is_empty() {
        out.extend(["-l".into(), base.into()]);
    }
    let components = if items.is_empty() {
        components.to_owned()
    } else {
        items.join(",")
    };
    if !components.is_empty() {
        out.extend(["--component-log-level".into(), components.into()]);
    }
    out
}

/// The overlay as JSON, with `$(HOST_IP)` filled in. A file that cannot be used is said and left
/// out, as in the reference.
fn read_override(path: &Path, options: &Options) -> Option<String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) => {
            tracing::warn!("Failed to read bootstrap override {}: {e}", path.display());
            return None;
        }
    };
    let text = with_host_ip(&text, options.host_ip.as_deref().unwrap_or_default());
    let parsed: Result<serde_json::Value, _> = serde_saphyr::from_str(&text);
    match parsed {
        Ok(value) => Some(value.to_string()),
        Err(e) => {
            tracing::warn!("Failed to read bootstrap override {}: {e}", path.display());
            None
        }
    }
}

fn with_host_ip(text: &str, host_ip: &str) -> String {
    if host_ip.contains(':') {
        let bracketed = format!("[{host_ip}]");
        return text
            .replace("[$(HOST_IP)]", &bracketed)
            .replace("$(HOST_IP)", &bracketed);
    }
    text.replace("$(HOST_IP)", host_ip)
}

/// Starts the process. It shares standard output and error and the process group with the agent,
/// and is killed by the kernel when the agent is gone.
///
/// # Errors
/// System errors, a missing binary among them.
pub fn spawn(command: &ProxyCommand) -> std::io::Result<Child> {
    let agent = nix::unistd::getpid();
    let mut child = Command::new(&command.binary);
    child
        .args(&command.arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    child.envs(command.environment.iter().copied());
    if let Some((user, group)) = command.user {
        child.uid(user).gid(group);
    }
    #[allow(
        unsafe_code,
        reason = "only code between fork and exec can bind the child's life"
    )]
    // SAFETY: the closure runs in the forked child and only makes system calls that are
    // async-signal-safe (prctl, getppid); it allocates nothing and takes no lock.
    unsafe {
        child.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The agent may have died before the request took effect.
            if nix::unistd::getppid() != agent {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    child.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_levels_split_into_base_and_components() {
        for (level, components, want) in [
            (
                "warning",
                "misc:error",
                "-l warning --component-log-level misc:error",
            ),
            (
                "info,misc:error,upstream:debug",
                "ignored:off",
                "-l info --component-log-level misc:error,upstream:debug",
            ),
            ("", "", ""),
            ("warning,a:b:c", "", "-l warning"),
        ] {
            let out = log_arguments(level, components);
            let text: Vec<_> = out.iter().map(|a| a.to_string_lossy()).collect();
            assert_eq!(text.join(" "), want);
        }
    }

    #[test]
    fn host_ip_is_bracketed_only_for_ipv6() {
        assert_eq!(with_host_ip("a: $(HOST_IP):1", "10.0.0.1"), "a: 10.0.0.1:1");
        assert_eq!(
            with_host_ip("[$(HOST_IP)] $(HOST_IP)", "fd00::1"),
            "[fd00::1] [fd00::1]"
        );
    }
}
