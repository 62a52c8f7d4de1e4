//! Understands save output: which chains and rules are ours, and whether they mean the same as
//! the wanted rules although the program prints them in other words. Pure.

use std::collections::HashMap;

use ipnet::IpNet;

use crate::host::OwnerNames;
use crate::values::{OwnerId, parse_owner};

/// One table of save output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableRules {
    /// `mangle`, `nat`, `raw`, …
    pub table: String,
    /// `ISTIO_*` chains.
    pub chains: Vec<String>,
    /// Rule lines as printed, `-A CHAIN …` (wanted ones may be `-I CHAIN n …`).
    pub rules: Vec<String>,
}

/// Parsed save output of one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// All tables with chains or rules.
    pub tables: Vec<TableRules>,
}

const OWN: &str = "ISTIO_";

/// Chain a rule line belongs to.
#[must_use]
pub fn rule_chain(line: &str) -> &str {
    line.split_ascii_whitespace().nth(1).unwrap_or_default()
}

impl State {
    /// Reads save output; comments and unknown lines are skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut tables: Vec<TableRules> = Vec::new();
        for line in text.lines() {
            if let Some(table) = line.strip_prefix('*') {
                tables.push(TableRules {
                    table: table.trim().to_owned(),
                    ..TableRules::default()
                });
            }
            let Some(table) = tables.last_mut() else {
                continue;
            };
            if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split_ascii_whitespace().next().unwrap_or_default();
                if name.starts_with(OWN) {
                    table.chains.push(name.to_owned());
                }
            } else if line.starts_with("-A ") || line.starts_with("-I ") {
                table.rules.push(line.to_owned());
            }
        }
        Self { tables }
    }

    /// Whether any `ISTIO_*` chain exists.
    #[must_use]
    pub fn has_own_chains(&self) -> bool {
        self.tables.iter().any(|table| !table.chains.is_empty())
    }

    /// Only what a run of this program, with any flags, would have created. Rules of built-in
    /// chains that do not jump to our chains are recognised by shape, and only next to our chains.
    #[must_use]
    pub fn own(&self) -> Self {
        let names = OwnerNames::default();
        let beside_own = self.has_own_chains();
        let tables = self
            .tables
            .iter()
            .map(|table| TableRules {
                table: table.table.clone(),
                chains: table.chains.clone(),
                rules: table
                    .rules
                    .iter()
                    .filter(|line| {
                        rule_chain(line).starts_with(OWN)
                            || is_own_builtin(&table.table, line, beside_own, &names)
                    })
                    .cloned()
                    .collect(),
            })
            .filter(|table| !(table.chains.is_empty() && table.rules.is_empty()))
            .collect();
        Self { tables }
    }
}

impl State {
    /// As [`State::own`], but rules of built-in chains as inserts at the positions they have, so
    /// that putting them back keeps their order among the rules of others.
    #[must_use]
    pub fn own_in_place(&self) -> Self {
        let mut own = self.own();
        for table in &mut own.tables {
            let all = self.tables.iter().find(|t| t.table == table.table);
            let all = all.map_or(&[][..], |t| &t.rules);
            let mut position: HashMap<String, usize> = HashMap::new();
            let mut rest = all.iter();
            for line in &mut table.rules {
                let chain = rule_chain(line).to_owned();
                for passed in rest.by_ref() {
                    *position.entry(rule_chain(passed).to_owned()).or_default() += 1;
                    if passed == line {
                        break;
                    }
                }
                if !chain.starts_with(OWN) {
                    let number = position.get(&chain).copied().unwrap_or(1);
                    *line = line.replacen("-A ", "-I ", 1);
                    let head = format!("-I {chain}");
                    *line = line.replacen(&head, &format!("{head} {number}"), 1);
                }
            }
        }
        own
    }

    /// Marks that TPROXY rules of ours set.
    #[must_use]
    pub fn tproxy_marks(&self) -> Vec<u32> {
        let lines = self.tables.iter().flat_map(|t| &t.rules);
        lines
            .filter(|line| rule_chain(line).starts_with(OWN))
            .filter_map(|line| {
                let mut words = line.split_ascii_whitespace();
                words.find(|word| *word == "--tproxy-mark")?;
                parse_mark(words.next()?)
            })
            .collect()
    }
}

