//! Whether traffic of this pod really goes through the proxy. With NET_ADMIN the rules are read;
//! without, one connection shows where the kernel takes it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bootstrap_templates::NodeType;
use iptables_init::iptables::detect::{self, Residue};
use iptables_init::iptables::legacy::{self, LegacyState};
use iptables_init::iptables::state::State;
use iptables_init::nft::apply;
use iptables_init::nft::expr::Expr;
use iptables_init::nft::socket::{NetlinkError, NftSocket};
use iptables_init::nft::state::TableState;
use iptables_init::rules::Family;
use nix::errno::Errno;
use tokio::net::TcpSocket;

use super::Check;
use crate::options::Options;

const NAME: &str = "capture";
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
/// Nobody listens there: a connection that succeeds was taken to the proxy.
const PROBE_PORT: u16 = 15002;
/// User whose connections to itself are taken to the inbound port.
const PROXY_USER: u32 = 1337;
const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const FIX: &str = "see the log of istio-init (or of the istio-cni pod of this node); something else \
                   may have flushed the rules; on a VM run `pilot-agent istio-iptables`";

pub(super) async fn check(options: &Options, limit: Duration) -> Check {
    if options.node.node_type != NodeType::Sidecar {
        return Check::skipped(NAME, "gateways take no redirected traffic");
    }
    let mode = options.environment.text("ISTIO_META_INTERCEPTION_MODE");
    if mode == "NONE" {
        return Check::skipped(NAME, "interception is off (NONE)");
    }
    let tproxy = mode == "TPROXY";
    match read() {
        Ok(rules) => judge(&rules, tproxy),
        Err(ReadError::Denied) => connect(limit).await,
        Err(ReadError::Other(e)) => Check::skipped(NAME, format!("rules cannot be read: {e}")),
    }
}

/// What the rules of either backend do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    /// `nf_tables` or the name of the iptables program; empty without rules.
    backend: String,
    /// Packets of the pod pass through them.
    output: bool,
    /// Packets to the pod pass through them.
    prerouting: bool,
    redirects: Vec<u16>,
    tproxies: Vec<u16>,
    /// There are rules that no program here can show.
    opaque: bool,
}

enum ReadError {
    Denied,
    Other(String),
}

