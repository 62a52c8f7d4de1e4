//! Command line and environment of `istio-iptables`: names, defaults, precedence. Strings stay
//! strings here; their meaning is checked later in `config`.

pub mod parse;

use std::time::Duration;

use clap::Parser;

use parse::{env_bool, env_duration, env_u16, go_bool, go_duration, go_u16};

/// The arguments that Istio's injection template gives the init container of a pod without annotations.
#[rustfmt::skip]
pub const INJECTED_ARGS: &[&str] = &[
    "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*",
    "-d", "15090,15021,15020",
];

/// Flags as given. Every one is optional so that the environment can be told from the default.
#[derive(Debug, Default, Parser)]
#[command(
    name = "istio-iptables",
    about = "istio-iptables is responsible for setting up port forwarding for Istio Sidecar.",
    args_override_self = true,
    after_help = "Exit codes: 0 done, 1 bad value or rule failure, 126 validation failed, 255 flag error."
)]
#[allow(
    missing_docs,
    reason = "the help strings are the documentation of the flags"
)]
pub struct Cli {
    #[arg(
        short = 'p',
        long,
        allow_hyphen_values = true,
        help = "Specify the envoy port to which redirect all TCP traffic [default: 15001]"
    )]
    pub envoy_port: Option<String>,
    #[arg(
        short = 'z',
        long,
        allow_hyphen_values = true,
        help = "Port to which all inbound TCP traffic to the pod/VM should be redirected to [default: 15006]"
    )]
    pub inbound_capture_port: Option<String>,
    #[arg(
        short = 'e',
        long,
        allow_hyphen_values = true,
        help = "Specify the istio tunnel port for inbound tcp traffic [default: 15008]"
    )]
    pub inbound_tunnel_port: Option<String>,
    #[arg(
        short = 'u',
        long,
        allow_hyphen_values = true,
        help = "Comma separated list of UIDs for which the redirection is not applied"
    )]
    pub proxy_uid: Option<String>,
    #[arg(
        short = 'g',
        long,
        allow_hyphen_values = true,
        help = "Comma separated list of GIDs for which the redirection is not applied [default: same as --proxy-uid]"
    )]
    pub proxy_gid: Option<String>,
    #[arg(
        short = 'm',
        long,
        allow_hyphen_values = true,
        help = "The mode used to redirect inbound connections to Envoy, either \"REDIRECT\" or \"TPROXY\""
    )]
    pub istio_inbound_interception_mode: Option<String>,
    #[arg(
        short = 'b',
        long,
        allow_hyphen_values = true,
        help = "Comma separated list of inbound ports for which traffic is to be redirected to Envoy; \"*\" means all, empty disables"
    )]
    pub istio_inbound_ports: Option<String>,
    #[arg(
        short = 'd',
        long,
        allow_hyphen_values = true,
        help = "Comma separated list of inbound ports to be excluded; only applies when all inbound traffic (\"*\") is redirected"
    )]
    pub istio_local_exclude_ports: Option<String>,
    #[arg(
        short = 'c',
        long,
        allow_hyphen_values = true,
        help = "Comma separated list of NICs; traffic on them is not captured"
    )]
    pub istio_exclude_interfaces: Option<String>,
    #[arg(
        short = 'i',
        long,
        allow_hyphen_values = true,
        help = "Comma separated list of outbound CIDRs to capture; \"*\" means all, empty none"
    )]
    pub istio_service_cidr: Option<String>,
    #[arg(
        short = 'x',
        long,
        allow_hyphen_values = true,
        help = "Comma separated list of outbound CIDRs to leave alone"
    )]
    pub istio_service_exclude_cidr: Option<String>,
    #[arg(
        short = 'q',
        long,
        allow_hyphen_values = true,
        help = "Comma separated list of outbound ports captured whatever the CIDRs say"
    )]
    pub istio_outbound_ports: Option<String>,
    #[arg(
        short = 'o',
        long,
        allow_hyphen_values = true,
        help = "Comma separated list of outbound ports to leave alone"
    )]
    pub istio_local_outbound_ports_exclude: Option<String>,
    #[arg(
        short = 'k',
        long,
        allow_hyphen_values = true,
        help = "Comma separated list of virtual interfaces whose inbound traffic will be treated as outbound"
    )]
    pub kube_virt_interfaces: Option<String>,
    #[arg(
        short = 't',
        long,
        allow_hyphen_values = true,
        help = "Mark of TPROXY packets [default: 1337]"
    )]
    pub istio_inbound_tproxy_mark: Option<String>,
    #[arg(
        short = 'r',
        long,
        allow_hyphen_values = true,
        help = "Routing table of TPROXY packets [default: 133]"
    )]
    pub istio_inbound_tproxy_route_table: Option<String>,
    #[arg(short = 'n', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Do not write anything, print what would be written")]
    pub dry_run: Option<bool>,
    #[arg(long, value_parser = go_u16, help = "Port of the validation probe [default: 15002]")]
    pub iptables_probe_port: Option<u16>,
    #[arg(long, value_parser = go_duration, allow_hyphen_values = true, help = "Time limit of the validation [default: 5s]")]
    pub probe_timeout: Option<Duration>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Write no rules and no routes")]
    pub skip_rule_apply: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Check the rules with a real connection")]
    pub run_validation: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Capture DNS")]
    pub redirect_dns: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "With --redirect-dns: every port 53, not only the nameservers of resolv.conf")]
    pub capture_all_dns: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Drop packets in conntrack state INVALID")]
    pub drop_invalid: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Look for IPv6 addresses besides IPv4")]
    pub dual_stack: Option<bool>,
    #[arg(
        long,
        allow_hyphen_values = true,
        help = "Path of a network namespace to run in"
    )]
    pub network_namespace: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Run from the node: hide its lock file and name services from the iptables programs")]
    pub cni_mode: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Accepted for compatibility: every run reconciles")]
    pub reconcile: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Remove everything this program ever creates, then stop")]
    pub cleanup_only: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Write the rules even if they are already there")]
    pub force_apply: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Use nftables through netlink instead of iptables")]
    pub native_nftables: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Redirect calls of every proxy UID and GID to this pod before the first of them is exempt; for a proxy whose UID is not in --proxy-uid")]
    pub proxy_owners_first: Option<bool>,
    #[arg(long, allow_hyphen_values = true, help = "\"legacy\" or \"nft\"")]
    pub force_iptables_binary: Option<String>,

    #[arg(
        long,
        value_name = "PACKET",
        help = "Print what the rules of these flags do to a packet, then stop; \"table\" for every kind of packet. A packet is: out|in tcp|udp [from ADDRESS[:PORT]] [to] [ADDRESS]:PORT [uid=ID] [gid=ID] [dev=NAME] [state=new|established|related|invalid] [mark=N] [connmark=N]"
    )]
    pub explain: Option<String>,

    #[arg(
        long = "log_output_level",
        allow_hyphen_values = true,
        help = "Comma separated scope:level list, or a bare level"
    )]
    pub log_output_level: Option<String>,
    #[arg(long = "log_as_json", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, help = "Log as JSON")]
    pub log_as_json: Option<bool>,
    #[arg(long = "log_target", allow_hyphen_values = true, action = clap::ArgAction::Append, help = "stdout, stderr or a file; repeatable")]
    pub log_target: Vec<String>,
    #[arg(long = "log_caller", allow_hyphen_values = true, hide = true)]
    pub log_caller: Option<String>,
    #[arg(long = "log_stacktrace_level", allow_hyphen_values = true, hide = true)]
    pub log_stacktrace_level: Option<String>,
    #[arg(long = "vklog", allow_hyphen_values = true, hide = true)]
    pub vklog: Option<String>,

    /// Positional arguments are ignored, as the reference does.
    #[arg(hide = true)]
    pub ignored: Vec<String>,
}

