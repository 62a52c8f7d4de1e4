//! A session against a model of a control plane, in memory, with messages lost in reconnects.
//! Every seed must converge, and the rules of the protocol must hold at each step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use outrigger_xds::pb::envoy::service::discovery::v3 as discovery;
use outrigger_xds::pb::google::protobuf::Any;
use outrigger_xds::session::RequestMessage;
use outrigger_xds::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use outrigger_xds::{Protocol, Request, Session, Update};

const TYPES: [&str; 4] = [CLUSTER, ENDPOINT, LISTENER, ROUTE];
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// xorshift64*: the same seed is the same run on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.next(from.len() as u64)).expect("small")]
    }
}

fn is_wildcard(type_url: &str) -> bool {
    type_url == CLUSTER || type_url == LISTENER
}

enum Response {
    Delta(discovery::DeltaDiscoveryResponse),
    Sotw(discovery::DiscoveryResponse),
}

/// What the server knows of one type on one stream.
#[derive(Default)]
struct Watch {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Delta: what the client was told (name to version).
    sent: BTreeMap<String, String>,
    /// SotW: last response.
    nonce: String,
    last: Option<BTreeMap<String, String>>,
    in_flight: BTreeSet<String>,
}

impl Watch {
    fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }
}

struct Server {
    protocol: Protocol,
    /// type to name to version.
    world: BTreeMap<&'static str, BTreeMap<String, String>>,
    watches: BTreeMap<String, Watch>,
    requests_on_stream: usize,
    nonces: u64,
    /// The client had not decided every update when the stream began.
    undecided: bool,
}

impl Server {
    fn visible(&self, type_url: &str, watch: &Watch) -> BTreeMap<String, String> {
        self.world[type_url]
            .iter()
            .filter(|(name, _)| watch.covers(name))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect()
    }

    fn receive(&mut self, request: &Request) {
        assert_eq!(
            request.with_node,
            self.requests_on_stream == 0,
            "node only in the first"
        );
        self.requests_on_stream += 1;
        match &request.message {
            RequestMessage::Delta(m) => {
                let first = !self.watches.contains_key(&m.type_url);
                let watch = self.watches.entry(m.type_url.clone()).or_default();
                if first {
                    assert!(m.response_nonce.is_empty(), "a first request is no ACK");
                    watch.wildcard = m.resource_names_subscribe.is_empty();
                    watch.sent.extend(m.initial_resource_versions.clone());
                    let recorded = |v: &String| v.starts_with("bad");
                    assert!(
                        self.undecided || !m.initial_resource_versions.values().any(recorded),
                        "NACKed version recorded"
                    );
                } else {
                    assert!(m.initial_resource_versions.is_empty());
                }
                if !m.response_nonce.is_empty() {
                    assert!(
                        watch.in_flight.remove(&m.response_nonce),
                        "ACK of a foreign nonce"
                    );
                }
                for name in &m.resource_names_subscribe {
                    assert!(watch.names.insert(name.clone()), "subscribed twice: {name}");
                    if !first {
                        watch.sent.remove(name);
                    }
                }
                for name in &m.resource_names_unsubscribe {
                    assert!(
                        watch.names.remove(name),
                        "unsubscribed from nothing: {name}"
                    );
                    watch.sent.remove(name);
                }
            }
            RequestMessage::Sotw(m) => {
                let first = !self.watches.contains_key(&m.type_url);
                let watch = self.watches.entry(m.type_url.clone()).or_default();
                assert!(
                    !m.version_info.starts_with("bad"),
                    "NACKed version recorded"
                );
                if first {
                    assert!(m.response_nonce.is_empty());
                } else if m.response_nonce != watch.nonce {
                    return; // Stale: the client answers a later response soon.
                }
                watch.wildcard = is_wildcard(&m.type_url);
                let names: BTreeSet<String> = m.resource_names.iter().cloned().collect();
                assert_eq!(names.len(), m.resource_names.len(), "a name twice");
                if watch.names != names {
                    watch.names = names;
                    watch.last = None;
                }
            }
        }
    }

