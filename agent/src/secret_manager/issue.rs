//! Certificates from a CA: requested, checked against the one in use, renewed for ever.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::RngExt;

use super::rotation::patience;
use super::value::concatenate_chain;
use super::{Clock, Inner, KeyError, SecretValue, generate};
use crate::ca_client::{CaClient, CaError, CheckedChain};

#[derive(Debug, thiserror::Error)]
pub(super) enum IssueError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("key generation task failed")]
    Task,
    #[error("the certificate is for {got:?}, the one in use for {served:?}")]
    Identity { got: Option<String>, served: String },
}

/// The CA's certificate that is served.
#[derive(Debug)]
pub(super) struct Issued {
    not_after: SystemTime,
    /// From receipt, as well as this machine can tell.
    lifetime: Duration,
    /// Monotonic time of receipt.
    received: Duration,
    identity: Option<String>,
}

impl Issued {
    /// What is left of it: by the wall clock or by the time since receipt, whichever is less, so
    /// that a clock set back does not make it look younger.
    fn left(&self, clock: &dyn Clock) -> Duration {
        let dated = self.not_after.duration_since(clock.now());
        let age = clock.monotonic().saturating_sub(self.received);
        dated
            .unwrap_or_default()
            .min(self.lifetime.saturating_sub(age))
    }
}

/// Which secrets the CA gives; files give the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub(super) certificate: bool,
    pub(super) roots: bool,
}

impl Parts {
    pub(super) const ALL: Self = Self {
        certificate: true,
        roots: true,
    };
}

impl Inner {
    async fn issue(&self, ca: &CaClient, parts: Parts) -> Result<(), IssueError> {
        let (key_config, identity) = (self.config.key, self.config.identity.clone());
        let key = tokio::task::spawn_blocking(move || generate(key_config, &identity))
            .await
            .map_err(|_| IssueError::Task)??;
        let longest_wait = self.patience();
        let chain = ca
            .create_certificate(&key.csr_pem, &key.public_key, longest_wait)
            .await?;
        self.check_identity(&chain)?;
        let clock = self.config.clock.as_ref();
        *self.issued.lock() = Some(Issued {
            not_after: chain.not_after,
            lifetime: lifetime(&chain, clock.now(), ca.ttl()),
            received: clock.monotonic(),
            identity: chain.identity.clone(),
        });
        if parts.roots {
            self.root_parts.lock().ca = Some(chain.root().to_owned());
            // Before the certificate: peers with one of a new root must be trusted from now on.
            self.publish_roots();
        }
        if parts.certificate {
            self.publish(Arc::new(SecretValue::Certificate {
                chain: concatenate_chain(&chain.elements),
                key: key.key_pem,
                not_after: Some(chain.not_after),
            }));
        }
        Ok(())
    }

    /// An answer for a workload that is neither the requested one nor the one in use must not
    /// replace a valid certificate. A change of the trust domain alone is a migration.
    fn check_identity(&self, chain: &CheckedChain) -> Result<(), IssueError> {
        let got = chain.identity.as_deref();
        let requested = self.config.identity.as_str();
        if got == Some(requested) {
            return Ok(());
        }
        let issued = self.issued.lock();
        let clock = self.config.clock.as_ref();
        let served = issued
            .as_ref()
            .filter(|issued| !issued.left(clock).is_zero());
        let served = served.and_then(|issued| issued.identity.as_deref());
        let is = |identity: &str| got.map(workload) == Some(workload(identity));
        if let Some(served) = served
            && !is(served)
            && !is(requested)
        {
            return Err(IssueError::Identity {
                got: got.map(str::to_owned),
                served: served.to_owned(),
            });
        }
        tracing::warn!(
            ?got,
            requested,
            "the CA gave another identity than requested"
        );
        Ok(())
    }

    /// Longest wait between tries, so that several fit into the life of what is served.
    fn patience(&self) -> Duration {
        let issued = self.issued.lock();
        issued.as_ref().map_or(Duration::MAX, |issued| {
            patience(issued.lifetime, issued.left(self.config.clock.as_ref()))
        })
    }
}

/// How long `chain` is valid from `now` on. A certificate from the future shows that this
/// machine's clock is behind; what was asked for is the best guess then.
fn lifetime(chain: &CheckedChain, now: SystemTime, requested: Duration) -> Duration {
    let left = chain.not_after.duration_since(now).unwrap_or_default();
    if left > chain.validity && !requested.is_zero() {
        chain.validity.min(requested)
    } else {
        left
    }
}

/// The part of a SPIFFE identity after the trust domain; other names are compared whole.
fn workload(identity: &str) -> &str {
    let path = identity
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    path.unwrap_or(identity)
}

/// Requests certificates for ever: renewal before expiry, back-off after failures.
pub(super) async fn issue_loop(inner: Arc<Inner>, ca: Arc<CaClient>, parts: Parts) {
    let mut failures = 0u32;
    loop {
        let random = rand::rng().random_range(-1.0..1.0);
        let rotation = inner.config.rotation;
        let wait = match inner.issue(&ca, parts).await {
            Ok(()) => {
                failures = 0;
                inner.status.send_modify(|status| {
                    status.last_error = None;
                    status.issued += 1;
                });
                let issued = inner.issued.lock();
                let lifetime = issued
                    .as_ref()
                    .map_or(Duration::ZERO, |issued| issued.lifetime);
                let delay = rotation.delay(lifetime, random);
                tracing::info!(
                    lifetime_secs = lifetime.as_secs(),
                    renewal_secs = delay.as_secs(),
                    "generated new workload certificate"
                );
                delay
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let wait = rotation.retry_wait(failures, random).min(inner.patience());
                tracing::warn!(%error, retry_ms = wait.as_millis(), "failed to get a certificate");
                inner.status.send_modify(|status| {
                    status.last_error = Some(error.to_string());
                    status.failures += 1;
                });
                wait
            }
        };
        tokio::select! {
            () = inner.config.clock.sleep(wait) => {}
            () = inner.renew.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_is_what_is_left_unless_the_clock_is_behind() {
        let hour = Duration::from_secs(3600);
        let start = SystemTime::UNIX_EPOCH + 1000 * hour;
        let chain = CheckedChain {
            elements: Vec::new(),
            not_after: start + 24 * hour,
            validity: 25 * hour,
            identity: None,
        };
        let at = |now| lifetime(&chain, now, 24 * hour);
        assert_eq!(at(start), 24 * hour);
        assert_eq!(at(start + 23 * hour), hour);
        assert_eq!(at(start - hour), 25 * hour);
        assert_eq!(at(start - 2 * hour), 24 * hour);
        assert_eq!(at(start + 25 * hour), Duration::ZERO);
    }

    #[test]
    fn workload_is_the_identity_without_its_trust_domain() {
        for (identity, expected) in [
            ("spiffe://td/ns/a/sa/b", "/ns/a/sa/b"),
            ("spiffe://other/ns/a/sa/b", "/ns/a/sa/b"),
            ("spiffe://td", "spiffe://td"),
            ("https://x/ns/a/sa/b", "https://x/ns/a/sa/b"),
        ] {
            assert_eq!(workload(identity), expected);
        }
    }
}
