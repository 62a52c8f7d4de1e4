use super::*;
use crate::http::PerFilterConfig;
use crate::route::{HeaderMutations, RequireTls, VirtualHost};

fn table(domains: &[&[&str]], ignore_port: bool) -> RouteTable {
    let virtual_hosts = domains
        .iter()
        .map(|domains| VirtualHost {
            name: "v".into(),
            domains: domains.iter().map(|d| Arc::from(*d)).collect(),
            routes: Vec::new(),
            require_tls: RequireTls::None,
            include_request_attempt_count: false,
            include_attempt_count_in_response: false,
            retry_policy: None,
            headers: HeaderMutations::default(),
            per_filter: PerFilterConfig::default(),
        })
        .collect();
    RouteTable::build(Arc::new(RouteConfiguration {
        name: "80".into(),
        virtual_hosts,
        ignore_port_in_host_matching: ignore_port,
        headers: HeaderMutations::default(),
        per_filter: PerFilterConfig::default(),
    }))
}

#[test]
fn exact_beats_suffix_beats_prefix_beats_any_and_longer_beats_shorter() {
    let t = table(
        &[
            &["*"],
            &["foo.com"],
            &["*.foo.com", "[::1]"],
            &["*.b.foo.com"],
            &["foo.*"],
            &["foo.com.x.*"],
            &["*-bar.foo.com"],
        ],
        false,
    );
    for (authority, expected) in [
        ("foo.com", 1),
        ("FOO.com", 1),
        ("a.foo.com", 2),
        ("a.b.foo.com", 3),
        ("A.B.Foo.Com", 3),
        ("b.foo.com", 2),
        (".foo.com", 0),
        ("x-bar.foo.com", 6),
        ("foo.org", 4),
        ("foo.com.", 4),
        ("foo.com.x.y", 5),
        ("foo.com.x.", 4),
        ("foo.", 0),
        ("other", 0),
        ("", 0),
        ("foo.com:80", 4),
        ("[::1]", 2),
        ("[::1]:80", 0),
    ] {
        assert_eq!(
            t.virtual_host(authority.as_bytes()),
            Some(expected),
            "{authority}"
        );
    }
    let long = format!("{}.FOO.com", "x".repeat(400));
    assert_eq!(t.virtual_host(long.as_bytes()), Some(2));
}

#[test]
fn ports_are_cut_only_when_asked_for() {
    let t = table(&[&["foo.com", "[::1]", "a.com:8080"]], true);
    for (authority, expected) in [
        ("foo.com:80", Some(0)),
        ("foo.com", Some(0)),
        ("[::1]:80", Some(0)),
        ("[::1]", Some(0)),
        ("foo.com:http", None),
        ("foo.com:", None),
        ("a.com:8080", None),
    ] {
        assert_eq!(
            t.virtual_host(authority.as_bytes()),
            expected,
            "{authority}"
        );
    }
}

#[test]
fn without_a_catch_all_an_unknown_host_has_no_virtual_host() {
    let t = table(&[&["foo.com"]], false);
    assert_eq!(t.virtual_host(b"bar.com"), None);
    assert_eq!(t.virtual_host(b""), None);
    assert_eq!(t.virtual_host(b"\xff\xfe"), None);
    assert_eq!(table(&[], false).virtual_host(b"x"), None);
}