impl From<NetlinkError> for ReadError {
    fn from(error: NetlinkError) -> Self {
        let denied = match &error {
            NetlinkError::Refused { errno, .. } => *errno == Errno::EPERM,
            NetlinkError::Socket { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        };
        if denied {
            return Self::Denied;
        }
        Self::Other(error.to_string())
    }
}

fn read() -> Result<Rules, ReadError> {
    let snapshot = apply::read(&mut NftSocket::open()?)?;
    if !snapshot.native.is_empty() {
        return Ok(of_tables(&snapshot.native));
    }
    let other = |e: &dyn std::fmt::Display| ReadError::Other(e.to_string());
    let mut opaque = false;
    for family in [Family::V4, Family::V6] {
        let residue = Residue {
            legacy: legacy::read(family).map_err(|e| other(&e))?,
            own_in_nft: snapshot.xtables.has_own_chains(family),
        };
        if residue.legacy != LegacyState::Own && !residue.own_in_nft {
            continue;
        }
        match detect::choose(family, None, residue, None).map_err(|e| other(&e))? {
            Some(choice) => return Ok(of_save(&choice.tool.name, &choice.before)),
            None => opaque = true,
        }
    }
    Ok(Rules {
        opaque,
        ..Rules::default()
    })
}

fn of_tables(tables: &[TableState]) -> Rules {
    let chains: Vec<_> = tables.iter().flat_map(|t| &t.chains).collect();
    let hooked = |hook| {
        let mut bases = chains.iter().filter(|c| !c.rules.is_empty());
        bases.any(|c| c.base.as_ref().is_some_and(|b| b.hook == hook))
    };
    let mut rules = Rules {
        backend: "nf_tables".to_owned(),
        output: hooked(HOOK_OUTPUT),
        prerouting: hooked(HOOK_PREROUTING),
        ..Rules::default()
    };
    for rule in chains.iter().flat_map(|c| &c.rules) {
        for pair in rule.windows(2) {
            let [Expr::Immediate(port), action] = pair else {
                continue;
            };
            let Ok(port) = <[u8; 2]>::try_from(port.as_slice()) else {
                continue;
            };
            match action {
                Expr::Redir => rules.redirects.push(u16::from_be_bytes(port)),
                Expr::Tproxy { .. } => rules.tproxies.push(u16::from_be_bytes(port)),
                _ => {}
            }
        }
    }
    rules
}

fn of_save(program: &str, text: &str) -> Rules {
    let state = State::parse(text);
    if !state.has_own_chains() {
        return Rules::default();
    }
    let mut rules = Rules {
        backend: program.to_owned(),
        ..Rules::default()
    };
    for line in state.own().tables.iter().flat_map(|t| &t.rules) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |flag: &str| {
            let at = words.iter().position(|w| *w == flag)?;
            words.get(at + 1).copied()
        };
        let target = after("-j").unwrap_or_default();
        let port = |flag: &str| after(flag).and_then(|p| p.parse::<u16>().ok());
        match (words.get(1).copied(), target) {
            (Some("OUTPUT"), target) if target.starts_with("ISTIO_") => rules.output = true,
            (Some("PREROUTING"), target) if target.starts_with("ISTIO_") => rules.prerouting = true,
            (_, "REDIRECT") => rules.redirects.extend(port("--to-ports")),
            (_, "TPROXY") => rules.tproxies.extend(port("--on-port")),
            _ => {}
        }
    }
    rules
}

fn judge(rules: &Rules, tproxy: bool) -> Check {
    if rules.opaque {
        let detail = "rules of an iptables program are there, and none is here to show them";
        return Check::ok(NAME, detail);
    }
    if rules.backend.is_empty() {
        return Check::failure(NAME, "no redirect rules in this network namespace", FIX);
    }
    let mut missing = Vec::new();
    if !rules.output || !rules.redirects.contains(&OUTBOUND) {
        missing.push("outbound connections do not go to 15001");
    }
    let (inbound, how) = if tproxy {
        (&rules.tproxies, "TPROXY")
    } else {
        (&rules.redirects, "REDIRECT")
    };
    if !rules.prerouting || !inbound.contains(&INBOUND) {
        missing.push("inbound connections do not go to 15006");
    }
    if missing.is_empty() {
        return Check::ok(
            NAME,
            format!("{how} rules are in place ({})", rules.backend),
        );
    }
    let detail = format!("{} ({how}, {})", missing.join("; "), rules.backend);
    Check::failure(NAME, detail, FIX)
}

/// As the proxy's user, a connection from loopback to another loopback address is inbound traffic;
/// as any other, a connection to the documentation network is outbound traffic.
async fn connect(limit: Duration) -> Check {
    let own = nix::unistd::geteuid().as_raw() == PROXY_USER;
    let (target, port) = if own {
        ([127, 0, 0, 6], INBOUND)
    } else {
        ([192, 0, 2, 1], OUTBOUND)
    };
    if !listens(port) {
        let detail =
            format!("not tried: nobody listens on {port}, and the rules need NET_ADMIN to read");
        return Check::skipped(NAME, detail);
    }
    let target = SocketAddr::new(IpAddr::from(target), PROBE_PORT);
    match tokio::time::timeout(limit, dial(target, own)).await {
        Ok(Ok(())) => Check::ok(
            NAME,
            format!("a connection to {target} was taken to {port}"),
        ),
        Ok(Err(e)) => {
            let detail = format!("a connection to {target} was not taken to {port}: {e}");
            Check::failure(NAME, detail, FIX)
        }
        Err(_) => {
            let detail = format!("a connection to {target} was not taken to {port}: no answer");
            Check::failure(NAME, detail, FIX)
        }
    }
}

