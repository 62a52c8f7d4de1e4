//! CA client and secret manager against a CA in the process.

#[path = "support/authority.rs"]
mod authority;
#[path = "support/control_plane.rs"]
mod control_plane;
#[path = "support/pki.rs"]
mod pki;

use std::sync::atomic::Ordering;
use std::time::Duration;

use authority::{answer, ca_client, issue, read_request};
use aws_lc_rs::signature;
use control_plane::{ControlPlane, within};
use pilot_agent::ca_client::{CaError, ChainError};
use pilot_agent::secret_manager::{
    KeyAlgorithm, KeyConfig, KeyError, MountedFiles, OutputCerts, RotationConfig, SecretManager,
    SecretManagerConfig, SecretReceiver, SecretValue, WorkloadSource, generate, spiffe_id,
};
use pki::Authority;
use tonic::Status;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

const DAY: i64 = 86_400;

fn identity() -> String {
    spiffe_id("cluster.local", "ns1", "sa1")
}

fn pem_der(pem: &[u8]) -> (String, Vec<u8>) {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).expect("PEM");
    (block.label, block.contents)
}

#[test]
fn request_has_the_reference_subject_and_san_and_a_valid_signature() {
    const SUBJECT: &[u8] = &[
        0x30, 0x0b, 0x31, 0x09, 0x30, 0x07, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x13, 0x00,
    ];
    let uri = b"spiffe://cluster.local/ns/ns1/sa/sa1";
    // Extension { subjectAltName, critical TRUE, OCTET STRING { SEQUENCE { [6] uri } } }.
    let mut san = vec![
        0x30, 0x32, 0x06, 0x03, 0x55, 0x1d, 0x11, 0x01, 0x01, 0xff, 0x04, 0x28,
    ];
    san.extend_from_slice(&[0x30, 0x26, 0x86, 0x24]);
    san.extend_from_slice(uri);
    for (algorithm, pkcs8, label, verify) in [
        (
            KeyAlgorithm::Rsa(2048),
            false,
            "RSA PRIVATE KEY",
            &signature::RSA_PKCS1_2048_8192_SHA256 as &dyn signature::VerificationAlgorithm,
        ),
        (
            KeyAlgorithm::Rsa(2048),
            true,
            "PRIVATE KEY",
            &signature::RSA_PKCS1_2048_8192_SHA256,
        ),
        (
            KeyAlgorithm::EcdsaP256,
            false,
            "EC PRIVATE KEY",
            &signature::ECDSA_P256_SHA256_ASN1,
        ),
        (
            KeyAlgorithm::EcdsaP384,
            true,
            "PRIVATE KEY",
            &signature::ECDSA_P384_SHA384_ASN1,
        ),
    ] {
        let key = generate(KeyConfig { algorithm, pkcs8 }, &identity()).expect("key");
        let (csr_label, der) = pem_der(key.csr_pem.as_bytes());
        assert_eq!(csr_label, "CERTIFICATE REQUEST");
        assert_eq!(pem_der(&key.key_pem).0, label);
        let (rest, csr) = X509CertificationRequest::from_der(&der).expect("request");
        assert!(rest.is_empty());
        let info = &csr.certification_request_info;
        assert_eq!(info.subject.as_raw(), SUBJECT);
        assert!(
            der.windows(san.len()).any(|w| w == san),
            "{algorithm:?}: SAN differs"
        );
        let public = info.subject_pki.subject_public_key.data.as_ref();
        assert_eq!(public, key.public_key);
        signature::UnparsedPublicKey::new(verify, public)
            .verify(info.raw, csr.signature_value.data.as_ref())
            .expect("signature of the request");
        // The private key is the one of the request, in a form that TLS stacks read.
        let der = rustls_pki_types::pem::PemObject::from_pem_slice(&key.key_pem).expect("key");
        rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).expect("usable key");
        assert!(
            !format!("{key:?}").contains("PRIVATE"),
            "keys are not printed"
        );
    }
}

#[test]
fn small_and_odd_rsa_keys_are_refused_by_name() {
    for bits in [512, 1024, 2047, 2500] {
        let config = KeyConfig {
            algorithm: KeyAlgorithm::Rsa(bits),
            pkcs8: false,
        };
        let error = generate(config, &identity()).expect_err("refused");
        assert_eq!(error, KeyError::RsaSize(bits));
        assert!(error.to_string().contains("WORKLOAD_RSA_KEY_SIZE"));
    }
}

