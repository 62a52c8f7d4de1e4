//! What the control plane hears: every recorded resource accepted, both variants of the protocol.

use std::collections::BTreeSet;

use outrigger_tests::fixtures::Product;
use outrigger_tests::istiod::snapshot::PUSH_ORDER;
use outrigger_tests::istiod::{AdsEvent, EventKind, Snapshot};
use outrigger_tests::pod::{PodSpec, Sidecar};

use crate::bench::{
    Bench, ECHO, SLEEP, SOON, V1, V2, admin, edit_managers, hello, listening, recorded,
};

const GATEWAY: &str = "10.244.0.31";

/// Whether every response to a node was accepted, and responses of all these types came.
pub(crate) fn settled(events: &[AdsEvent], ip: &str, types: &BTreeSet<String>) -> bool {
    let own = |e: &&AdsEvent| e.node.split('~').nth(1) == Some(ip);
    let mut accepted = BTreeSet::new();
    let mut open = BTreeSet::new();
    for event in events.iter().filter(own) {
        match &event.kind {
            EventKind::Sent { nonce, .. } => drop(open.insert(nonce.clone())),
            EventKind::Ack { nonce } => {
                open.remove(nonce);
                accepted.insert(event.type_url.clone());
            }
            _ => {}
        }
    }
    open.is_empty() && types.is_subset(&accepted)
}

/// Types of which the second has other resources than the first.
fn changed(old: &Snapshot, new: &Snapshot) -> BTreeSet<String> {
    let differ = |t: &&&str| old.of(t).collect::<Vec<_>>() != new.of(t).collect::<Vec<_>>();
    // The name table is for the agent, which is not there.
    let types = PUSH_ORDER.iter().filter(|t| !t.contains("NameTable"));
    types.filter(differ).map(|t| (*t).to_owned()).collect()
}

#[tokio::test]
async fn no_recorded_resource_is_refused() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    let proxy = Product::Outrigger.path().expect("a product, as checked");
    bench.sidecar = Sidecar::Bare { proxy };
    let gateway = PodSpec {
        name: "eastwest".to_owned(),
        kind: "eastwest".to_owned(),
        app: Vec::new(),
        ip: GATEWAY.to_owned(),
        ..bench.spec(SLEEP)
    };
    bench.configure(GATEWAY, recorded("07-multinetwork", "eastwest"));
    let mut pods = [SLEEP, V1, ECHO]
        .map(|ip| (ip, bench.start(ip)))
        .into_iter()
        .collect::<Vec<_>>();
    pods.push((GATEWAY, bench.lab.start(gateway).expect("a pod")));
    let mut have = [
        (SLEEP, recorded("02-helloworld", "sleep")),
        (V1, recorded("02-helloworld", "helloworld")),
        (ECHO, recorded("02-helloworld", "echo")),
        (GATEWAY, recorded("07-multinetwork", "eastwest")),
    ];
    let ads = &bench.lab.istiod.ads;
    let mut mark = 0;
    let mut wanted: Vec<_> = have
        .iter()
        .map(|(ip, new)| (*ip, changed(&Snapshot::default(), new)))
        .collect();
    let mut steps = ["01-basic", "07-multinetwork", "02-helloworld"].into_iter();
    loop {
        for (ip, types) in &wanted {
            let done = ads.wait_for(SOON, |e| settled(&e[mark..], ip, types)).await;
            assert!(
                done,
                "{ip} has not accepted {types:?}: {:#?}",
                &ads.events()[mark..]
            );
        }
        for (_, pod) in &mut pods {
            pod.ready(SOON).await.expect("ready");
        }
        let Some(scenario) = steps.next() else { break };
        mark = ads.events().len();
        wanted.clear();
        for (ip, old) in &mut have[..3] {
            let node = match *ip {
                SLEEP => "sleep",
                V1 => "helloworld",
                _ => "echo",
            };
            let new = recorded(scenario, node);
            wanted.push((*ip, changed(old, &new)));
            *old = new.clone();
            bench.configure(ip, new);
        }
    }
    let refused = |e: &&AdsEvent| matches!(e.kind, EventKind::Nack { .. });
    let events = ads.events();
    assert_eq!(
        events.iter().filter(refused).collect::<Vec<_>>(),
        [] as [&AdsEvent; 0]
    );
    for (ip, pod) in &pods {
        let page = admin(pod, "/outrigger/ignored").await;
        assert_eq!(page.status, 200);
        let text = page.text();
        assert!(text.contains("istio.metadata_exchange"), "{ip}: {text}");
    }
}

#[tokio::test]
async fn what_only_counts_is_accepted_and_listed_as_ignored() {
    let Some(bench) = Bench::new() else { return };
    let mut found = None;
    edit_managers(&mut recorded("08-telemetry", "sleep"), |manager| {
        let mut filters = manager.http_filters.iter();
        found = found
            .take()
            .or(filters.find(|f| f.name == "istio.stats").cloned());
    });
    let stats = found.expect("recorded with telemetry");
    let mut snapshot = recorded("02-helloworld", "sleep");
    edit_managers(&mut snapshot, |m| m.http_filters.insert(0, stats.clone()));
    bench.configure(SLEEP, snapshot);
    let [client] = bench.ready([SLEEP]).await;
    let text = admin(&client, "/outrigger/ignored").await.text();
    let page: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let lists = page.as_object().expect("resources");
    let mut entries = lists.values().flat_map(|l| l.as_array().expect("a list"));
    let stats = entries.find(|e| e["name"] == "istio.stats");
    let stats = stats.unwrap_or_else(|| panic!("no istio.stats in {text}"));
    let reason = stats["reason"].as_str().expect("a reason");
    assert!(reason.contains("telemetry"), "{reason}");
}

#[tokio::test]
async fn state_of_the_world_discovery_serves_as_well() {
    let Some(bench) = Bench::new() else { return };
    let mut pods = [SLEEP, V1, V2].map(|ip| {
        let env = vec![("ISTIO_DELTA_XDS".to_owned(), "false".to_owned())];
        let spec = PodSpec {
            env,
            ..bench.spec(ip)
        };
        bench.lab.start(spec).expect("a pod")
    });
    for pod in &mut pods {
        pod.ready(SOON).await.expect("ready");
        listening(pod).await;
    }
    hello(&pods[0]).await;
    let events = bench.lab.istiod.ads.events();
    let streams: Vec<_> = events
        .iter()
        .filter_map(|e| match e.kind {
            EventKind::Connected { delta } => Some(delta),
            _ => None,
        })
        .collect();
    assert!(
        streams.len() >= 3 && !streams.contains(&true),
        "{streams:?}"
    );
    let refused = |e: &AdsEvent| matches!(e.kind, EventKind::Nack { .. });
    assert!(!events.iter().any(refused), "{events:?}");
}
