//! TLS contexts against each other over loopback: who is let in, who never is, and what is logged.

#[path = "support/pki.rs"]
mod pki;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger::control::store::Store;
use outrigger::io::stream::Rewound;
use outrigger::stream_info::TlsInfo;
use outrigger::tls::context::{
    DownstreamContext, FailureKind, HandshakeOptions, TlsFailure, UpstreamContext,
};
use outrigger::tls::secret::SecretError;
use outrigger_config::matcher::StringPattern;
use outrigger_config::tls::{CommonTls, SecretRef, TlsVersion, Validation, ValidationContext};
use pki::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const CLIENT: &str = "spiffe://cluster.local/ns/a/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/a/sa/server";

type Side = Result<Arc<TlsInfo>, TlsFailure>;

/// One connection: the handshake, then a byte from each side, so that both have judged the other.
async fn meet_at(
    listener: &TcpListener,
    server: &DownstreamContext,
    client: &UpstreamContext,
    options: HandshakeOptions<'_>,
) -> (Side, Side) {
    let address = listener.local_addr().expect("bound");
    let serve = async {
        let (socket, _) = listener.accept().await.expect("accepts");
        let (mut stream, info) = server.accept(Rewound::new(Bytes::new(), socket)).await?;
        // What the other side makes of it is its own result.
        let _ = stream.write_all(b"s").await;
        let _ = stream.read_u8().await;
        Ok(info)
    };
    let connect = async {
        let socket = TcpStream::connect(address).await.expect("connects");
        let (mut stream, info) = client.connect(socket, options).await?;
        // In TLS 1.3 a client learns with the first read that the server refused its certificate.
        stream
            .read_u8()
            .await
            .map_err(|e| TlsFailure::from_io(&e))?;
        stream
            .write_all(b"c")
            .await
            .map_err(|e| TlsFailure::from_io(&e))?;
        Ok(info)
    };
    tokio::time::timeout(Duration::from_secs(20), async {
        tokio::join!(serve, connect)
    })
    .await
    .expect("handshakes end")
}

async fn meet(server: &DownstreamContext, client: &UpstreamContext) -> (Side, Side) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    meet_at(&listener, server, client, HandshakeOptions::default()).await
}

fn contexts(
    store: &Store,
    server_common: CommonTls,
    client_common: CommonTls,
) -> (Arc<DownstreamContext>, Arc<UpstreamContext>) {
    (
        DownstreamContext::build(&server(server_common), store).expect("server context"),
        UpstreamContext::build(&client(client_common, Some("a.example")), store).expect("client"),
    )
}

#[tokio::test]
async fn mutual_tls_tells_both_sides_who_the_other_is() {
    let (store, ca) = (store(), Ca::new("root"));
    let (s, c) = contexts(
        &store,
        common(own(&ca.leaf(SERVER)), validate(trusting(&ca.pem))),
        common(own(&ca.leaf(CLIENT)), validate(trusting(&ca.pem))),
    );
    let (server, client) = meet(&s, &c).await;
    let (server, client) = (server.expect("server"), client.expect("client"));
    assert_eq!(server.peer_uri_sans, [CLIENT]);
    assert_eq!(server.local_uri_sans, [SERVER]);
    assert_eq!(client.peer_uri_sans, [SERVER]);
    assert!(server.peer_validated && client.peer_validated);
    assert_eq!(
        (server.version, server.cipher),
        ("TLSv1.3", "TLS_AES_128_GCM_SHA256")
    );
    assert!(server.peer_certificate.is_some());
    assert_eq!(server.peer_fingerprint_256.len(), 64);
}

/// What a verifying side is given, what the other presents, and what the verifying side must say.
struct Case {
    name: &'static str,
    validation: Validation,
    peer: Option<Leaf>,
    kind: FailureKind,
    text: &'static str,
}

