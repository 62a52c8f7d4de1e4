//! The agent as a process: where keys are and are not, and what the start refuses.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/authority.rs"]
mod authority;
#[path = "support/control_plane.rs"]
mod control_plane;
#[path = "support/peer.rs"]
mod peer;
#[path = "support/pki.rs"]
mod pki;

use std::os::unix::fs::{FileExt, MetadataExt};

use agent::{Running, SLEEPER, Setup, eventually, free_port};
use authority::issue;
use control_plane::ControlPlane;
use outrigger_xds::grpc::ServerOptions;
use peer::{Identity, Peer};
use pilot_agent::sds::{SdsConfig, SdsServer};
use pilot_agent::secret_manager::{SecretManager, SecretManagerConfig, WorkloadSource};
use pki::{Authority, assert_no_key_in};
use serde_json::json;

const SOCKET: &str = "var/run/secrets/workload-spiffe-uds/socket";
const DAY: i64 = 86_400;

/// Settings with `plane` as the CA.
fn with_ca(plane: &ControlPlane, authority: &Authority) -> Setup {
    let setup = Setup::new(SLEEPER, free_port());
    let root = setup.folder.path().join("ca.pem");
    std::fs::write(&root, &authority.root_pem).expect("root");
    // The name of any address with `localhost` is istiod's.
    setup
        .env("CA_ADDR", format!("localhost:{}", plane.address.port()))
        .env("CA_ROOT_CA", root.display().to_string())
        .env("ECC_SIGNATURE_ALGORITHM", "ECDSA")
}

/// A line of the key's PEM, and the private number in it.
fn needles(identity: &Identity) -> [Vec<u8>; 2] {
    let (_, block) = x509_parser::pem::parse_x509_pem(&identity.key).expect("PEM");
    let line = identity.key.split(|byte| *byte == b'\n').nth(1);
    // SEC1: SEQUENCE, version, OCTET STRING of 32 bytes.
    [
        line.expect("a line").to_vec(),
        block.contents[7..39].to_vec(),
    ]
}

