//! One downstream stream with its upstream connection: requests up, responses down, the agent's
//! own types in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use outrigger_xds::grpc::{
    Connection, FrameError, GrpcError, MessageSender, MessageStream, Part, Responder, code_name,
};
use outrigger_xds::type_url::{
    EXTENSION, HEALTH_INFORMATION, LISTENER, NAME_TABLE, PROXY_CONFIG, WORKLOAD,
};
use outrigger_xds::wire::{WireError, bytes_field};
use outrigger_xds::{Protocol, Service};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;

use super::end::{EndClass, classify};
use super::head::{self, Head};
use super::istio_types::{NameTable, PcdsProxyConfig};
use super::{Connected, Health, Shared, count};
use crate::wasm::{WasmCache, convert};

/// Types forwarded to the proxy begin so, or are [`WORKLOAD`].
const ENVOY_TYPES: &str = "type.googleapis.com/envoy.";
/// A send to the proxy that takes longer is worth a warning.
const SLOW_SEND: Duration = Duration::from_secs(10);

/// Responses up to this length are collected; of longer ones the type is looked at, and what is the
/// proxy's passes on in pieces.
const COLLECTED: usize = 64 * 1024;
/// Longest response that the agent reads itself (name table, extension configs).
const MAX_OWN: usize = 64 << 20;
/// Most bytes of requests that wait for an istiod that does not read.
const MAX_QUEUED: usize = 64 << 20;

/// Most extension configs that wait for their modules; istiod is not read beyond.
const MAX_WAITING: usize = 16;

/// Who ended the stream.
enum End {
    /// The proxy closed its side, or its stream broke.
    Downstream(Option<GrpcError>),
    /// The proxy sends what is no discovery request.
    BadRequest(WireError),
    /// The proxy sends more than istiod takes.
    Flood,
    /// istiod ended the stream.
    Upstream(Option<GrpcError>),
    /// istiod sends what is no discovery response.
    BadResponse(WireError),
}

/// A response: read by the agent, or passed on without being in memory as a whole.
enum Response {
    Whole(Bytes),
    Passed,
}

/// What goes to the proxy.
enum Out {
    Message(Bytes),
    Start(usize, Bytes),
    More(Bytes),
}

/// Extension configs that wait for their modules while other responses pass.
type Extensions = mpsc::Sender<(Head, Bytes)>;

struct Streams {
    shared: Arc<Shared>,
    protocol: Protocol,
    upstream: MessageSender,
    /// The first Listener request has been forwarded.
    listening: AtomicBool,
    listening_now: tokio::sync::Notify,
    /// SotW: version of the last accepted ECDS response.
    extension_version: Mutex<String>,
    /// Held while a message goes to the proxy: pieces of two must not mix.
    turn: tokio::sync::Mutex<()>,
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
        turn: tokio::sync::Mutex::default(),
    };
    let (extensions, waiting) = mpsc::channel(MAX_WAITING);
    let end = tokio::select! {
        end = streams.forward_requests(requests) => end,
        end = streams.forward_responses(responses, &responder, extensions) => end,
        end = streams.convert_extensions(waiting, &responder) => end,
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
    let metadata = shared.config.metadata.headers().await;
    let metadata = metadata.map_err(|error| failed(error.to_string()))?;
    let (sender, responses) = connection
        .call(Service::Ads.path(protocol), &metadata)
        .await
        .map_err(|error| failed(error.to_string()))?;
    Ok((connection, sender, responses))
}

