//! What may replace a secret that is served, and by what the agent proves itself to the CA.

#[path = "support/authority.rs"]
mod authority;
#[path = "support/clock.rs"]
mod clock;
#[path = "support/control_plane.rs"]
mod control_plane;
#[path = "support/pki.rs"]
mod pki;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use authority::{answer, ca_client, ca_client_with, issue, read_request};
use clock::TestClock;
use control_plane::{Call, ControlPlane, SERVER_NAME, within};
use pilot_agent::ca_client::{CaClient, CaConfig};
use pilot_agent::credential::{CredentialSource, RequestMetadata};
use pilot_agent::istiod::{
    ClientCertificate, Compliance, IstiodConfig, IstiodConnector, RootSource, TlsSettings,
};
use pilot_agent::secret_manager::{
    KeyAlgorithm, KeyConfig, MountedFiles, OutputCerts, SecretManager, SecretManagerConfig,
    SecretReceiver, SecretValue, SystemClock, WorkloadSource, generate, spiffe_id,
};
use pki::Authority;
use tonic::Status;

const DAY: i64 = 86_400;

fn identity() -> String {
    spiffe_id("cluster.local", "ns1", "sa1")
}

fn config(source: WorkloadSource) -> SecretManagerConfig {
    let mut config = SecretManagerConfig::new(identity(), source);
    config.key.algorithm = KeyAlgorithm::EcdsaP256;
    // Nothing but events may show a change of files.
    config.file_poll = Duration::from_secs(3600);
    config.file_retry = Duration::from_secs(3600);
    config
}

fn ecdsa_key() -> pilot_agent::secret_manager::KeyAndCsr {
    let config = KeyConfig {
        algorithm: KeyAlgorithm::EcdsaP256,
        pkcs8: false,
    };
    generate(config, &identity()).expect("key")
}

async fn next(receiver: &mut SecretReceiver) -> Arc<SecretValue> {
    let wanted = within(receiver.wait_for(Option::is_some)).await;
    let value = wanted.expect("manager lives").clone().expect("a value");
    receiver.mark_unchanged();
    value
}

fn roots_text(value: &Arc<SecretValue>) -> String {
    match &**value {
        SecretValue::Roots(pem) => String::from_utf8_lossy(pem).into_owned(),
        SecretValue::Certificate { .. } => panic!("roots"),
    }
}

/// Signs for `uri`, valid for a day of the clock `now`.
async fn issue_as(mut call: Call, authority: &Authority, uri: &str, now: SystemTime) {
    let request = read_request(&mut call).await;
    let (from, to) = (
        now - Duration::from_secs(60),
        now + Duration::from_secs(86_400),
    );
    let leaf = authority.sign_as(uri, &request.csr, from, to);
    answer(call, vec![leaf, authority.root_pem.clone()]).await;
}

#[tokio::test]
async fn a_certificate_for_another_workload_never_replaces_a_valid_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new("ca");
    let mut plane = ControlPlane::start(None).await;
    let (clock, mut sleepers) = TestClock::new();
    let day = Duration::from_secs(86_400);
    let token = dir.path().join("token");
    let client = ca_client_with(plane.address, None, &token, day, clock.clone());
    let mut config = config(WorkloadSource::Ca(client));
    config.clock = clock.clone();
    let manager = SecretManager::spawn(config);
    let mut workload = manager.subscribe("default").expect("known name");
    for (uri, replaces) in [
        ("spiffe://cluster.local/ns/ns1/sa/sa1", true),
        ("spiffe://cluster.local/ns/ns1/sa/other", false),
        ("spiffe://cluster.local/ns/other/sa/sa1", false),
        ("https://x", false),
        // The trust domain is being migrated.
        ("spiffe://other.domain/ns/ns1/sa/sa1", true),
        ("spiffe://cluster.local/ns/ns1/sa/sa1", true),
    ] {
        let before = manager.status().borrow().clone();
        issue_as(plane.call().await, &authority, uri, clock.now_wall()).await;
        // The manager has judged the answer when it sleeps again.
        let wait = within(sleepers.recv()).await.expect("manager lives");
        let after = manager.status().borrow().clone();
        assert_eq!(after.issued > before.issued, replaces, "{uri}");
        assert_eq!(after.failures > before.failures, !replaces, "{uri}");
        assert_eq!(
            workload.has_changed().expect("manager lives"),
            replaces,
            "{uri}"
        );
        workload.mark_unchanged();
        if !replaces {
            let error = after.last_error.expect("a reason");
            assert!(
                error.contains(uri) && error.contains("the one in use"),
                "{error}"
            );
        }
        clock.advance(wait);
    }
}

