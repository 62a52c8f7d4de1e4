//! Calls to the proxy's admin port: drain, readiness statistics and the count of connections.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::request::{self, RequestError};

/// Statistics answers are short lists; more is not an answer to these filters.
const MAX_STATS: usize = 4 << 20;
/// One question about connections, as in the reference.
const CONNECTIONS_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECTIONS_PERIOD: Duration = Duration::from_secs(1);
/// The proxy is taken for dead after so many failed questions.
const MAX_FAILURES: u32 = 5;
/// A proxy that does not answer its drain must not keep the agent from ending.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A failed admin call.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// No answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Another status than 200.
    #[error("admin answered {0}")]
    Status(StatusCode),
}

/// The admin port of the proxy on loopback.
#[derive(Debug, Clone)]
pub struct AdminClient {
    addresses: Vec<SocketAddr>,
    authority: String,
}

impl AdminClient {
    /// `ipv6` for a pod without IPv4.
    pub fn new(port: u16, ipv6: bool) -> Self {
        let [v4, v6] = request::localhost(port);
        let addresses = if ipv6 { vec![v6, v4] } else { vec![v4, v6] };
        Self {
            addresses,
            authority: format!("localhost:{port}"),
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        timeout: Duration,
    ) -> Result<String, DrainError> {
        let request = request::build(method, &self.authority, path, Bytes::new())?;
        let answer = request::exchange(&self.addresses, request, MAX_STATS, timeout).await?;
        match answer {
            (StatusCode::OK, body) => Ok(String::from_utf8_lossy(&body).into_owned()),
            (status, _) => Err(DrainError::Status(status)),
        }
    }

    /// Asks the proxy to drain its listeners. `skip_exit` keeps it running for ever after.
    ///
    /// # Errors
    /// No answer within 5 s, or another status than 200.
    pub async fn drain(&self, inbound_only: bool, skip_exit: bool) -> Result<(), DrainError> {
        let inbound = if inbound_only { "inboundonly&" } else { "" };
        let skip = if skip_exit { "&skip_exit" } else { "" };
        let path = format!("/drain_listeners?{inbound}graceful{skip}");
        self.call(Method::POST, &path, DRAIN_TIMEOUT)
            .await
            .map(|_| ())
    }

    /// Lines `name: value` of the used statistics that match `filter`.
    ///
    /// # Errors
    /// No answer in time, or another status than 200.
    pub async fn stats(
        &self,
        filter: &str,
        timeout: Duration,
    ) -> Result<Vec<(String, u64)>, DrainError> {
        let path = format!("/stats?usedonly&filter={filter}");
        let text = self.call(Method::GET, &path, timeout).await?;
        let parse = |line: &str| {
            let (name, value) = line.rsplit_once(": ")?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        Ok(text.lines().filter_map(parse).collect())
    }

    /// `/init_dump`: what the proxy's start-up waits for, as JSON.
    ///
    /// # Errors
    /// No answer in time, or another status than 200.
    pub async fn init_dump(&self, timeout: Duration) -> Result<String, DrainError> {
        self.call(Method::GET, "/init_dump", timeout).await
    }

    /// Returns when no connection is left on listeners other than the proxy's own, when nothing
    /// is counted, or when the proxy stops answering.
    pub async fn wait_for_zero_connections(&self, own_ports: &[u16]) {
        let mut failures = 0;
        loop {
            tokio::time::sleep(CONNECTIONS_PERIOD).await;
            match self
                .stats("downstream_cx_active$", CONNECTIONS_TIMEOUT)
                .await
            {
                Ok(stats) => {
                    failures = 0;
                    let active = active_connections(&stats, own_ports);
                    tracing::info!("There are still {active} active connections");
                    if active == 0 {
                        return;
                    }
                }
                Err(e) => {
                    failures += 1;
                    tracing::warn!("cannot read active connections: {e}");
                    if failures >= MAX_FAILURES {
                        return;
                    }
                }
            }
        }
    }
}

/// Sum over `listener.*` without per-worker lines, internal listeners, admin, and the proxy's own
/// ports on any address (the reference only knows `0.0.0.0`).
fn active_connections(stats: &[(String, u64)], own_ports: &[u16]) -> u64 {
    let counted = |name: &str| {
        let Some(rest) = name.strip_prefix("listener.") else {
            return false;
        };
        if rest.contains("worker_")
            || rest.starts_with("envoy_internal_")
            || rest.starts_with("admin.")
        {
            return false;
        }
        let address = rest.strip_suffix(".downstream_cx_active").unwrap_or(rest);
        let port = address
            .rsplit_once('_')
            .and_then(|(_, port)| port.parse().ok());
        !port.is_some_and(|port: u16| own_ports.contains(&port))
    };
    stats
        .iter()
        .filter(|(name, _)| counted(name))
        .map(|(_, value)| value)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_foreign_listeners_count() {
        let stats: Vec<(String, u64)> = [
            ("listener.0.0.0.0_8080.downstream_cx_active", 2),
            ("listener.[__]_8081.downstream_cx_active", 1),
            ("listener.0.0.0.0_15021.downstream_cx_active", 10),
            ("listener.[__]_15090.downstream_cx_active", 10),
            ("listener.0.0.0.0_8080.worker_0.downstream_cx_active", 10),
            (
                "listener.envoy_internal_main_internal.downstream_cx_active",
                10,
            ),
            ("listener.admin.downstream_cx_active", 10),
            ("http.inbound.downstream_cx_active", 10),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        assert_eq!(active_connections(&stats, &[15021, 15090]), 3);
        assert_eq!(active_connections(&[], &[]), 0);
    }
}
