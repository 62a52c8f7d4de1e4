//! Aggregated discovery, delta and state of the world: answers subscriptions, pushes on change,
//! and keeps a record of what every client said.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    Resource as DeltaResource,
};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;

use super::snapshot::{ENDPOINT, NAMES, PUSH_ORDER, ROUTE, Resource, SECRET, Snapshot};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What happened on a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// A stream's first message arrived.
    Connected {
        /// Delta or state of the world.
        delta: bool,
    },
    /// Names were (un)subscribed; empty on a first wildcard request.
    Subscribe {
        /// Added names.
        names: Vec<String>,
        /// Removed names (delta only).
        unsubscribe: Vec<String>,
        /// `initial_resource_versions` (delta only).
        initial: BTreeMap<String, String>,
    },
    /// A response was sent.
    Sent {
        /// Its nonce.
        nonce: String,
        /// Resources in it.
        count: usize,
    },
    /// A response was accepted.
    Ack {
        /// The nonce of the response.
        nonce: String,
    },
    /// A response was refused.
    Nack {
        /// The nonce of the response.
        nonce: String,
        /// `error_detail.message`.
        message: String,
    },
    /// The stream ended.
    Disconnected,
}

/// One entry of the record.
#[derive(Debug, Clone, PartialEq)]
pub struct AdsEvent {
    /// Stream number, from 1.
    pub stream: u64,
    /// `node.id` of the stream, empty until its first message.
    pub node: String,
    /// Type, empty for connection events.
    pub type_url: String,
    /// What happened.
    pub kind: EventKind,
}

/// The service. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Ads {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    nodes: Mutex<HashMap<String, Arc<Snapshot>>>,
    default: Mutex<Arc<Snapshot>>,
    generation: watch::Sender<u64>,
    events: Mutex<Vec<AdsEvent>>,
    event_count: watch::Sender<usize>,
    streams: AtomicU64,
    nonces: AtomicU64,
    node_messages: Mutex<HashMap<String, Node>>,
}

/// The address in `type~ip~name~domain`; node resources are kept by it.
fn address_of(node_id: &str) -> &str {
    node_id.split('~').nth(1).unwrap_or(node_id)
}