/// `1337`, `0x539` or either with a mask behind it.
fn parse_mark(value: &str) -> Option<u32> {
    let number = value.split('/').next().unwrap_or_default();
    match number.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => number.parse().ok(),
    }
}

fn is_own_builtin(table: &str, line: &str, beside_own: bool, names: &OwnerNames) -> bool {
    let words = normalize(line, names);
    let has = |prefix: &str| words.iter().any(|word| word.starts_with(prefix));
    if has("-j=ISTIO_") {
        return true;
    }
    if !beside_own || !matches!(table, "nat" | "mangle") {
        return false;
    }
    let chain = rule_chain(line);
    let returns = has("-j=RETURN");
    let interface = match chain {
        "PREROUTING" => has("-i="),
        "OUTPUT" => has("-o="),
        _ => return false,
    };
    if words.len() == 2 && returns && interface {
        return true;
    }
    if table != "mangle" || !has("-p=tcp") {
        return false;
    }
    match chain {
        "PREROUTING" => words.len() == 4 && has("--mark=") && has("--save-mark"),
        _ => {
            (words.len() == 4 && has("--mark=") && has("--restore-mark"))
                || (words.len() == 4 && has("-o=lo") && has("--mark=") && returns)
                || (has("--set-mark=1338")
                    && has("-o=lo")
                    && (has("--uid-owner") || has("--gid-owner")))
        }
    }
}

/// Conditions and target of a rule in one canonical wording, sorted; the chain is left out.
#[must_use]
pub fn normalize(line: &str, names: &OwnerNames) -> Vec<String> {
    let mut tokens = line.split_ascii_whitespace().peekable();
    let inserted = tokens.next() == Some("-I");
    tokens.next();
    if inserted
        && tokens
            .peek()
            .is_some_and(|t| t.bytes().all(|b| b.is_ascii_digit()))
    {
        tokens.next();
    }
    let mut words = Vec::new();
    let mut not = "";
    while let Some(token) = tokens.next() {
        if token == "!" {
            not = "!";
            continue;
        }
        let is_flag = |t: &&str| t.starts_with('-') || *t == "!";
        let value = tokens.next_if(|t| !is_flag(t)).unwrap_or_default();
        if let Some(word) = canonical(token, value, names) {
            // The inversion goes to the end so that prefixes stay comparable.
            words.push(format!("{word}{not}"));
        }
        not = "";
    }
    words.sort();
    words
}

fn canonical(flag: &str, value: &str, names: &OwnerNames) -> Option<String> {
    let mark = |value: &str| parse_mark(value).map_or_else(|| value.to_owned(), |n| n.to_string());
    let owner = |group: bool| {
        let id = parse_owner("owner", value).ok();
        let number = id.and_then(|id| {
            if group {
                names.group(&id)
            } else {
                names.user(&id)
            }
            .ok()
        });
        number.map_or_else(
            || value.to_owned(),
            |(low, high)| OwnerId::Range(low, high).to_string(),
        )
    };
    Some(match flag {
        // Implied by the match's own options.
        "-m" | "--nfmask" | "--ctmask" | "--on-ip" => return None,
        "--set-mark" | "--set-xmark" => format!("--set-mark={}", mark(value)),
        "--mark" | "--tproxy-mark" => format!("{flag}={}", mark(value)),
        "--to-port" => format!("--to-ports={value}"),
        "--uid-owner" => format!("{flag}={}", owner(false)),
        "--gid-owner" => format!("{flag}={}", owner(true)),
        "-s" | "-d" => {
            let net: Option<IpNet> = value.parse().ok().or_else(|| {
                value
                    .parse()
                    .ok()
                    .map(|ip: std::net::IpAddr| IpNet::from(ip))
            });
            match net {
                Some(net) if net.prefix_len() == 0 => return None,
                Some(net) => format!("{flag}={}", net.trunc()),
                None => format!("{flag}={value}"),
            }
        }
        _ => format!("{flag}={value}"),
    })
}