#[tokio::test]
async fn request_carries_token_cluster_and_validity_over_tls() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (root, token) = (dir.path().join("root.pem"), dir.path().join("token"));
    let authority = Authority::new("one");
    std::fs::write(&root, &authority.root_pem).expect("root");
    std::fs::write(&token, "first\n").expect("token");
    let mut plane = ControlPlane::start(Some(&authority)).await;
    let client = ca_client(plane.address, Some(&root), &token);
    let key = generate(KeyConfig::default(), &identity()).expect("key");
    for bearer in [Some("Bearer first"), Some("Bearer second"), None] {
        let serve = async {
            let mut call = plane.call().await;
            assert_eq!(call.bearer(), bearer);
            assert_eq!(call.headers["clusterid"], "Kubernetes");
            let request = read_request(&mut call).await;
            assert_eq!(request.csr, key.csr_pem);
            assert_eq!(request.validity_duration, DAY);
            // Struct { fields: { "CertSigner": Value { string_value: "" } } }.
            assert_eq!(
                request.metadata,
                b"\x0a\x10\x0a\x0aCertSigner\x12\x02\x1a\x00"
            );
            let leaf = authority.sign(&request.csr, DAY);
            answer(call, vec![leaf, authority.root_pem.clone()]).await;
        };
        let (chain, ()) = tokio::join!(
            client.create_certificate(&key.csr_pem, &key.public_key, Duration::MAX),
            serve
        );
        let chain = chain.expect("certificate");
        assert_eq!(chain.root(), authority.root_pem);
        match bearer {
            Some("Bearer first") => std::fs::write(&token, " second ").expect("token"),
            _ => std::fs::remove_file(&token).unwrap_or_default(),
        }
    }
}

#[tokio::test]
async fn root_file_is_read_for_each_connection() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (root, token) = (dir.path().join("root.pem"), dir.path().join("token"));
    let (right, wrong) = (Authority::new("right"), Authority::new("wrong"));
    std::fs::write(&root, &wrong.root_pem).expect("root");
    let mut plane = ControlPlane::start(Some(&right)).await;
    let client = ca_client(plane.address, Some(&root), &token);
    let key = generate(KeyConfig::default(), &identity()).expect("key");
    let error = within(client.create_certificate(&key.csr_pem, &key.public_key, Duration::MAX))
        .await
        .expect_err("server is not trusted");
    assert!(error.to_string().contains("TLS handshake"), "{error}");
    assert_eq!(client.metrics().retries.load(Ordering::Relaxed), 4);
    std::fs::write(&root, &right.root_pem).expect("root");
    let (chain, ()) = tokio::join!(
        client.create_certificate(&key.csr_pem, &key.public_key, Duration::MAX),
        async { issue(plane.call().await, &right, DAY).await }
    );
    chain.expect("certificate with the new root");
}

#[tokio::test]
async fn transient_codes_are_tried_again_and_others_are_not() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new("ca");
    let mut plane = ControlPlane::start(None).await;
    let client = ca_client(plane.address, None, &dir.path().join("token"));
    let key = generate(KeyConfig::default(), &identity()).expect("key");
    let (chain, ()) = tokio::join!(
        client.create_certificate(&key.csr_pem, &key.public_key, Duration::MAX),
        async {
            for status in [
                Status::unavailable("x"),
                Status::internal("x"),
                Status::aborted("x"),
            ] {
                plane.call().await.end(status);
            }
            issue(plane.call().await, &authority, DAY).await;
        }
    );
    chain.expect("certificate after three failures");
    let (error, ()) = tokio::join!(
        client.create_certificate(&key.csr_pem, &key.public_key, Duration::MAX),
        async {
            plane
                .call()
                .await
                .end(Status::unauthenticated("expired token"));
        }
    );
    let error = error.expect_err("refused");
    assert_eq!(error.code(), "UNAUTHENTICATED");
    assert!(error.to_string().contains("expired token"));
    let metrics = client.metrics();
    assert_eq!(metrics.retries.load(Ordering::Relaxed), 3);
    assert_eq!(metrics.requests.load(Ordering::Relaxed), 2);
    assert_eq!(metrics.failed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn bad_chains_are_typed_errors() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new("ca");
    let mut plane = ControlPlane::start(None).await;
    let client = ca_client(plane.address, None, &dir.path().join("token"));
    let key = generate(KeyConfig::default(), &identity()).expect("key");
    let other = generate(KeyConfig::default(), &identity()).expect("key");
    let root = authority.root_pem.clone();
    let good = authority.sign(&key.csr_pem, DAY);
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
    type Expected = fn(&ChainError) -> bool;
    let table: Vec<(Vec<String>, Expected)> = vec![
        (vec![], |e| *e == ChainError::TooShort(0)),
        (vec![good.clone()], |e| *e == ChainError::TooShort(1)),
        (vec!["garbage".into(), root.clone()], |e| {
            *e == ChainError::NotPem(0)
        }),
        (vec![good.clone(), String::new()], |e| {
            *e == ChainError::NotPem(1)
        }),
        (vec![good.clone(), broken], |e| *e == ChainError::NotX509(1)),
        (
            vec![authority.sign(&other.csr_pem, DAY), root.clone()],
            |e| *e == ChainError::KeyMismatch,
        ),
        (vec![authority.sign(&key.csr_pem, -10), root], |e| {
            matches!(e, ChainError::Expired(_))
        }),
    ];
    for (index, (chain, expected)) in table.into_iter().enumerate() {
        let (result, ()) = tokio::join!(
            client.create_certificate(&key.csr_pem, &key.public_key, Duration::MAX),
            async {
                answer(plane.call().await, chain).await;
            }
        );
        match result {
            Err(CaError::Chain(error)) => assert!(expected(&error), "case {index}: {error}"),
            other => panic!("case {index}: {other:?}"),
        }
    }
    assert_eq!(client.metrics().retries.load(Ordering::Relaxed), 0);
}