/// Whether the memory of process `pid` holds `needle`.
fn memory_holds(pid: u32, needle: &[u8]) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("memory");
    let mut seen = false;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let (from, to) = range.expect("range");
        let number = |text| u64::from_str_radix(text, 16).expect("address");
        let (from, to) = (number(from), number(to));
        let mut content = vec![0; usize::try_from(to - from).expect("size")];
        // Reserved pages cannot be read; they hold nothing.
        if memory.read_exact_at(&mut content, from).is_ok() {
            seen = true;
            let starts = content
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte == needle[0]);
            if starts
                .into_iter()
                .any(|(at, _)| content[at..].starts_with(needle))
            {
                return true;
            }
        }
    }
    assert!(seen, "no memory could be read");
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_on_no_disk_and_leave_memory_when_they_are_replaced() {
    let authority = Authority::new("ca");
    let mut plane = ControlPlane::start(Some(&authority)).await;
    let agent = with_ca(&plane, &authority).start();
    // Renewed after a second or two.
    issue(plane.call().await, &authority, 4).await;
    let peer = Peer::subscribe(&agent.path(SOCKET)).await;
    let first = peer.received(1).await;
    issue(plane.call().await, &authority, DAY).await;
    let second = peer.received(2).await;
    assert_ne!(first.key, second.key);
    let pid = agent.child.id();
    let [line, _] = needles(&second);
    assert!(memory_holds(pid, &line), "the key in use is found");
    for needle in needles(&first) {
        assert!(!memory_holds(pid, &needle), "the key before is still there");
    }
    assert_no_key_in(agent.setup.folder.path());
    let (_, page) = agent.http("GET", "/stats/prometheus");
    for line in [
        "istio_agent_num_outgoing_requests{request_type=\"csr\"} 2",
        "istio_agent_cert_expiry_seconds{resource_name=\"default\"} 8",
        "istio_agent_outgoing_latency{request_type=\"csr\"} ",
    ] {
        assert!(page.contains(line), "{line} in\n{page}");
    }
    assert!(!page.contains("num_failed_outgoing_requests"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_certs_is_written_on_request_and_asked_anew_after_a_restart() {
    let authority = Authority::new("ca");
    let mut plane = ControlPlane::start(Some(&authority)).await;
    let setup = with_ca(&plane, &authority)
        .env("OUTPUT_CERTS", "./etc/certs")
        .env("PROV_CERT", "./etc/certs")
        .env("DISABLE_ENVOY", "true");
    let folder = setup.folder.path().join("etc/certs");
    std::fs::create_dir_all(&folder).expect("folder");
    // istiod's root; it is not there at the first start of a machine otherwise.
    std::fs::write(folder.join("root-cert.pem"), &authority.root_pem).expect("root");
    let mut agent = setup.start();
    let mut shown = None;
    for _ in 0..2 {
        let call = plane.call().await;
        assert_eq!(call.client_certificate, shown);
        issue(call, &authority, DAY).await;
        let chain = folder.join("cert-chain.pem");
        let leaf = eventually("the files", || {
            let written = std::fs::read(&chain).ok()?;
            let (_, block) = x509_parser::pem::parse_x509_pem(&written).ok()?;
            (Some(&block.contents) != shown.as_ref()).then_some(block.contents)
        });
        for name in ["key.pem", "cert-chain.pem"] {
            let meta = std::fs::metadata(folder.join(name)).expect("output");
            assert_eq!(meta.mode() & 0o777, 0o600, "{name}");
        }
        // Without a proxy nobody is served, and renewal goes on all the same.
        assert!(!agent.path(SOCKET).exists());
        shown = Some(leaf);
        agent = restart(agent);
    }
}

/// Ends the agent, and starts another in its folder.
fn restart(mut agent: Running) -> Running {
    agent.signal("-TERM");
    assert_eq!(agent.wait(), Some(0));
    let nothing = Setup::new(SLEEPER, free_port());
    std::mem::replace(&mut agent.setup, nothing).start()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_processes_of_the_user_cannot_read_the_agent() {
    let user = 1337;
    let authority = Authority::new("ca");
    for (core_dump, owner) in [("false", 0), ("true", user)] {
        let mut plane = ControlPlane::start(Some(&authority)).await;
        let setup = with_ca(&plane, &authority).env("ISTIO_ENVOY_ENABLE_CORE_DUMP", core_dump);
        let agent = setup.user(user).start();
        // It is past its first steps when it asks for a certificate.
        let call = plane.call().await;
        // The kernel gives these files to root if no core may be dumped: they hold memory.
        let meta = std::fs::metadata(format!("/proc/{}/mem", agent.child.id())).expect("process");
        assert_eq!(meta.uid(), owner, "core dumps: {core_dump}");
        drop(call);
    }
}

/// An SDS of somebody else: identities come from there, named files from the agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_an_external_sds_only_files_are_served() {
    let authority = Authority::new("mounted");
    let setup = Setup::new(SLEEPER, free_port());
    let root = setup.folder.path().join("other-root.pem");
    std::fs::write(&root, &authority.root_pem).expect("root");
    let serve = |relative: &str| {
        let source = WorkloadSource::FileNamesOnly;
        let manager = SecretManager::spawn(SecretManagerConfig::new(String::new(), source));
        let config = SdsConfig {
            socket: setup.folder.path().join(relative),
            crl: None,
            key_provider: None,
            server: ServerOptions::default(),
        };
        tokio::spawn(SdsServer::bind(config, manager).expect("bind").run())
    };
    let servers = [
        serve(SOCKET),
        serve("var/run/secrets/credential-uds/socket"),
    ];
    let agent = setup.start();
    let files = agent.path("var/run/secrets/credential-uds/files-socket");
    let bootstrap = agent.path("etc/istio/proxy/envoy-rev.json");
    let bootstrap = eventually("the bootstrap", || std::fs::read_to_string(&bootstrap).ok());
    // How istiod learns of the sockets.
    assert!(
        bootstrap.contains("\"credential\": \"true\""),
        "{bootstrap}"
    );
    let name = format!("file-root:{}", root.display());
    let secret = peer::fetch(&files, &name).await.expect("served");
    assert_eq!(secret.name, name);
    let refused = peer::fetch(&files, "default").await.expect_err("refused");
    assert!(refused.message().contains("unknown secret"), "{refused:?}");
    servers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[test]
fn settings_of_certificates_that_cannot_be_honoured_end_the_start() {
    for (name, value, said) in [
        (
            "WORKLOAD_RSA_KEY_SIZE",
            "1024",
            "WORKLOAD_RSA_KEY_SIZE 1024",
        ),
        (
            "WORKLOAD_RSA_KEY_SIZE",
            "2500",
            "WORKLOAD_RSA_KEY_SIZE 2500",
        ),
        ("CREDENTIAL_FETCHER_TYPE", "Vault", "\"Vault\""),
        ("CA_PROVIDER", "GoogleCAS", "CA_PROVIDER=GoogleCAS"),
        (
            "CA_PROVIDER",
            "GkeWorkloadCertificate",
            "certificate files are not in",
        ),
        ("CA_ADDR", "meshca.googleapis.com:443", "Google's CA"),
        (
            "CA_ROOT_CA",
            "/not/there",
            "root CA file for CA does not exist",
        ),
        ("PILOT_CERT_PROVIDER", "none", "PILOT_CERT_PROVIDER=none"),
        (
            "WORKLOAD_IDENTITY_SOCKET_FILE",
            "spire.sock",
            "does not exist",
        ),
        (
            "CA_HEADER_a b",
            "x",
            "CA_HEADER_a b is not a valid request header",
        ),
    ] {
        let mut agent = Setup::new(SLEEPER, free_port()).env(name, value).start();
        agent.wait_for_line(said);
        assert_eq!(agent.wait(), Some(255), "{name}={value}");
    }
    let provider = json!({"cryptomb": {"fallback": true}});
    let setup = Setup::new(SLEEPER, free_port()).config("privateKeyProvider", provider);
    let mut agent = setup.start();
    agent.wait_for_line("privateKeyProvider.cryptomb.pollDelay: must be set");
    assert_eq!(agent.wait(), Some(255));
}
