//! Strictness of the value parsers.
use proptest::prelude::*;

use super::*;

#[test]
fn ports_accept_singles_and_both_range_spellings_and_nothing_else() {
    let range = |low, high| PortRange { low, high };
    let cases = [
        ("80, 443,", Some(vec![range(80, 80), range(443, 443)])),
        (
            "8000:8010,9000-9001",
            Some(vec![range(8000, 8010), range(9000, 9001)]),
        ),
        ("", Some(vec![])),
        ("+80", None),
        ("80\n-A OUTPUT -j DROP", None),
        ("65536", None),
        ("9-8", None),
        ("http", None),
        ("*", None),
    ];
    for (text, want) in cases {
        assert_eq!(parse_ports("X", text).ok(), want, "{text:?}");
    }
}

#[test]
fn listener_port_zero_is_refused() {
    assert!(parse_port("PROXY_PORT", "0").is_err());
    assert_eq!(parse_port("PROXY_PORT", "15001"), Ok(15001));
}

#[test]
fn star_is_special_only_as_the_whole_value() {
    assert_eq!(parse_cidr_selection("X", "*"), Ok(Selection::All));
    assert!(parse_cidr_selection("X", "10.0.0.0/8,*").is_err());
    assert_eq!(
        parse_cidrs("OUTBOUND_IP_RANGES_EXCLUDE", "*").map_err(|e| e.to_string()),
        Err("invalid value for OUTBOUND_IP_RANGES_EXCLUDE".to_owned())
    );
}

#[test]
fn cidrs_keep_host_bits_and_need_a_prefix() {
    assert_eq!(
        parse_cidr("X", "10.1.2.3/8").map(|n| n.to_string()),
        Ok("10.1.2.3/8".to_owned())
    );
    assert_eq!(
        parse_cidr("X", "2001:DB8:0::/32").map(|n| n.to_string()),
        Ok("2001:db8::/32".to_owned())
    );
    assert!(parse_cidr("X", "10.1.2.3").is_err());
}

#[test]
fn interface_names_are_kernel_names() {
    assert!(parse_interface("X", "eth0.100").is_ok());
    assert!(parse_interface("X", "veth+").is_ok_and(|i| i.prefix));
    for bad in ["0eth", "a/b", "eth 0", "averyveryverylongname", "+", "-o"] {
        assert!(parse_interface("X", bad).is_err(), "{bad:?}");
    }
}

#[test]
fn owners_are_ids_ranges_or_portable_names() {
    assert_eq!(parse_owner("X", "1337"), Ok(OwnerId::Number(1337)));
    assert_eq!(parse_owner("X", "10-20"), Ok(OwnerId::Range(10, 20)));
    assert_eq!(parse_owner("X", "java"), Ok(OwnerId::Name("java".into())));
    for bad in ["20-10", "4294967296", "a b", "-j", "1x", "$"] {
        assert!(parse_owner("X", bad).is_err(), "{bad:?}");
    }
}

#[test]
fn group_list_has_a_limit_and_an_empty_one_means_nobody() {
    assert_eq!(parse_group_selection("X", ""), Ok(Selection::Some(vec![])));
    let many: Vec<String> = (0..65).map(|n| n.to_string()).collect();
    let error = parse_group_selection("X", &many.join(",")).map_err(|e| e.to_string());
    assert!(error.is_err_and(|e| e.contains("cannot exceed 64, got 65")));
}

#[test]
fn loopback_cidr_must_be_a_loopback_prefix() {
    assert!(parse_loopback_cidr("127.0.0.1/8").is_ok());
    for bad in ["127.0.0.1", "10.0.0.1/8", "127.0.0.0/7", "::1/128"] {
        assert!(parse_loopback_cidr(bad).is_err(), "{bad:?}");
    }
}

/// Characters that could leave the place of one argument in any of the rule languages.
fn is_safe(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"_.:/+-$*".contains(&b))
}

proptest! {
    #[test]
    fn whatever_a_parser_accepts_is_one_safe_word_per_item(text in "[ -~\t\n]{0,40}") {
        for range in parse_ports("X", &text).unwrap_or_default() {
            prop_assert!(range.low <= range.high);
        }
        for interface in parse_interfaces("X", &text).unwrap_or_default() {
            prop_assert!(is_safe(&interface.name) && !interface.name.starts_with('-'));
        }
        for owner in parse_owners("X", &text).unwrap_or_default() {
            let word = owner.to_string();
            prop_assert!(is_safe(&word) && !word.starts_with('-'));
        }
        for net in parse_cidrs("X", &text).unwrap_or_default() {
            prop_assert!(is_safe(&net.to_string()));
        }
    }
}