fn refusals(store: &Store, ca: &Ca, peer: &str) -> Vec<Case> {
    let other = Ca::new("other");
    let old = Ca::expired("old root");
    let good = || Some(ca.leaf(peer));
    let only = |context| Validation {
        default: context,
        sds: None,
    };
    let with_sans = |pattern| ValidationContext {
        subject_alt_names: vec![san(pattern)],
        ..trusting(&ca.pem)
    };
    let sans_only = |pattern| ValidationContext {
        subject_alt_names: vec![san(pattern)],
        ..ValidationContext::default()
    };
    let by_sds = |default, name| Validation {
        default,
        sds: Some(sds(name)),
    };
    publish_validation(store, "ca", trusting(&ca.pem)).expect("good");
    publish_validation(store, "no-ca", ValidationContext::default()).expect("loads, trusts nobody");
    let period = |from: i32, to: i32| {
        Some(ca.leaf_with(peer, |p| {
            p.not_before = rcgen::date_time_ymd(from, 1, 1);
            p.not_after = rcgen::date_time_ymd(to, 1, 1);
        }))
    };
    let case = |name, validation, peer, kind, text| Case {
        name,
        validation,
        peer,
        kind,
        text,
    };
    let (chain, names) = (FailureKind::Chain, FailureKind::San);
    let issuer = "depth 0: unable to get local issuer certificate";
    vec![
        case(
            "no secret yet",
            by_sds(
                sans_only(StringPattern::Prefix("spiffe://".into())),
                "never",
            ),
            good(),
            FailureKind::SecretMissing,
            "Secret is not supplied by SDS",
        ),
        case(
            "SDS context without a root",
            by_sds(ValidationContext::default(), "no-ca"),
            good(),
            chain,
            issuer,
        ),
        case(
            "SANs, but SDS context without a root",
            by_sds(sans_only(StringPattern::Exact(peer.into())), "no-ca"),
            good(),
            chain,
            issuer,
        ),
        case(
            "wrong root",
            only(trusting(&other.pem)),
            good(),
            chain,
            issuer,
        ),
        case(
            "expired root",
            only(trusting(&old.pem)),
            Some(old.leaf(peer)),
            chain,
            "certificate has expired",
        ),
        case(
            "wrong SAN",
            only(with_sans(StringPattern::Exact(
                "spiffe://cluster.local/ns/b/sa/x".into(),
            ))),
            good(),
            names,
            "verify cert failed: SAN matcher, certificate SANs are [spiffe://cluster.local/",
        ),
        case(
            "wrong trust domain",
            only(with_sans(StringPattern::Prefix(
                "spiffe://other.domain/".into(),
            ))),
            good(),
            names,
            "SAN matcher",
        ),
        case(
            "combined contexts: SAN of the default, CA of SDS",
            by_sds(
                sans_only(StringPattern::Prefix("spiffe://other.domain/".into())),
                "ca",
            ),
            good(),
            names,
            "SAN matcher",
        ),
        case(
            "combined contexts: wrong issuer",
            by_sds(sans_only(StringPattern::Prefix("spiffe://".into())), "ca"),
            Some(other.leaf(peer)),
            chain,
            issuer,
        ),
        case(
            "expired",
            only(trusting(&ca.pem)),
            period(2001, 2002),
            chain,
            "depth 0: certificate has expired",
        ),
        case(
            "not yet valid",
            only(trusting(&ca.pem)),
            period(2090, 2091),
            chain,
            "depth 0: certificate is not yet valid",
        ),
        case(
            "self-signed",
            only(trusting(&ca.pem)),
            Some(self_signed(peer)),
            chain,
            "self signed certificate",
        ),
        case(
            "unlisted pin",
            only(ValidationContext {
                verify_certificate_hash: vec!["00".repeat(32).into()],
                ..trusting(&ca.pem)
            }),
            good(),
            FailureKind::Pin,
            "cert hash and spki",
        ),
        case(
            "revoked",
            only(ValidationContext {
                crl: Some(inline(&ca.crl(&[77]))),
                ..trusting(&ca.pem)
            }),
            Some(ca.leaf_with(peer, |p| p.serial_number = Some(77u64.into()))),
            chain,
            "certificate revoked",
        ),
        case(
            "issuer without a CRL",
            only(ValidationContext {
                crl: Some(inline(&other.crl(&[77]))),
                ..trusting(&ca.pem)
            }),
            good(),
            chain,
            "unable to get certificate CRL",
        ),
    ]
}

