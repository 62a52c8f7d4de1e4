//! Client side of one ADS (or SDS) stream, delta or state of the world, across reconnects.
//! Pure state: no socket, no clock, no task. The owner feeds responses in, takes requests out,
//! and decides every update (`ack` or `nack`).

use std::collections::VecDeque;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::google::rpc::Status as RpcStatus;

use crate::wire::WireError;

mod delta;
mod sotw;
mod subscription;

use subscription::TypeState;

/// gRPC code INTERNAL, what every NACK carries in `error_detail.code`.
const NACK_CODE: i32 = 13;

/// The variant of the protocol spoken on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `DeltaDiscoveryRequest` / `DeltaDiscoveryResponse`.
    Delta,
    /// `DiscoveryRequest` / `DiscoveryResponse`.
    Sotw,
}

/// One request to send. `node` is left empty in the message; the sender adds it if `with_node`.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// True for the first request of a stream only.
    pub with_node: bool,
    /// What to send.
    pub message: RequestMessage,
}

/// The message of a [`Request`].
#[derive(Debug, Clone, PartialEq)]
pub enum RequestMessage {
    /// For a [`Protocol::Delta`] session.
    Delta(discovery::DeltaDiscoveryRequest),
    /// For a [`Protocol::Sotw`] session.
    Sotw(discovery::DiscoveryRequest),
}

/// One resource as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Resource name. In SotW it is read from field 1 of the body, where every Envoy type that is
    /// sent by name keeps it.
    pub name: String,
    /// Version of this resource (delta), or of the whole response (SotW).
    pub version: String,
    /// Type URL of the `Any`.
    pub type_url: String,
    /// `Any.value`.
    pub body: Bytes,
}

/// Names one update for its verdict. Verdicts on updates of an earlier stream record what was
/// accepted, but send nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpdateId {
    type_url: String,
    nonce: String,
    stream: u64,
}

impl UpdateId {
    /// Type URL of the response.
    #[must_use]
    pub fn type_url(&self) -> &str {
        &self.type_url
    }
}

/// One response, ready to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Type URL of the response.
    pub type_url: String,
    /// `version_info` (SotW) or `system_version_info` (delta).
    pub version: String,
    /// New and changed resources in the order of the message. Duplicate names are kept: only the
    /// owner knows the text of that error.
    pub added: Vec<Resource>,
    /// Resources that are gone. For SotW only Cluster and Listener can have some.
    pub removed: Vec<String>,
    /// Nonce of the response.
    pub nonce: String,
    stream: u64,
}

impl Update {
    /// What [`Session::ack`] and [`Session::nack`] take; outlives the update's bodies.
    #[must_use]
    pub fn id(&self) -> UpdateId {
        UpdateId {
            type_url: self.type_url.clone(),
            nonce: self.nonce.clone(),
            stream: self.stream,
        }
    }
}

/// A response that cannot become an [`Update`]. The stream goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The server sent a type nobody asked for; it is not answered.
    #[error("response of type {0:?} that was never subscribed to")]
    UnknownType(String),
    /// The name of a SotW resource cannot be read; the message has been NACKed.
    #[error("resource {index} of a {type_url} response: {source}")]
    Malformed {
        /// Type URL of the response.
        type_url: String,
        /// Position in `resources`.
        index: usize,
        /// What is wrong with it.
        source: WireError,
    },
    /// A delta response was fed to a SotW session or the reverse.
    #[error("response of the other protocol variant")]
    WrongProtocol,
}

/// Client state of one stream across its reconnects.
#[derive(Debug)]
pub struct Session {
    protocol: Protocol,
    /// In order of first subscription, which is the order of requests after a reconnect.
    types: Vec<TypeState>,
    outgoing: VecDeque<Request>,
    /// Number of the stream that is open now or was last; 0 before the first.
    stream: u64,
    open: bool,
    node_sent: bool,
}

