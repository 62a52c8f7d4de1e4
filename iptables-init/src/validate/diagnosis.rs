//! What a failed validation tells: whose connection it was, what became of it, and which rules
//! there are, as far as this process may look.

use std::fmt::Write as _;

use super::{Probe, Seen};
use crate::iptables::legacy::{self, LegacyState};
use crate::iptables::state::State;
use crate::nft::apply as nft;
use crate::nft::socket::NftSocket;
use crate::rules::Family;

/// Longer rule lists are cut; the termination message of a pod holds 4 KiB anyway.
const MAX_RULES: usize = 100;

/// The whole diagnosis, several lines.
pub(super) fn text(probe: &Probe, seen: &Seen) -> String {
    let mut out = format!("{} connections to {}", seen.attempts, probe.target);
    let _ = match &seen.last_error {
        Some(error) if seen.strangers == 0 => {
            write!(out, ", none redirected (last error: {error})")
        }
        _ => write!(out, ", {} answered by somebody else", seen.strangers),
    };
    let (uid, gid) = seen.owner;
    let as_proxy = probe.exempt || probe.owner == Some(seen.owner);
    let _ = if as_proxy {
        write!(
            out,
            "\nThey belonged to UID {uid} and GID {gid}, as the proxy's do."
        )
    } else {
        write!(
            out,
            "\nThey belonged to UID {uid} and GID {gid}, which are not the proxy's: only a proxy UID or GID is redirected. Run the check as one of them, or with the SETUID and SETGID capabilities."
        )
    };
    for port in &seen.busy_ports {
        let _ = write!(
            out,
            "\nPort {port} is held by another program, which gets what is redirected to it."
        );
    }
    out + "\n" + &present_rules()
}

fn present_rules() -> String {
    let snapshot = NftSocket::open().and_then(|mut socket| nft::read(&mut socket));
    let snapshot = match snapshot {
        Ok(snapshot) => snapshot,
        Err(error) => return format!("The rules cannot be shown: {error}."),
    };
    let mut rules: Vec<String> = Vec::new();
    for table in &snapshot.native {
        for chain in &table.chains {
            for rule in &chain.rules {
                let words: Vec<String> = rule.iter().map(ToString::to_string).collect();
                rules.push(format!(
                    "inet {} {} {}",
                    table.name,
                    chain.name,
                    words.join(" ")
                ));
            }
        }
    }
    let mut unprinted = Vec::new();
    for family in [Family::V4, Family::V6] {
        let own_in_nft = snapshot.xtables.has_own_chains(family);
        let own_in_legacy = legacy::read(family) == Ok(LegacyState::Own);
        for (there, variant) in [(own_in_nft, "-nft"), (own_in_legacy, "-legacy")] {
            if there && !print_own(family, variant, &mut rules) {
                unprinted.push(format!("iptables{variant} ({family:?})"));
            }
        }
    }
    if rules.is_empty() && unprinted.is_empty() {
        return "No ISTIO_* chain and no istio-proxy-* table exists: the rules were not written in this network namespace.".to_owned();
    }
    let total = rules.len();
    rules.truncate(MAX_RULES);
    let mut out = format!("Rules present ({total}):\n{}", rules.join("\n"));
    if !unprinted.is_empty() {
        let list = unprinted.join(", ");
        let _ = write!(
            out,
            "\nISTIO_* chains exist in {list}, whose programs do not work here."
        );
    }
    out
}

/// Adds what a program prints of our rules; `false` if it does not work.
fn print_own(family: Family, variant: &str, rules: &mut Vec<String>) -> bool {
    let tool = crate::iptables::detect::Tool::variant(family, variant);
    let Ok(text) = tool.save() else {
        return false;
    };
    for table in State::parse(&text).own().tables {
        let name = &table.table;
        rules.extend(
            table
                .rules
                .iter()
                .map(|line| format!("{} -t {name} {line}", tool.name)),
        );
    }
    true
}
