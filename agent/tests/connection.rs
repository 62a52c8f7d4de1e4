//! How connections to istiod and the CA are made: through an HTTP proxy, with client certificates,
//! with roots that change.

#[path = "support/pki.rs"]
mod pki;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pilot_agent::istiod::{
    ClientCertificate, Compliance, ConnectError, HttpsProxy, IstiodConfig, IstiodConnector,
    RootSource, TlsSettings,
};
use pilot_agent::resolver::Resolver;
use pki::Authority;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const NAME: &str = "istiod.istio-system.svc";

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("in time")
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    (listener, address)
}

fn settings(root: &Path, client: Option<ClientCertificate>) -> TlsSettings {
    TlsSettings {
        roots: RootSource::File(root.to_owned()),
        client,
        compliance: Compliance::None,
    }
}

/// TLS that asks for a client certificate; the handshake of the next connection gives it.
fn server(authority: &Authority, clients: &Authority) -> tokio_rustls::TlsAcceptor {
    let (cert, key) = authority.certificate(NAME);
    let pem = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).expect("certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pem(&clients.root_pem)).expect("root");
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .expect("verifier");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("key");
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![pem(&cert)], key)
        .expect("server certificate");
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn client_certificates_are_read_for_each_connection_and_left_out_when_unusable() {
    let (authority, clients) = (Authority::new("ca"), Authority::new("clients"));
    let acceptor = server(&authority, &clients);
    let dir = tempfile::tempdir().expect("folder");
    let file = |name: &str| dir.path().join(name);
    std::fs::write(file("root.pem"), &authority.root_pem).expect("root");
    let (listener, address) = listen().await;
    let client = ClientCertificate {
        chain: file("cert-chain.pem"),
        key: file("key.pem"),
    };
    let connector = IstiodConnector::new(IstiodConfig {
        san: Some(NAME.to_owned()),
        ..IstiodConfig::new(
            address.to_string(),
            Some(settings(&file("root.pem"), Some(client))),
        )
    })
    .expect("valid");
    let connect = async || {
        let serve = async {
            let (tcp, _) = listener.accept().await.expect("accept");
            let tls = acceptor.accept(tcp).await.expect("handshake");
            let certificates = tls.get_ref().1.peer_certificates();
            certificates.map(|certs| certs[0].as_ref().to_vec())
        };
        let (open, shown) = within(async { tokio::join!(connector.open(), serve) }).await;
        open.expect("a connection");
        shown
    };
    let csr = |name: &str| {
        let key = rcgen::KeyPair::generate().expect("key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let csr = params.serialize_request(&key).expect("request");
        (csr.pem().expect("PEM"), key.serialize_pem())
    };
    assert_eq!(connect().await, None, "no files, no certificate");
    let mut last = None;
    for name in ["one.test", "two.test"] {
        let (request, key) = csr(name);
        let chain = clients.sign(&request, 3600);
        std::fs::write(file("cert-chain.pem"), &chain).expect("chain");
        std::fs::write(file("key.pem"), key).expect("key");
        let shown = connect().await;
        assert!(shown.is_some() && shown != last, "{name}");
        last = shown;
    }
    let (request, key) = csr("expired.test");
    std::fs::write(file("cert-chain.pem"), clients.sign(&request, -10)).expect("chain");
    std::fs::write(file("key.pem"), key).expect("key");
    assert_eq!(connect().await, None, "an expired certificate is not shown");
    std::fs::write(file("cert-chain.pem"), "garbage").expect("chain");
    assert_eq!(connect().await, None);
}

/// An HTTP proxy that connects every tunnel to `to`; gives the request lines.
fn proxy(listener: TcpListener, to: SocketAddr) -> JoinHandle<Vec<String>> {
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.expect("accept");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(near.read_u8().await.expect("request"));
        }
        let mut far = TcpStream::connect(to).await.expect("target");
        let established = b"HTTP/1.1 200 OK\r\n\r\n";
        near.write_all(established).await.expect("answer");
        // Either side may end it.
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        let head = String::from_utf8(head).expect("text");
        head.lines().map(str::to_owned).collect()
    })
}

#[tokio::test]
async fn istiod_is_reached_through_the_proxy_with_tls_end_to_end() {
    let authority = Authority::new("ca");
    let acceptor = server(&authority, &authority);
    let dir = tempfile::tempdir().expect("folder");
    let root = dir.path().join("root.pem");
    std::fs::write(&root, &authority.root_pem).expect("root");
    let (istiod, address) = listen().await;
    let (listener, proxy_address) = listen().await;
    let tunnel = proxy(listener, address);
    // The name is the proxy's to resolve: this resolver knows none.
    let connector = IstiodConnector::new(IstiodConfig {
        https_proxy: HttpsProxy::for_host(&format!("http://u:p@{proxy_address}"), "", (NAME, 1))
            .expect("a proxy"),
        resolver: Resolver::new("/dev/null", "/dev/null"),
        ..IstiodConfig::new(format!("{NAME}:15012"), Some(settings(&root, None)))
    })
    .expect("valid");
    let serve = async {
        let (tcp, _) = istiod.accept().await.expect("accept");
        let tls = acceptor.accept(tcp).await.expect("handshake");
        tls.get_ref().1.server_name().map(str::to_owned)
    };
    let (open, name) = within(async { tokio::join!(connector.open(), serve) }).await;
    drop(open.expect("a connection"));
    assert_eq!(name.as_deref(), Some(NAME));
    let head = within(tunnel).await.expect("proxied");
    assert_eq!(head[0], format!("CONNECT {NAME}:15012 HTTP/1.1"));
    assert!(
        head.contains(&"Proxy-Authorization: Basic dTpw".to_owned()),
        "{head:?}"
    );
}

