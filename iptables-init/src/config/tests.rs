//! Host detection and nameserver parsing.
use super::*;

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().expect("literal")).collect()
}

#[test]
fn the_first_usable_address_decides_without_dual_stack() {
    type Case = (&'static [&'static str], bool, Option<(&'static str, bool)>);
    let cases: [Case; 6] = [
        (
            &["127.0.0.1", "10.0.0.1", "::1", "fd00::1"],
            false,
            Some(("10.0.0.1", false)),
        ),
        (
            &["127.0.0.1", "10.0.0.1", "::1", "fd00::1"],
            true,
            Some(("10.0.0.1", true)),
        ),
        (
            &["127.0.0.1", "fe80::1", "fd00::1"],
            false,
            Some(("fd00::1", true)),
        ),
        (&["10.0.0.1", "fe80::1"], true, Some(("10.0.0.1", false))),
        (&["::ffff:10.0.0.1"], true, Some(("10.0.0.1", false))),
        (&["127.0.0.1", "169.254.1.1", "::1"], true, None),
    ];
    for (list, dual, want) in cases {
        let want = want.map(|(ip, on)| (ip.parse().expect("literal"), on));
        assert_eq!(select_host_ip(&ips(list), dual), want, "{list:?} {dual}");
    }
}

#[test]
fn nameservers_are_split_by_family_and_garbage_is_skipped() {
    let text =
        "# nameserver 1.1.1.1\nnameserver 10.0.0.10\nnameserver\tfd00::a\nnameserver x\nsearch a\n";
    let (v4, v6) = parse_nameservers(text);
    assert_eq!(v4, ["10.0.0.10".parse::<Ipv4Addr>().expect("literal")]);
    assert_eq!(v6, ["fd00::a".parse::<Ipv6Addr>().expect("literal")]);
}
