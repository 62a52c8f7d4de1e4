//! The rules of Istio's own validation of ProxyConfig, plus refusal of what the bootstrap cannot
//! express.

use std::time::Duration;

use super::{
    AuthPolicy, ClientTlsSettings, ConnectionSettings, PrivateKeyProvider, ProxySettings, TlsMode,
    split_host_port,
};
use crate::error::{FieldError, FieldProblem};

impl ProxySettings {
    pub(super) fn validate(&self) -> Result<(), FieldError> {
        let required = |path: &str| FieldError::new(path, FieldProblem::Required);
        if self.config_path.is_empty() {
            return Err(required("configPath"));
        }
        if self.binary_path.is_empty() {
            return Err(required("binaryPath"));
        }
        if self.tracing_service_name.is_none()
            && self
                .service_cluster
                .as_deref()
                .unwrap_or_default()
                .is_empty()
        {
            return Err(required("serviceCluster"));
        }
        validate_drain(self.drain_duration)?;
        if self.discovery_address.is_empty() {
            return Err(required("discoveryAddress"));
        }
        validate_address("discoveryAddress", &self.discovery_address)?;
        self.validate_collectors()?;
        validate_port("proxyAdminPort", self.proxy_admin_port)?;
        validate_port("statusPort", self.status_port)?;
        if self.control_plane_auth_policy == AuthPolicy::Inherit {
            let problem = FieldProblem::UnknownEnumValue("INHERIT".to_owned());
            return Err(FieldError::new("controlPlaneAuthPolicy", problem));
        }
        if self.concurrency.is_some_and(|n| n < 0) {
            let problem = FieldProblem::OutOfRange(self.concurrency.unwrap_or(0).to_string());
            return Err(FieldError::new("concurrency", problem));
        }
        if let Some(provider) = &self.private_key_provider {
            validate_provider(provider)?;
        }
        self.connection_settings
            .as_ref()
            .map_or(Ok(()), validate_connections)
    }

    fn validate_collectors(&self) -> Result<(), FieldError> {
        if let Some(tracing) = &self.tracing {
            for (path, address) in [
                (
                    "tracing.zipkin.address",
                    tracing.zipkin.as_ref().map(|c| &c.address),
                ),
                (
                    "tracing.lightstep.address",
                    tracing.lightstep.as_ref().map(|c| &c.address),
                ),
                (
                    "tracing.datadog.address",
                    tracing.datadog.as_ref().map(|c| &c.address),
                ),
            ] {
                if let Some(address) = address {
                    validate_address(path, address)?;
                }
            }
            if tracing
                .lightstep
                .as_ref()
                .is_some_and(|l| l.access_token.is_empty())
            {
                let path = "tracing.lightstep.accessToken";
                return Err(FieldError::new(path, FieldProblem::Required));
            }
            validate_tls("tracing.tlsSettings", tracing.tls_settings.as_ref())?;
        }
        validate_optional("statsdUdpAddress", &self.statsd_udp_address)?;
        validate_optional(
            "envoyMetricsServiceAddress",
            &self.envoy_metrics_service_address,
        )?;
        for (path, service) in [
            ("envoyMetricsService", &self.envoy_metrics_service),
            ("envoyAccessLogService", &self.envoy_access_log_service),
        ] {
            let Some(service) = service else { continue };
            validate_optional(&format!("{path}.address"), &service.address)?;
            validate_tls(
                &format!("{path}.tlsSettings"),
                service.tls_settings.as_ref(),
            )?;
        }
        Ok(())
    }
}

fn validate_address(path: &str, address: &str) -> Result<(), FieldError> {
    let bad = || FieldError::new(path, FieldProblem::BadAddress(address.to_owned()));
    let host = split_host_port(address).map(|(host, _)| host);
    host.filter(|host| valid_host(host))
        .map(|_| ())
        .ok_or_else(bad)
}

fn validate_optional(path: &str, address: &str) -> Result<(), FieldError> {
    if address.is_empty() {
        Ok(())
    } else {
        validate_address(path, address)
    }
}

