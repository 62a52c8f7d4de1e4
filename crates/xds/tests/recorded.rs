//! Responses recorded from istiod, through a state-of-the-world session: every name must be found.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use outrigger_xds::pb::envoy::service::discovery::v3::DiscoveryResponse;
use outrigger_xds::type_url::{CLUSTER, is_full_set};
use outrigger_xds::{Protocol, Session};
use prost::Message;

/// The copies in the repository, and all recordings where they are at hand.
fn recordings() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("OUTRIGGER_SHARED")
        .map_or_else(|| here.join("../../../shared"), PathBuf::from);
    let mut found = Vec::new();
    let mut folders = vec![here.join("tests/fixtures"), shared.join("fixtures/xds")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        for path in entries.map(|entry| entry.expect("entry").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "pb")
                && path.file_name().is_some_and(|n| n != "nds.pb")
            {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn names_of_recorded_resources_are_found_and_unique() {
    let recordings = recordings();
    assert!(recordings.len() >= 3, "{recordings:?}");
    for path in recordings {
        let bytes = std::fs::read(&path).expect("readable");
        let response = DiscoveryResponse::decode(bytes.as_slice()).expect("a response");
        let mut session = Session::new(Protocol::Sotw);
        session.subscribe_wildcard(&response.type_url);
        session.on_stream_open();
        let update = session
            .on_sotw_response(response.clone())
            .expect("readable names");
        assert_eq!(update.added.len(), response.resources.len());
        let names: BTreeSet<&str> = update.added.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(
            names.len(),
            update.added.len(),
            "{}: names differ",
            path.display()
        );
        assert!(
            !names.contains(""),
            "{}: every resource has a name",
            path.display()
        );
        if path.ends_with("fixtures/cds.pb") {
            assert_eq!(update.type_url, CLUSTER);
            assert!(names.contains("BlackHoleCluster"), "{names:?}");
        }
        session.ack(&update.id());
        // The same type without its first resource: only full sets tell of a removal.
        let mut shorter = response;
        if shorter.resources.is_empty() {
            continue;
        }
        let gone = update.added[0].name.clone();
        shorter.resources.remove(0);
        let second = session.on_sotw_response(shorter).expect("readable names");
        let expected = if is_full_set(&update.type_url) {
            vec![gone]
        } else {
            Vec::new()
        };
        assert_eq!(second.removed, expected, "{}", path.display());
    }
}