/// Where variables come from; tests give their own.
pub trait Environment {
    /// Value of a variable, `None` when unset. A present but empty variable is `Some("")`.
    fn var(&self, name: &str) -> Option<String>;
}

/// The environment of this process; bytes that are not UTF-8 are replaced, and then refused by
/// the strict value parsers.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }
}

/// All settings after default → environment → second variable → command line, still as text
/// where the reference treats them as text.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are the flags; see the flag help")]
pub struct Settings {
    pub envoy_port: String,
    pub inbound_capture_port: String,
    pub inbound_tunnel_port: String,
    pub proxy_uid: String,
    pub proxy_gid: String,
    pub mode: String,
    pub inbound_ports: String,
    pub inbound_exclude_ports: String,
    pub exclude_interfaces: String,
    pub service_cidr: String,
    pub service_exclude_cidr: String,
    pub outbound_ports: String,
    pub outbound_ports_exclude: String,
    pub kube_virt_interfaces: String,
    pub tproxy_mark: String,
    pub tproxy_route_table: String,
    pub dry_run: bool,
    pub probe_port: u16,
    pub probe_timeout: Duration,
    pub skip_rule_apply: bool,
    pub run_validation: bool,
    pub redirect_dns: bool,
    pub capture_all_dns: bool,
    pub drop_invalid: bool,
    pub dual_stack: bool,
    pub network_namespace: String,
    pub cni_mode: bool,
    pub reconcile: bool,
    pub cleanup_only: bool,
    pub force_apply: bool,
    pub native_nftables: bool,
    pub force_iptables_binary: String,
    pub proxy_owners_first: bool,
    pub owner_groups: String,
    pub owner_groups_exclude: String,
    pub loopback_cidr: String,
    pub envoy_user: String,
    pub dry_run_file: String,
}

/// Resolves one value after the other.
struct Layers<'a> {
    env: &'a dyn Environment,
}

impl Layers<'_> {
    fn text(&self, name: &str, flag: Option<String>, default: &str) -> String {
        flag.or_else(|| self.env.var(name))
            .unwrap_or_else(|| default.to_owned())
    }

    fn flag(&self, names: &[&str], flag: Option<bool>) -> bool {
        if let Some(flag) = flag {
            return flag;
        }
        // A later variable overwrites an earlier one, also with garbage, which means false.
        names
            .iter()
            .rev()
            .find_map(|name| self.env.var(name))
            .is_some_and(|text| env_bool(&text))
    }
}

