//! DNS messages on arbitrary bytes: as a client's query, answered from a table, and as a name
//! server's answer to a query, cut to the client's size.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pilot_agent::dns::wire::Query;
use pilot_agent::dns::{Scope, Table, Transport, Verdict, answer};
use pilot_agent::xds_proxy::{NameInfo, NameTable};

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let hosts = [
        ("a.ns.svc.cluster.local", "10.0.0.1"),
        ("*.b", "10.0.0.2"),
        ("c", "fd00::1"),
    ];
    let names = hosts.map(|(host, ip)| {
        let info = NameInfo {
            ips: vec![ip.to_owned(); 40],
            registry: "Kubernetes".to_owned(),
            shortname: "a".to_owned(),
            namespace: "ns".to_owned(),
            alt_hosts: Vec::new(),
        };
        (host.to_owned(), info)
    });
    let scope = Scope::new("ns", "ns.svc.cluster.local", Some("ns.svc.cluster.local"));
    let table = NameTable {
        table: names.into(),
    };
    Table::build(&table, &scope).expect("a small table")
});

const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x02ns\0\0\x01\0\x01";

fuzz_target!(|data: &[u8]| {
    let mut out = Vec::new();
    for (transport, limit) in [(Transport::Udp, 65_507), (Transport::Tcp, 65_535)] {
        if let Verdict::Reply = answer(Some(&TABLE), false, transport, data, &mut out) {
            assert!(out.len() <= limit);
            assert_eq!(out[..2], data[..2]);
            assert_eq!(out[2] & 0x80, 0x80);
        }
    }
    let query = Query::parse(QUERY).expect("a query");
    if query.is_answered_by(data, 0x1234) {
        for limit in [64, 512, 65_535] {
            let mut reply = data.to_vec();
            if query.adopt(&mut reply, limit).is_ok() {
                assert!(reply.len() <= limit);
            }
        }
    }
});
