//! Which names exist, and what a name finds.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn info(ips: &[&str], registry: &str, service: &str) -> NameInfo {
    let (shortname, namespace) = service.split_once('/').unwrap_or_default();
    NameInfo {
        ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
        registry: registry.to_owned(),
        shortname: shortname.to_owned(),
        namespace: namespace.to_owned(),
        alt_hosts: Vec::new(),
    }
}

fn names(entries: &[(&str, NameInfo)]) -> NameTable {
    let table: BTreeMap<_, _> = entries
        .iter()
        .map(|(host, info)| ((*host).to_owned(), info.clone()))
        .collect();
    NameTable { table }
}

fn scope() -> Scope {
    Scope::new(
        "ns1",
        "ns1.svc.cluster.local",
        Some("ns1.svc.cluster.local"),
    )
}

fn found(table: &Table, name: &str) -> Option<Vec<String>> {
    let name = encode_name(name).expect("name");
    let found = table.lookup(&name)?;
    let v4 = found.v4.iter().map(|ip| Ipv4Addr::from(*ip).to_string());
    let v6 = found.v6.iter().map(|ip| Ipv6Addr::from(*ip).to_string());
    Some(v4.chain(v6).collect())
}

#[test]
fn the_domain_loses_the_namespace_only() {
    for (namespace, domain, want) in [
        ("ns1", "ns1.svc.cluster.local", "svc.cluster.local"),
        ("ns1", "svc.cluster.local", "svc.cluster.local"),
        ("ns", "ns1.svc.cluster.local", "ns1.svc.cluster.local"),
        ("", "svc.cluster.local", "svc.cluster.local"),
        ("ns1", "ns1", ""),
        ("ns1", "", ""),
    ] {
        assert_eq!(
            Scope::new(namespace, domain, None).domain,
            want,
            "{namespace} {domain}"
        );
    }
}

#[test]
fn kubernetes_services_have_short_names_in_their_own_domain() {
    let service = NameInfo {
        alt_hosts: vec!["web.clusterset.local.".to_owned()],
        ..info(&[], "Kubernetes", "web/ns1")
    };
    for (host, namespace, registry, domain, want) in [
        (
            "web.ns1.svc.cluster.local",
            "ns1",
            "Kubernetes",
            "svc.cluster.local",
            &["web", "web.clusterset.local", "web.ns1", "web.ns1.svc"][..],
        ),
        (
            "web.ns1.svc.cluster.local",
            "other",
            "Kubernetes",
            "svc.cluster.local",
            &["web.clusterset.local", "web.ns1", "web.ns1.svc"],
        ),
        (
            "web.ns1.svc.cluster.remote",
            "ns1",
            "Kubernetes",
            "svc.cluster.local",
            &[],
        ),
        (
            "web.ns1.xsvc.cluster.local",
            "ns1",
            "Kubernetes",
            "svc.cluster.local",
            &[],
        ),
        (
            "web.ns1.svc.cluster.local",
            "ns1",
            "External",
            "svc.cluster.local",
            &[],
        ),
        ("web.ns1.svc.cluster.local", "ns1", "Kubernetes", "", &[]),
    ] {
        let scope = Scope {
            namespace: namespace.to_owned(),
            domain: domain.to_owned(),
            search: None,
        };
        let info = NameInfo {
            registry: registry.to_owned(),
            ..service.clone()
        };
        let names: Vec<_> = scope.alternate_names(host, &info).into_iter().collect();
        assert_eq!(
            names, want,
            "{host} {registry} in {namespace} of {domain:?}"
        );
    }
}

#[test]
fn a_hosts_own_name_beats_a_derived_one() {
    let table = names(&[
        ("a.web", info(&["10.0.0.1"], "Kubernetes", "web/ns1")),
        (
            "web.ns1.svc.cluster.local",
            info(&["10.0.0.2"], "Kubernetes", "web/ns1"),
        ),
        ("web.ns1", info(&["10.0.0.3"], "External", "")),
        ("web", info(&["10.0.0.4"], "External", "")),
    ]);
    let table = Table::build(&table, &scope()).expect("built");
    for (name, want) in [
        ("web.ns1.svc.cluster.local", "10.0.0.2"),
        ("web.ns1", "10.0.0.3"),
        ("web", "10.0.0.4"),
        ("web.ns1.svc", "10.0.0.2"),
    ] {
        assert_eq!(found(&table, name), Some(vec![want.to_owned()]), "{name}");
    }
}

