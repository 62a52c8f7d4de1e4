//! The ingress gateway with the certificates that istiod sends it: HTTPS from outside the mesh, mutual TLS,
//! rotation, and what happens while istiod does not have them.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use outrigger_tests::ca::{Identity, KeyKind};
use outrigger_tests::istiod::Snapshot;
use outrigger_tests::istiod::snapshot::SECRET;
use outrigger_tests::pod::{Pod, PodSpec};
use outrigger_tests::probe::{Reply, TlsOffer, fetch_on, tls_on};
use prost::Message;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::bench::{Bench, CREDENTIALS, INGRESS, SLEEP, SOON, V1, V2, recorded, until};
use crate::xds::settled;

fn gateway(bench: &Bench) -> Pod {
    let spec = PodSpec {
        name: "ingressgateway".to_owned(),
        kind: "ingressgateway".to_owned(),
        ip: INGRESS.to_owned(),
        labels: Vec::new(),
        app: Vec::new(),
        ..bench.spec(SLEEP)
    };
    bench.lab.start(spec).expect("a pod")
}

/// What a client from outside gets over TLS, and the certificate that the gateway showed (DER).
async fn https(
    bench: &Bench,
    from: &Pod,
    server: (&str, u16),
    identity: Option<Identity>,
) -> Result<(Reply, Vec<u8>), String> {
    let (host, port) = server;
    let stream = from.connect(&format!("{INGRESS}:{port}"));
    let offer = TlsOffer {
        sni: Some(host.to_owned()),
        alpn: vec!["http/1.1".to_owned()],
        identity,
    };
    let authority = bench.lab.istiod.authority();
    let stream = tls_on(stream.map_err(|e| e.to_string())?, authority, &offer).await;
    let stream = stream.map_err(|e| e.to_string())?;
    let shown = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|c| c.first());
    let shown = shown.expect("a certificate").to_vec();
    let reply = fetch_on(stream, "GET", "/hello", host).await;
    Ok((reply.map_err(|e| e.to_string())?, shown))
}

const WEB: (&str, u16) = ("web.example.com", 443);
const MUTUAL: (&str, u16) = ("mtls.example.com", 8443);

fn with_credentials(bench: &Bench, names: &[&str]) -> Snapshot {
    let mut snapshot = recorded("06-gateway", "ingressgateway");
    for (name, host) in CREDENTIALS.iter().filter(|(n, _)| names.contains(n)) {
        bench.add_credential(&mut snapshot, name, host);
    }
    snapshot
}

/// The leaf of a credential in a snapshot, DER.
fn leaf(snapshot: &Snapshot, name: &str) -> Vec<u8> {
    let resource = snapshot.find(SECRET, name).expect("a credential");
    let secret = Secret::decode(resource.any.value.as_slice()).expect("a secret");
    let Some(secret::Type::TlsCertificate(certificate)) = secret.r#type else {
        panic!("{name} has no certificate");
    };
    let chain = certificate.certificate_chain.and_then(|c| c.specifier);
    let Some(Specifier::InlineBytes(pem)) = chain else {
        panic!("{name} is not inline");
    };
    let leaf = CertificateDer::from_pem_slice(&pem);
    leaf.expect("a certificate").to_vec()
}