#[tokio::test]
async fn a_proxy_that_is_dead_or_refuses_is_named() {
    let (listener, address) = listen().await;
    let connector = |address: SocketAddr| {
        let url = format!("http://u:secret@{address}");
        IstiodConnector::new(IstiodConfig {
            https_proxy: HttpsProxy::for_host(&url, "", (NAME, 1)).expect("a proxy"),
            ..IstiodConfig::new(format!("{NAME}:15012"), None)
        })
        .expect("valid")
    };
    let refuse = async {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await.expect("request");
        let answer = b"HTTP/1.1 403 Forbidden\r\n\r\n";
        stream.write_all(answer).await.expect("answer");
    };
    let refused = connector(address);
    let (open, ()) = within(async { tokio::join!(refused.open(), refuse) }).await;
    let error = open.expect_err("refused").to_string();
    let want =
        format!("HTTPS_PROXY {address}: proxy refuses the tunnel: \"HTTP/1.1 403 Forbidden\"");
    assert_eq!(error, want);
    drop(listener);
    let error = within(connector(address).open()).await.expect_err("dead");
    assert!(matches!(error, ConnectError::Tcp { .. }), "{error}");
    assert!(!error.to_string().contains("secret"));
}

#[tokio::test]
async fn roots_are_read_for_each_connection_and_a_bad_file_trusts_nobody() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let dir = tempfile::tempdir().expect("folder");
    let root = dir.path().join("root.pem");
    let (listener, address) = listen().await;
    let connector = IstiodConnector::new(IstiodConfig {
        san: Some(NAME.to_owned()),
        ..IstiodConfig::new(address.to_string(), Some(settings(&root, None)))
    })
    .expect("valid");
    let missing = within(connector.open()).await.expect_err("no file");
    assert!(missing.to_string().contains("root.pem"), "{missing}");
    std::fs::write(&root, "-----BEGIN CERTIFICATE-----\ngarbage\n").expect("root");
    let unusable = within(connector.open()).await.expect_err("no root");
    assert!(
        unusable.to_string().contains("no usable certificate"),
        "{unusable}"
    );
    let acceptor = server(&new, &new);
    let connect = async || {
        let serve = async {
            let (tcp, _) = listener.accept().await.expect("accept");
            acceptor.accept(tcp).await.is_ok()
        };
        within(async { tokio::join!(connector.open(), serve) })
            .await
            .0
    };
    std::fs::write(&root, &old.root_pem).expect("root");
    let error = connect().await.expect_err("not trusted");
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
    // Both, as while a root is being replaced; then the new one alone.
    for roots in [
        format!("{}{}", old.root_pem, new.root_pem),
        new.root_pem.clone(),
    ] {
        std::fs::write(&root, roots).expect("root");
        connect().await.expect("trusted");
    }
}

#[tokio::test]
async fn compliance_policies_decide_versions_and_key_exchange() {
    use rustls::{NamedGroup, ProtocolVersion};
    let authority = Authority::new("ca");
    let acceptor = server(&authority, &authority);
    let dir = tempfile::tempdir().expect("folder");
    let root = dir.path().join("root.pem");
    std::fs::write(&root, &authority.root_pem).expect("root");
    let (listener, address) = listen().await;
    for (compliance, version, groups) in [
        (
            Compliance::Fips140V2,
            ProtocolVersion::TLSv1_2,
            &[NamedGroup::secp256r1][..],
        ),
        (
            Compliance::Fips140V3,
            ProtocolVersion::TLSv1_3,
            &[NamedGroup::secp256r1, NamedGroup::secp384r1],
        ),
        (
            Compliance::Pqc,
            ProtocolVersion::TLSv1_3,
            &[NamedGroup::X25519MLKEM768],
        ),
    ] {
        let tls = TlsSettings {
            compliance,
            ..settings(&root, None)
        };
        let connector = IstiodConnector::new(IstiodConfig {
            san: Some(NAME.to_owned()),
            ..IstiodConfig::new(address.to_string(), Some(tls))
        })
        .expect("valid");
        let serve = async {
            let (tcp, _) = listener.accept().await.expect("accept");
            let tls = acceptor.accept(tcp).await.expect("handshake");
            let session = tls.get_ref().1;
            let group = session.negotiated_key_exchange_group();
            (session.protocol_version(), group.map(|g| g.name()))
        };
        let (open, seen) = within(async { tokio::join!(connector.open(), serve) }).await;
        open.expect("a connection");
        assert_eq!(seen.0, Some(version), "{compliance:?}");
        assert!(seen.1.is_some_and(|g| groups.contains(&g)), "{seen:?}");
    }
}