#[tokio::test]
async fn answers_of_any_length_are_bounded() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut plane = ControlPlane::start(None).await;
    let client = ca_client(plane.address, None, &dir.path().join("token"));
    let key = ecdsa_key();
    for _ in 0..2 {
        let serve = async {
            for _ in 0..5 {
                let call = plane.call().await;
                let limit = Duration::from_secs(20);
                let huge = vec!["x".repeat(5 << 20)];
                // The client hangs up while it is being sent.
                let _ = tokio::time::timeout(limit, authority::try_answer(call, huge)).await;
            }
        };
        let (result, ()) = tokio::join!(
            client.create_certificate(&key.csr_pem, &key.public_key, Duration::ZERO),
            serve
        );
        let error = result.expect_err("refused").to_string();
        assert!(error.contains("limit is 4194304"), "{error}");
    }
}

#[tokio::test]
async fn a_refused_token_is_shown_again_only_if_it_is_another() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new("ca");
    let token = dir.path().join("token");
    std::fs::write(&token, "old").expect("token");
    let mut plane = ControlPlane::start(None).await;
    let client = ca_client(plane.address, None, &token);
    let key = ecdsa_key();
    let request = || client.create_certificate(&key.csr_pem, &key.public_key, Duration::ZERO);
    let (result, ()) = tokio::join!(request(), async {
        plane.call().await.end(Status::unauthenticated("expired"));
    });
    assert_eq!(result.expect_err("refused").code(), "UNAUTHENTICATED");
    let (result, ()) = tokio::join!(request(), async {
        let call = plane.call().await;
        assert_eq!(call.bearer(), Some("Bearer old"));
        std::fs::write(&token, "new").expect("token");
        call.end(Status::unauthenticated("expired"));
        let call = plane.call().await;
        assert_eq!(call.bearer(), Some("Bearer new"));
        issue(call, &authority, DAY).await;
    });
    result.expect("certificate");
    assert_eq!(client.metrics().retries.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn anchors_of_the_mesh_are_added_and_broken_ones_never_replace_them() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let names = ["ca", "static", "received"];
    let [ca, fixed, received] = names.map(Authority::new);
    let mut plane = ControlPlane::start(None).await;
    let client = ca_client(plane.address, None, &dir.path().join("token"));
    let mut config = config(WorkloadSource::Ca(client));
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    config.anchors = vec![broken.to_owned(), fixed.root_pem.clone()];
    let manager = SecretManager::spawn(config);
    let mut roots = manager.subscribe("ROOTCA").expect("known name");
    let count = |text: &str| text.matches("BEGIN CERTIFICATE").count();
    issue(plane.call().await, &ca, DAY).await;
    let text = roots_text(&next(&mut roots).await);
    assert!(text.contains(fixed.root_pem.trim()) && text.contains(ca.root_pem.trim()));
    assert_eq!(count(&text), 2);
    manager.set_extra_roots(vec![format!("{broken}{}", received.root_pem)]);
    issue(plane.call().await, &ca, DAY).await;
    within(roots.changed()).await.expect("manager lives");
    let text = roots_text(&next(&mut roots).await);
    assert!(text.contains(received.root_pem.trim()));
    assert_eq!(count(&text), 3);
    manager.set_extra_roots(vec![broken.to_owned()]);
    manager.set_extra_roots(vec![String::new()]);
    assert!(!roots.has_changed().expect("manager lives"));
    // No anchors at all is a decision, not damage.
    manager.set_extra_roots(Vec::new());
    within(roots.changed()).await.expect("manager lives");
    assert_eq!(count(&roots_text(&next(&mut roots).await)), 2);
}

#[tokio::test]
async fn a_mounted_root_wins_while_the_ca_gives_the_certificate() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (ca, mounted) = (Authority::new("ca"), Authority::new("mounted"));
    let out = dir.path().join("out");
    std::fs::create_dir(&out).expect("folder");
    let files = MountedFiles::in_directory(dir.path());
    std::fs::write(&files.root, &mounted.root_pem).expect("root");
    let mut plane = ControlPlane::start(None).await;
    let client = ca_client(plane.address, None, &dir.path().join("token"));
    let mut config = config(WorkloadSource::FilesAndCa(files.clone(), client));
    config.output = Some(OutputCerts {
        dir: out.clone(),
        mode: 0o644,
    });
    let manager = SecretManager::spawn(config);
    let mut roots = manager.subscribe("ROOTCA").expect("known name");
    issue(plane.call().await, &ca, DAY).await;
    within(manager.status().wait_for(|s| s.issued == 1))
        .await
        .expect("manager lives");
    assert!(manager.status().borrow().not_after.is_some());
    let text = roots_text(&next(&mut roots).await);
    assert_eq!(text.trim(), mounted.root_pem.replace("\r\n", "\n").trim());
    // A renewed root file is seen at once and written out, too.
    let other = Authority::new("other");
    std::fs::write(&files.root, &other.root_pem).expect("root");
    within(roots.changed()).await.expect("manager lives");
    let text = roots_text(&next(&mut roots).await);
    assert_eq!(text.trim(), other.root_pem.replace("\r\n", "\n").trim());
    let written = std::fs::read_to_string(out.join("root-cert.pem")).expect("output");
    assert_eq!(written, text);
    for name in ["key.pem", "cert-chain.pem", "root-cert.pem"] {
        let meta = std::fs::metadata(out.join(name)).expect("output");
        assert_eq!(meta.permissions().mode() & 0o777, 0o644, "{name}");
    }
}

