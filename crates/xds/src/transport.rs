//! Runs a [`Session`] over gRPC: connect, stream, hand updates out, take verdicts in, reconnect
//! with jittered exponential back-off. Makes no decision about resources.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::grpc::ClientOptions;
use crate::session::{Protocol, Session, Update, UpdateId};

mod backoff;
mod driver;
mod encode;

pub use backoff::Backoff;
pub use encode::encode_request;

/// Opens the byte stream of one connection. Called anew for every attempt, so that addresses,
/// roots and certificates may change in between.
pub trait Connector: Send + Sync + 'static {
    /// The byte stream.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Connects once.
    ///
    /// # Errors
    /// Whatever the transport reports; the text is handed to the owner of the client.
    fn connect(&self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

/// Connects to a unix socket.
#[derive(Debug, Clone)]
pub struct UdsConnector(pub PathBuf);

impl Connector for UdsConnector {
    type Io = tokio::net::UnixStream;

    async fn connect(&self) -> io::Result<Self::Io> {
        tokio::net::UnixStream::connect(&self.0).await
    }
}

/// Connects to a TCP address in plaintext.
#[derive(Debug, Clone, Copy)]
pub struct TcpConnector(pub SocketAddr);

impl Connector for TcpConnector {
    type Io = tokio::net::TcpStream;

    async fn connect(&self) -> io::Result<Self::Io> {
        let stream = tokio::net::TcpStream::connect(self.0).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Which gRPC method carries the stream. The session's [`Protocol`] picks the method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// `AggregatedDiscoveryService`.
    Ads,
    /// `SecretDiscoveryService`.
    Sds,
}

impl Service {
    /// Path of the streaming method for `protocol`.
    #[must_use]
    pub const fn path(self, protocol: Protocol) -> &'static str {
        match (self, protocol) {
            (Self::Ads, Protocol::Delta) => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
            }
            (Self::Ads, Protocol::Sotw) => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
            }
            (Self::Sds, Protocol::Delta) => {
                "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets"
            }
            (Self::Sds, Protocol::Sotw) => {
                "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
            }
        }
    }
}

/// Settings of an [`AdsClient`].
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Which service to call.
    pub service: Service,
    /// `envoy.config.core.v3.Node` as wire bytes, sent verbatim in the first request of a stream.
    pub node: Bytes,
    /// Request metadata of every stream.
    pub metadata: HeaderMap,
    /// HTTP/2 settings.
    pub options: ClientOptions,
    /// Waits between attempts.
    pub backoff: Backoff,
}

impl ClientConfig {
    /// Defaults for `service`: 1 MiB windows, messages to 2^31-1 bytes, 500 ms to 30 s back-off.
    #[must_use]
    pub fn new(service: Service, node: Bytes) -> Self {
        Self {
            service,
            node,
            metadata: HeaderMap::new(),
            options: ClientOptions::default(),
            backoff: Backoff::default(),
        }
    }
}

/// Why a stream is not open.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DisconnectReason {
    /// No connection could be made.
    #[error("connect: {0}")]
    Connect(String),
    /// The stream failed or the server ended it with an error.
    #[error("stream: {0}")]
    Stream(String),
    /// The server ended the stream with OK.
    #[error("server ended the stream")]
    Ended,
    /// The server sent bytes that are no discovery response.
    #[error("undecodable response: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// What the client tells its owner.
#[derive(Debug)]
pub enum Event {
    /// A stream is open and the subscriptions are being sent.
    Connected,
    /// A response; every one wants a verdict.
    Update(Update),
    /// The stream ended or an attempt failed; the next one follows by itself.
    Disconnected(DisconnectReason),
}

#[derive(Debug)]
enum Command {
    Wildcard(String),
    Subscribe(String, Vec<String>),
    Unsubscribe(String, Vec<String>),
    Ack(UpdateId),
    Nack(UpdateId, String),
}

/// Commands to a running client. Cheap to clone; never blocks. The client ends when the last
/// handle is dropped.
#[derive(Debug, Clone)]
pub struct AdsHandle {
    commands: mpsc::UnboundedSender<Command>,
}

impl AdsHandle {
    fn command(&self, command: Command) {
        // The receiver goes away only with the runtime; there is nobody left to serve then.
        let _ = self.commands.send(command);
    }

    /// See [`Session::subscribe_wildcard`].
    pub fn subscribe_wildcard(&self, type_url: &str) {
        self.command(Command::Wildcard(type_url.to_owned()));
    }

    /// See [`Session::subscribe`].
    pub fn subscribe(&self, type_url: &str, names: Vec<String>) {
        self.command(Command::Subscribe(type_url.to_owned(), names));
    }

    /// See [`Session::unsubscribe`].
    pub fn unsubscribe(&self, type_url: &str, names: Vec<String>) {
        self.command(Command::Unsubscribe(type_url.to_owned(), names));
    }

    /// See [`Session::ack`].
    pub fn ack(&self, id: UpdateId) {
        self.command(Command::Ack(id));
    }

    /// See [`Session::nack`].
    pub fn nack(&self, id: UpdateId, message: impl Into<String>) {
        self.command(Command::Nack(id, message.into()));
    }
}

/// A session with its transport.
#[derive(Debug)]
pub struct AdsClient;

impl AdsClient {
    /// Spawns the client on the current runtime. Events come in order; the next one is taken from
    /// the stream only when there is room, so a slow owner slows the server, not memory.
    #[must_use]
    pub fn spawn<C: Connector>(
        connector: C,
        session: Session,
        config: ClientConfig,
    ) -> (AdsHandle, mpsc::Receiver<Event>) {
        let (handle, events, run) = Self::prepare(connector, session, config);
        tokio::spawn(run);
        (handle, events)
    }

    /// As [`Self::spawn`], but the caller polls the future (dropping it ends the client).
    pub fn prepare<C: Connector>(
        connector: C,
        session: Session,
        config: ClientConfig,
    ) -> (
        AdsHandle,
        mpsc::Receiver<Event>,
        impl Future<Output = ()> + Send + 'static,
    ) {
        let (commands, command_queue) = mpsc::unbounded_channel();
        let (event_sender, events) = mpsc::channel(1);
        let run = driver::run(connector, session, config, command_queue, event_sender);
        (AdsHandle { commands }, events, run)
    }
}
