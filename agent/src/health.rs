//! Health of the workload (`ProxyConfig.readinessProbe`), which istiod wants to know of machines
//! that registered themselves: when to probe, and which results are news. Knows no xDS.

use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::MissedTickBehavior;

mod probe;

pub use probe::{Probe, Target};

use crate::xds_proxy::Health;

/// A `readinessProbe` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HealthConfigError {
    /// Not of the expected shape.
    #[error("readinessProbe: {0}")]
    Shape(String),
    /// A negative number.
    #[error("readinessProbe.{field}: {value} is negative")]
    Negative {
        /// Field.
        field: &'static str,
        /// Its value.
        value: i32,
    },
    /// A value of the probe itself.
    #[error("readinessProbe.{field}: {reason}")]
    Method {
        /// Field.
        field: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
}

/// `readinessProbe`, with its defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// Before the first probe; default none.
    pub initial_delay: Duration,
    /// Of one probe; default 1 s.
    pub timeout: Duration,
    /// Between probes; default 10 s.
    pub period: Duration,
    /// Successes in a row that make it healthy; default 1.
    pub success_threshold: u32,
    /// Failures in a row that make it unhealthy; default 1.
    pub failure_threshold: u32,
    /// What to ask the application; `None` reports the proxy's readiness alone.
    pub probe: Option<Probe>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    initial_delay_seconds: i32,
    timeout_seconds: i32,
    period_seconds: i32,
    success_threshold: i32,
    failure_threshold: i32,
    http_get: Option<probe::HttpGet>,
    tcp_socket: Option<probe::TcpSocket>,
    exec: Option<probe::Exec>,
    grpc: Option<probe::Grpc>,
}

impl HealthConfig {
    /// Reads ProxyConfig's JSON. `local` is the application's address where the probe names none:
    /// the pod's, or `None` for `localhost`.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn parse(
        value: &serde_json::Value,
        local: Option<IpAddr>,
    ) -> Result<Self, HealthConfigError> {
        let document: Document = Document::deserialize(value)
            .map_err(|error| HealthConfigError::Shape(error.to_string()))?;
        let number = |field, value: i32, default: u32| match u32::try_from(value) {
            Ok(0) => Ok(default),
            Ok(value) => Ok(value),
            Err(_) => Err(HealthConfigError::Negative { field, value }),
        };
        let seconds = |field, value, default| {
            number(field, value, default).map(|s| Duration::from_secs(s.into()))
        };
        let probe = match (
            document.http_get,
            document.tcp_socket,
            document.exec,
            document.grpc,
        ) {
            (None, None, None, None) => None,
            (Some(http), None, None, None) => Some(http.check(local)?),
            (None, Some(tcp), None, None) => Some(tcp.check(local)?),
            (None, None, Some(exec), None) => Some(exec.check()?),
            (None, None, None, Some(grpc)) => Some(grpc.check(local)?),
            _ => {
                let reason = "more than one of httpGet, tcpSocket, exec and grpc".to_owned();
                return Err(HealthConfigError::Shape(reason));
            }
        };
        Ok(Self {
            initial_delay: seconds("initialDelaySeconds", document.initial_delay_seconds, 0)?,
            timeout: seconds("timeoutSeconds", document.timeout_seconds, 1)?,
            period: seconds("periodSeconds", document.period_seconds, 10)?,
            success_threshold: number("successThreshold", document.success_threshold, 1)?,
            failure_threshold: number("failureThreshold", document.failure_threshold, 1)?,
            probe,
        })
    }

    /// Probes for ever: the proxy first (`proxy_ready`), then the application. What changes is
    /// given to `report`.
    pub async fn run<F>(self, proxy_ready: impl Fn() -> F, report: impl Fn(Health))
    where
        F: Future<Output = Result<(), String>>,
    {
        tokio::time::sleep(self.initial_delay).await;
        let mut ticks = tokio::time::interval(self.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tally = Tally::default();
        loop {
            ticks.tick().await;
            let mut result = proxy_ready().await;
            if result.is_ok()
                && let Some(probe) = &self.probe
            {
                result = probe.run(self.timeout).await;
            }
            if let Some(news) = tally.add(&self, result) {
                tracing::info!(?news, "health of the workload");
                report(news);
            }
        }
    }
}

/// Results in a row.
#[derive(Debug, Default)]
struct Tally {
    successes: u32,
    failures: u32,
    healthy: Option<bool>,
}

impl Tally {
    /// The new state, if this result makes one.
    fn add(&mut self, config: &HealthConfig, result: Result<(), String>) -> Option<Health> {
        let (healthy, reached) = if result.is_ok() {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            (true, self.successes == config.success_threshold)
        } else {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            (false, self.failures == config.failure_threshold)
        };
        if !reached || self.healthy == Some(healthy) {
            return None;
        }
        self.healthy = Some(healthy);
        Some(result.map_or_else(Health::Unhealthy, |()| Health::Healthy))
    }
}

#[cfg(test)]
mod tests;