fn version_of(resource: &Resource) -> String {
    let mut hasher = DefaultHasher::new();
    resource.any.value.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

impl Ads {
    /// Sets the resources of the node with this address, and pushes.
    pub fn set_node(&self, ip: impl Into<String>, snapshot: Snapshot) {
        self.shared
            .nodes
            .lock()
            .insert(ip.into(), Arc::new(snapshot));
        self.push();
    }

    /// Sets the resources of nodes that have none of their own, and pushes.
    pub fn set_default(&self, snapshot: Snapshot) {
        *self.shared.default.lock() = Arc::new(snapshot);
        self.push();
    }

    /// Makes every stream compare what it has with what it should have.
    pub fn push(&self) {
        self.shared.generation.send_modify(|g| *g += 1);
    }

    /// Everything that happened so far.
    pub fn events(&self) -> Vec<AdsEvent> {
        self.shared.events.lock().clone()
    }

    /// The node message of the client with this address.
    pub fn node(&self, ip: &str) -> Option<Node> {
        self.shared.node_messages.lock().get(ip).cloned()
    }

    /// Waits until `wanted` holds for the record; `false` when it did not within `deadline`.
    pub async fn wait_for(
        &self,
        deadline: Duration,
        mut wanted: impl FnMut(&[AdsEvent]) -> bool,
    ) -> bool {
        let mut changes = self.shared.event_count.subscribe();
        let wait = async {
            loop {
                if wanted(&self.shared.events.lock()) {
                    return;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(deadline, wait).await.is_ok()
    }

    pub(super) async fn call(&self, request: http::Request<Incoming>) -> http::Response<Body> {
        let mut server = AggregatedDiscoveryServiceServer::new(self.clone())
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(256 << 20);
        server
            .call(request)
            .await
            .unwrap_or_else(|never| match never {})
    }

    fn record(&self, stream: u64, node: &str, type_url: &str, kind: EventKind) {
        let mut events = self.shared.events.lock();
        events.push(AdsEvent {
            stream,
            node: node.to_owned(),
            type_url: type_url.to_owned(),
            kind,
        });
        self.shared.event_count.send_replace(events.len());
    }

    fn snapshot(&self, node: &str) -> Arc<Snapshot> {
        let own = self.shared.nodes.lock().get(address_of(node)).cloned();
        own.unwrap_or_else(|| self.shared.default.lock().clone())
    }

    pub(super) fn delta(
        &self,
        requests: Streaming<DeltaDiscoveryRequest>,
    ) -> Answers<DeltaDiscoveryResponse> {
        let (sender, receiver) = mpsc::channel(16);
        let session = Session::new(self.clone());
        tokio::spawn(session.run(requests, Delta, sender));
        Box::pin(ReceiverStream::new(receiver))
    }

    pub(super) fn sotw(&self, requests: Streaming<DiscoveryRequest>) -> Answers<DiscoveryResponse> {
        let (sender, receiver) = mpsc::channel(16);
        let session = Session::new(self.clone());
        tokio::spawn(session.run(requests, Sotw, sender));
        Box::pin(ReceiverStream::new(receiver))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(Response::new(self.sotw(request.into_inner())))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(Response::new(self.delta(request.into_inner())))
    }
}

/// A request of either protocol, reduced to what both need.
struct Message {
    node: Option<Node>,
    type_url: String,
    nonce: String,
    error: Option<String>,
    /// Delta: names added. State of the world: the whole list.
    names: Vec<String>,
    unsubscribe: Vec<String>,
    initial: BTreeMap<String, String>,
}

/// What differs between the protocols.
trait Protocol: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    const DELTA: bool;
    fn read(request: Self::Request) -> Message;
    fn write(
        type_url: &str,
        nonce: &str,
        changed: Vec<(Resource, String)>,
        removed: Vec<String>,
    ) -> Self::Response;
}

struct Delta;
struct Sotw;

impl Protocol for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    const DELTA: bool = true;

    fn read(request: Self::Request) -> Message {
        Message {
            node: request.node,
            type_url: request.type_url,
            nonce: request.response_nonce,
            error: request.error_detail.map(|e| e.message),
            names: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            initial: request.initial_resource_versions.into_iter().collect(),
        }
    }

    fn write(
        type_url: &str,
        nonce: &str,
        changed: Vec<(Resource, String)>,
        removed: Vec<String>,
    ) -> Self::Response {
        let resources = changed
            .into_iter()
            .map(|(resource, version)| DeltaResource {
                name: resource.name,
                version,
                resource: Some(resource.any),
                ..Default::default()
            })
            .collect();
        DeltaDiscoveryResponse {
            system_version_info: nonce.to_owned(),
            resources,
            type_url: type_url.to_owned(),
            removed_resources: removed,
            nonce: nonce.to_owned(),
            ..Default::default()
        }
    }
}

impl Protocol for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const DELTA: bool = false;

    fn read(request: Self::Request) -> Message {
        Message {
            node: request.node,
            type_url: request.type_url,
            nonce: request.response_nonce,
            error: request.error_detail.map(|e| e.message),
            names: request.resource_names,
            unsubscribe: Vec::new(),
            initial: BTreeMap::new(),
        }
    }

    fn write(
        type_url: &str,
        nonce: &str,
        changed: Vec<(Resource, String)>,
        _: Vec<String>,
    ) -> Self::Response {
        DiscoveryResponse {
            version_info: nonce.to_owned(),
            resources: changed.into_iter().map(|(r, _)| r.any).collect(),
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            ..Default::default()
        }
    }
}

#[derive(Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// What the client has: name to version.
    sent: BTreeMap<String, String>,
    last_nonce: String,
}

struct Session {
    ads: Ads,
    stream: u64,
    node: String,
    types: BTreeMap<String, Subscription>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.ads
            .record(self.stream, &self.node, "", EventKind::Disconnected);
    }
}

/// Types of which a client asks single resources by name, so that an empty list is not a wildcard.
fn by_name(type_url: &str) -> bool {
    matches!(type_url, ENDPOINT | ROUTE | SECRET)
}

impl Session {
    fn new(ads: Ads) -> Self {
        let stream = ads.shared.streams.fetch_add(1, Ordering::Relaxed) + 1;
        Self {
            ads,
            stream,
            node: String::new(),
            types: BTreeMap::new(),
        }
    }

