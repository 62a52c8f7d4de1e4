//! The start-up sequence of `proxy`, and its end. The order is the contract: the status server
//! first, then sockets, then documents, then the proxy; nothing waits for istiod.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use outrigger_xds::grpc::ServerOptions;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::bootstrap::{self, BootstrapError};
use crate::ca_client::CaClient;
use crate::credential::CredentialSource;
use crate::dns::ListenError;
use crate::health::HealthConfig;
use crate::metrics::{Metrics, Page};
use crate::options::security::{Mounted, Security, SecurityError};
use crate::options::{Options, OptionsError};
use crate::platform::{Detection, PlatformConfig};
use crate::sds::{
    self, KeyProvider, KeyProviderError, SdsConfig, SdsProvider, SdsProviderError, SdsServer,
};
use crate::secret_manager::{
    SecretManager, SecretManagerConfig, SecretStatus, WorkloadSource, spiffe_id,
};
use crate::status::{
    ControlPlane, Readiness, ReadinessParts, StatusError, StatusParts, StatusServer,
};
use crate::supervisor::{AdminClient, Lifecycle, ProxyCommand, SignalError, Signals, Supervisor};
use crate::uds::UdsError;
use crate::wasm::WasmCache;
use crate::xds_proxy::{XdsProxy, XdsProxyConfig, XdsProxyHandle};

mod names;

use names::Names;

const WORKLOAD_UDS: &str = "./var/run/secrets/workload-spiffe-uds";
const CREDENTIAL_SOCKET: &str = "./var/run/secrets/credential-uds/socket";
const FILES_SOCKET: &str = "./var/run/secrets/credential-uds/files-socket";
/// The agent's own SDS socket is always named so.
const OWN_SOCKET: &str = "socket";
/// Longest SDS request, bytes: a node and some names.
const MAX_SDS_REQUEST: usize = 4 << 20;

