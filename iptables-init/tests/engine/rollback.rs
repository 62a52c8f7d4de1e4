//! The state after a failed run is the state before it: after every step of the engine, after
//! every call of an iptables program, after real refusals of the kernel, after a bad read-back.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use iptables_init::engine::Step;
use iptables_init::rules::Family;

use crate::lab::{INJECTED, Lab, assert_same, missing, no_legacy};

const PROGRAMS: &[&str] = &["ip", "nft", "iptables-nft", "ip6tables-nft"];
const TPROXY: &[&str] = &["-m", "TPROXY", "--dual-stack", "-c", "eth7"];
const DNS: &[&str] = &["--redirect-dns", "--capture-all-dns", "--drop-invalid"];
const NATIVE: &[&str] = &["--native-nftables"];
const NFT: &[&str] = &["--force-iptables-binary", "nft"];
const LEGACY: &[&str] = &["--force-iptables-binary", "legacy"];

fn words(parts: &[&[&'static str]]) -> Vec<&'static str> {
    parts.concat()
}

/// Rules of somebody else before and, after ours were added, behind ours.
fn foreign(lab: &Lab, programs: &str) {
    lab.script(&format!(
        "for p in {programs}; do
           $p -t nat -A OUTPUT -p udp --dport 9 -j ACCEPT
           $p -t mangle -A PREROUTING -p udp --dport 9 -m comment --comment 'not ours' -j ACCEPT
         done"
    ));
}

/// From a state made by `prior` runs: lets `target` fail after its first step, its second, and so
/// on until it does not fail. Returns the steps of the whole run.
fn fail_after_every_step(lab: &Lab, target: &[&str]) -> Vec<Step> {
    let before = lab.everything();
    for fail_at in 0.. {
        let (sender, steps) = std::sync::mpsc::channel();
        let mut count = 0;
        let result = lab.engine(target, move |step| {
            sender.send(step).expect("the test listens");
            count += 1;
            if count > fail_at {
                return Err("injected".to_owned());
            }
            Ok(())
        });
        let steps: Vec<Step> = steps.iter().collect();
        let after = lab.everything();
        match result {
            Ok(()) => {
                assert_ne!(after, before, "{target:?} changed nothing");
                return steps;
            }
            Err(error) => {
                assert!(error.not_undone.is_empty(), "{target:?}: {error}");
                let context = format!("{target:?} after {steps:?}: {error}");
                assert_same(&after, &before, &context);
            }
        }
    }
    unreachable!("the loop ends with a run without failure")
}

#[test]
fn a_failure_after_any_step_leaves_what_was_before() {
    if missing(PROGRAMS) {
        return;
    }
    let tproxy_1444 = ["-t", "1444", "-r", "144"];
    type Case = (Vec<Vec<&'static str>>, Vec<&'static str>);
    let cases: Vec<Case> = vec![
        (vec![], words(&[NATIVE, TPROXY, DNS])),
        (
            vec![words(&[NFT, TPROXY, DNS, &tproxy_1444])],
            words(&[NATIVE, &["-q", "7000-7010"]]),
        ),
        (
            vec![words(&[NATIVE, TPROXY, &tproxy_1444])],
            words(&[NATIVE, TPROXY, DNS]),
        ),
        (vec![words(&[NATIVE, TPROXY])], words(&[NFT, DNS])),
        (
            vec![words(&[NFT, TPROXY])],
            words(&[NFT, DNS, &["--dual-stack"]]),
        ),
        (vec![words(&[NFT, TPROXY, DNS])], vec!["--cleanup-only"]),
        (vec![words(&[NATIVE, TPROXY, DNS])], vec!["--cleanup-only"]),
    ];
    for (prior, target) in cases {
        let lab = Lab::new();
        foreign(&lab, "iptables-nft ip6tables-nft");
        for flags in &prior {
            lab.engine(flags, |_| Ok(())).expect("prior run");
            foreign(&lab, "iptables-nft ip6tables-nft");
        }
        let steps = fail_after_every_step(&lab, &target);
        println!("{prior:?} -> {target:?}: {steps:?}");
        assert!(steps.len() >= 2, "{steps:?}");
    }
}

#[test]
fn a_failure_after_any_step_leaves_legacy_rules_as_they_were() {
    if missing(PROGRAMS) || missing(&["iptables-legacy", "ip6tables-legacy"]) {
        return;
    }
    type Case = (Vec<&'static str>, Vec<&'static str>);
    let cases: Vec<Case> = vec![
        (words(&[LEGACY, TPROXY]), words(&[NATIVE, DNS])),
        (words(&[LEGACY, TPROXY]), words(&[LEGACY, DNS])),
        (words(&[LEGACY, TPROXY, DNS]), words(&[NFT])),
        (words(&[NATIVE, TPROXY]), words(&[LEGACY, TPROXY, DNS])),
        (words(&[NFT, TPROXY]), words(&[LEGACY])),
        (words(&[LEGACY, TPROXY, DNS]), vec!["--cleanup-only"]),
    ];
    for (prior, target) in cases {
        let lab = Lab::new();
        if no_legacy(&lab) {
            return;
        }
        foreign(&lab, "iptables-legacy ip6tables-legacy iptables-nft");
        lab.engine(&prior, |_| Ok(())).expect("prior run");
        foreign(&lab, "iptables-legacy ip6tables-legacy iptables-nft");
        let steps = fail_after_every_step(&lab, &target);
        println!("{prior:?} -> {target:?}: {steps:?}");
        assert!(steps.len() >= 2, "{steps:?}");
    }
}

/// Somebody changes our rules between the write and the read-back.
#[test]
fn a_read_back_that_differs_restores_what_was_before() {
    if missing(PROGRAMS) || missing(&["iptables-legacy", "ip6tables-legacy"]) {
        return;
    }
    let add = "nft add rule inet istio-proxy-nat istio-output tcp dport 9 accept";
    let drop_v4 = "iptables-nft -t nat -D ISTIO_OUTPUT 1";
    let drop_v6 = "ip6tables-nft -t mangle -A ISTIO_TPROXY -p tcp -j ACCEPT";
    let legacy = "iptables-legacy -t nat -R ISTIO_OUTPUT 1 -p udp -j ACCEPT";
    let cases = [
        (NATIVE, Step::NftWritten, add),
        (NFT, Step::Restored(Family::V4), drop_v4),
        (NFT, Step::Restored(Family::V6), drop_v6),
        (LEGACY, Step::Restored(Family::V4), legacy),
    ];
    for (backend, moment, command) in cases {
        let lab = Lab::new();
        lab.engine(&words(&[NATIVE, DNS]), |_| Ok(()))
            .expect("prior run");
        let before = lab.everything();
        let error = lab
            .engine(&words(&[backend, TPROXY]), move |step| {
                if step == moment {
                    let status = Command::new("sh").args(["-ec", command]).status();
                    assert!(status.expect("sh runs").success(), "{command}");
                }
                Ok(())
            })
            .expect_err("the read-back differs");
        let text = error.to_string();
        assert!(text.contains("differ from the plan"), "{text}");
        assert!(text.contains("previous state is restored"), "{text}");
        assert_same(&lab.everything(), &before, command);
    }
}

#[test]
fn a_refused_route_leaves_what_was_before() {
    if missing(PROGRAMS) {
        return;
    }
    for backend in [NATIVE, NFT] {
        let lab = Lab::new();
        lab.engine(&words(&[NATIVE, DNS]), |_| Ok(()))
            .expect("prior run");
        // The kernel adds no route to an interface that is down.
        lab.script("ip link set lo down");
        let before = lab.everything();
        let error = lab
            .engine(&words(&[backend, TPROXY]), |_| Ok(()))
            .expect_err("lo is down");
        let text = error.to_string();
        assert!(text.contains("failed to configure routes"), "{text}");
        assert_same(&lab.everything(), &before, &text);
    }
}

/// `nft` as the owner of a table that nobody else may change while it runs.
struct Owner(Child);

impl Owner {
    fn take(lab: &Lab, table: &str) -> Self {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &lab.pod, "nft", "-i"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("nft runs");
        let command = format!("add table inet {table} {{ flags owner; }}\n");
        let stdin = child.stdin.as_mut().expect("piped");
        std::io::Write::write_all(stdin, command.as_bytes()).expect("nft reads");
        while !lab.text(&["nft", "list", "tables"]).contains(table) {
            assert!(child.try_wait().expect("wait").is_none(), "nft ended");
            std::thread::yield_now();
        }
        Self(child)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_table_that_another_program_owns_is_an_error_and_nothing_is_changed() {
    if missing(PROGRAMS) {
        return;
    }
    for backend in [NATIVE, NFT] {
        let lab = Lab::new();
        let owner = Owner::take(&lab, "istio-proxy-raw");
        let before = lab.everything();
        let error = lab
            .engine(&words(&[backend, TPROXY]), |_| Ok(()))
            .expect_err("the table is locked");
        let text = error.to_string();
        assert!(text.contains("failed to program nftables rules"), "{text}");
        assert_same(&lab.everything(), &before, &text);
        drop(owner);
    }
}

/// Stand-ins for the iptables programs, first on PATH: call number `fail_at` goes wrong.
struct Wrapper(PathBuf);

impl Wrapper {
    fn new(lab: &Lab) -> Self {
        let folder = std::env::temp_dir().join(format!("{}-programs", lab.pod));
        fs::create_dir(&folder).expect("folder");
        let script = "#!/bin/sh
here=${0%/*}; name=${0##*/}
read -r number <$here/calls; number=$((number + 1)); echo $number >$here/calls
PATH=${PATH#*:}
[ $number = $FAIL_AT ] || exec $name \"$@\"
case $MODE in
refuse) echo 'refused by the test' >&2; exit 4 ;;
late) $name \"$@\"; echo 'failed by the test' >&2; exit 1 ;;
corrupt) $name \"$@\" | sed '/-A ISTIO_OUTPUT .*-j RETURN$/d' ;;
esac
";
        let program = folder.join("program");
        fs::write(&program, script).expect("script");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
        for family in ["iptables", "ip6tables"] {
            for variant in ["-nft", "-legacy"] {
                for suffix in ["", "-save", "-restore"] {
                    symlink(&program, folder.join(format!("{family}{variant}{suffix}")))
                        .expect("link");
                }
            }
        }
        Self(folder)
    }

    /// Runs the program; returns its exit code, its words, and how many calls there were.
    fn run(&self, lab: &Lab, mode: &str, fail_at: u32, args: &[&str]) -> (i32, String, u32) {
        let calls = self.0.join("calls");
        fs::write(&calls, "0\n").expect("counter");
        let path = std::env::var("PATH").expect("PATH");
        let settings = [
            format!("PATH={}:{path}", self.0.display()),
            format!("FAIL_AT={fail_at}"),
            format!("MODE={mode}"),
        ];
        let mut words = vec!["env"];
        words.extend(settings.iter().map(String::as_str));
        words.push(env!("CARGO_BIN_EXE_istio-iptables"));
        let output = lab.exec(&[&words, INJECTED, args].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let calls = fs::read_to_string(calls).expect("counter");
        let calls = calls.trim().parse().expect("a number");
        (output.status.code().expect("an exit code"), errors, calls)
    }
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        // A leftover in the temporary folder harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn fail_at_every_call(prior: &[&str], target: &[&str]) {
    for mode in ["refuse", "late", "corrupt"] {
        let lab = Lab::new();
        let wrapper = Wrapper::new(&lab);
        lab.engine(prior, |_| Ok(())).expect("prior run");
        let before = lab.everything();
        let (mut failed, mut number) = (0, 1);
        loop {
            let (code, errors, calls) = wrapper.run(&lab, mode, number, target);
            let after = lab.everything();
            if number > calls {
                assert_eq!((code, errors.as_str()), (0, ""), "{mode}: no call failed");
                assert_ne!(after, before);
                break;
            }
            match code {
                // The call was not needed, or could be replaced.
                0 => {
                    assert_ne!(after, before, "{mode} {number}");
                    lab.engine(&["--cleanup-only"], |_| Ok(())).expect("clean");
                    lab.engine(prior, |_| Ok(())).expect("prior run again");
                    assert_same(&lab.everything(), &before, "the prior state again");
                }
                1 => {
                    failed += 1;
                    let context = format!("{mode} {number} of {calls}: {errors}");
                    assert_same(&after, &before, &context);
                }
                other => panic!("{mode} {number}: exit code {other}: {errors}"),
            }
            number += 1;
        }
        println!(
            "{prior:?} -> {target:?}, {mode}: {failed} of {} calls failed",
            number - 1
        );
        // The native rules are not read back through the programs.
        assert!(failed >= 1 || mode == "corrupt", "{mode}");
    }
}

#[test]
fn a_failing_iptables_nft_call_leaves_what_was_before() {
    if missing(PROGRAMS) {
        return;
    }
    let target = words(&[NFT, TPROXY, DNS]);
    fail_at_every_call(&words(&[NFT, &["--dual-stack"]]), &target);
    fail_at_every_call(NATIVE, &target);
}

#[test]
fn a_failing_iptables_legacy_call_leaves_what_was_before() {
    if missing(PROGRAMS) || missing(&["iptables-legacy", "ip6tables-legacy"]) {
        return;
    }
    let lab = Lab::new();
    if no_legacy(&lab) {
        return;
    }
    drop(lab);
    let dual: &[&str] = &["--dual-stack"];
    fail_at_every_call(&words(&[LEGACY]), &words(&[LEGACY, TPROXY, DNS]));
    // The removal of the other backend's rules fails.
    fail_at_every_call(&words(&[LEGACY, dual]), &words(&[NFT, dual]));
    fail_at_every_call(&words(&[LEGACY, dual]), &words(&[NATIVE, dual]));
}
