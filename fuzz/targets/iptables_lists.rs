//! Flags of istio-iptables: every list parser takes any text, and a selection prints what it parsed.
#![no_main]

use iptables_init::values;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = values::parse_ports("ports", text);
    let _ = values::parse_port_selection("ports", text);
    let _ = values::parse_cidrs("cidrs", text);
    let _ = values::parse_cidr_selection("cidrs", text);
    let _ = values::parse_interfaces("interfaces", text);
    let _ = values::parse_owners("owners", text);
    let _ = values::parse_group_selection("groups", text);
    let _ = values::parse_loopback_cidr(text);
    let _ = values::split_list(text).count();
});
