//! One downstream stream with its upstream connection: requests up, responses down, the agent's
//! own types in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use outrigger_xds::grpc::{Connection, GrpcError, MessageSender, MessageStream, Responder};
use outrigger_xds::type_url::{
    EXTENSION, HEALTH_INFORMATION, LISTENER, NAME_TABLE, PROXY_CONFIG, WORKLOAD,
};
use outrigger_xds::wire::WireError;
use outrigger_xds::{Protocol, Service};
use parking_lot::Mutex;
use prost::Message;
use tonic::Status;

use super::end::{EndClass, classify};
use super::head::{self, Head};
use super::istio_types::{NameTable, PcdsProxyConfig};
use super::{Connected, Health, Shared, count, extension};

/// Types forwarded to the proxy begin so, or are [`WORKLOAD`].
const ENVOY_TYPES: &str = "type.googleapis.com/envoy.";
/// A send to the proxy that takes longer is worth a warning.
const SLOW_SEND: Duration = Duration::from_secs(10);

/// Who ended the stream.
enum End {
    /// The proxy closed its side, or its stream broke.
    Downstream(Option<GrpcError>),
    /// istiod ended the stream.
    Upstream(Option<GrpcError>),
    /// A message that is no discovery message.
    Malformed(&'static str, WireError),
}

struct Streams {
    shared: Arc<Shared>,
    protocol: Protocol,
    upstream: MessageSender,
    /// The first Listener request has been forwarded.
    listening: AtomicBool,
    listening_now: tokio::sync::Notify,
    /// SotW: version of the last accepted ECDS response.
    extension_version: Mutex<String>,
}

/// Serves one stream; the returned status is the proxy's.
pub(super) async fn serve(
    shared: Arc<Shared>,
    protocol: Protocol,
    requests: MessageStream,
    responder: Responder,
) -> Result<(), Status> {
    let (connection, upstream, responses) = connect(&shared, protocol).await?;
    let connected = Connected::new(Arc::clone(&shared));
    let streams = Streams {
        shared: Arc::clone(&shared),
        protocol,
        upstream,
        listening: AtomicBool::new(false),
        listening_now: tokio::sync::Notify::new(),
        extension_version: Mutex::default(),
    };
    let end = tokio::select! {
        end = streams.forward_requests(requests) => end,
        end = streams.forward_responses(responses, &responder) => end,
        end = streams.report_health() => end,
    };
    drop(connected);
    drop(connection);
    finish(&shared, end)
}

/// A new connection to istiod with the stream opened on it.
async fn connect(
    shared: &Shared,
    protocol: Protocol,
) -> Result<(Connection, MessageSender, MessageStream), Status> {
    let failed = |error: String| {
        count(&shared.metrics.connection_failures);
        count(&shared.metrics.istiod_error);
        tracing::warn!(error, "failed to connect to istiod");
        shared.failed(error.clone());
        Status::unavailable(error)
    };
    let upstream = &shared.config.upstream;
    let stream = upstream
        .open()
        .await
        .map_err(|error| failed(error.to_string()))?;
    let mut connection = Connection::handshake(stream, upstream.options())
        .await
        .map_err(|error| failed(error.to_string()))?;
    let (sender, responses) = connection
        .call(
            Service::Ads.path(protocol),
            &shared.config.metadata.headers(),
        )
        .await
        .map_err(|error| failed(error.to_string()))?;
    Ok((connection, sender, responses))
}

/// Logs and counts the end of a stream.
fn finish(shared: &Shared, end: End) -> Result<(), Status> {
    let metrics = &shared.metrics;
    let (side, error, cancelled, failed) = match end {
        End::Downstream(error) => (
            "downstream",
            error,
            &metrics.envoy_cancelled,
            &metrics.envoy_error,
        ),
        End::Upstream(error) => (
            "upstream",
            error,
            &metrics.istiod_cancelled,
            &metrics.istiod_error,
        ),
        End::Malformed(what, error) => {
            count(&metrics.envoy_error);
            return Err(Status::invalid_argument(format!("{what}: {error}")));
        }
    };
    let Some(error) = error else {
        count(cancelled);
        tracing::debug!(side, "xDS stream ended");
        return Ok(());
    };
    let class = classify(&error);
    if side == "upstream" {
        shared.failed(error.to_string());
    }
    if class == EndClass::Unexpected {
        count(failed);
        tracing::warn!(side, %error, "xDS stream ended");
    } else {
        count(cancelled);
        tracing::debug!(side, %error, "xDS stream ended");
    }
    Err(error.status())
}

impl Streams {
    fn send_upstream(&self, message: Bytes) {
        count(&self.shared.metrics.requests);
        // If the call is over, its status arrives with the responses.
        let _ = self.upstream.send(message);
    }