    async fn run<P: Protocol>(
        mut self,
        mut requests: Streaming<P::Request>,
        _: P,
        sender: mpsc::Sender<Result<P::Response, Status>>,
    ) where
        Streaming<P::Request>: Stream<Item = Result<P::Request, Status>> + Unpin,
    {
        let mut pushes = self.ads.shared.generation.subscribe();
        pushes.mark_unchanged();
        loop {
            let answers = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.on_request::<P>(P::read(request)),
                    Some(Err(_)) | None => return,
                },
                changed = pushes.changed() => match changed {
                    Ok(()) => self.on_push::<P>(),
                    Err(_) => return,
                },
                () = sender.closed() => return,
            };
            for answer in answers {
                if sender.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        }
    }

    fn on_request<P: Protocol>(&mut self, request: Message) -> Vec<P::Response> {
        if let Some(node) = request.node.filter(|n| !n.id.is_empty()) {
            if self.node.is_empty() {
                self.node.clone_from(&node.id);
                let kind = EventKind::Connected { delta: P::DELTA };
                self.ads.record(self.stream, &self.node, "", kind);
            }
            let address = address_of(&node.id).to_owned();
            self.ads.shared.node_messages.lock().insert(address, node);
        }
        let type_url = request.type_url;
        let first = !self.types.contains_key(&type_url);
        let subscription = self.types.entry(type_url.clone()).or_default();
        let answered = !request.nonce.is_empty();
        if answered {
            let nonce = request.nonce;
            let kind = match request.error {
                Some(message) => EventKind::Nack {
                    nonce: nonce.clone(),
                    message,
                },
                None => EventKind::Ack {
                    nonce: nonce.clone(),
                },
            };
            let stale = !P::DELTA && nonce != subscription.last_nonce;
            self.ads.record(self.stream, &self.node, &type_url, kind);
            if stale {
                return Vec::new();
            }
        }
        let subscription = self.types.entry(type_url.clone()).or_default();
        let before = subscription.names.clone();
        if P::DELTA {
            subscription
                .names
                .extend(request.names.iter().filter(|n| *n != "*").cloned());
            for name in &request.unsubscribe {
                subscription.names.remove(name);
                subscription.sent.remove(name);
            }
            // What a client asks again is sent again, even if it has it.
            for name in &request.names {
                subscription.sent.remove(name);
            }
            if first {
                subscription.sent.extend(request.initial.clone());
            }
        } else {
            subscription.names = request
                .names
                .iter()
                .filter(|n| *n != "*")
                .cloned()
                .collect();
        }
        let star = request.names.iter().any(|n| n == "*");
        if star || (first && request.names.is_empty() && !by_name(&type_url)) {
            subscription.wildcard = true;
        }
        let grew = subscription.names != before;
        let asks = first || (P::DELTA && !request.names.is_empty()) || grew;
        if asks || !request.unsubscribe.is_empty() {
            let kind = EventKind::Subscribe {
                names: request.names.clone(),
                unsubscribe: request.unsubscribe,
                initial: request.initial,
            };
            self.ads.record(self.stream, &self.node, &type_url, kind);
        }
        if !asks || (P::DELTA && !first && request.names.is_empty()) {
            return Vec::new();
        }
        self.answer::<P>(&type_url, true).into_iter().collect()
    }

    fn on_push<P: Protocol>(&mut self) -> Vec<P::Response> {
        let known: Vec<String> = self.types.keys().cloned().collect();
        let mut ordered: Vec<String> = PUSH_ORDER
            .iter()
            .filter(|t| self.types.contains_key(**t))
            .map(|t| (*t).to_owned())
            .collect();
        ordered.extend(
            known
                .into_iter()
                .filter(|t| !PUSH_ORDER.contains(&t.as_str())),
        );
        ordered
            .iter()
            .filter_map(|t| self.answer::<P>(t, false))
            .collect()
    }

    /// The response that brings the client up to date; `None` when it is and was not asking.
    fn answer<P: Protocol>(&mut self, type_url: &str, asked: bool) -> Option<P::Response> {
        let snapshot = self.ads.snapshot(&self.node);
        let subscription = self.types.get_mut(type_url)?;
        let wanted: BTreeMap<String, (Resource, String)> = snapshot
            .of(type_url)
            .filter(|r| {
                subscription.wildcard || subscription.names.contains(&r.name) || type_url == NAMES
            })
            .map(|r| (r.name.clone(), (r.clone(), version_of(r))))
            .collect();
        let differs = |(name, (_, version)): &(&String, &(Resource, String))| {
            subscription.sent.get(*name) != Some(version)
        };
        let changed: Vec<(Resource, String)> = if P::DELTA {
            wanted
                .iter()
                .filter(differs)
                .map(|(_, r)| r.clone())
                .collect()
        } else {
            wanted.values().cloned().collect()
        };
        let mut removed: Vec<String> = subscription
            .sent
            .keys()
            .filter(|n| !wanted.contains_key(*n))
            .cloned()
            .collect();
        if asked {
            // Names that do not exist are told, so that a client need not wait for them.
            let unknown = subscription
                .names
                .iter()
                .filter(|n| !wanted.contains_key(*n));
            removed.extend(
                unknown
                    .filter(|n| !subscription.sent.contains_key(*n))
                    .cloned(),
            );
        }
        let any_change = wanted.iter().any(|w| differs(&w)) || !removed.is_empty();
        if !asked && !any_change {
            return None;
        }
        if !P::DELTA && asked && wanted.is_empty() && by_name(type_url) {
            return None;
        }
        // istiod says which secrets it does not have only together with one that it has.
        if type_url == SECRET && wanted.is_empty() {
            return None;
        }
        let nonce = format!(
            "n{}",
            self.ads.shared.nonces.fetch_add(1, Ordering::Relaxed) + 1
        );
        subscription.sent = wanted
            .iter()
            .map(|(n, (_, v))| (n.clone(), v.clone()))
            .collect();
        subscription.last_nonce.clone_from(&nonce);
        let kind = EventKind::Sent {
            nonce: nonce.clone(),
            count: changed.len(),
        };
        self.ads.record(self.stream, &self.node, type_url, kind);
        Some(P::write(type_url, &nonce, changed, removed))
    }
}