fn check(side: &str, name: &str, verdict: Side, kind: FailureKind, text: &str) {
    match verdict {
        Ok(_) => panic!("{side}, {name}: let in"),
        Err(failure) => {
            assert_eq!(failure.kind, kind, "{side}, {name}: {failure}");
            assert!(failure.reason.contains(text), "{side}, {name}: {failure}");
        }
    }
}

#[tokio::test]
async fn a_server_refuses_every_client_it_cannot_vouch_for() {
    let (store, ca) = (store(), Ca::new("root"));
    for case in refusals(&store, &ca, CLIENT) {
        let (s, c) = contexts(
            &store,
            common(own(&ca.leaf(SERVER)), Some(case.validation)),
            common(
                case.peer.as_ref().and_then(own),
                validate(trusting(&ca.pem)),
            ),
        );
        let (server, client) = meet(&s, &c).await;
        check("server", case.name, server, case.kind, case.text);
        assert!(client.is_err(), "{}: the client got through", case.name);
    }
}

#[tokio::test]
async fn a_client_refuses_every_server_it_cannot_vouch_for() {
    let (store, ca) = (store(), Ca::new("root"));
    for case in refusals(&store, &ca, SERVER) {
        let (s, c) = contexts(
            &store,
            common(
                case.peer.as_ref().and_then(own),
                validate(trusting(&ca.pem)),
            ),
            common(own(&ca.leaf(CLIENT)), Some(case.validation)),
        );
        let (server, client) = meet(&s, &c).await;
        check("client", case.name, client, case.kind, case.text);
        assert!(server.is_err(), "{}: the server got through", case.name);
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_with_the_reference_text() {
    let (store, ca) = (store(), Ca::new("root"));
    let validations = [
        validate(trusting(&ca.pem)),
        validate(ValidationContext::default()),
        None,
    ];
    for validation in validations {
        let (s, c) = contexts(
            &store,
            common(own(&ca.leaf(SERVER)), validation),
            common(None, validate(trusting(&ca.pem))),
        );
        let (server, client) = meet(&s, &c).await;
        check(
            "server",
            "no certificate",
            server,
            FailureKind::NoCertificate,
            "PEER_DID_NOT_RETURN_A_CERTIFICATE:peer did not provide required client certificate",
        );
        assert!(client.is_err());
    }
}

#[tokio::test]
async fn a_required_certificate_without_anything_to_check_it_by_is_refused() {
    let (store, ca) = (store(), Ca::new("root"));
    for validation in [validate(ValidationContext::default()), None] {
        let (s, c) = contexts(
            &store,
            common(own(&ca.leaf(SERVER)), validation),
            common(own(&ca.leaf(CLIENT)), validate(trusting(&ca.pem))),
        );
        let (server, client) = meet(&s, &c).await;
        check(
            "server",
            "no context",
            server,
            FailureKind::Chain,
            "verify cert failed",
        );
        assert!(client.is_err());
    }
}

#[tokio::test]
async fn bad_secrets_are_refused_and_the_one_before_stays() {
    let (store, ca) = (store(), Ca::new("root"));
    let good = ca.leaf(SERVER);
    publish_certificate(&store, "default", &good);
    publish_validation(&store, "ROOTCA", trusting(&ca.pem)).expect("good");
    let update = |leaf: Leaf| {
        let kind = outrigger_config::tls::SecretKind::TlsCertificate(Arc::new(leaf.config()));
        let secret = outrigger_config::tls::Secret {
            name: "default".into(),
            kind,
        };
        store
            .secrets
            .update(&outrigger_config::tls::SdsSource::Ads, &secret)
    };
    let mismatch = update(Leaf {
        key: ca.leaf(SERVER).key,
        ..good.clone()
    });
    assert!(
        matches!(mismatch, Err(SecretError::KeyMismatch(_))),
        "{mismatch:?}"
    );
    let empty = update(Leaf {
        chain: String::new(),
        ..good.clone()
    });
    assert!(matches!(empty, Err(SecretError::Chain(_))), "{empty:?}");
    let broken = update(Leaf {
        chain: "-----BEGIN CERTIFICATE-----\nAAA".into(),
        ..good.clone()
    });
    assert!(matches!(broken, Err(SecretError::Chain(_))), "{broken:?}");
    let no_key = update(Leaf {
        key: String::new(),
        ..good.clone()
    });
    assert!(matches!(no_key, Err(SecretError::Key(_))), "{no_key:?}");
    for bundle in [
        "",
        "junk",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let refused = publish_validation(&store, "ROOTCA", trusting(bundle));
        assert!(
            matches!(refused, Err(SecretError::TrustedCa(_))),
            "{bundle}: {refused:?}"
        );
    }
    let by_sds = Some(Validation {
        default: ValidationContext::default(),
        sds: Some(sds("ROOTCA")),
    });
    let (s, c) = contexts(
        &store,
        common(Some(SecretRef::Sds(sds("default"))), by_sds),
        common(own(&ca.leaf(CLIENT)), validate(trusting(&ca.pem))),
    );
    let (server, client) = meet(&s, &c).await;
    assert!(server.is_ok() && client.is_ok(), "{server:?} {client:?}");
}

#[tokio::test]
async fn nothing_is_served_before_the_certificate_arrives_and_rotation_reaches_new_handshakes() {
    let (store, ca) = (store(), Ca::new("root"));
    let (s, c) = contexts(
        &store,
        common(
            Some(SecretRef::Sds(sds("default"))),
            validate(trusting(&ca.pem)),
        ),
        common(own(&ca.leaf(CLIENT)), validate(trusting(&ca.pem))),
    );
    assert!(!s.is_ready());
    let (server, client) = meet(&s, &c).await;
    check(
        "server",
        "no certificate yet",
        server,
        FailureKind::SecretMissing,
        "not supplied by SDS",
    );
    assert!(client.is_err());
    publish_certificate(&store, "default", &ca.leaf(SERVER));
    assert!(s.is_ready());
    let (_, first) = meet(&s, &c).await;
    publish_certificate(&store, "default", &ca.leaf(SERVER));
    let (_, second) = meet(&s, &c).await;
    let (first, second) = (first.expect("served"), second.expect("served"));
    assert_ne!(first.peer_serial, second.peer_serial);
    assert!(!second.resumed, "tickets of the old certificate must die");
    let ads = outrigger_config::tls::SdsSource::Ads;
    assert!(store.secrets.has(&ads, &"default".into()));
    store.secrets.forget(&ads, "default");
    assert!(!store.secrets.has(&ads, &"default".into()));
    let (server, _) = meet(&s, &c).await;
    assert!(server.is_ok(), "what drains keeps its own: {server:?}");
}

#[tokio::test]
async fn sessions_resume_in_bursts_and_still_know_the_peer() {
    let (store, ca) = (store(), Ca::new("root"));
    for version in [TlsVersion::V1_3, TlsVersion::V1_2] {
        let limit = |mut c: CommonTls| {
            c.max_version = version;
            c
        };
        let (s, c) = contexts(
            &store,
            limit(common(own(&ca.leaf(SERVER)), validate(trusting(&ca.pem)))),
            limit(common(own(&ca.leaf(CLIENT)), validate(trusting(&ca.pem)))),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let mut resumed = Vec::new();
        for _ in 0..4 {
            let (server, client) = meet_at(&listener, &s, &c, HandshakeOptions::default()).await;
            let (server, client) = (server.expect("server"), client.expect("client"));
            assert_eq!(server.peer_uri_sans, [CLIENT]);
            assert_eq!(client.peer_uri_sans, [SERVER]);
            assert_eq!(server.resumed, client.resumed);
            resumed.push(client.resumed);
        }
        assert_eq!(resumed, [false, true, true, true], "{version:?}");
        // A name demanded of a resumed session is still checked.
        let options = HandshakeOptions {
            verify_dns_name: Some("b.example"),
            ..Default::default()
        };
        let (_, client) = meet_at(&listener, &s, &c, options).await;
        check(
            "client",
            "name on resumption",
            client,
            FailureKind::San,
            "SAN matcher",
        );
    }
}

#[tokio::test]
async fn the_server_prefers_its_own_protocols_and_goes_on_without_overlap() {
    let (store, ca) = (store(), Ca::new("root"));
    let cases: [(&[&str], Option<&[u8]>); 4] = [
        (&["http/1.1", "h2"], Some(b"h2")),
        (&["istio-http/1.1", "istio", "http/1.1"], Some(b"http/1.1")),
        (&["istio-peer-exchange", "istio"], None),
        (&[], None),
    ];
    for (offered, expected) in cases {
        let mut s = common(own(&ca.leaf(SERVER)), validate(trusting(&ca.pem)));
        s.alpn_protocols = vec!["h2".into(), "http/1.1".into()];
        let mut c = common(own(&ca.leaf(CLIENT)), validate(trusting(&ca.pem)));
        c.alpn_protocols = offered.iter().map(|p| (*p).into()).collect();
        let (s, c) = contexts(&store, s, c);
        let (server, client) = meet(&s, &c).await;
        assert_eq!(
            server.expect("server").alpn.as_deref(),
            expected,
            "{offered:?}"
        );
        assert_eq!(
            client.expect("client").alpn.as_deref(),
            expected,
            "{offered:?}"
        );
    }
}

#[tokio::test]
async fn intermediates_count_as_anchors_and_presented_chains_are_built() {
    let store = store();
    let root = Ca::new("root");
    let middle = root.intermediate("middle");
    let leaf = middle.leaf(CLIENT);
    let full = Leaf {
        chain: format!("{}{}", leaf.chain, middle.pem),
        ..leaf.clone()
    };
    let two_roots = format!("{}{}", Ca::new("other").pem, root.pem);
    let cases = [
        ("partial chain", &leaf, middle.pem.clone(), true),
        ("full chain", &full, root.pem.clone(), true),
        (
            "full chain, second root of the bundle",
            &full,
            two_roots,
            true,
        ),
        ("missing intermediate", &leaf, root.pem.clone(), false),
    ];
    for (name, leaf, bundle, passes) in cases {
        let (s, c) = contexts(
            &store,
            common(own(&root.leaf(SERVER)), validate(trusting(&bundle))),
            common(own(leaf), validate(trusting(&root.pem))),
        );
        let (server, _) = meet(&s, &c).await;
        assert_eq!(server.is_ok(), passes, "{name}: {server:?}");
    }
}

#[tokio::test]
async fn typed_and_untyped_names_pins_and_leniency_are_obeyed() {
    let (store, ca) = (store(), Ca::new("root"));
    let expired = ca.leaf_with(CLIENT, |p| {
        p.not_before = rcgen::date_time_ymd(2001, 1, 1);
        p.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    let dns = ca.leaf("*.example.com");
    let good = ca.leaf(CLIENT);
    let sans = |pattern, kind| {
        let mut matcher = san(pattern);
        matcher.san_type = kind;
        ValidationContext {
            subject_alt_names: vec![matcher],
            ..trusting(&ca.pem)
        }
    };
    use outrigger_config::tls::SanType::{Dns, Uri};
    let exact = |s: &str| StringPattern::Exact(s.into());
    let lenient = ValidationContext {
        allow_expired_certificate: true,
        ..trusting(&ca.pem)
    };
    let untrusted = ValidationContext {
        accept_untrusted: true,
        ..trusting(&Ca::new("x").pem)
    };
    let cases = [
        (
            "prefix",
            sans(
                StringPattern::Prefix("spiffe://cluster.local/".into()),
                None,
            ),
            &good,
            Some(true),
        ),
        (
            "suffix",
            sans(StringPattern::Suffix("/sa/client".into()), Some(Uri)),
            &good,
            Some(true),
        ),
        (
            "contains",
            sans(StringPattern::Contains("/ns/a/".into()), Some(Uri)),
            &good,
            Some(true),
        ),
        ("other type", sans(exact(CLIENT), Some(Dns)), &good, None),
        (
            "wildcard certificate",
            sans(exact("a.example.com"), Some(Dns)),
            &dns,
            Some(true),
        ),
        (
            "wildcard is one label",
            sans(exact("a.b.example.com"), Some(Dns)),
            &dns,
            None,
        ),
        ("expired is allowed", lenient, &expired, Some(true)),
        (
            "untrusted is accepted, unvalidated",
            untrusted,
            &good,
            Some(false),
        ),
    ];
    for (name, validation, leaf, expected) in cases {
        let (s, c) = contexts(
            &store,
            common(own(&ca.leaf(SERVER)), validate(validation)),
            common(own(leaf), validate(trusting(&ca.pem))),
        );
        let (server, _) = meet(&s, &c).await;
        assert_eq!(
            server.as_ref().ok().map(|i| i.peer_validated),
            expected,
            "{name}: {server:?}"
        );
    }
}

#[tokio::test]
async fn a_demanded_dns_name_must_be_in_the_certificate() {
    let (store, ca) = (store(), Ca::new("root"));
    let (s, c) = contexts(
        &store,
        common(own(&ca.leaf("a.example")), validate(trusting(&ca.pem))),
        common(own(&ca.leaf(CLIENT)), validate(trusting(&ca.pem))),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    for (name, passes) in [("a.example", true), ("b.example", false)] {
        let options = HandshakeOptions {
            server_name: Some(name),
            verify_dns_name: Some(name),
            ..HandshakeOptions::default()
        };
        let (_, client) = meet_at(&listener, &s, &c, options).await;
        assert_eq!(client.is_ok(), passes, "{name}: {client:?}");
    }
}

#[tokio::test]
async fn without_tls_parameters_a_client_stays_at_tls_1_2() {
    let (store, ca) = (store(), Ca::new("root"));
    let mut c = common(own(&ca.leaf(CLIENT)), validate(trusting(&ca.pem)));
    c.max_version = TlsVersion::V1_2;
    let s = common(own(&ca.leaf(SERVER)), validate(trusting(&ca.pem)));
    let (s, c) = contexts(&store, s, c);
    let (server, _) = meet(&s, &c).await;
    assert_eq!(server.expect("served").version, "TLSv1.2");
}

#[tokio::test]
async fn plaintext_to_a_tls_context_is_named() {
    let (store, ca) = (store(), Ca::new("root"));
    let s = common(own(&ca.leaf(SERVER)), validate(trusting(&ca.pem)));
    let s = DownstreamContext::build(&server(s), &store).expect("context");
    let cases: [(&[u8], &str); 3] = [
        (
            b"GET / HTTP/1.1\r\n\r\n",
            "TLS_error:|268435612:SSL routines:OPENSSL_internal:HTTP_REQUEST:TLS_error_end",
        ),
        (b"CONNECT a HTTP/1.1\r\n", "HTTPS_PROXY_REQUEST"),
        (b"\x00\x01\x02\x03\x04", "WRONG_VERSION_NUMBER"),
    ];
    for (bytes, text) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let mut peer = TcpStream::connect(listener.local_addr().expect("bound"))
            .await
            .expect("connects");
        peer.write_all(bytes).await.expect("sent");
        let (socket, _) = listener.accept().await.expect("accepts");
        let result = s.accept(Rewound::new(Bytes::new(), socket)).await;
        let failure = result.expect_err("refused");
        assert!(failure.reason.contains(text), "{failure}");
    }
}
