//! The image's root file system, made from stand-in binaries: modes, owners, paths, entrypoint, and
//! that the real binaries (this build's own) are static.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_tests::fixtures;

/// Mode, owner and size by path, as `tar` lists them.
fn listing(tar: &Path) -> BTreeMap<String, (String, String)> {
    let out = Command::new("tar")
        .arg("--numeric-owner")
        .arg("-tvf")
        .arg(tar)
        .output();
    let out = out.expect("tar runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8(out.stdout).expect("names are UTF-8");
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (mode, owner) = (words.next()?.to_owned(), words.next()?.to_owned());
        let path = words.nth(3)?.trim_end_matches('/').to_owned();
        Some((path, (mode, owner)))
    };
    text.lines().filter_map(entry).collect()
}

fn make(binaries: &Path, out: &Path) -> std::process::Output {
    Command::new("python3")
        .arg(fixtures::repository().join("tests/image/rootfs.py"))
        .arg("--bin")
        .arg(binaries)
        .arg("--out")
        .arg(out)
        .output()
        .expect("python3 runs")
}

#[test]
fn the_root_file_system_has_the_layout_the_injection_template_expects() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["outrigger", "pilot-agent", "istio-iptables"] {
        std::fs::write(folder.path().join(name), name).expect("written");
    }
    let tar = folder.path().join("rootfs.tar");
    let made = make(folder.path(), &tar);
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let seen = listing(&tar);
    let wanted = [
        ("usr/local/bin/pilot-agent", "-rwxr-xr-x", "0/0"),
        ("usr/local/bin/envoy", "-rwxr-xr-x", "0/0"),
        ("usr/local/bin/istio-iptables", "-rwxr-xr-x", "0/0"),
        ("etc/passwd", "-rw-r--r--", "0/0"),
        ("etc/group", "-rw-r--r--", "0/0"),
        ("etc/ssl/certs/ca-certificates.crt", "-rw-r--r--", "0/0"),
        (
            "var/lib/istio/envoy/envoy_bootstrap_tmpl.json",
            "-rw-r--r--",
            "0/0",
        ),
        ("etc/istio/proxy", "drwxrwxr-x", "1337/1337"),
        ("var/lib/istio/data", "drwxrwxr-x", "1337/1337"),
        ("tmp", "drwxrwxrwt", "0/0"),
    ];
    for (path, mode, owner) in wanted {
        let entry = seen.get(path).map(|(m, o)| (m.as_str(), o.as_str()));
        assert_eq!(entry, Some((mode, owner)), "{path}");
    }
    let read = |path: &str| {
        let out = Command::new("tar")
            .arg("-xOf")
            .arg(&tar)
            .arg(path)
            .output()
            .expect("tar runs");
        String::from_utf8(out.stdout).expect("UTF-8")
    };
    assert!(read("etc/passwd").contains("istio-proxy:x:1337:1337:"));
    assert!(read("etc/group").contains("istio-proxy:x:1337:"));
    assert_eq!(read("usr/local/bin/envoy"), "outrigger");
}

#[test]
fn a_missing_binary_fails_and_leaves_no_half_written_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let tar = folder.path().join("rootfs.tar");
    assert!(!make(folder.path(), &tar).status.success());
    assert!(!tar.exists());
}

#[test]
fn the_dockerfile_starts_the_agent_and_adds_the_same_file_system() {
    let text = std::fs::read_to_string(fixtures::repository().join("Dockerfile.proxy"));
    let text = text.expect("readable");
    assert!(text.contains("FROM scratch\n"));
    assert!(text.contains("ADD dist/rootfs.tar /\n"));
    assert!(text.contains("ENTRYPOINT [\"/usr/local/bin/pilot-agent\"]\n"));
}

/// Program header types of a 64-bit little-endian ELF file.
fn segments(bytes: &[u8]) -> Vec<u32> {
    assert_eq!(&bytes[..6], b"\x7fELF\x02\x01", "a 64-bit ELF file");
    let word = |at: usize, n: usize| {
        bytes[at..at + n]
            .iter()
            .rev()
            .fold(0_usize, |v, b| v << 8 | usize::from(*b))
    };
    let (table, size, count) = (word(32, 8), word(54, 2), word(56, 2));
    (0..count)
        .map(|i| word(table + i * size, 4) as u32)
        .collect()
}

#[test]
fn binaries_need_no_dynamic_loader() {
    const INTERPRETER: u32 = 3;
    let lab = PathBuf::from(env!("CARGO_BIN_EXE_outrigger-lab"));
    let mut binaries = vec![lab.clone()];
    for name in ["outrigger", "pilot-agent", "istio-iptables"] {
        binaries.extend([
            lab.with_file_name(name),
            fixtures::repository().join("bin").join(name),
        ]);
    }
    for binary in binaries.iter().filter(|b| b.is_file()) {
        let bytes = std::fs::read(binary).expect("readable");
        assert!(
            !segments(&bytes).contains(&INTERPRETER),
            "{} is dynamic",
            binary.display()
        );
    }
}
