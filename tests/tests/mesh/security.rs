//! One request seen from both sides and from the wire; strangers under strict mTLS.

use std::net::Ipv4Addr;

use outrigger_tests::ca::{Authority, Identity, KeyKind};
use outrigger_tests::capture::{Capture, streams};
use outrigger_tests::istiod::snapshot::PROXY_CONFIG;
use outrigger_tests::istiod::{EventKind, Resource, Snapshot};
use outrigger_tests::pod::Pod;
use outrigger_tests::probe::{self, Reply, TlsOffer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bench::{
    Bench, HELLO, SLEEP, SOON, V1, V2, at, curl, edit_managers, fields, hello, listening, logged,
    marked, recorded, until,
};

#[tokio::test]
async fn a_request_is_logged_by_both_sidecars_as_one_mtls_request() {
    let Some(bench) = Bench::new() else { return };
    let [client, one, two] = bench.ready([SLEEP, V1, V2]).await;
    let path = marked("/hello");
    let text = curl(&client, &[&format!("{HELLO}{path}")]).await;
    let text = text.expect("an answer");
    let (server, subset) = if text.starts_with("Hello version: v1") {
        (&one, "v1")
    } else {
        (&two, "v2")
    };
    let outbound = fields(&logged(&client, &[&path]).await);
    let inbound = fields(&logged(server, &[&path]).await);
    let service = "helloworld.sample.svc.cluster.local";
    assert_eq!(
        outbound[at::CLUSTER],
        format!("outbound|5000|{subset}|{service}")
    );
    let host = format!("{}:5000", server.spec.ip);
    for line in [&outbound, &inbound] {
        assert_eq!(line[at::CODE], "200", "{line:?}");
        assert_eq!(line[at::FLAGS], "-", "{line:?}");
        assert_eq!(line[at::DETAILS], "via_upstream", "{line:?}");
        assert_eq!(line[at::UPSTREAM], host, "{line:?}");
    }
    assert_eq!(inbound[at::CLUSTER], "inbound|5000||");
    let local = &inbound[at::UPSTREAM_LOCAL];
    assert!(local.starts_with("127.0.0.6:"), "{local}");
    let sni = format!("outbound_.5000_.{subset}_.{service}");
    assert_eq!(inbound[at::SNI], sni);
    assert_eq!(outbound[at::REQUEST_ID].len(), 36, "{outbound:?}");
    assert_eq!(outbound[at::REQUEST_ID], inbound[at::REQUEST_ID]);
}

/// Kinds of the TLS records that bytes consist of; `None` when they are not just TLS records.
fn records(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut kinds = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(5) {
        if !(20..=23).contains(&head[0]) || head[1] != 3 {
            return None;
        }
        kinds.push(head[0]);
        bytes = rest.get(usize::from(u16::from_be_bytes([head[3], head[4]]))..)?;
    }
    bytes.is_empty().then_some(kinds)
}

#[tokio::test]
async fn nothing_but_tls_records_crosses_the_wire_between_pods() {
    let Some(bench) = Bench::new() else { return };
    let [client, one] = bench.ready([SLEEP, V1]).await;
    let capture = Capture::start(&one.netns).expect("a packet socket");
    let path = marked("/echo-secret-path");
    let body = marked("secret-body");
    // Version 2 is not there: ask until version 1 is drawn.
    let url = format!("{HELLO}{path}");
    let ask = async || curl(&client, &["-d", &body, &url]).await;
    let ours = |text: &Result<String, String>| text.as_ref().is_ok_and(|t| t.contains(&body));
    let text = until("the server echoes the body", ask, ours).await;
    text.expect("an answer");
    let segments = capture.segments().expect("captured");
    let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());

    let ip = |text: &str| text.parse::<Ipv4Addr>().expect("an address");
    let (near, far) = (ip(SLEEP), ip(V1));
    let between = |a: Ipv4Addr, b: Ipv4Addr| (a, b) == (near, far) || (a, b) == (far, near);
    let (wire, inside): (Vec<_>, Vec<_>) = segments
        .into_iter()
        .partition(|s| between(s.from.0, s.to.0));
    // The same search finds the request where it must be in the clear: from proxy to application.
    for text in [&path, &body] {
        assert!(
            inside.iter().any(|s| holds(&s.payload, text)),
            "{text} was not captured inside the pod"
        );
    }
    let streams = streams(&wire);
    assert!(streams.len() >= 2, "{} directions", streams.len());
    for (first, bytes) in &streams {
        let kinds = records(bytes);
        let kinds = kinds.unwrap_or_else(|| panic!("not TLS: {:?} {bytes:02x?}", first.from));
        assert_eq!(kinds[0], 22, "a handshake first");
        assert!(kinds.contains(&23), "application data: {kinds:?}");
        for text in [path.as_str(), &body, "POST", "HTTP/1.1"] {
            assert!(!holds(bytes, text), "{text} on the wire");
        }
    }
}

/// What istiod sends to a server under strict mTLS, without the authorization that the recording
/// also has.
fn strict() -> Snapshot {
    let mut snapshot = recorded("03-security", "helloworld");
    let not_served = ["envoy.filters.http.rbac", "envoy.filters.http.ext_authz"];
    edit_managers(&mut snapshot, |manager| {
        let filters = &mut manager.http_filters;
        filters.retain(|f| !not_served.contains(&f.name.as_str()));
    });
    snapshot
}

