//! Variables and files to the workload's identity: tokens, keys, renewal, files.

use super::*;

struct Pod {
    directory: tempfile::TempDir,
    settings: ProxySettings,
}

impl Pod {
    fn new(files: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        for file in files {
            let path = directory.path().join(file);
            std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
            std::fs::write(path, "x").expect("file");
        }
        let settings = ProxySettings {
            discovery_address: "istiod.istio-system.svc:15012".to_owned(),
            ..ProxySettings::default()
        };
        Self {
            directory,
            settings,
        }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    fn with<T>(&self, variables: &[(&str, &str)], see: impl FnOnce(Security<'_>) -> T) -> T {
        let environment: Environment = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        see(Security {
            environment: &environment,
            settings: &self.settings,
            compliance: None,
            directory: self.directory.path(),
        })
    }
}

#[test]
fn request_settings_of_the_ca() {
    let pod = Pod::new(&["var/run/secrets/istio/root-cert.pem"]);
    let variables = [
        ("SECRET_TTL", "1h30m"),
        ("ISTIO_META_CERT_SIGNER", "signer"),
    ];
    let ca = pod.with(&variables, |s| s.ca().expect("settings"));
    assert_eq!(ca.ttl, Duration::from_secs(5400));
    assert_eq!(ca.cert_signer, "signer");
    for variables in [&[][..], &[("SECRET_TTL", "soon")], &[("SECRET_TTL", "-1h")]] {
        let ca = pod.with(variables, |s| s.ca().expect("settings"));
        assert_eq!(ca.ttl, Duration::from_secs(24 * 3600), "{variables:?}");
    }
}

#[test]
fn credential_fetchers() {
    let pod = Pod::new(&[]);
    let token_file = pod.path(TOKEN_FILE);
    let jwt = CredentialSource::JwtFile(token_file.clone());
    let gce = CredentialSource::Gce(GceFetcher {
        host: "metadata:8080".to_owned(),
        audience: "td".to_owned(),
        token_file,
    });
    for (kind, expected) in [
        ("", Some(jwt.clone())),
        ("JWT", Some(jwt)),
        ("Mock", Some(CredentialSource::Mock)),
        ("GoogleComputeEngine", Some(gce)),
        ("jwt", None),
    ] {
        let variables = [
            ("CREDENTIAL_FETCHER_TYPE", kind),
            ("TRUST_DOMAIN", "td"),
            ("GCE_METADATA_HOST", "metadata:8080"),
            // Without effect, as in the reference.
            ("CREDENTIAL_IDENTITY_PROVIDER", "x"),
            ("XDS_AUTH_PROVIDER", "y"),
            ("JWT_POLICY", "first-party-jwt"),
        ];
        let got = pod.with(&variables, |s| s.credential());
        assert_eq!(got.ok(), expected, "{kind}");
    }
}

#[test]
fn kinds_of_keys() {
    let pod = Pod::new(&[]);
    let ecdsa = ("ECC_SIGNATURE_ALGORITHM", "ECDSA");
    for (variables, algorithm, pkcs8) in [
        (&[][..], Some(KeyAlgorithm::Rsa(2048)), false),
        (
            &[("WORKLOAD_RSA_KEY_SIZE", "4096"), ("PKCS8_KEY", "true")],
            Some(KeyAlgorithm::Rsa(4096)),
            true,
        ),
        (&[("WORKLOAD_RSA_KEY_SIZE", "1024")], None, false),
        (&[("WORKLOAD_RSA_KEY_SIZE", "2500")], None, false),
        (
            &[("WORKLOAD_RSA_KEY_SIZE", "many")],
            Some(KeyAlgorithm::Rsa(2048)),
            false,
        ),
        (
            &[ecdsa, ("WORKLOAD_RSA_KEY_SIZE", "1024")],
            Some(KeyAlgorithm::EcdsaP256),
            false,
        ),
        (
            &[ecdsa, ("ECC_CURVE", "P384")],
            Some(KeyAlgorithm::EcdsaP384),
            false,
        ),
        (
            &[ecdsa, ("ECC_CURVE", "P521")],
            Some(KeyAlgorithm::EcdsaP256),
            false,
        ),
    ] {
        let got = pod.with(variables, |s| s.keys().ok());
        let expected = algorithm.map(|algorithm| KeyConfig { algorithm, pkcs8 });
        assert_eq!(got, expected, "{variables:?}");
    }
}

#[test]
fn rotation_and_output() {
    let pod = Pod::new(&[]);
    let variables = [
        ("SECRET_GRACE_PERIOD_RATIO", "0.2"),
        ("SECRET_GRACE_PERIOD_RATIO_JITTER", "0.05"),
        ("OUTPUT_CERTS", "/out"),
    ];
    let rotation = pod.with(&variables, |s| s.rotation());
    assert_eq!((rotation.grace_ratio, rotation.jitter), (0.2, 0.05));
    assert_eq!(pod.with(&[], |s| s.rotation()), RotationConfig::default());
    let output = |mode| {
        let dir = PathBuf::from("/out");
        Some(OutputCerts { dir, mode })
    };
    assert_eq!(pod.with(&variables, |s| s.output()), output(0o600));
    let kubernetes = [("OUTPUT_CERTS", "/out"), ("KUBERNETES_SERVICE_HOST", "")];
    assert_eq!(pod.with(&kubernetes, |s| s.output()), output(0o644));
    assert_eq!(pod.with(&[], |s| s.output()), None);
    let crl = PathBuf::from("/var/run/secrets/istio/crl/ca-crl.pem");
    assert_eq!(pod.with(&[], |s| s.crl()), Some(crl));
    assert_eq!(pod.with(&[("PILOT_ENABLE_CA_CRL", "F")], |s| s.crl()), None);
    let retry = |variables: &[_]| pod.with(variables, |s| s.file_retry());
    assert_eq!(retry(&[]), Duration::from_millis(100));
    assert_eq!(
        retry(&[("FILE_DEBOUNCE_DURATION", "2s")]),
        Duration::from_secs(2)
    );
}

#[test]
fn mounted_files_win_unless_they_are_the_agent_s_own_output() {
    let legacy = ["key.pem", "cert-chain.pem", "root-cert.pem"].map(|f| format!("etc/certs/{f}"));
    let legacy: Vec<&str> = legacy.iter().map(String::as_str).collect();
    let csi = "var/run/secrets/workload-spiffe-credentials";
    let workload =
        ["key.pem", "cert-chain.pem", "root-cert.pem"].map(|file| format!("{csi}/{file}"));
    let gke = ["certificates.pem", "private_key.pem", "ca_certificates.pem"]
        .map(|file| format!("{csi}/{file}"));
    let all: Vec<&str> = workload.iter().chain(&gke).map(String::as_str).collect();
    let in_legacy = |pod: &Pod| MountedFiles::in_directory(&pod.path("etc/certs"));
    let mounted = |pod: &Pod, variables: &[_]| pod.with(variables, |s| s.mounted().ok());

    let pod = Pod::new(&[]);
    assert_eq!(mounted(&pod, &[]), Some(Mounted::Nothing));
    let promised = [("FILE_MOUNTED_CERTS", "true")];
    assert_eq!(
        mounted(&pod, &promised),
        Some(Mounted::All(in_legacy(&pod)))
    );
    assert_eq!(
        mounted(&pod, &[("CA_PROVIDER", "GkeWorkloadCertificate")]),
        None
    );

    let pod = Pod::new(&legacy);
    assert_eq!(mounted(&pod, &[]), Some(Mounted::All(in_legacy(&pod))));
    let output = pod.path("etc/../etc/certs");
    let output = output.to_str().expect("text");
    let own = [("OUTPUT_CERTS", output), ("PROV_CERT", output)];
    assert_eq!(mounted(&pod, &own), Some(Mounted::Nothing));
    assert_eq!(
        mounted(&pod, &[("OUTPUT_CERTS", "/else")]),
        Some(Mounted::All(in_legacy(&pod)))
    );
    std::fs::write(pod.path(legacy[2]), "").expect("empty the root");
    assert_eq!(mounted(&pod, &[]), Some(Mounted::Some(in_legacy(&pod))));
    std::fs::remove_file(pod.path(legacy[0])).expect("remove the key");
    assert_eq!(mounted(&pod, &[]), Some(Mounted::Nothing));

    let pod = Pod::new(&all);
    let folder = pod.path(csi);
    let spiffe = MountedFiles::in_directory(&folder);
    assert_eq!(mounted(&pod, &[]), Some(Mounted::All(spiffe)));
    assert_eq!(
        mounted(&pod, &[("CA_PROVIDER", "GkeWorkloadCertificate")]),
        Some(Mounted::All(MountedFiles::gke(&folder)))
    );
}
