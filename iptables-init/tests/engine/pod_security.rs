//! What a restricted pod allows is enough: NET_ADMIN alone, no root, a read-only root file system,
//! no `/run`, and no child process.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Output;

use crate::lab::{INJECTED, Lab, missing};

/// A copy of the program that every user can run; the build folder may be closed to them.
struct Program(PathBuf);

impl Program {
    fn new(lab: &Lab) -> Self {
        let path = std::env::temp_dir().join(format!("{}-program", lab.pod));
        fs::copy(env!("CARGO_BIN_EXE_istio-iptables"), &path).expect("copy");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        Self(path)
    }

    /// As user 1337 with these capabilities, no new process allowed, everything read-only and
    /// `/run` empty.
    fn run(&self, lab: &Lab, capabilities: &str, args: &[&str]) -> Output {
        let script = format!(
            "mount -t tmpfs -o ro none /run
             mount --bind / /; mount -o remount,ro,bind /
             exec setpriv --reuid=1337 --regid=1337 --clear-groups --bounding-set=-all,{capabilities} \
               --inh-caps=-all,{capabilities} --ambient-caps=-all,{capabilities} \
               prlimit --nproc=1 env PATH=/nonexistent {} \"$@\"",
            self.0.display()
        );
        let words = ["sh", "-ec", &script, "sh"];
        lab.exec(&[&words, INJECTED, args].concat())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A leftover in the temporary folder harms nobody.
        let _ = fs::remove_file(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn native_rules_need_net_admin_only_and_no_child_process() {
    if missing(&["ip", "nft", "setpriv", "prlimit"]) {
        return;
    }
    let lab = Lab::new();
    let fresh = lab.everything();
    let program = Program::new(&lab);
    let flags = ["--native-nftables", "-m", "TPROXY", "--dual-stack"];
    for (args, expect) in [
        (&flags[..], "nftables rules programmed:"),
        (&flags, "nothing written"),
        (&["--native-nftables", "--cleanup-only"], "removed all"),
    ] {
        let output = program.run(&lab, "+net_admin", args);
        let log = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{args:?}\n{log}");
        assert!(log.contains(expect), "{args:?}\n{log}");
    }
    assert_eq!(lab.everything(), fresh);
}

/// The same limit does stop a program that starts another one.
#[test]
fn the_process_limit_of_this_test_is_real() {
    if missing(&["ip", "setpriv", "prlimit"]) {
        return;
    }
    let lab = Lab::new();
    let output = lab.exec(&[
        "setpriv",
        "--reuid=1337",
        "--regid=1337",
        "--clear-groups",
        "--bounding-set=-all",
        "prlimit",
        "--nproc=1",
        "sh",
        "-c",
        "true & wait $!",
    ]);
    assert!(!output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn without_net_admin_the_error_names_the_capability_and_nothing_is_changed() {
    if missing(&["ip", "nft", "setpriv", "prlimit"]) {
        return;
    }
    let lab = Lab::new();
    let fresh = lab.everything();
    let program = Program::new(&lab);
    for args in [&["--native-nftables"][..], &["--cleanup-only"]] {
        let output = program.run(&lab, "-net_admin", args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let errors = text(&output.stderr);
        assert!(errors.contains("NET_ADMIN"), "{args:?}: {errors}");
    }
    assert_eq!(lab.everything(), fresh);
}
