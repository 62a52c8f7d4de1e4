//! Whether this kernel takes the redirect rules. They are really set, by a process of its own in
//! an empty network namespace that ends with it; the pod's rules are not touched.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use clap::Parser;
use iptables_init::cli::{Cli, Environment, INJECTED_ARGS, Settings};
use iptables_init::config::{Config, Host};
use iptables_init::host::OwnerNames;
use iptables_init::nft::apply::{self, Wanted};
use iptables_init::nft::compile::compile;
use iptables_init::nft::plan::build_plan;
use iptables_init::nft::socket::NftSocket;
use nix::sched::{CloneFlags, unshare};
use tokio::process::Command;

use super::Check;

const NAME: &str = "kernel";
/// The probe may not make a namespace here.
const EXIT_DENIED: u8 = 3;
const EXIT_REFUSED: u8 = 1;

/// The probe itself (`doctor --probe-rules MODE`): the exit code, and the reason on standard
/// output. Must run before any thread is started.
pub fn probe_rules(mode: &str) -> u8 {
    // Root needs no user namespace; others get one where the node allows it.
    let network = CloneFlags::CLONE_NEWNET;
    if let Err(e) = unshare(network).or_else(|_| unshare(network | CloneFlags::CLONE_NEWUSER)) {
        println!("{e}");
        return EXIT_DENIED;
    }
    match set_rules(mode) {
        Ok(()) => 0,
        Err(e) => {
            println!("{e}");
            EXIT_REFUSED
        }
    }
}

fn set_rules(mode: &str) -> Result<(), Box<dyn std::error::Error>> {
    let arguments = [&["istio-iptables"], INJECTED_ARGS, &["-m", mode]].concat();
    let settings = Settings::resolve(Cli::try_parse_from(arguments)?, &Nothing);
    let config = Config::build(settings, &Nothing)?;
    let wanted = compile(&build_plan(&config.rules), &OwnerNames::default())?;
    let wanted = Wanted {
        native: &wanted,
        without_xtables: &[],
        without_empty: false,
    };
    let mut socket = NftSocket::open()?;
    apply::replace(&mut socket, wanted, true)?;
    apply::verify(&mut socket, wanted)?;
    Ok(())
}

/// No variables, and an address that stands for the pod's.
struct Nothing;

impl Environment for Nothing {
    fn var(&self, _: &str) -> Option<String> {
        None
    }
}

impl Host for Nothing {
    fn addresses(&self) -> Result<Vec<IpAddr>, io::Error> {
        Ok(vec![[10, 0, 0, 1].into()])
    }

    fn resolv_conf(&self) -> Result<String, io::Error> {
        Ok(String::new())
    }

    fn user_id(&self, _: &str) -> Option<u32> {
        None
    }
}

pub(super) async fn check(tproxy: bool, limit: Duration) -> Check {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = format!("Linux {}", release.trim());
    let mode = if tproxy { "TPROXY" } else { "REDIRECT" };
    match probe(mode, limit).await {
        Ok((0, _)) => Check::ok(
            NAME,
            format!("{release} takes the {mode} rules (nf_tables)"),
        ),
        Ok((code, reason)) if code == i32::from(EXIT_DENIED) => Check::skipped(
            NAME,
            format!("{release}; {mode} rules not tried: no network namespace ({reason})"),
        ),
        Ok((_, reason)) => {
            let modules = if tproxy { "nft_tproxy, " } else { "" };
            Check::failure(
                NAME,
                format!("{release} refuses the {mode} rules: {reason}"),
                format!(
                    "load on the node: nf_tables, nft_chain_nat, nft_redir, nft_ct, {modules}or \
                     the xt modules of the same names for iptables"
                ),
            )
        }
        Err(e) => Check::skipped(NAME, format!("{release}; {mode} rules not tried: {e}")),
    }
}

async fn probe(mode: &str, limit: Duration) -> io::Result<(i32, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["doctor", "--probe-rules", mode]);
    command
        .kill_on_drop(true)
        .stdin(std::process::Stdio::null());
    let output = tokio::time::timeout(limit, command.output()).await;
    let output = output.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let code = output.status.code().unwrap_or(-1);
    let reason = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((code, reason))
}
