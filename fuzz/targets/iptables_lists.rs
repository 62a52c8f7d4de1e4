//! Flags of istio-iptables: any text in any list. What is accepted becomes rules that consist of words
//! the program wrote itself, one line per rule; and reading the text back gives the rules that were meant.
#![no_main]

use std::net::IpAddr;

use iptables_init::cli::{Cli, Environment, Settings};
use iptables_init::config::{Config, Host};
use iptables_init::host::OwnerNames;
use iptables_init::iptables::state::{State, TableRules, equivalent};
use iptables_init::iptables::text::{render_restore, render_tables, table_name};
use iptables_init::nft::plan::build_plan;
use iptables_init::nft::text::render_transaction;
use iptables_init::rules::{Family, Flavor, build_rules};
use libfuzzer_sys::fuzz_target;

/// Flags that take a value which ends up in a rule.
fn slots(cli: &mut Cli) -> [&mut Option<String>; 15] {
    [
        &mut cli.envoy_port,
        &mut cli.inbound_capture_port,
        &mut cli.inbound_tunnel_port,
        &mut cli.proxy_uid,
        &mut cli.proxy_gid,
        &mut cli.istio_inbound_ports,
        &mut cli.istio_local_exclude_ports,
        &mut cli.istio_exclude_interfaces,
        &mut cli.istio_service_cidr,
        &mut cli.istio_service_exclude_cidr,
        &mut cli.istio_outbound_ports,
        &mut cli.istio_local_outbound_ports_exclude,
        &mut cli.kube_virt_interfaces,
        &mut cli.istio_inbound_tproxy_mark,
        &mut cli.istio_inbound_tproxy_route_table,
    ]
}

/// Variables that do.
const VARIABLES: [&str; 3] = [
    "ISTIO_OUTBOUND_OWNER_GROUPS",
    "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
    "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
];

struct Env<'a>(&'a str, &'a str);

impl Environment for Env<'_> {
    fn var(&self, name: &str) -> Option<String> {
        (name == self.0).then(|| self.1.to_owned())
    }
}

struct Pod;

impl Host for Pod {
    fn addresses(&self) -> Result<Vec<IpAddr>, std::io::Error> {
        Ok(vec![
            IpAddr::from([10, 0, 0, 5]),
            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 5]),
        ])
    }

    fn resolv_conf(&self) -> Result<String, std::io::Error> {
        Ok("nameserver 10.96.0.10\n".to_owned())
    }

    fn user_id(&self, _: &str) -> Option<u32> {
        None
    }
}

/// Words of the two rule languages hold nothing but these bytes.
fn plain(word: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/,!=*+${};".contains(&b);
    word.bytes().all(legal)
}

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(rest) else {
        return;
    };
    let tproxy = first & 0x80 != 0;
    let mut cli = Cli {
        istio_inbound_interception_mode: tproxy.then(|| "TPROXY".to_owned()),
        dual_stack: Some(true),
        redirect_dns: Some(true),
        ..Cli::default()
    };
    let mut env = Env("", "");
    let slots = slots(&mut cli);
    let choice = usize::from(first & 0x7f) % (slots.len() + VARIABLES.len());
    match choice.checked_sub(slots.len()) {
        Some(variable) => env = Env(VARIABLES[variable], text),
        None => slots
            .into_iter()
            .nth(choice)
            .into_iter()
            .for_each(|s| *s = Some(text.to_owned())),
    }
    let Ok(config) = Config::build(Settings::resolve(cli, &env), &Pod) else {
        return;
    };
    let rules = build_rules(&config.rules, Flavor::Iptables);
    for family in [Family::V4, Family::V6] {
        let tables = render_tables(&rules, &config.rules, family);
        let restore = render_restore(&tables);
        let covered = rules
            .iter()
            .filter(|rule| rule.scope.covers(family))
            .count();
        let written = restore
            .lines()
            .filter(|l| l.starts_with("-A ") || l.starts_with("-I "));
        assert_eq!(written.count(), covered, "{restore}");
        assert!(restore.split_ascii_whitespace().all(plain), "{restore}");
        // What the state parser makes of the text is what was meant.
        let wanted: Vec<TableRules> = tables
            .iter()
            .map(|table| TableRules {
                table: table_name(table.table).to_owned(),
                chains: table.chains.iter().map(ToString::to_string).collect(),
                rules: table.rules.clone(),
            })
            .collect();
        let saved = restore.replace("* ", "*").replace("-N ", ":");
        let names = OwnerNames::default();
        let own = State::parse(&saved).own();
        assert!(equivalent(&own, &wanted, &names), "{saved}\n{own:#?}");
    }
    let plan = build_plan(&config.rules);
    let transaction = render_transaction(&plan);
    let expected: usize = plan.iter().map(|t| t.rules.len()).sum();
    let written = transaction
        .lines()
        .filter(|line| line.contains(" rule inet "));
    assert_eq!(written.count(), expected, "{transaction}");
    assert!(
        transaction.split_ascii_whitespace().all(plain),
        "{transaction}"
    );
});
