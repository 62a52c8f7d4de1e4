//! Each way of interception with real pods: the request arrives over mTLS, the rules are where the mode
//! puts them, and the application sees the peer that the mode promises.

use std::net::IpAddr;
use std::process::Command;

use outrigger_tests::istiod::Snapshot;
use outrigger_tests::istiod::builder::replace_endpoints;
use outrigger_tests::pod::Pod;
use outrigger_tests::pod::interception::{Interception, Mode, ipv6_of, peer_of};

use crate::bench::{Bench, SLEEP, SOON, V1, curl, listening, recorded};

/// Output of a program that reads rules in the pod's network.
fn rules(pod: &Pod, words: &[&str]) -> String {
    let output = Command::new("ip")
        .args(["netns", "exec", &pod.netns])
        .args(words)
        .output()
        .expect("ip runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The client's and the server's pod, ready, with the same interception.
async fn pods(bench: &Bench, interception: Interception) -> [Pod; 2] {
    let configure = |ip: &str, mut snapshot: Snapshot| {
        interception.configure(&mut snapshot).expect("as recorded");
        bench.configure(ip, snapshot);
    };
    let mut client = recorded("02-helloworld", "sleep");
    // One server, over IPv6 if there is any.
    let server: IpAddr = match ipv6_of(V1).filter(|_| interception.ipv6) {
        Some(ip) => ip.into(),
        None => V1.parse().expect("an address"),
    };
    replace_endpoints(&mut client, "helloworld.sample", &[(server, 5000).into()]);
    configure(SLEEP, client);
    configure(V1, recorded("02-helloworld", "helloworld"));
    let mut pods = [SLEEP, V1].map(|ip| {
        let mut spec = bench.spec(ip);
        spec.interception = interception;
        if ip == V1 && interception.ipv6 {
            spec.app.pop();
            spec.app.push("http:[::]:5000".to_owned());
        }
        let ipv6 = ipv6_of("10.96.0.11").filter(|_| interception.ipv6);
        let host = |ip: std::net::Ipv6Addr| (ip.to_string(), "helloworld.sample".to_owned());
        // First: without a host.conf the first line of a name counts, and IPv4 counts for both.
        spec.hosts.splice(0..0, ipv6.map(host));
        bench.lab.start(spec).expect("a pod")
    });
    for pod in &mut pods {
        let ready = pod.ready(SOON).await;
        assert!(ready.is_ok(), "{ready:?}: {:#?}", bench.refusals());
        listening(pod).await;
    }
    pods
}

/// Peer and identity that the application was shown.
async fn seen(client: &Pod, family: &str) -> (IpAddr, String) {
    let url = "http://helloworld.sample:5000/headers";
    let text = curl(client, &["-f", family, url]).await;
    let text = text.unwrap_or_else(|e| panic!("{family}: {e}"));
    let json: serde_json::Value = serde_json::from_str(text.trim()).expect("JSON");
    let peer = json["peer"].as_str().and_then(|p| p.parse().ok());
    (peer.expect("a peer"), text)
}

async fn check(mode: Option<Mode>, ipv6: bool) -> Option<[Pod; 2]> {
    let bench = Bench::new()?;
    let interception = Interception { mode, ipv6 };
    let [client, server] = pods(&bench, interception).await;
    let address: IpAddr = match ipv6_of(SLEEP).filter(|_| ipv6) {
        Some(ip) => ip.into(),
        None => SLEEP.parse().expect("an address"),
    };
    let families: &[&str] = if ipv6 { &["-4", "-6"] } else { &["-4"] };
    for family in families {
        let (peer, text) = seen(&client, family).await;
        assert_eq!(peer, peer_of(interception, address), "{family}");
        let identity = "URI=spiffe://cluster.local/ns/sample/sa/sleep";
        assert!(text.contains(identity), "not mTLS: {text}");
    }
    // Somebody without a sidecar, in plain text, is seen in the same way.
    let outsider = bench.outsider().await;
    let direct = curl(&outsider, &["-f", &format!("http://{V1}:5000/headers")]).await;
    let json: serde_json::Value = serde_json::from_str(&direct.expect("an answer")).expect("JSON");
    let from = outsider.spec.ip.parse().expect("an address");
    let want = peer_of(interception, from).to_string();
    assert_eq!(json["peer"].as_str(), Some(want.as_str()));
    Some([client, server])
}

#[tokio::test]
async fn tproxy_shows_the_client_to_the_application() {
    let Some([_, server]) = check(Some(Mode::Tproxy), false).await else {
        return;
    };
    let policy = rules(&server, &["ip", "rule"]);
    assert!(policy.contains("fwmark 0x539 lookup 133"), "{policy}");
}

#[tokio::test]
async fn tproxy_shows_the_client_over_ipv6() {
    let Some([_, server]) = check(Some(Mode::Tproxy), true).await else {
        return;
    };
    let policy = rules(&server, &["ip", "-6", "rule"]);
    assert!(policy.contains("fwmark 0x539 lookup 133"), "{policy}");
}

#[tokio::test]
async fn native_nftables_redirects_both_families() {
    let Some([client, _]) = check(Some(Mode::Nft), true).await else {
        return;
    };
    let native = rules(&client, &["nft", "list", "tables"]);
    assert!(native.contains("inet istio-proxy-nat"), "{native}");
    assert!(!rules(&client, &["iptables-nft-save"]).contains("ISTIO"));
}

#[tokio::test]
async fn iptables_redirects_through_nft() {
    let Some([client, _]) = check(Some(Mode::Iptables), true).await else {
        return;
    };
    for program in ["iptables-nft-save", "ip6tables-nft-save"] {
        let rules = rules(&client, &[program]);
        assert!(
            rules.contains("-A ISTIO_OUTPUT -j ISTIO_REDIRECT"),
            "{rules}"
        );
    }
    let legacy = rules(&client, &["iptables-legacy-save"]);
    assert!(!legacy.contains("ISTIO"), "{legacy}");
}

#[tokio::test]
async fn iptables_redirects_through_legacy() {
    if !rules_work("iptables-legacy") {
        return println!("skipped: this kernel has no legacy iptables");
    }
    let Some([client, _]) = check(Some(Mode::Legacy), false).await else {
        return;
    };
    let legacy = rules(&client, &["iptables-legacy-save"]);
    assert!(
        legacy.contains("-A ISTIO_OUTPUT -j ISTIO_REDIRECT"),
        "{legacy}"
    );
    assert!(!rules(&client, &["iptables-nft-save"]).contains("ISTIO"));
}

/// Whether a program can list rules in a namespace of its own.
fn rules_work(program: &str) -> bool {
    let mut command = Command::new("unshare");
    let status = command.args(["-n", program, "-t", "nat", "-S"]).output();
    status.is_ok_and(|output| output.status.success())
}
