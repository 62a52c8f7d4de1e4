//! One `StreamSecrets` call: which names, what was sent, what the client said to it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_util::future::select_all;
use outrigger_xds::grpc::{MessageStream, Responder};
use outrigger_xds::pb::envoy::service::discovery::v3::DiscoveryRequest;
use outrigger_xds::type_url::SECRET;
use prost::Message;
use tonic::Status;

use super::{Shared, encode};
use crate::secret_manager::SecretReceiver;

/// Names on one stream. Each costs a task that follows files; the proxy opens a stream per secret.
const MAX_NAMES: usize = 1000;

struct Subscription {
    name: String,
    value: SecretReceiver,
}

pub(super) struct Stream {
    shared: Arc<Shared>,
    responder: Responder,
    subscriptions: Vec<Subscription>,
    /// Nonce of the last response; empty before the first.
    nonce: String,
    identified: bool,
}

impl Stream {
    pub(super) const fn new(shared: Arc<Shared>, responder: Responder) -> Self {
        Self {
            shared,
            responder,
            subscriptions: Vec::new(),
            nonce: String::new(),
            identified: false,
        }
    }

    /// Serves until the client ends the stream.
    pub(super) async fn run(mut self, mut requests: MessageStream) -> Result<(), Status> {
        loop {
            tokio::select! {
                message = requests.message() => {
                    let Some(message) = message.map_err(|error| error.status())? else {
                        return Ok(());
                    };
                    let request = DiscoveryRequest::decode(message).map_err(|error| {
                        Status::invalid_argument(format!("undecodable request: {error}"))
                    })?;
                    let names = self.names_to_send(&request)?;
                    self.send(&names).await;
                }
                changed = next_change(&mut self.subscriptions) => {
                    let name = changed?;
                    self.send(&[name]).await;
                }
            }
        }
    }

    /// Takes a request in; returns the names it must be answered with.
    fn names_to_send(&mut self, request: &DiscoveryRequest) -> Result<Vec<String>, Status> {
        if !self.identified {
            if request.node.as_ref().is_none_or(|node| node.id.is_empty()) {
                return Err(Status::invalid_argument("missing node information"));
            }
            self.identified = true;
        }
        if !request.type_url.is_empty() && request.type_url != SECRET {
            return Err(Status::invalid_argument(format!(
                "type {:?} is not served here",
                request.type_url
            )));
        }
        let metrics = &self.shared.metrics;
        if let Some(error) = &request.error_detail {
            metrics.rejects.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                names = ?request.resource_names, error = error.message, "secret rejected"
            );
            return Ok(Vec::new());
        }
        // A client that comes back may show the nonce of its last stream: on this one it holds
        // nothing, and silence would leave it without certificates.
        let holds_nothing = request.response_nonce.is_empty() || self.nonce.is_empty();
        if !holds_nothing && request.response_nonce != self.nonce {
            metrics.expired_nonce.fetch_add(1, Ordering::Relaxed);
            return Ok(Vec::new());
        }
        let added = self.subscribe(&request.resource_names)?;
        if holds_nothing {
            return Ok(self.subscriptions.iter().map(|s| s.name.clone()).collect());
        }
        Ok(added)
    }

    /// Makes `names` the subscription, in this order; returns those that are new.
    fn subscribe(&mut self, names: &[String]) -> Result<Vec<String>, Status> {
        if names.len() > MAX_NAMES {
            return Err(Status::resource_exhausted(format!(
                "{} secrets on one stream, the limit is {MAX_NAMES}",
                names.len()
            )));
        }
        let mut old = std::mem::take(&mut self.subscriptions);
        let mut added = Vec::new();
        for name in names {
            if self.subscriptions.iter().any(|s| s.name == *name) {
                continue;
            }
            if let Some(at) = old.iter().position(|s| s.name == *name) {
                self.subscriptions.push(old.swap_remove(at));
                continue;
            }
            let value = self
                .shared
                .secrets
                .subscribe(name)
                .map_err(|error| Status::unknown(error.to_string()))?;
            self.subscriptions.push(Subscription {
                name: name.clone(),
                value,
            });
            added.push(name.clone());
        }
        Ok(added)
    }

    /// Sends those of `names` that exist already; the others follow when they come to be.
    async fn send(&mut self, names: &[String]) {
        let mut resources = Vec::with_capacity(names.len());
        for subscription in &mut self.subscriptions {
            if !names.contains(&subscription.name) {
                continue;
            }
            if let Some(value) = &*subscription.value.borrow_and_update() {
                resources.push(self.shared.encoding.secret(&subscription.name, value));
            }
        }
        if resources.is_empty() {
            return;
        }
        self.nonce = encode::nonce();
        let message = encode::response(self.shared.next_version(), &self.nonce, resources);
        self.shared.metrics.pushes.fetch_add(1, Ordering::Relaxed);
        let begin = Instant::now();
        // If the client is gone, the request side of the stream ends next.
        // The message is its own first piece: it is not copied next to its prefix, where the key
        // would stay behind.
        let _ = self.responder.start(message.len(), message).await;
        let took = begin.elapsed().as_secs_f64();
        self.shared.metrics.send_time.observe(took);
    }
}

/// Name of the next subscription whose secret changes.
async fn next_change(subscriptions: &mut [Subscription]) -> Result<String, Status> {
    if subscriptions.is_empty() {
        return std::future::pending().await;
    }
    let (result, index, _) = select_all(
        subscriptions
            .iter_mut()
            .map(|s| Box::pin(s.value.changed())),
    )
    .await;
    result.map_err(|_| Status::unavailable("secrets are not served any more"))?;
    Ok(subscriptions[index].name.clone())
}