fn manager_config(source: WorkloadSource) -> SecretManagerConfig {
    let mut config = SecretManagerConfig::new(identity(), source);
    config.key.algorithm = KeyAlgorithm::EcdsaP256;
    config.rotation = RotationConfig {
        first_retry: Duration::from_millis(10),
        max_retry: Duration::from_millis(20),
        ..RotationConfig::default()
    };
    // What changes must be seen by events.
    config.file_poll = Duration::from_secs(3600);
    config.file_retry = Duration::from_millis(5);
    config
}

async fn next(receiver: &mut SecretReceiver) -> std::sync::Arc<SecretValue> {
    loop {
        if let Some(value) = receiver.borrow_and_update().clone() {
            return value;
        }
        within(receiver.changed()).await.expect("manager lives");
    }
}

#[tokio::test]
async fn rotation_goes_on_without_subscribers_while_the_ca_fails_half_of_the_time() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new("ca");
    let mut plane = ControlPlane::start(None).await;
    let client = ca_client(plane.address, None, &dir.path().join("token"));
    let mut config = manager_config(WorkloadSource::Ca(client));
    config.output = Some(OutputCerts {
        dir: dir.path().to_owned(),
        mode: 0o600,
    });
    let manager = SecretManager::spawn(config);
    let mut chains = Vec::new();
    for round in 0..4 {
        // Not transient, so that the manager's own retry is what goes on.
        plane.call().await.end(Status::permission_denied("not now"));
        // Two seconds of life: renewed after about one.
        issue(plane.call().await, &authority, 3).await;
        let mut status = manager.status();
        within(status.wait_for(|s| s.issued == round + 1))
            .await
            .expect("manager lives");
        let written = std::fs::read(dir.path().join("cert-chain.pem")).expect("output");
        chains.push(written);
        assert_eq!(
            std::fs::read_to_string(dir.path().join("root-cert.pem"))
                .expect("output")
                .trim(),
            authority.root_pem.trim()
        );
    }
    chains.dedup();
    assert_eq!(chains.len(), 4, "each renewal gives another certificate");
    assert_eq!(manager.status().borrow().failures, 4);
}

#[tokio::test]
async fn bad_answer_never_replaces_the_served_certificate() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new("ca");
    let mut plane = ControlPlane::start(None).await;
    let client = ca_client(plane.address, None, &dir.path().join("token"));
    let manager = SecretManager::spawn(manager_config(WorkloadSource::Ca(client)));
    let mut workload = manager.subscribe("default").expect("known name");
    let mut roots = manager.subscribe("ROOTCA").expect("known name");
    // Long enough to be still valid when a busy machine gets to check it.
    issue(plane.call().await, &authority, 4).await;
    let first = next(&mut workload).await;
    let first_root = next(&mut roots).await;
    let evil = Authority::new("evil");
    for number in 1..=3 {
        answer(
            plane.call().await,
            vec!["garbage".into(), evil.root_pem.clone()],
        )
        .await;
        let mut status = manager.status();
        within(status.wait_for(|s| s.failures == number))
            .await
            .expect("manager lives");
        assert!(status.borrow().last_error.is_some());
        assert!(!workload.has_changed().expect("manager lives"));
        assert!(!roots.has_changed().expect("manager lives"));
    }
    // A good one with another root replaces both.
    issue(plane.call().await, &evil, DAY).await;
    within(workload.changed()).await.expect("manager lives");
    assert_ne!(next(&mut workload).await, first);
    assert_ne!(next(&mut roots).await, first_root);
    assert!(manager.status().borrow().last_error.is_none());
}