async fn dial(target: SocketAddr, from_loopback: bool) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    if from_loopback {
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    }
    socket.connect(target).await.map(drop)
}

/// Whether a TCP socket listens on `port` here; every user may see that.
fn listens(port: u16) -> bool {
    let files = ["/proc/net/tcp", "/proc/net/tcp6"];
    let text = files.map(|f| std::fs::read_to_string(f).unwrap_or_default());
    let end = format!(":{port:04X}");
    text.iter().flat_map(|t| t.lines()).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // 0A is LISTEN.
        matches!(fields[..], [_, local, _, "0A", ..] if local.ends_with(&end))
    })
}

#[cfg(test)]
mod tests {
    use iptables_init::nft::state::{BaseState, ChainState, POLICY_ACCEPT};

    use super::super::Verdict;
    use super::*;

    const SAVED: &str = "\
*nat
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
";

    #[test]
    fn rules_of_iptables_are_understood() {
        for (text, tproxy, want, detail) in [
            (
                SAVED.to_owned(),
                false,
                Verdict::Ok,
                "REDIRECT rules are in place (iptables-nft)",
            ),
            (String::new(), false, Verdict::Failure, "no redirect rules"),
            (
                SAVED.replace("-A OUTPUT -j ISTIO_OUTPUT\n", ""),
                false,
                Verdict::Failure,
                "outbound connections do not go to 15001 (REDIRECT, iptables-nft)",
            ),
            (
                SAVED.replace("15006", "15016"),
                false,
                Verdict::Failure,
                "inbound connections do not go to 15006",
            ),
            (
                SAVED.to_owned(),
                true,
                Verdict::Failure,
                "inbound connections do not go to 15006 (TPROXY",
            ),
            (
                format!(
                    "{SAVED}*mangle\n:ISTIO_TPROXY - [0:0]\n-A ISTIO_TPROXY ! -d 127.0.0.1/32 -p tcp \
                         -j TPROXY --on-port 15006 --on-ip 0.0.0.0 --tproxy-mark 0x539/0xffffffff\nCOMMIT\n"
                ),
                true,
                Verdict::Ok,
                "TPROXY rules are in place",
            ),
        ] {
            let check = judge(&of_save("iptables-nft", &text), tproxy);
            assert_eq!(check.verdict, want, "{}", check.detail);
            assert!(check.detail.contains(detail), "{}", check.detail);
        }
    }

    #[test]
    fn native_rules_are_understood() {
        let redirect = |port: u16| vec![Expr::Immediate(port.to_be_bytes().to_vec()), Expr::Redir];
        let chain = |name: &str, hook: Option<u32>, rules| ChainState {
            name: name.to_owned(),
            base: hook.map(|hook| BaseState {
                kind: "nat".to_owned(),
                hook,
                priority: -100,
                policy: POLICY_ACCEPT,
            }),
            rules,
        };
        let table = |ports: &[u16]| TableState {
            name: "istio-proxy-nat".to_owned(),
            chains: vec![
                chain(
                    "prerouting",
                    Some(HOOK_PREROUTING),
                    vec![vec![Expr::Counter]],
                ),
                chain("output", Some(HOOK_OUTPUT), vec![vec![Expr::Counter]]),
                chain(
                    "istio-redirect",
                    None,
                    ports.iter().map(|p| redirect(*p)).collect(),
                ),
            ],
        };
        let good = judge(&of_tables(&[table(&[15001, 15006])]), false);
        assert_eq!(good.verdict, Verdict::Ok, "{}", good.detail);
        let half = judge(&of_tables(&[table(&[15006])]), false);
        assert_eq!(half.verdict, Verdict::Failure);
        assert!(half.detail.starts_with("outbound"), "{}", half.detail);
    }
}