impl Session {
    /// A session with no subscription and no stream.
    #[must_use]
    pub const fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            types: Vec::new(),
            outgoing: VecDeque::new(),
            stream: 0,
            open: false,
            node_sent: false,
        }
    }

    /// The variant this session speaks.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Subscribes to every resource of the type. A repeated call is silent.
    pub fn subscribe_wildcard(&mut self, type_url: &str) {
        let index = self.type_index(type_url);
        if self.types[index].set_wildcard() {
            self.send_interest(index, vec!["*".to_owned()], Vec::new());
        }
    }

    /// Adds names to the subscription of a type; names already subscribed to are skipped, and
    /// nothing is sent if none remains. An empty list does nothing (see
    /// [`Self::subscribe_wildcard`]).
    pub fn subscribe<S: AsRef<str>>(&mut self, type_url: &str, names: &[S]) {
        if names.is_empty() {
            return;
        }
        let index = self.type_index(type_url);
        let added = self.types[index].add_names(names.iter().map(AsRef::as_ref));
        if !added.is_empty() {
            self.send_interest(index, added, Vec::new());
        }
    }

    /// Takes names out of the subscription; unknown names are skipped.
    pub fn unsubscribe<S: AsRef<str>>(&mut self, type_url: &str, names: &[S]) {
        let Some(index) = self.types.iter().position(|t| t.type_url == type_url) else {
            return;
        };
        let removed = self.types[index].remove_names(names.iter().map(AsRef::as_ref));
        if !removed.is_empty() {
            self.send_interest(index, Vec::new(), removed);
        }
    }

    /// Names subscribed to, in order of subscription (empty for a pure wildcard or no interest).
    #[must_use]
    pub fn subscribed_names(&self, type_url: &str) -> &[String] {
        self.types
            .iter()
            .find(|t| t.type_url == type_url)
            .map_or(&[], |t| t.names())
    }

    /// A new stream is open: queues one request per subscribed type, with empty nonce, in order of
    /// first subscription, telling what is held already.
    pub fn on_stream_open(&mut self) {
        self.outgoing.clear();
        self.stream += 1;
        self.open = true;
        self.node_sent = false;
        for index in 0..self.types.len() {
            self.types[index].on_stream_open();
            if self.types[index].has_interest() {
                self.send_first(index);
            }
        }
    }

    /// The stream ended: what was not sent is forgotten, what was accepted is kept.
    pub fn on_stream_closed(&mut self) {
        self.open = false;
        self.outgoing.clear();
    }

    /// The next request to send.
    pub fn next_request(&mut self) -> Option<Request> {
        self.outgoing.pop_front()
    }

    /// Takes a delta response.
    ///
    /// # Errors
    /// If the type was never subscribed to, or the session is not a delta one.
    pub fn on_delta_response(
        &mut self,
        response: discovery::DeltaDiscoveryResponse,
    ) -> Result<Update, SessionError> {
        if self.protocol != Protocol::Delta {
            return Err(SessionError::WrongProtocol);
        }
        let index = self.known_type(&response.type_url)?;
        Ok(delta::on_response(
            &mut self.types[index],
            self.stream,
            response,
        ))
    }

    /// Takes a state-of-the-world response.
    ///
    /// # Errors
    /// If the type was never subscribed to, a resource's name cannot be read (then the message is
    /// NACKed here), or the session is not a SotW one.
    pub fn on_sotw_response(
        &mut self,
        response: discovery::DiscoveryResponse,
    ) -> Result<Update, SessionError> {
        if self.protocol != Protocol::Sotw {
            return Err(SessionError::WrongProtocol);
        }
        let index = self.known_type(&response.type_url)?;
        let nonce = response.nonce.clone();
        sotw::on_response(&mut self.types[index], self.stream, response).inspect_err(|error| {
            self.types[index].nonce.clone_from(&nonce);
            let request = sotw::request(&self.types[index], Some(error.to_string()));
            self.push(RequestMessage::Sotw(request));
        })
    }

    /// Accepts an update: records its versions and sends the ACK if its stream is still open.
    pub fn ack(&mut self, id: &UpdateId) {
        self.decide(id, None);
    }

    /// Refuses an update: sends `error_detail {code: 13, message}`; its versions are not recorded,
    /// so that a reconnect asks for them again.
    pub fn nack(&mut self, id: &UpdateId, message: impl Into<String>) {
        self.decide(id, Some(message.into()));
    }

    fn decide(&mut self, id: &UpdateId, error: Option<String>) {
        let Some(index) = self.types.iter().position(|t| t.type_url == id.type_url) else {
            return;
        };
        let state = &mut self.types[index];
        let Some(pending) = state.take_pending(id) else {
            return;
        };
        if error.is_none() {
            state.record(pending);
        }
        if !self.open || id.stream != self.stream {
            return;
        }
        let message = match self.protocol {
            Protocol::Delta => RequestMessage::Delta(delta::verdict(id, error)),
            Protocol::Sotw => {
                state.nonce.clone_from(&id.nonce);
                RequestMessage::Sotw(sotw::request(state, error))
            }
        };
        self.push(message);
    }

    fn type_index(&mut self, type_url: &str) -> usize {
        if let Some(index) = self.types.iter().position(|t| t.type_url == type_url) {
            return index;
        }
        self.types.push(TypeState::new(type_url));
        self.types.len() - 1
    }

    fn known_type(&self, type_url: &str) -> Result<usize, SessionError> {
        self.types
            .iter()
            .position(|t| t.type_url == type_url)
            .ok_or_else(|| SessionError::UnknownType(type_url.to_owned()))
    }

    /// Tells the server about a changed subscription, if a stream is open.
    fn send_interest(&mut self, index: usize, subscribe: Vec<String>, unsubscribe: Vec<String>) {
        if !self.open {
            return;
        }
        let state = &self.types[index];
        if !state.requested {
            self.send_first(index);
            return;
        }
        let message = match self.protocol {
            Protocol::Delta => RequestMessage::Delta(delta::change(state, subscribe, unsubscribe)),
            Protocol::Sotw => RequestMessage::Sotw(sotw::request(state, None)),
        };
        self.push(message);
    }

    fn send_first(&mut self, index: usize) {
        let state = &mut self.types[index];
        state.requested = true;
        let message = match self.protocol {
            Protocol::Delta => RequestMessage::Delta(delta::first(state)),
            Protocol::Sotw => RequestMessage::Sotw(sotw::request(state, None)),
        };
        self.push(message);
    }

    fn push(&mut self, message: RequestMessage) {
        let with_node = !self.node_sent;
        self.node_sent = true;
        self.outgoing.push_back(Request { with_node, message });
    }
}

fn error_detail(message: Option<String>) -> Option<RpcStatus> {
    message.map(|message| RpcStatus {
        code: NACK_CODE,
        message,
        details: Vec::new(),
    })
}

#[cfg(test)]
mod tests;