#[tokio::test]
async fn the_system_s_bundle_is_served_by_its_name_where_there_is_one() {
    let manager = SecretManager::spawn(config(WorkloadSource::FileNamesOnly));
    let mut system = manager.subscribe("file-root:system").expect("known name");
    let mut paths = pilot_agent::istiod::SYSTEM_ROOTS.iter();
    match paths.find(|path| Path::new(path).exists()) {
        Some(path) => {
            let text = roots_text(&next(&mut system).await);
            let file = std::fs::read_to_string(path).expect("bundle");
            let count = |text: &str| text.matches("BEGIN CERTIFICATE").count();
            assert_eq!(count(&text), count(&file));
        }
        // It is served when it is installed.
        None => assert!(system.borrow().is_none()),
    }
}

/// A client of the CA with TLS and the certificate files of `dir` (`PROV_CERT`).
fn provisioned(plane: &ControlPlane, dir: &Path) -> Arc<CaClient> {
    let tls = TlsSettings {
        roots: RootSource::File(dir.join("root-cert.pem")),
        client: Some(ClientCertificate {
            chain: dir.join("cert-chain.pem"),
            key: dir.join("key.pem"),
        }),
        compliance: Compliance::None,
    };
    let endpoint = IstiodConfig {
        san: Some(SERVER_NAME.to_owned()),
        ..IstiodConfig::new(plane.address.to_string(), Some(tls))
    };
    Arc::new(CaClient::new(CaConfig {
        endpoint: IstiodConnector::new(endpoint).expect("valid address"),
        metadata: RequestMetadata {
            credential: CredentialSource::JwtFile(dir.join("token")),
            cluster_id: String::new(),
            headers: Vec::new(),
        },
        cert_signer: String::new(),
        ttl: Duration::from_secs(86_400),
        try_timeout: Duration::from_secs(10),
        clock: Arc::new(SystemClock),
    }))
}

#[tokio::test]
async fn client_certificate_is_shown_unless_it_is_expired_or_half_written() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new("ca");
    std::fs::write(dir.path().join("root-cert.pem"), &authority.root_pem).expect("root");
    std::fs::write(dir.path().join("token"), "t").expect("token");
    let mut plane = ControlPlane::start(Some(&authority)).await;
    let client = provisioned(&plane, dir.path());
    let (key, foreign) = (ecdsa_key(), ecdsa_key());
    let good = authority.sign(&key.csr_pem, DAY);
    let expired = authority.sign(&key.csr_pem, -10);
    for (chain, with, shown) in [
        ("", &key, false),
        (good.as_str(), &key, true),
        (&expired, &key, false),
        (&good, &foreign, false),
        ("garbage", &key, false),
    ] {
        std::fs::write(dir.path().join("cert-chain.pem"), chain).expect("chain");
        std::fs::write(dir.path().join("key.pem"), &*with.key_pem).expect("key");
        let request = client.create_certificate(&key.csr_pem, &key.public_key, Duration::ZERO);
        let (result, ()) = tokio::join!(request, async {
            let call = plane.call().await;
            assert_eq!(call.client_certificate.is_some(), shown, "{chain}");
            assert_eq!(call.bearer(), Some("Bearer t"));
            issue(call, &authority, DAY).await;
        });
        result.expect("certificate");
    }
}

/// A machine outside Kubernetes: a token for the first certificate, then the certificate itself.
#[tokio::test]
async fn output_that_is_also_the_client_certificate_renews_itself_without_a_token() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new("ca");
    std::fs::write(dir.path().join("root-cert.pem"), &authority.root_pem).expect("root");
    std::fs::write(dir.path().join("token"), "t").expect("token");
    let mut plane = ControlPlane::start(Some(&authority)).await;
    let mut config = config(WorkloadSource::Ca(provisioned(&plane, dir.path())));
    config.output = Some(OutputCerts {
        dir: dir.path().to_owned(),
        mode: 0o600,
    });
    let manager = SecretManager::spawn(config);
    let mut shown = None;
    for round in 1..=3 {
        let call = plane.call().await;
        assert_eq!(call.client_certificate, shown);
        assert_eq!(call.bearer().is_some(), round == 1);
        std::fs::remove_file(dir.path().join("token")).unwrap_or_default();
        // To be renewed soon by the machine's own clock.
        issue(call, &authority, 3).await;
        within(manager.status().wait_for(|s| s.issued == round))
            .await
            .expect("manager lives");
        let written = std::fs::read(dir.path().join("cert-chain.pem")).expect("output");
        let (_, block) = x509_parser::pem::parse_x509_pem(&written).expect("PEM");
        shown = Some(block.contents);
        let mode = std::fs::metadata(dir.path().join("key.pem"))
            .expect("output")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