    /// The proxy's requests, as they are, plus the agent's own after the first Listener request.
    async fn forward_requests(&self, mut requests: MessageStream) -> End {
        loop {
            let message = match requests.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return End::Downstream(None),
                Err(error) => return End::Downstream(Some(error)),
            };
            self.shared
                .metrics
                .recv_max
                .fetch_max(message.len() as u64, Ordering::Relaxed);
            let head = match head::request_head(self.protocol, &message) {
                Ok(head) => head,
                Err(error) => return End::Malformed("malformed request", error),
            };
            if head.type_url == EXTENSION && !head.version.is_empty() {
                self.extension_version.lock().clone_from(&head.version);
            }
            self.send_upstream(message);
            if head.type_url == LISTENER && !self.listening.swap(true, Ordering::Relaxed) {
                self.inject();
            }
        }
    }

    /// Requests of the agent itself: name table, proxy configuration, then (through
    /// `report_health`) the stored health.
    fn inject(&self) {
        let config = &self.shared.config;
        if config.name_table {
            self.send_upstream(head::bare_request(self.protocol, NAME_TABLE, None));
        }
        if config.proxy_config {
            self.send_upstream(head::bare_request(self.protocol, PROXY_CONFIG, None));
        }
        self.listening_now.notify_one();
    }

    /// Sends the health that is known now, then every change. Never ends by itself.
    async fn report_health(&self) -> End {
        self.listening_now.notified().await;
        let mut health = self.shared.health.subscribe();
        loop {
            let report = health.borrow_and_update().clone();
            if let Some(report) = report {
                let error = match report {
                    Health::Healthy => None,
                    Health::Unhealthy(message) => Some(message),
                };
                self.send_upstream(head::bare_request(self.protocol, HEALTH_INFORMATION, error));
            }
            if health.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn forward_responses(&self, mut responses: MessageStream, down: &Responder) -> End {
        loop {
            let message = match responses.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return End::Upstream(None),
                Err(error) => return End::Upstream(Some(error)),
            };
            count(&self.shared.metrics.responses);
            let head = match head::response_head(&message) {
                Ok(head) => head,
                Err(error) => return End::Malformed("malformed response", error),
            };
            if self.handle(&head, &message) {
                continue;
            }
            let send = down.send(message);
            tokio::pin!(send);
            let sent = tokio::select! {
                sent = &mut send => sent,
                () = tokio::time::sleep(SLOW_SEND) => {
                    tracing::warn!(type_url = head.type_url, "the proxy is slow to take a response");
                    send.await
                }
            };
            if sent.is_err() {
                return End::Downstream(None);
            }
        }
    }

    /// True if the response was the agent's own business and is answered.
    fn handle(&self, head: &Head, message: &Bytes) -> bool {
        let error = match head.type_url.as_str() {
            NAME_TABLE => self.take_name_table(message).err(),
            PROXY_CONFIG => self.take_proxy_config(message).err(),
            EXTENSION => {
                if !self.shared.config.convert_wasm {
                    return false;
                }
                let Err(error) = extension::check(self.protocol, message) else {
                    return false;
                };
                tracing::error!(%error, "extension config rejected");
                let version = self.extension_version.lock().clone();
                let refused = Head {
                    version,
                    ..head.clone()
                };
                self.send_upstream(head::verdict(
                    self.protocol,
                    &refused,
                    Some(error.to_string()),
                ));
                return true;
            }
            other if other.starts_with(ENVOY_TYPES) || other == WORKLOAD => return false,
            other => {
                self.shared.report_dropped(other);
                None
            }
        };
        if let Some(error) = &error {
            tracing::warn!(type_url = head.type_url, error, "response rejected");
        }
        self.send_upstream(head::verdict(self.protocol, head, error));
        true
    }

    /// The body of the first resource; `None` for an empty response, which is ACKed.
    fn first_body(&self, message: &Bytes) -> Result<Option<Bytes>, String> {
        let anys = head::resource_anys(self.protocol, message).map_err(|e| e.to_string())?;
        match anys.first() {
            None => Ok(None),
            Some(any) => head::bytes_field(any, 2)
                .map(|body| Some(body.unwrap_or_default()))
                .map_err(|e| e.to_string()),
        }
    }

    fn take_name_table(&self, message: &Bytes) -> Result<(), String> {
        if let Some(body) = self.first_body(message)? {
            let table = NameTable::decode(body).map_err(|error| error.to_string())?;
            self.shared.names.send_replace(Some(Arc::new(table)));
        }
        Ok(())
    }

    fn take_proxy_config(&self, message: &Bytes) -> Result<(), String> {
        if let Some(body) = self.first_body(message)? {
            let config = PcdsProxyConfig::decode(body).map_err(|error| error.to_string())?;
            self.shared.anchors.send_if_modified(|current| {
                let changed = current.as_ref() != Some(&config.ca_certificates_pem);
                *current = Some(config.ca_certificates_pem);
                changed
            });
        }
        Ok(())
    }
}
