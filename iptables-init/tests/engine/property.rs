//! For any flags on any backend, after any earlier flags on any backend: applied twice equals
//! applied once equals applied to a fresh namespace, and cleaned up equals a fresh namespace.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::lab::{Lab, assert_same, missing, no_legacy};

/// Flags with their values, any number of which make sense together.
const OPTIONS: &[&[&str]] = &[
    &["-m", "TPROXY"],
    &["-t", "1444"],
    &["-r", "1000"],
    &["--dual-stack"],
    &["--redirect-dns"],
    &["--capture-all-dns"],
    &["--drop-invalid"],
    &["-b", "80,8000:8010"],
    &["-b", ""],
    &["-d", ""],
    &["-i", "10.0.0.0/12,fd00::/33,127.0.0.0/8"],
    &["-x", "10.1.2.3/8,fd00:1::/48"],
    &["-q", "9000-9010,81"],
    &["-o", "7000,5353"],
    &["-c", "eth7,tun+"],
    &["-k", "tap0,veth+"],
    &["-u", "1337,0,2000-2010"],
    &["-g", "7,8"],
    &["-e", "15009"],
    &["-z", "16006"],
    &["-p", "16001"],
    &["--proxy-owners-first"],
    &["--force-apply"],
];

const BACKENDS: &[&[&str]] = &[
    &["--native-nftables"],
    &["--force-iptables-binary", "nft"],
    &["--force-iptables-binary", "legacy"],
    &[],
];

fn flags() -> impl Strategy<Value = Vec<&'static str>> {
    let options = subsequence(OPTIONS, 0..=8);
    (select(BACKENDS), options).prop_map(|(backend, options)| {
        let mut words = backend.to_vec();
        words.extend(options.iter().flat_map(|option| option.iter()));
        words
    })
}

/// The rules that are there; which empty chains and tables there are tells nothing.
fn rules_only(state: &str) -> String {
    let mut inet = false;
    let mut lines = state.lines().filter(|line| {
        if line.starts_with("table ") {
            inet = line.starts_with("table inet ");
            return inet;
        }
        if line.starts_with("== ") {
            inet = true;
        }
        let holder =
            line.starts_with('*') || (line.starts_with(':') && !line.starts_with(":ISTIO"));
        inet && !holder
    });
    let mut out = String::new();
    lines.by_ref().for_each(|line| {
        out += line;
        out.push('\n');
    });
    out
}

#[test]
fn any_flags_converge_after_any_others_and_are_cleaned_without_a_trace() {
    if missing(&[
        "ip",
        "nft",
        "iptables-nft",
        "ip6tables-nft",
        "iptables-legacy",
    ]) {
        return;
    }
    let (lab, other) = (Lab::new(), Lab::new());
    if no_legacy(&lab) {
        return;
    }
    let fresh = lab.everything();
    let apply = |lab: &Lab, flags: &[&str]| {
        let done = lab.engine(flags, |_| Ok(()));
        done.unwrap_or_else(|e| panic!("{flags:?}: {e}"));
    };
    let config = Config {
        cases: 24,
        failure_persistence: None,
        ..Config::default()
    };
    // The same cases in every run.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&(vec(flags(), 0..=2), flags()), |(earlier, last)| {
        for flags in &earlier {
            apply(&lab, flags);
        }
        apply(&lab, &last);
        let once = lab.everything();
        let again: Vec<&str> = last
            .iter()
            .copied()
            .filter(|f| *f != "--force-apply")
            .collect();
        let second = lab.engine(&again, |step| Err(format!("wrote {step:?}")));
        prop_assert!(second.is_ok(), "{last:?}: {second:?}");
        assert_same(&lab.everything(), &once, "applied twice");
        // Without a demanded variant the one in use stays, which depends on what was there.
        if last
            .iter()
            .any(|f| f.contains("nft") || f.contains("force-iptables"))
        {
            apply(&other, &last);
            let want = rules_only(&other.everything());
            assert_same(
                &rules_only(&once),
                &want,
                &format!("{earlier:?}, then {last:?}"),
            );
        }
        for lab in [&lab, &other] {
            apply(lab, &["--cleanup-only"]);
        }
        assert_same(
            &lab.everything(),
            &fresh,
            &format!("{earlier:?}, then {last:?}"),
        );
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
}