#[tokio::test]
async fn the_gateway_serves_https_with_the_certificates_that_istiod_sends() {
    let Some(bench) = Bench::new() else { return };
    let mut snapshot = with_credentials(&bench, &["web-cert", "mtls-cert"]);
    bench.configure(INGRESS, snapshot.clone());
    let [_one, _two] = bench.ready([V1, V2]).await;
    let outsider = bench.outsider().await;
    let mut pod = gateway(&bench);
    let ready = pod.ready(SOON).await;
    assert!(ready.is_ok(), "{ready:?} {:#?}", bench.refusals());

    let answer = https(&bench, &outsider, WEB, None).await;
    let (reply, shown) = answer.expect("an answer over TLS");
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(
        reply.text().starts_with("Hello version: v"),
        "{}",
        reply.text()
    );
    assert_eq!(shown, leaf(&snapshot, "kubernetes://web-cert"));

    // The CA of the second server is a secret as well; its peer must have one name.
    let client = |spiffe: &str| {
        let hour = Duration::from_secs(3600);
        let authority = bench.lab.istiod.authority();
        authority
            .workload(spiffe, KeyKind::P256, hour)
            .expect("a certificate")
    };
    let guest = client("spiffe://cluster.local/ns/x/sa/y");
    let answer = https(&bench, &outsider, MUTUAL, Some(guest)).await;
    let (reply, shown) = answer.expect("an answer over mutual TLS");
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(shown, leaf(&snapshot, "kubernetes://mtls-cert"));
    let stranger = client("spiffe://cluster.local/ns/x/sa/stranger");
    for identity in [Some(stranger), None] {
        let refused = https(&bench, &outsider, MUTUAL, identity).await;
        assert!(refused.is_err(), "{refused:?}");
    }

    // A new certificate reaches new connections.
    bench.add_credential(&mut snapshot, "web-cert", WEB.0);
    bench.configure(INGRESS, snapshot.clone());
    let new = leaf(&snapshot, "kubernetes://web-cert");
    let ask = async || https(&bench, &outsider, WEB, None).await;
    let renewed = |a: &Result<(Reply, Vec<u8>), String>| a.as_ref().is_ok_and(|a| a.1 == new);
    until("the new certificate is shown", ask, renewed)
        .await
        .expect("an answer");

    // One that istiod has no more stays in use, until nothing names it.
    let ads = &bench.lab.istiod.ads;
    let mark = ads.events().len();
    assert!(snapshot.remove(SECRET, "kubernetes://web-cert"));
    bench.configure(INGRESS, snapshot);
    let types = [SECRET.to_owned()].into();
    let told = ads.wait_for(SOON, |events| settled(&events[mark..], INGRESS, &types));
    assert!(told.await, "{:#?}", &ads.events()[mark..]);
    let (reply, shown) = ask().await.expect("an answer");
    assert_eq!((reply.status, shown), (200, new));
}

/// The gateway while istiod has only the credentials `others`, and when it has the missing one.
async fn without_its_certificate(bench: &Bench, others: &[&str], waits: bool) {
    bench.configure(INGRESS, with_credentials(bench, others));
    let [_one, _two] = bench.ready([V1, V2]).await;
    let outsider = bench.outsider().await;
    let mut pod = gateway(bench);
    if waits {
        let address = format!("{INGRESS}:15020");
        let ask = async || pod.fetch(&address, "GET", "/healthz/ready").await;
        let says = |r: &std::io::Result<Reply>| {
            let text = r.as_ref().map(Reply::text).unwrap_or_default();
            text.contains("SDS kubernetes://web-cert")
        };
        let reply = until("readiness names what is waited for", ask, says).await;
        assert_eq!(reply.expect("an answer").status, 503);
    }
    pod.ready(SOON)
        .await
        .expect("ready without the certificate");
    let address = format!("{INGRESS}:8080");
    let plain = outsider.fetch(&address, "GET", "/hello").await;
    assert_eq!(plain.expect("the plain server answers").status, 404);
    let closed = https(bench, &outsider, WEB, None).await;
    assert!(closed.is_err(), "{closed:?}");
    // It is still asked for, and serves as soon as it comes.
    let all = with_credentials(bench, &["web-cert", "mtls-cert"]);
    bench.configure(INGRESS, all);
    let ask = async || https(bench, &outsider, WEB, None).await;
    let served = |a: &Result<(Reply, Vec<u8>), String>| a.as_ref().is_ok_and(|a| a.0.status == 200);
    let answer = until("the server serves", ask, served).await;
    answer.expect("an answer");
}

#[tokio::test]
async fn a_certificate_that_istiod_says_it_has_not_closes_its_server_only() {
    let Some(bench) = Bench::new() else { return };
    // With one of the two credentials, istiod says that the other is not there.
    without_its_certificate(&bench, &["mtls-cert"], false).await;
}

#[tokio::test]
async fn a_certificate_of_which_istiod_says_nothing_holds_readiness_for_its_fifteen_seconds() {
    let Some(bench) = Bench::new() else { return };
    without_its_certificate(&bench, &[], true).await;
}