/// A host is an address or a DNS name. Collectors may name the node's address by a variable.
fn valid_host(host: &str) -> bool {
    let label = |label: &str| {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        label.len() <= 63
            && edge(label.bytes().next())
            && edge(label.bytes().last())
            && label.bytes().all(inner)
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    host == "$(HOST_IP)"
        || host.parse::<std::net::IpAddr>().is_ok()
        || (name.len() <= 255 && name.split('.').all(label))
}

fn validate_provider(provider: &PrivateKeyProvider) -> Result<(), FieldError> {
    let polled = [("cryptomb", &provider.cryptomb), ("qat", &provider.qat)];
    let mut set = polled
        .into_iter()
        .filter_map(|(name, p)| Some((name, p.as_ref()?)));
    let Some((name, settings)) = set.next() else {
        return Err(FieldError::new(
            "privateKeyProvider",
            FieldProblem::Required,
        ));
    };
    if settings.poll_delay.is_none_or(|delay| delay.is_zero()) {
        let path = format!("privateKeyProvider.{name}.pollDelay");
        return Err(FieldError::new(path, FieldProblem::Required));
    }
    Ok(())
}

/// Smallest window of HTTP/2.
const MIN_WINDOW: i32 = 65_535;

fn validate_connections(settings: &ConnectionSettings) -> Result<(), FieldError> {
    for (name, value, min) in [
        (
            "listenerPerConnectionBufferLimitBytes",
            settings.listener_per_connection_buffer_limit_bytes,
            0,
        ),
        (
            "clusterPerConnectionBufferLimitBytes",
            settings.cluster_per_connection_buffer_limit_bytes,
            0,
        ),
        (
            "httpMaxConcurrentStreams",
            settings.http_max_concurrent_streams,
            1,
        ),
        (
            "http2InitialStreamWindowSize",
            settings.http2_initial_stream_window_size,
            MIN_WINDOW,
        ),
        (
            "http2InitialConnectionWindowSize",
            settings.http2_initial_connection_window_size,
            MIN_WINDOW,
        ),
        (
            "listenerConnectionLimit",
            settings.listener_connection_limit,
            1,
        ),
        (
            "globalDownstreamConnectionLimit",
            settings.global_downstream_connection_limit,
            1,
        ),
    ] {
        if let Some(value) = value.filter(|value| *value < min) {
            let problem = FieldProblem::OutOfRange(value.to_string());
            return Err(FieldError::new(
                format!("connectionSettings.{name}"),
                problem,
            ));
        }
    }
    Ok(())
}

fn validate_port(path: &str, port: i32) -> Result<(), FieldError> {
    if (1..=65535).contains(&port) {
        return Ok(());
    }
    Err(FieldError::new(
        path,
        FieldProblem::OutOfRange(port.to_string()),
    ))
}

fn validate_drain(drain: Option<Duration>) -> Result<(), FieldError> {
    let drain = drain.ok_or_else(|| FieldError::new("drainDuration", FieldProblem::Required))?;
    if drain.is_zero() || drain.subsec_nanos() != 0 {
        let problem = FieldProblem::OutOfRange(format!("{drain:?}"));
        return Err(FieldError::new("drainDuration", problem));
    }
    Ok(())
}

/// The bootstrap can only name certificates by file or as the workload's own. What it cannot
/// express is refused: leaving out a revocation list or a verification switch would change what
/// the user believes about the connection.
fn validate_tls(path: &str, tls: Option<&ClientTlsSettings>) -> Result<(), FieldError> {
    let Some(tls) = tls else { return Ok(()) };
    let refuse = |name: &str, problem| Err(FieldError::new(format!("{path}.{name}"), problem));
    let unsupported = FieldProblem::Unsupported(" for a server named in ProxyConfig");
    if !tls.credential_name.is_empty() {
        return refuse("credentialName", unsupported);
    }
    if tls.insecure_skip_verify == Some(true) {
        return refuse("insecureSkipVerify", unsupported);
    }
    if !tls.ca_crl.is_empty() {
        return refuse("caCrl", unsupported);
    }
    if tls.mode == TlsMode::Mutual {
        if tls.client_certificate.is_empty() {
            return refuse("clientCertificate", FieldProblem::Required);
        }
        if tls.private_key.is_empty() {
            return refuse("privateKey", FieldProblem::Required);
        }
    }
    Ok(())
}