    /// The next push of a type, if the client is behind.
    fn push(&mut self, type_url: &str, bad: bool) -> Option<Response> {
        let watch = self.watches.get(type_url)?;
        let visible = self.visible(type_url, watch);
        self.nonces += 1;
        let nonce = format!("nonce-{}", self.nonces);
        let version = |v: &str| {
            if bad {
                format!("bad-{v}")
            } else {
                v.to_owned()
            }
        };
        let watch = self.watches.get_mut(type_url)?;
        match self.protocol {
            Protocol::Delta => {
                let changed: Vec<_> = visible
                    .iter()
                    .filter(|(n, v)| watch.sent.get(*n) != Some(v))
                    .collect();
                let removed: Vec<String> = watch
                    .sent
                    .keys()
                    .filter(|n| !visible.contains_key(*n))
                    .cloned()
                    .collect();
                if changed.is_empty() && removed.is_empty() {
                    return None;
                }
                let resources = changed
                    .iter()
                    .map(|(n, v)| discovery::Resource {
                        name: (*n).clone(),
                        version: version(v),
                        resource: Some(body(type_url, n)),
                        ..Default::default()
                    })
                    .collect();
                watch.in_flight.insert(nonce.clone());
                if !bad {
                    watch.sent = visible;
                }
                Some(Response::Delta(discovery::DeltaDiscoveryResponse {
                    type_url: type_url.to_owned(),
                    nonce,
                    resources,
                    removed_resources: if bad { Vec::new() } else { removed },
                    ..Default::default()
                }))
            }
            Protocol::Sotw => {
                if watch.last.as_ref() == Some(&visible) {
                    return None;
                }
                watch.nonce.clone_from(&nonce);
                if !bad {
                    watch.last = Some(visible.clone());
                }
                Some(Response::Sotw(discovery::DiscoveryResponse {
                    type_url: type_url.to_owned(),
                    version_info: version(&nonce),
                    nonce,
                    resources: visible.keys().map(|n| body(type_url, n)).collect(),
                    ..Default::default()
                }))
            }
        }
    }
}

fn body(type_url: &str, name: &str) -> Any {
    let mut value = vec![0x0a, u8::try_from(name.len()).expect("short")];
    value.extend_from_slice(name.as_bytes());
    Any {
        type_url: type_url.to_owned(),
        value,
    }
}

struct World {
    protocol: Protocol,
    random: Random,
    session: Session,
    server: Server,
    open: bool,
    to_server: VecDeque<Request>,
    to_client: VecDeque<Response>,
    undecided: VecDeque<Update>,
    /// What the client applied: type to name.
    applied: BTreeMap<String, BTreeSet<String>>,
    interest: BTreeMap<&'static str, BTreeSet<&'static str>>,
}

impl World {
    fn new(protocol: Protocol, seed: u64) -> Self {
        let world = TYPES.iter().map(|&t| (t, BTreeMap::new())).collect();
        Self {
            protocol,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            session: Session::new(protocol),
            server: Server {
                protocol,
                world,
                watches: BTreeMap::new(),
                requests_on_stream: 0,
                nonces: 0,
                undecided: false,
            },
            open: false,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            undecided: VecDeque::new(),
            applied: BTreeMap::new(),
            interest: BTreeMap::new(),
        }
    }

    fn reconnect(&mut self) {
        self.session.on_stream_closed();
        self.to_server.clear();
        self.to_client.clear();
        self.server.watches.clear();
        self.server.requests_on_stream = 0;
        self.server.undecided = !self.undecided.is_empty();
        self.session.on_stream_open();
        self.open = true;
    }

    fn change_world(&mut self) {
        let type_url = self.random.pick(&TYPES);
        let name = self.random.pick(&NAMES).to_owned();
        let version = self.random.next(1 << 30).to_string();
        let resources = self.server.world.get_mut(type_url).expect("known type");
        // Named resources are not removed: SotW cannot tell the client.
        if is_wildcard(type_url) && self.random.next(3) == 0 {
            resources.remove(&name);
        } else {
            resources.insert(name, version);
        }
    }

