//! Save output of the iptables programs, as any program on the node may have shaped it. Whatever it
//! says: what is written back deletes only rules that were taken for ours, adds only wanted ones, and
//! never touches a chain of somebody else.
#![no_main]

use iptables_init::host::OwnerNames;
use iptables_init::iptables::state::{State, TableRules, equivalent, normalize, replacement};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let names = OwnerNames::default();
    let state = State::parse(text);
    for line in state.tables.iter().flat_map(|table| &table.rules) {
        let _ = normalize(line, &names);
    }
    let own = state.own();
    assert_eq!(own.own(), own, "what is ours stays ours");
    let _ = equivalent(&own, &own.tables, &names);
    let wanted = [TableRules {
        table: "nat".to_owned(),
        chains: vec!["ISTIO_OUTPUT".to_owned()],
        rules: vec!["-A ISTIO_OUTPUT -j RETURN".to_owned()],
    }];
    let out = replacement(&own, &wanted);
    for line in out.lines() {
        let chain = line.split_ascii_whitespace().nth(1).unwrap_or_default();
        if let Some(name) = line.strip_prefix(':') {
            assert!(name.starts_with("ISTIO_"), "declares {line:?}");
        } else if line.starts_with("-X ") || line.starts_with("-F ") {
            assert!(chain.starts_with("ISTIO_"), "removes {line:?}");
        } else if line.starts_with("-D ") {
            let added = line.replacen("-D ", "-A ", 1);
            let mut ours = own.tables.iter().flat_map(|table| &table.rules);
            assert!(ours.any(|rule| *rule == added), "deletes {line:?}");
        } else if line.starts_with("-A ") || line.starts_with("-I ") {
            assert!(
                wanted[0].rules.iter().any(|rule| rule == line),
                "adds {line:?}"
            );
        } else {
            assert!(line == "COMMIT" || line.starts_with('*'), "says {line:?}");
        }
    }
});
