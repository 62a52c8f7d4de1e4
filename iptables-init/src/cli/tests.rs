//! Precedence and scalar syntax.
use std::collections::HashMap;

use super::*;

impl Environment for HashMap<&str, &str> {
    fn var(&self, name: &str) -> Option<String> {
        self.get(name).map(ToString::to_string)
    }
}

fn resolve(args: &[&str], env: &[(&'static str, &'static str)]) -> Settings {
    let argv = std::iter::once("istio-iptables").chain(args.iter().copied());
    let cli = Cli::try_parse_from(argv).expect("the arguments of the table are valid");
    Settings::resolve(cli, &env.iter().copied().collect::<HashMap<_, _>>())
}

#[test]
fn command_line_beats_environment_beats_default() {
    let s = resolve(
        &["-z", "1"],
        &[("INBOUND_CAPTURE_PORT", "2"), ("PROXY_UID", "7")],
    );
    assert_eq!(
        (s.inbound_capture_port.as_str(), s.proxy_uid.as_str()),
        ("1", "7")
    );
    assert_eq!(s.envoy_port, "15001");
}

#[test]
fn the_envoy_port_has_no_variable() {
    assert_eq!(resolve(&[], &[("ENVOY_PORT", "9")]).envoy_port, "15001");
}

#[test]
fn a_present_but_empty_variable_counts() {
    let s = resolve(
        &[],
        &[
            ("INBOUND_TUNNEL_PORT", ""),
            ("ISTIO_OUTBOUND_OWNER_GROUPS", ""),
        ],
    );
    assert_eq!(
        (s.inbound_tunnel_port.as_str(), s.owner_groups.as_str()),
        ("", "")
    );
}

#[test]
fn the_second_variable_overwrites_the_first_and_garbage_is_zero() {
    let s = resolve(
        &[],
        &[
            ("DROP_INVALID", "true"),
            ("INVALID_DROP", "garbage"),
            ("ISTIO_META_DNS_CAPTURE", "true"),
            ("PROBE_TIMEOUT", "abc"),
            ("IPTABLES_PROBE_PORT", "70000"),
        ],
    );
    assert!(!s.drop_invalid && s.redirect_dns);
    assert_eq!((s.probe_timeout, s.probe_port), (Duration::ZERO, 65535));
}

#[test]
fn booleans_take_no_separate_word() {
    let s = resolve(
        &[
            "--dry-run=false",
            "--redirect-dns",
            "--dual-stack=T",
            "stray",
        ],
        &[],
    );
    assert!(!s.dry_run && s.redirect_dns && s.dual_stack);
}

#[test]
fn injected_arguments_are_accepted() {
    let args = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -b * -d 15090,15021,15020 \
                --log_output_level=default:info --force-apply --native-nftables";
    let mut argv: Vec<&str> = args.split_whitespace().collect();
    argv.extend(["-x", ""]);
    let s = resolve(&argv, &[]);
    assert_eq!(
        (s.service_cidr.as_str(), s.service_exclude_cidr.as_str()),
        ("*", "")
    );
    assert!(s.force_apply && s.native_nftables);
}

#[test]
fn the_last_of_a_repeated_flag_wins() {
    assert_eq!(resolve(&["-u", "1", "-u", "2"], &[]).proxy_uid, "2");
}

#[test]
fn bad_flags_are_errors() {
    for bad in [
        &["--nope"][..],
        &["--dry-run=maybe"],
        &["--iptables-probe-port", "70000"],
        &["-u"],
    ] {
        let argv = std::iter::once("istio-iptables").chain(bad.iter().copied());
        assert!(Cli::try_parse_from(argv).is_err(), "{bad:?}");
    }
}

#[test]
fn scalars_follow_the_reference_syntax() {
    assert_eq!(go_u16("0x3a9b"), Ok(15003));
    assert_eq!(go_duration("1m30s"), Ok(Duration::from_secs(90)));
    assert_eq!(go_duration("700ms"), Ok(Duration::from_millis(700)));
    for bad in ["", "5", "s", "1x", "1..5s"] {
        assert!(go_duration(bad).is_err(), "{bad:?}");
    }
}