/// Why the agent cannot start; code 255.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// Connections and keys.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// Status server.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// Signal handlers.
    #[error(transparent)]
    Signals(#[from] SignalError),
    /// Whose SDS serves identities.
    #[error(transparent)]
    SdsProvider(#[from] SdsProviderError),
    /// The DNS server.
    #[error(transparent)]
    Dns(#[from] ListenError),
    /// The DNS server does not know whom to ask.
    #[error("cannot read {path}, which the DNS server needs: {source}")]
    ResolvConf {
        /// File.
        path: String,
        /// System error.
        source: std::io::Error,
    },
    /// Accelerator for keys.
    #[error("ProxyConfig: {0}")]
    KeyProvider(#[from] KeyProviderError),
    /// A socket.
    #[error(transparent)]
    Socket(#[from] UdsError),
    /// A bootstrap file.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// A stale socket that cannot be removed.
    #[error("cannot remove unhealthy socket {path}: {source}")]
    StaleSocket {
        /// Socket.
        path: &'static str,
        /// System error.
        source: std::io::Error,
    },
}

/// Runs `proxy` to its end.
///
/// # Errors
/// Whatever keeps the agent from starting. Later failures are the exit code's business.
pub async fn run(mut options: Options) -> Result<u8, StartError> {
    let mut signals = Signals::install()?;
    let ipv6_only = options.node.ips.iter().all(std::net::IpAddr::is_ipv6);
    let any_ipv6 = options.node.ips.iter().any(std::net::IpAddr::is_ipv6);
    let platform = Detection::start(PlatformConfig::new(&options.environment, any_ipv6));
    let metrics = Arc::new(Metrics::default());
    let lifecycle = Arc::new(Lifecycle::default());
    let admin_port = u16::try_from(options.settings.proxy_admin_port).unwrap_or(0);
    let admin = AdminClient::new(admin_port, ipv6_only);
    let proxied = (!options.disable_envoy).then(|| admin.clone());
    let control_plane = Arc::new(OnceLock::new());

    let mut services = JoinSet::new();
    // Only a proxyless client reads the file; a sidecar must not fail for it.
    let grpc_bootstrap = options.grpc_bootstrap.clone();
    let readiness = ReadinessParts {
        admin: proxied.clone(),
        grpc_bootstrap: grpc_bootstrap.filter(|_| options.disable_envoy),
        name_table: options.dns.is_some(),
        metrics: metrics.clone(),
        control_plane: control_plane.clone(),
    };
    if options.status.port != 0 {
        let parts = StatusParts {
            metrics: metrics.clone(),
            readiness: Readiness::new(readiness.clone()),
            control_plane: control_plane.clone(),
            profiling: options.args.profiling,
            domain: options.node.domain.clone(),
            lifecycle: lifecycle.clone(),
            admin: proxied,
            inbound_only: options.drain.inbound_only,
            ipv6_only,
        };
        services.spawn(StatusServer::bind(&options.status, parts)?.serve());
    }
    let names = match &options.dns {
        Some(dns) => Some(Names::start(dns, &options.node, &metrics).await?),
        None => None,
    };
    let connected = connect(&mut options, &metrics, &mut services).await?;
    if let Some(health) = options.health.clone() {
        // An instance of its own: what it has seen is not what the kubelet was told.
        let ready = Readiness::new(readiness);
        let istiod = connected.xds.clone();
        services.spawn(report_health(health, ready, lifecycle.clone(), istiod));
    }
    if let Some(names) = names {
        services.spawn(names.follow(connected.xds.name_table()));
    }
    // Set once, here.
    let _ = control_plane.set(connected);

    options.node.platform = platform.finish().await;
    let node = options.build_node()?;
    bootstrap::write_grpc(&options, &node)?;
    let (path, generated) = bootstrap::write_envoy(&options, &node)?;
    let supervisor = Supervisor {
        lifecycle,
        drain: options.drain.clone(),
        admin,
        bootstrap: generated.then(|| path.clone()),
    };
    let code = if options.disable_envoy {
        supervisor.run_without_proxy(&mut signals).await
    } else {
        supervisor
            .run(&ProxyCommand::new(&options, &node, &path), &mut signals)
            .await
    };
    services.shutdown().await;
    Ok(code)
}

async fn report_health(
    config: HealthConfig,
    ready: Readiness,
    lifecycle: Arc<Lifecycle>,
    istiod: XdsProxyHandle,
) {
    let parts = Arc::new((ready, lifecycle));
    let check = move || {
        let parts = parts.clone();
        async move {
            let (ready, lifecycle) = &*parts;
            ready.check(lifecycle).await.map_err(|e| e.to_string())
        }
    };
    config.run(check, |health| istiod.set_health(health)).await;
}

/// SDS, secrets and the xDS proxy. Fills in what node metadata says about sockets.
async fn connect(
    options: &mut Options,
    metrics: &Metrics,
    services: &mut JoinSet<()>,
) -> Result<ControlPlane, StartError> {
    options.node.credential_socket = credential_socket().await?;
    let name = options.node.workload_identity_socket_file.clone();
    let provider = sds::detect_provider(Path::new(WORKLOAD_UDS), &name).await?;
    options.node.external_sds = provider == SdsProvider::External;
    let security = Security {
        environment: &options.environment,
        settings: &options.settings,
        compliance: options.compliance,
        directory: Path::new("."),
    };
    let secrets = secrets(options, &security, provider, metrics)?;
    if let CredentialSource::Gce(fetcher) = security.credential()? {
        services.spawn(fetcher.keep_fresh());
    }
    if !options.disable_envoy {
        let socket = match provider {
            SdsProvider::External => PathBuf::from(FILES_SOCKET),
            SdsProvider::Own => Path::new(WORKLOAD_UDS).join(OWN_SOCKET),
        };
        let config = SdsConfig {
            socket,
            crl: security.crl(),
            key_provider: KeyProvider::parse(&options.config.to_json())?,
            server: ServerOptions {
                max_message: MAX_SDS_REQUEST,
                ..security.server()
            },
        };
        let server = SdsServer::bind(config, secrets.clone())?;
        let counters = server.metrics();
        metrics.add_source(move |page| counters.render(page));
        services.spawn(server.run());
    }
    let wasm = options
        .wasm
        .clone()
        .map(|config| Arc::new(WasmCache::new(config)));
    if let Some(wasm) = wasm.clone() {
        let source = wasm.clone();
        metrics.add_source(move |page| source.metrics().render(page));
        services.spawn(async move { wasm.purge_for_ever().await });
    }
    let proxy = XdsProxy::bind(XdsProxyConfig {
        socket: options.xds_socket_path(),
        upstream: security.xds()?,
        metadata: security.metadata("XDS_HEADER_")?,
        server: security.server(),
        name_table: options.dns.is_some(),
        proxy_config: options.environment.boolean("PROXY_CONFIG_XDS_AGENT", false),
        wasm,
    })?;
    let handle = proxy.handle();
    let source = handle.clone();
    metrics.add_source(move |page| xds_metrics(page, &source));
    services.spawn(proxy.run());
    let control_plane = ControlPlane {
        xds: handle.clone(),
        secrets: secrets.status(),
    };
    let mut anchors = handle.trust_anchors();
    // Keeps the secrets alive for as long as the services run.
    services.spawn(async move {
        while anchors.changed().await.is_ok() {
            let roots = anchors.borrow_and_update().clone().unwrap_or_default();
            secrets.set_extra_roots(roots);
        }
        std::future::pending::<()>().await;
    });
    Ok(control_plane)
}

fn secrets(
    options: &Options,
    security: &Security<'_>,
    provider: SdsProvider,
    metrics: &Metrics,
) -> Result<SecretManager, StartError> {
    let mut ca = None;
    let mut client = || -> Result<_, SecurityError> {
        let client = Arc::new(CaClient::new(security.ca()?));
        ca = Some(client.clone());
        Ok(client)
    };
    let source = match (provider, security.mounted()?) {
        (SdsProvider::External, _) => WorkloadSource::FileNamesOnly,
        (SdsProvider::Own, Mounted::All(files)) => WorkloadSource::Files(files),
        (SdsProvider::Own, Mounted::Some(files)) => WorkloadSource::FilesAndCa(files, client()?),
        (SdsProvider::Own, Mounted::Nothing) => WorkloadSource::Ca(client()?),
    };
    let identity = spiffe_id(
        &security.trust_domain(),
        &options.node.namespace,
        &options.node.service_account,
    );
    let manager = SecretManager::spawn(SecretManagerConfig {
        key: security.keys()?,
        rotation: security.rotation(),
        output: security.output(),
        anchors: static_anchors(options),
        file_retry: security.file_retry(),
        ..SecretManagerConfig::new(identity, source)
    });
    let status = manager.status();
    let files = manager.clone();
    metrics.add_source(move |page| {
        if let Some(ca) = &ca {
            ca_metrics(page, ca);
        }
        certificate_metrics(page, &status.borrow());
        let help = "Number of times secret generation failed for files";
        page.counter(
            "num_file_secret_failures_total",
            help,
            &[],
            files.file_failures(),
        );
        let help = "Number of times watching files failed";
        page.counter(
            "num_file_watcher_failures_total",
            help,
            &[],
            files.watcher_failures(),
        );
    });
    Ok(manager)
}

/// ProxyConfig `caCertificatesPem`; what PCDS delivers comes in addition.
fn static_anchors(options: &Options) -> Vec<String> {
    let config = options.config.to_json();
    let anchors = config.get("caCertificatesPem").and_then(Value::as_array);
    let anchors = anchors.into_iter().flatten().filter_map(Value::as_str);
    anchors.map(str::to_owned).collect()
}

/// An external credential server is used if it answers; a dead socket is removed, so that the
/// proxy does not wait for it.
async fn credential_socket() -> Result<bool, StartError> {
    let path = Path::new(CREDENTIAL_SOCKET);
    if !path.exists() {
        return Ok(false);
    }
    if sds::answers(path).await {
        return Ok(true);
    }
    let fail = |source| StartError::StaleSocket {
        path: CREDENTIAL_SOCKET,
        source,
    };
    std::fs::remove_file(path).map(|()| false).map_err(fail)
}

fn xds_metrics(page: &mut Page, handle: &XdsProxyHandle) {
    let m = handle.metrics();
    let count = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
    let help = "The total number of connection failures to Istiod";
    page.counter(
        "istiod_connection_failures",
        help,
        &[],
        count(&m.connection_failures),
    );
    for (kind, istiod, envoy) in [
        ("cancelled", &m.istiod_cancelled, &m.envoy_cancelled),
        ("error", &m.istiod_error, &m.envoy_error),
    ] {
        let help = "The total number of connection errors to Istiod";
        page.counter(
            "istiod_connection_terminations",
            help,
            &[("type", kind)],
            count(istiod),
        );
        let help = "The total number of connection errors from envoy";
        page.counter(
            "envoy_connection_terminations",
            help,
            &[("type", kind)],
            count(envoy),
        );
    }
    let help = "The total number of Xds Proxy Requests";
    page.counter("xds_proxy_requests", help, &[], count(&m.requests));
    let help = "The total number of Xds Proxy Responses";
    page.counter("xds_proxy_responses", help, &[], count(&m.responses));
    let max = count(&m.recv_max);
    if max != 0 {
        page.gauge(
            "pilot_xds_recv_max",
            "The largest XDS request size.",
            &[],
            max as f64,
        );
    }
}

fn ca_metrics(page: &mut Page, ca: &CaClient) {
    let m = ca.metrics();
    let labels = [("request_type", "csr")];
    for (name, help, value) in [
        (
            "outgoing_latency",
            "The latency of outgoing requests in milliseconds.",
            &m.latency_ms,
        ),
        (
            "num_outgoing_requests",
            "Number of total outgoing requests.",
            &m.requests,
        ),
        (
            "num_failed_outgoing_requests",
            "Number of failed outgoing requests.",
            &m.failed,
        ),
        (
            "num_outgoing_retries",
            "Number of outgoing retry requests.",
            &m.retries,
        ),
    ] {
        page.counter(name, help, &labels, value.load(Ordering::Relaxed));
    }
}

fn certificate_metrics(page: &mut Page, status: &SecretStatus) {
    let Some(not_after) = status.not_after else {
        return;
    };
    let left = match not_after.duration_since(SystemTime::now()) {
        Ok(left) => left.as_secs_f64(),
        Err(past) => -past.duration().as_secs_f64(),
    };
    let help = "The time remaining, in seconds, before the certificate chain will expire.";
    page.gauge(
        "cert_expiry_seconds",
        help,
        &[("resource_name", "default")],
        left,
    );
}
