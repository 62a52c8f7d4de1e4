//! The lab itself, with a real Envoy as bare proxy: pods come up from recorded configuration, traffic
//! passes over mTLS, a push takes effect, and nothing is left behind.

use std::time::Duration;

use outrigger_tests::fixtures;
use outrigger_tests::istiod::builder::replace_endpoints;
use outrigger_tests::istiod::snapshot::LISTENER;
use outrigger_tests::istiod::{EventKind, Snapshot, strip};
use outrigger_tests::oracle;
use outrigger_tests::pod::interception::Interception;
use outrigger_tests::pod::{Lab, PodSpec, Sidecar};

fn spec(name: &str, kind: &str, ip: &str, version: &str, port: u16, sidecar: Sidecar) -> PodSpec {
    let listen = format!("http:{port}");
    let app = [
        "/usr/local/bin/outrigger-lab",
        "app",
        "--version",
        version,
        listen.as_str(),
    ];
    PodSpec {
        name: name.to_owned(),
        kind: kind.to_owned(),
        ip: ip.to_owned(),
        labels: vec![("version".to_owned(), version.to_owned())],
        env: Vec::new(),
        hosts: vec![("10.96.0.11".to_owned(), "helloworld.sample".to_owned())],
        app: app.map(ToOwned::to_owned).to_vec(),
        interception: Interception::default(),
        sidecar,
    }
}

fn recorded(scenario: &str, node: &str) -> Snapshot {
    let folder = fixtures::root()
        .expect("fixtures")
        .join("xds")
        .join(scenario)
        .join(node);
    let mut snapshot = Snapshot::load(&folder).expect("recorded responses");
    strip::strip(&mut snapshot).expect("they decode");
    snapshot
}

/// Why this test cannot run here.
fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    if let Err(e) = fixtures::root() {
        return Some(e.to_string());
    }
    oracle::find_envoy()
        .is_none()
        .then(|| "no Envoy (ENVOY_BIN, or `make setup`)".to_owned())
}

#[tokio::test]
async fn traffic_passes_between_pods_over_mtls_and_follows_a_push() {
    if let Some(reason) = obstacle() {
        return println!("skipped: {reason}");
    }
    let lab_binary = env!("CARGO_BIN_EXE_outrigger-lab");
    let sidecar = Sidecar::Bare {
        proxy: oracle::find_envoy().expect("checked"),
    };
    let lab = Lab::with_binary(lab_binary.into()).expect("a lab");
    let ads = &lab.istiod.ads;
    ads.set_node("10.244.1.10", recorded("02-helloworld", "sleep"));
    let server = recorded("02-helloworld", "helloworld");
    ads.set_node("10.244.1.11", server.clone());
    ads.set_node("10.244.2.11", server);
    let mut pods = Vec::new();
    for (name, kind, ip, version, port) in [
        ("sleep", "sleep", "10.244.1.10", "v1", 8080),
        ("one", "helloworld", "10.244.1.11", "v1", 5000),
        ("two", "helloworld", "10.244.2.11", "v2", 5000),
    ] {
        let spec = spec(name, kind, ip, version, port, sidecar.clone());
        pods.push(lab.start(spec).expect("a pod"));
    }
    for pod in &mut pods {
        pod.ready(Duration::from_secs(90)).await.expect("ready");
    }
    let curl = ["/usr/bin/curl", "-sS", "-m", "10"];
    let ask = |path: &'static str| [&curl[..], &[path]].concat();

    let seen = pods[0]
        .exec(&ask("http://helloworld.sample:5000/headers"))
        .await
        .expect("an answer");
    let xfcc = "URI=spiffe://cluster.local/ns/sample/sa/sleep";
    assert!(seen.contains(xfcc), "no client identity in {seen}");

    // Everything to the second pod.
    let mut pushed = recorded("02-helloworld", "sleep");
    replace_endpoints(
        &mut pushed,
        "helloworld.sample",
        &[([10, 244, 2, 11], 5000).into()],
    );
    let before = ads.events().len();
    ads.set_node("10.244.1.10", pushed);
    let acked = |events: &[outrigger_tests::istiod::AdsEvent]| {
        events[before..]
            .iter()
            .any(|e| matches!(e.kind, EventKind::Ack { .. }))
    };
    assert!(
        ads.wait_for(Duration::from_secs(10), acked).await,
        "the push was not accepted"
    );
    let seen = pods[0]
        .exec(&ask("http://helloworld.sample:5000/hello?[1-20]"))
        .await;
    let seen = seen.expect("answers");
    assert!(
        seen.lines().all(|l| l.starts_with("Hello version: v2")),
        "{seen}"
    );

    let refused = |e: &&outrigger_tests::istiod::AdsEvent| matches!(e.kind, EventKind::Nack { .. });
    let events = ads.events();
    assert_eq!(events.iter().find(refused), None);
    let listeners = |e: &&outrigger_tests::istiod::AdsEvent| {
        e.type_url == LISTENER && matches!(e.kind, EventKind::Ack { .. })
    };
    assert!(events.iter().filter(listeners).count() >= 3);

    let names: Vec<_> = pods
        .iter()
        .map(|p| p.netns.clone())
        .chain([lab.fabric()])
        .collect();
    let folder = lab.folder().to_owned();
    drop(pods);
    drop(lab);
    let left = names
        .iter()
        .filter(|n| outrigger_tests::netns::path(n).exists())
        .count();
    assert_eq!(left, 0, "namespaces left behind");
    assert!(!folder.exists(), "folder left behind");
}