/// An identity of the mesh, signed by another CA.
fn foreign(authority: &Authority) -> Identity {
    let name = "spiffe://cluster.local/ns/sample/sa/sleep";
    let day = std::time::Duration::from_secs(86_400);
    let identity = authority.workload(name, KeyKind::P256, day);
    identity.expect("a certificate")
}

/// The field of `istio.mesh.v1alpha1.ProxyConfig` that agents take from it.
#[derive(Clone, PartialEq, prost::Message)]
struct ProxyConfig {
    #[prost(string, repeated, tag = "34")]
    ca_certificates_pem: Vec<String>,
}

#[tokio::test]
async fn roots_of_the_mesh_configuration_are_trusted_where_the_agent_asks_for_them() {
    let Some(bench) = Bench::new() else { return };
    let other = Authority::new().expect("another CA");
    let config = ProxyConfig {
        ca_certificates_pem: vec![other.root_pem()],
    };
    for ip in [V1, V2] {
        let mut snapshot = recorded("02-helloworld", "helloworld");
        snapshot.insert(Resource::new("", PROXY_CONFIG, &config));
        bench.configure(ip, snapshot);
    }
    let mut asking = bench.spec(V1);
    asking
        .env
        .push(("PROXY_CONFIG_XDS_AGENT".into(), "true".into()));
    let mut asking = bench.lab.start(asking).expect("a pod");
    asking.ready(SOON).await.expect("ready");
    listening(&asking).await;
    let [silent] = bench.ready([V2]).await;
    let outsider = bench.outsider().await;
    let fetch = async |pod: &Pod| {
        let offer = TlsOffer {
            sni: Some("outbound_.5000_._.helloworld.sample.svc.cluster.local".to_owned()),
            alpn: ["istio-http/1.1", "istio", "http/1.1"]
                .map(Into::into)
                .into(),
            identity: Some(foreign(&other)),
        };
        let stream = outsider.connect(&format!("{}:5000", pod.spec.ip));
        let stream = stream.expect("connected");
        let stream = probe::tls_on(stream, bench.lab.istiod.authority(), &offer).await;
        let stream = stream.map_err(|e| e.to_string())?;
        let reply = probe::fetch_on(stream, "GET", "/hello", "helloworld.sample").await;
        reply.map_err(|e| e.to_string())
    };
    // The roots may come after the first certificate, with which the pod got ready.
    let served = |r: &Result<Reply, String>| r.as_ref().is_ok_and(|r| r.status == 200);
    let served = until(
        "the other root is trusted",
        async || fetch(&asking).await,
        served,
    )
    .await;
    assert!(served.expect("an answer").text().contains("version: v1"));
    let refused = fetch(&silent).await;
    assert!(refused.is_err(), "{refused:?}");
    let asked = bench.lab.istiod.ads.events().into_iter();
    let asked = asked
        .filter(|e| e.type_url == PROXY_CONFIG && matches!(e.kind, EventKind::Subscribe { .. }));
    let nodes: Vec<String> = asked.map(|e| e.node).collect();
    assert!(nodes.len() == 1 && nodes[0].contains(V1), "{nodes:?}");
}

#[tokio::test]
async fn strict_mtls_refuses_strangers_and_serves_the_mesh() {
    let Some(bench) = Bench::new() else { return };
    bench.configure(V2, strict());
    // The recorded client sends requests with this header to version 2.
    let [client, one, two] = bench.ready([SLEEP, V1, V2]).await;
    let outsider = bench.outsider().await;
    let to_two = ["-H", "x-canary: yes", "-f"];

    // The outsider's client works: version 1 is permissive.
    let text = curl(&outsider, &[&format!("http://{V1}:5000/hello")]).await;
    assert!(
        matches!(&text, Ok(t) if t.starts_with("Hello version: v1")),
        "{text:?}"
    );
    let path = marked("/hello");
    let refused = curl(&outsider, &[&format!("http://{V2}:5000{path}")]).await;
    let refused = refused.expect_err("plain text is refused");
    assert!(
        refused.contains("reset") || refused.contains("Empty reply"),
        "{refused}"
    );

    for (offer, name) in [
        (None, "no certificate"),
        (Some(()), "a foreign certificate"),
    ] {
        let identity = offer.map(|()| foreign(&Authority::new().expect("another CA")));
        let offer = TlsOffer {
            sni: Some("outbound_.5000_._.helloworld.sample.svc.cluster.local".to_owned()),
            alpn: vec!["istio-http/1.1".to_owned(), "istio".to_owned()],
            identity,
        };
        let stream = outsider.connect(&format!("{V2}:5000")).expect("connected");
        let authority = bench.lab.istiod.authority();
        // TLS 1.3: the client is done before the server has judged it.
        if let Ok(mut stream) = probe::tls_on(stream, authority, &offer).await {
            let request = format!("GET {path} HTTP/1.1\r\nhost: helloworld.sample\r\n\r\n");
            let _ = stream.write_all(request.as_bytes()).await;
            let mut seen = Vec::new();
            let end = tokio::time::timeout(SOON, stream.read_to_end(&mut seen));
            let end = end.await.expect("the connection ends");
            assert!(end.is_err() && seen.is_empty(), "{name}: {end:?} {seen:?}");
        }
    }

    let text = curl(
        &client,
        &[&to_two[..], &[&format!("{HELLO}/hello")]].concat(),
    )
    .await;
    assert!(
        matches!(&text, Ok(t) if t.starts_with("Hello version: v2")),
        "{text:?}"
    );
    hello(&client).await;
    let log = two.proxy.as_ref().map(|p| p.log()).unwrap_or_default();
    assert!(!log.contains(&path), "a stranger's request was served");
    drop(one);
}