impl Settings {
    /// Applies the precedence.
    #[must_use]
    pub fn resolve(cli: Cli, env: &dyn Environment) -> Self {
        let l = Layers { env };
        Self {
            // The one flag without a variable.
            envoy_port: cli.envoy_port.unwrap_or_else(|| "15001".to_owned()),
            inbound_capture_port: l.text("INBOUND_CAPTURE_PORT", cli.inbound_capture_port, "15006"),
            inbound_tunnel_port: l.text("INBOUND_TUNNEL_PORT", cli.inbound_tunnel_port, "15008"),
            proxy_uid: l.text("PROXY_UID", cli.proxy_uid, ""),
            proxy_gid: l.text("PROXY_GID", cli.proxy_gid, ""),
            mode: l.text(
                "ISTIO_INBOUND_INTERCEPTION_MODE",
                cli.istio_inbound_interception_mode,
                "",
            ),
            inbound_ports: l.text("ISTIO_INBOUND_PORTS", cli.istio_inbound_ports, ""),
            inbound_exclude_ports: l.text(
                "ISTIO_LOCAL_EXCLUDE_PORTS",
                cli.istio_local_exclude_ports,
                "",
            ),
            exclude_interfaces: l.text(
                "ISTIO_EXCLUDE_INTERFACES",
                cli.istio_exclude_interfaces,
                "",
            ),
            service_cidr: l.text("ISTIO_SERVICE_CIDR", cli.istio_service_cidr, ""),
            service_exclude_cidr: l.text(
                "ISTIO_SERVICE_EXCLUDE_CIDR",
                cli.istio_service_exclude_cidr,
                "",
            ),
            outbound_ports: l.text("ISTIO_OUTBOUND_PORTS", cli.istio_outbound_ports, ""),
            outbound_ports_exclude: l.text(
                "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE",
                cli.istio_local_outbound_ports_exclude,
                "",
            ),
            kube_virt_interfaces: l.text("KUBE_VIRT_INTERFACES", cli.kube_virt_interfaces, ""),
            tproxy_mark: l.text(
                "ISTIO_INBOUND_TPROXY_MARK",
                cli.istio_inbound_tproxy_mark,
                "1337",
            ),
            tproxy_route_table: l.text(
                "ISTIO_INBOUND_TPROXY_ROUTE_TABLE",
                cli.istio_inbound_tproxy_route_table,
                "133",
            ),
            dry_run: l.flag(&["DRY_RUN"], cli.dry_run),
            probe_port: cli
                .iptables_probe_port
                .or_else(|| env.var("IPTABLES_PROBE_PORT").map(|t| env_u16(&t)))
                .unwrap_or(15002),
            probe_timeout: cli
                .probe_timeout
                .or_else(|| env.var("PROBE_TIMEOUT").map(|t| env_duration(&t)))
                .unwrap_or(Duration::from_secs(5)),
            skip_rule_apply: l.flag(&["SKIP_RULE_APPLY"], cli.skip_rule_apply),
            run_validation: l.flag(&["RUN_VALIDATION"], cli.run_validation),
            redirect_dns: l.flag(
                &["REDIRECT_DNS", "ISTIO_META_DNS_CAPTURE"],
                cli.redirect_dns,
            ),
            capture_all_dns: l.flag(&["CAPTURE_ALL_DNS"], cli.capture_all_dns),
            drop_invalid: l.flag(&["DROP_INVALID", "INVALID_DROP"], cli.drop_invalid),
            dual_stack: l.flag(&["DUAL_STACK", "ISTIO_DUAL_STACK"], cli.dual_stack),
            network_namespace: l.text("NETWORK_NAMESPACE", cli.network_namespace, ""),
            cni_mode: l.flag(&["CNI_MODE"], cli.cni_mode),
            reconcile: l.flag(&["RECONCILE"], cli.reconcile),
            cleanup_only: l.flag(&["CLEANUP_ONLY"], cli.cleanup_only),
            force_apply: l.flag(&["FORCE_APPLY"], cli.force_apply),
            native_nftables: l.flag(&["NATIVE_NFTABLES"], cli.native_nftables),
            force_iptables_binary: l.text("FORCE_IPTABLES_BINARY", cli.force_iptables_binary, ""),
            proxy_owners_first: l.flag(&["PROXY_OWNERS_FIRST"], cli.proxy_owners_first),
            owner_groups: l.text("ISTIO_OUTBOUND_OWNER_GROUPS", None, "*"),
            owner_groups_exclude: l.text("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", None, ""),
            loopback_cidr: l.text("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", None, "127.0.0.1/32"),
            envoy_user: l.text("ENVOY_USER", None, "istio-proxy"),
            dry_run_file: l.text("DRY_RUN_FILE_PATH", None, ""),
        }
    }
}

#[cfg(test)]
mod tests;