#[test]
fn hosts_without_a_readable_address_are_not_known() {
    let table = names(&[
        ("none.example", info(&[], "External", "")),
        (
            "cidr.example",
            info(&["10.0.0.0/8", "nonsense"], "External", ""),
        ),
        ("mapped.example", info(&["::ffff:10.1.2.3"], "External", "")),
        (
            "some.example",
            info(&["bad", "10.0.0.1", "fd00::1"], "External", ""),
        ),
        ("*", info(&["10.0.0.1"], "External", "")),
        ("bad..name", info(&["10.0.0.1"], "External", "")),
    ]);
    let table = Table::build(&table, &scope()).expect("built");
    assert_eq!(table.len(), 2);
    assert_eq!(found(&table, "none.example"), None);
    assert_eq!(found(&table, "cidr.example"), None);
    assert_eq!(found(&table, "any.thing"), None);
    assert_eq!(
        found(&table, "mapped.example"),
        Some(vec!["10.1.2.3".to_owned()])
    );
    let both = vec!["10.0.0.1".to_owned(), "fd00::1".to_owned()];
    assert_eq!(found(&table, "some.example"), Some(both));
}

#[test]
fn without_a_search_domain_nothing_is_stripped() {
    let table = names(&[("example.com", info(&["10.0.0.1"], "External", ""))]);
    let scope = Scope::new("ns1", "ns1.svc.cluster.local", None);
    let table = Table::build(&table, &scope).expect("built");
    assert!(found(&table, "example.com").is_some());
    assert_eq!(found(&table, "example.com.ns1.svc.cluster.local"), None);
}

/// The rules in the plain form of the specification: every name is stored, the search domain
/// appended included.
fn stored(names: &NameTable, scope: &Scope) -> BTreeMap<String, (Vec<String>, bool)> {
    let mut all = BTreeMap::new();
    let mut expanded = BTreeMap::new();
    let search = scope.search.clone().unwrap_or_default();
    let suffix = format!(".{search}");
    for (host, info) in &names.table {
        for name in scope
            .alternate_names(host, info)
            .into_iter()
            .chain([host.clone()])
        {
            if name != search && !name.ends_with(&suffix) {
                expanded.insert(format!("{name}{suffix}"), (info.ips.clone(), true));
            }
            all.insert(name, (info.ips.clone(), false));
        }
    }
    for (name, value) in expanded {
        all.entry(name).or_insert(value);
    }
    all
}

fn label() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "*", "ns1", "svc", "cluster", "local"])
        .prop_map(str::to_owned)
}

fn name() -> impl Strategy<Value = String> {
    let tail = prop::sample::select(vec!["", ".ns1.svc.cluster.local", ".svc.cluster.local"]);
    (prop::collection::vec(label(), 1..4), tail)
        .prop_map(|(labels, tail)| format!("{}{tail}", labels.join(".")))
}

proptest! {
    /// Deriving names finds what storing them all finds.
    #[test]
    fn lookups_agree_with_the_stored_form(
        hosts in prop::collection::btree_set(name(), 1..6),
        asked in prop::collection::vec(name(), 1..20),
    ) {
        let entries: Vec<_> = hosts
            .iter()
            .filter(|host| *host != "*")
            .enumerate()
            .map(|(n, host)| (host.as_str(), info(&[&format!("10.0.0.{n}")], "External", "")))
            .collect();
        let names = names(&entries);
        let table = Table::build(&names, &scope()).expect("built");
        let stored = stored(&names, &scope());
        for question in asked.iter().chain(&hosts) {
            let parents = question.match_indices('.').map(|(at, _)| format!("*{}", &question[at..]));
            let want = [question.clone()]
                .into_iter()
                .chain(parents)
                .find_map(|candidate| stored.get(&candidate));
            let name = encode_name(question).expect("name");
            let found = table.lookup(&name);
            prop_assert_eq!(found.as_ref().map(|f| f.alias.is_some()), want.map(|w| w.1));
            let ips = found.map(|f| Ipv4Addr::from(f.v4[0]).to_string());
            prop_assert_eq!(ips, want.map(|w| w.0[0].clone()), "{}", question);
        }
    }
}