#[tokio::test]
async fn further_anchors_push_roots_and_renew_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (authority, extra) = (Authority::new("ca"), Authority::new("extra"));
    let mut plane = ControlPlane::start(None).await;
    let client = ca_client(plane.address, None, &dir.path().join("token"));
    let manager = SecretManager::spawn(manager_config(WorkloadSource::Ca(client)));
    let mut roots = manager.subscribe("ROOTCA").expect("known name");
    issue(plane.call().await, &authority, DAY).await;
    within(manager.status().wait_for(|s| s.issued == 1))
        .await
        .expect("manager lives");
    next(&mut roots).await;
    manager.set_extra_roots(vec![extra.root_pem.clone()]);
    let value = next(&mut roots).await;
    let SecretValue::Roots(pem) = &*value else {
        panic!("roots")
    };
    let text = String::from_utf8_lossy(pem);
    assert!(text.contains(extra.root_pem.trim()) && text.contains(authority.root_pem.trim()));
    issue(plane.call().await, &authority, DAY).await;
    within(manager.status().wait_for(|s| s.issued == 2))
        .await
        .expect("manager lives");
    manager.set_extra_roots(vec![extra.root_pem]);
    assert!(
        !roots.has_changed().expect("manager lives"),
        "the same list does nothing"
    );
}

#[tokio::test]
async fn mounted_files_are_followed_through_symlinked_rotations() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new("mount");
    // As the kubelet publishes: ..data -> ..version, names -> ..data/name.
    let publish = |version: &str| {
        let folder = dir.path().join(version);
        std::fs::create_dir(&folder).expect("folder");
        let (cert, key) = authority.certificate("workload");
        std::fs::write(folder.join("cert-chain.pem"), &cert).expect("cert");
        std::fs::write(folder.join("key.pem"), key).expect("key");
        std::fs::write(folder.join("root-cert.pem"), &authority.root_pem).expect("root");
        let link = dir.path().join("..data_tmp");
        std::os::unix::fs::symlink(version, &link).expect("symlink");
        std::fs::rename(&link, dir.path().join("..data")).expect("publish");
        cert
    };
    let first = publish("..1");
    for name in ["cert-chain.pem", "key.pem", "root-cert.pem"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), dir.path().join(name))
            .expect("symlink");
    }
    let mounted = MountedFiles::in_directory(dir.path());
    assert!(mounted.present());
    let named = format!(
        "file-cert:{}~{}",
        mounted.chain.display(),
        mounted.key.display()
    );
    let manager = SecretManager::spawn(manager_config(WorkloadSource::Files(mounted.clone())));
    let mut receivers = [
        manager.subscribe("default").expect("known name"),
        manager.subscribe(&named).expect("known name"),
    ];
    let mut expected = first;
    for version in ["..2", "..3", ""] {
        for receiver in &mut receivers {
            within(receiver.wait_for(|value| {
                matches!(value.as_deref(), Some(SecretValue::Certificate { chain, .. })
                    if chain == expected.as_bytes())
            }))
            .await
            .expect("manager lives");
        }
        if !version.is_empty() {
            expected = publish(version);
        }
    }
    // A key that does not belong to the certificate is not served.
    let (_, foreign) = authority.certificate("workload");
    std::fs::remove_file(&mounted.key).expect("remove");
    std::fs::write(&mounted.key, foreign).expect("write");
    let before = manager.file_failures();
    within(async {
        while manager.file_failures() < before + 2 {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let current = receivers[0].borrow().clone().expect("still served");
    let SecretValue::Certificate { chain, .. } = &*current else {
        panic!("certificate")
    };
    assert_eq!(chain, expected.as_bytes());
}

#[tokio::test]
async fn identities_are_not_served_beside_an_external_sds() {
    let manager = SecretManager::spawn(manager_config(WorkloadSource::FileNamesOnly));
    assert!(manager.subscribe("default").is_err());
    assert!(manager.subscribe("ROOTCA").is_err());
    assert!(manager.subscribe("nonsense").is_err());
    assert!(manager.subscribe("file-root:/x").is_ok());
}
