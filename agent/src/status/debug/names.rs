//! The name table as `/debug/ndsz` shows it: what istiod sent, and the short names that pods use.

use serde_json::{Map, Value, json};

use crate::dns::Scope;
use crate::xds_proxy::{NameInfo, NameTable};

/// `{"table": {name: {"ips": [..], "registry": ..}}}`; derived names end in a dot.
pub(super) fn json(table: &NameTable, domain: &str) -> Value {
    let mut out = Map::new();
    for (host, info) in &table.table {
        out.insert(host.clone(), entry(info));
    }
    for (host, info) in &table.table {
        for name in derived(host, info, domain) {
            if !table.table.contains_key(&name) {
                out.entry(name).or_insert_with(|| entry(info));
            }
        }
    }
    json!({ "table": out })
}

fn entry(info: &NameInfo) -> Value {
    let mut entry = json!({ "ips": info.ips, "registry": info.registry });
    for (key, value) in [
        ("shortname", &info.shortname),
        ("namespace", &info.namespace),
    ] {
        if !value.is_empty() {
            entry[key] = value.as_str().into();
        }
    }
    entry
}

/// The absolute name, and for services of the cluster's own domain the shorter ones.
fn derived(host: &str, info: &NameInfo, domain: &str) -> Vec<String> {
    let (own, _) = domain.split_once('.').unwrap_or_default();
    let shorter = Scope::new(own, domain, None).alternate_names(host, info);
    [host.to_owned()]
        .into_iter()
        .chain(shorter)
        .map(|name| format!("{name}."))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_the_cluster_have_short_names() {
        let info = |registry: &str, short: &str, namespace: &str| NameInfo {
            ips: vec!["10.0.0.1".to_owned()],
            registry: registry.to_owned(),
            shortname: short.to_owned(),
            namespace: namespace.to_owned(),
            alt_hosts: Vec::new(),
        };
        let table = NameTable {
            table: [
                ("a.ns.svc.cluster.local", info("Kubernetes", "a", "ns")),
                (
                    "b.other.svc.cluster.local",
                    info("Kubernetes", "b", "other"),
                ),
                ("example.com", info("External", "", "")),
            ]
            .map(|(host, info)| (host.to_owned(), info))
            .into(),
        };
        let page = json(&table, "ns.svc.cluster.local");
        let names: Vec<_> = page["table"].as_object().expect("table").keys().collect();
        for (name, want) in [
            ("a.", true),
            ("a.ns.", true),
            ("a.ns.svc.", true),
            ("a.ns.svc.cluster.local", true),
            ("a.ns.svc.cluster.local.", true),
            ("b.", false),
            ("b.other.", true),
            ("example.com.", true),
            ("example.", false),
        ] {
            assert_eq!(
                names.iter().any(|n| *n == name),
                want,
                "{name} in {names:?}"
            );
        }
        assert_eq!(page["table"]["example.com."]["registry"], "External");
        assert_eq!(page["table"]["a."]["ips"][0], "10.0.0.1");
    }
}