    fn change_interest(&mut self) {
        let type_url = self.random.pick(&TYPES);
        if is_wildcard(type_url) {
            self.session.subscribe_wildcard(type_url);
            self.interest.entry(type_url).or_default().extend(NAMES);
            return;
        }
        let name = self.random.pick(&NAMES);
        if self.random.next(3) == 0 {
            self.session.unsubscribe(type_url, &[name]);
            self.interest.entry(type_url).or_default().remove(name);
            if let Some(applied) = self.applied.get_mut(type_url) {
                applied.remove(name);
            }
        } else {
            self.session.subscribe(type_url, &[name]);
            self.interest.entry(type_url).or_default().insert(name);
        }
    }

    fn deliver(&mut self) {
        if let Some(request) = self.to_server.pop_front() {
            self.server.receive(&request);
        }
        match self.to_client.pop_front() {
            Some(Response::Delta(m)) => {
                let update = self
                    .session
                    .on_delta_response(m)
                    .expect("a type with a watch");
                self.undecided.push_back(update);
            }
            Some(Response::Sotw(m)) => {
                let update = self
                    .session
                    .on_sotw_response(m)
                    .expect("a type with a watch");
                self.undecided.push_back(update);
            }
            None => {}
        }
    }

    fn decide(&mut self) {
        let Some(update) = self.undecided.pop_front() else {
            return;
        };
        let bad = update.added.iter().any(|r| r.version.starts_with("bad"))
            || update.version.starts_with("bad");
        if bad {
            self.session.nack(&update.id(), "bad");
        } else {
            self.session.ack(&update.id());
        }
        // Full-set removals stand even if the message is refused; bodies count only if accepted.
        let applied = self.applied.entry(update.type_url.clone()).or_default();
        for name in &update.removed {
            applied.remove(name);
        }
        if !bad {
            let interest = self.interest.get(update.type_url.as_str());
            applied.extend(
                update
                    .added
                    .iter()
                    .map(|r| r.name.clone())
                    .filter(|n| interest.is_some_and(|i| i.contains(n.as_str()))),
            );
        }
    }

    fn pump(&mut self) {
        while let Some(request) = self.session.next_request() {
            assert!(self.open, "requests are made for open streams only");
            self.to_server.push_back(request);
        }
    }

    fn step(&mut self) {
        match self.random.next(12) {
            0 => self.reconnect(),
            1 => self.change_interest(),
            2 | 3 => self.change_world(),
            4 | 5 => {
                let type_url = self.random.pick(&TYPES);
                let bad = self.random.next(4) == 0;
                self.to_client.extend(self.server.push(type_url, bad));
            }
            6 | 7 => self.decide(),
            _ => self.deliver(),
        }
        self.pump();
    }

    /// No more trouble: everything must arrive.
    fn settle(&mut self) {
        self.reconnect();
        for _ in 0..2_000 {
            self.pump();
            self.deliver();
            self.decide();
            if self.to_server.is_empty() && self.to_client.is_empty() {
                for type_url in TYPES {
                    self.to_client.extend(self.server.push(type_url, false));
                }
            }
        }
        assert!(
            self.to_client.is_empty() && self.undecided.is_empty(),
            "does not settle"
        );
    }

    fn check(&self, seed: u64) {
        for type_url in TYPES {
            let interest = self.interest.get(type_url).cloned().unwrap_or_default();
            let expected: BTreeSet<String> = self.server.world[type_url]
                .keys()
                .filter(|n| interest.contains(n.as_str()))
                .cloned()
                .collect();
            let applied = self.applied.get(type_url).cloned().unwrap_or_default();
            assert_eq!(
                applied, expected,
                "{:?} seed {seed} {type_url}",
                self.protocol
            );
        }
    }
}

#[test]
fn sessions_converge_through_reconnects_losses_and_rejections() {
    for protocol in [Protocol::Delta, Protocol::Sotw] {
        for seed in 1..=512 {
            let mut world = World::new(protocol, seed);
            for _ in 0..300 {
                world.step();
            }
            world.settle();
            world.check(seed);
        }
    }
}