/// Whether `own` (see [`State::own`]) means exactly `wanted`: same tables, same chains, and the
/// same rules in the same order in every chain.
#[must_use]
pub fn equivalent(own: &State, wanted: &[TableRules], names: &OwnerNames) -> bool {
    if own.tables.len() != wanted.len() {
        return false;
    }
    wanted.iter().all(|want| {
        let Some(have) = own.tables.iter().find(|t| t.table == want.table) else {
            return false;
        };
        let mut a = have.chains.clone();
        let mut b = want.chains.clone();
        a.sort();
        b.sort();
        let builtin = ["PREROUTING".to_owned(), "OUTPUT".to_owned()];
        a == b
            && a.iter().chain(&builtin).all(|chain| {
                ordered(&have.rules, chain, names) == ordered(&want.rules, chain, names)
            })
    })
}

/// Canonical rules of one chain, inserts resolved.
fn ordered(rules: &[String], chain: &str, names: &OwnerNames) -> Vec<Vec<String>> {
    let mut out: Vec<Vec<String>> = Vec::new();
    for line in rules.iter().filter(|line| rule_chain(line) == chain) {
        let words = normalize(line, names);
        let position = line.strip_prefix("-I ").and_then(|rest| {
            let number: usize = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
            Some(number.saturating_sub(1).min(out.len()))
        });
        out.insert(position.unwrap_or(out.len()), words);
    }
    out
}

/// Restore input that turns `now` into `wanted`, one commit per table: our chains are flushed or
/// created, our rules of built-in chains deleted, wanted rules added, leftover chains deleted.
#[must_use]
pub fn replacement(now: &State, wanted: &[TableRules]) -> String {
    let mut out = String::new();
    let mut tables: Vec<&str> = wanted.iter().map(|t| t.table.as_str()).collect();
    for table in &now.tables {
        if !tables.contains(&table.table.as_str()) {
            tables.push(&table.table);
        }
    }
    let empty = TableRules::default();
    for name in tables {
        let have = now
            .tables
            .iter()
            .find(|t| t.table == name)
            .unwrap_or(&empty);
        let want = wanted.iter().find(|t| t.table == name).unwrap_or(&empty);
        out.push_str(&format!("*{name}\n"));
        let stale: Vec<&String> = have
            .chains
            .iter()
            .filter(|c| !want.chains.contains(c))
            .collect();
        for chain in want.chains.iter().chain(stale.iter().copied()) {
            out.push_str(&format!(":{chain} - [0:0]\n"));
        }
        for line in have
            .rules
            .iter()
            .filter(|l| !rule_chain(l).starts_with(OWN))
        {
            out.push_str(&format!("{}\n", line.replacen("-A ", "-D ", 1)));
        }
        for line in &want.rules {
            out.push_str(&format!("{line}\n"));
        }
        for chain in stale {
            out.push_str(&format!("-X {chain}\n"));
        }
        out.push_str("COMMIT\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn save_wording_and_restore_wording_are_the_same_rule() {
        let names = OwnerNames::default();
        let pairs = [
            (
                "-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j X",
                "-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j X",
            ),
            (
                "-A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --gid-owner 1337 -j MARK --set-mark 1338",
                "-A OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m owner --gid-owner 1337 -j MARK --set-xmark 0x53a/0xffffffff",
            ),
            (
                "-A ISTIO_TPROXY ! -d ::1/128 -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port 15006",
                "-A ISTIO_TPROXY ! -d ::1/128 -p tcp -j TPROXY --on-port 15006 --on-ip :: --tproxy-mark 0x539/0xffffffff",
            ),
            (
                "-I ISTIO_INBOUND 3 -p tcp -i lo -m mark ! --mark 1338 -j RETURN",
                "-A ISTIO_INBOUND -i lo -p tcp -m mark ! --mark 0x53a -j RETURN",
            ),
        ];
        for (a, b) in pairs {
            assert_eq!(normalize(a, &names), normalize(b, &names));
        }
        let other = "-A X -o lo -d 127.0.0.1/32 -j Y";
        assert_ne!(
            normalize(other, &names),
            normalize("-A X -o lo ! -d 127.0.0.1/32 -j Y", &names)
        );
    }

    #[test]
    fn foreign_rules_are_never_ours() {
        let text = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i eth0 -j RETURN\n-A OUTPUT -p udp -j DNAT --to 1.1.1.1\nCOMMIT\n";
        assert_eq!(State::parse(text).own(), State::default());
    }
}