/// Logs and counts the end of a stream; the result is what the proxy is told.
fn finish(shared: &Shared, end: End) -> Result<(), Status> {
    let metrics = &shared.metrics;
    let (upstream, error) = match end {
        End::Downstream(error) => (false, error.map(|e| (classify(&e), e.status()))),
        End::BadRequest(error) => {
            let status = Status::invalid_argument(format!("malformed request: {error}"));
            (false, Some((EndClass::Unexpected, status)))
        }
        End::Flood => {
            let status = Status::resource_exhausted("istiod does not take the requests");
            (false, Some((EndClass::Unexpected, status)))
        }
        End::Upstream(error) => (true, error.map(|e| (classify(&e), e.status()))),
        End::BadResponse(error) => {
            let status = Status::internal(format!("malformed response from istiod: {error}"));
            (true, Some((EndClass::Unexpected, status)))
        }
    };
    let (side, cancelled, failed) = if upstream {
        ("upstream", &metrics.istiod_cancelled, &metrics.istiod_error)
    } else {
        ("downstream", &metrics.envoy_cancelled, &metrics.envoy_error)
    };
    let Some((class, status)) = error else {
        count(cancelled);
        tracing::debug!(side, "xDS stream ended");
        return Ok(());
    };
    let error = format!("{}: {}", code_name(status.code()), status.message());
    if class == EndClass::Unexpected {
        count(failed);
        tracing::warn!(side, error, "xDS stream ended");
    } else {
        count(cancelled);
        tracing::debug!(side, error, "xDS stream ended");
    }
    if upstream {
        shared.failed(error);
    }
    Err(status)
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
                Err(error) => return End::BadRequest(error),
            };
            if self.upstream.queued() + message.len() > MAX_QUEUED {
                return End::Flood;
            }
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

    async fn forward_responses(
        &self,
        mut responses: MessageStream,
        down: &Responder,
        extensions: Extensions,
    ) -> End {
        let end = self.try_forward_responses(&mut responses, down, &extensions);
        match end.await {
            Ok(()) => End::Upstream(None),
            Err(end) => end,
        }
    }

    async fn try_forward_responses(
        &self,
        responses: &mut MessageStream,
        down: &Responder,
        extensions: &Extensions,
    ) -> Result<(), End> {
        while let Some(response) = self.response(responses, down).await? {
            self.shared.answered();
            let Response::Whole(message) = response else {
                continue;
            };
            let head = head::response_head(&message).map_err(End::BadResponse)?;
            if head.type_url == EXTENSION && self.shared.config.wasm.is_some() {
                // The receiver lives as long as the stream.
                let _ = extensions.send((head, message)).await;
            } else if !self.handle(&head, &message) {
                let _turn = self.turn.lock().await;
                send(down, Out::Message(message), &head.type_url).await?;
            }
        }
        Ok(())
    }

    /// The next response. A long one is passed on while it arrives, unless the agent reads its
    /// type: the memory of the agent does not depend on what is pushed.
    async fn response(
        &self,
        responses: &mut MessageStream,
        down: &Responder,
    ) -> Result<Option<Response>, End> {
        let failed = |error| End::Upstream(Some(error));
        let part = responses.part(COLLECTED).await.map_err(failed)?;
        if part.is_some() {
            count(&self.shared.metrics.responses);
        }
        let (length, first) = match part {
            None => return Ok(None),
            Some(Part::Whole(message) | Part::More(message)) => {
                return Ok(Some(Response::Whole(message)));
            }
            Some(Part::Start { length, first }) => (length, first),
        };
        let type_url = head::early_type(self.protocol, &first).unwrap_or_default();
        let mut missing = length - first.len();
        let mut next = async || match responses.part(COLLECTED).await.map_err(failed)? {
            Some(Part::More(piece)) => Ok(piece),
            // A body that ends inside a message is an error of the call above.
            _ => Err(failed(GrpcError::Truncated)),
        };
        if self.passes(&type_url) {
            let _turn = self.turn.lock().await;
            send(down, Out::Start(length, first), &type_url).await?;
            while missing > 0 {
                let piece = next().await?;
                missing -= piece.len();
                send(down, Out::More(piece), &type_url).await?;
            }
            return Ok(Some(Response::Passed));
        }
        if length > MAX_OWN {
            let limit = MAX_OWN;
            return Err(failed(FrameError::TooLarge { length, limit }.into()));
        }
        let mut message = BytesMut::from(first);
        while missing > 0 {
            let piece = next().await?;
            missing -= piece.len();
            message.put(piece);
        }
        Ok(Some(Response::Whole(message.freeze())))
    }

    /// Rewrites extension configs in their order; what cannot be understood is refused as a whole.
    async fn convert_extensions(
        &self,
        mut waiting: mpsc::Receiver<(Head, Bytes)>,
        down: &Responder,
    ) -> End {
        let Some(wasm) = &self.shared.config.wasm else {
            return std::future::pending().await;
        };
        while let Some((head, message)) = waiting.recv().await {
            if let Err(end) = self.convert_extension(wasm, head, &message, down).await {
                return end;
            }
        }
        // The sender is gone: the stream ends with what it says.
        std::future::pending().await
    }

    async fn convert_extension(
        &self,
        wasm: &WasmCache,
        head: Head,
        message: &Bytes,
        down: &Responder,
    ) -> Result<(), End> {
        match convert(wasm, self.protocol, message).await {
            Ok(converted) => {
                let _turn = self.turn.lock().await;
                send(down, Out::Message(converted), &head.type_url).await
            }
            Err(error) => {
                tracing::error!(%error, "extension config rejected");
                let version = self.extension_version.lock().clone();
                let refused = Head { version, ..head };
                let verdict = head::verdict(self.protocol, &refused, Some(error.to_string()));
                self.send_upstream(verdict);
                Ok(())
            }
        }
    }

    /// True for types that are the proxy's business alone.
    fn passes(&self, type_url: &str) -> bool {
        let converted = type_url == EXTENSION && self.shared.config.wasm.is_some();
        (type_url.starts_with(ENVOY_TYPES) || type_url == WORKLOAD) && !converted
    }

    /// True if the response was the agent's own business and is answered.
    fn handle(&self, head: &Head, message: &Bytes) -> bool {
        let error = match head.type_url.as_str() {
            NAME_TABLE => self.take_name_table(message).err(),
            PROXY_CONFIG => self.take_proxy_config(message).err(),
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
            Some(any) => bytes_field(any, 2)
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

/// Sends to the proxy, however slow it is; says so if it is very slow.
async fn send(down: &Responder, out: Out, type_url: &str) -> Result<(), End> {
    let send = async {
        match out {
            Out::Message(message) => down.send(message).await,
            Out::Start(length, first) => down.start(length, first).await,
            Out::More(piece) => down.more(piece).await,
        }
    };
    tokio::pin!(send);
    let sent = tokio::select! {
        sent = &mut send => sent,
        () = tokio::time::sleep(SLOW_SEND) => {
            tracing::warn!(type_url, "the proxy is slow to take a response");
            send.await
        }
    };
    sent.map_err(|_| End::Downstream(None))
}
