use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::envoy::envoy::service::discovery::v3 as discovery;
use outrigger_api::json::{EncodeOptions, encode};
use outrigger_config::bootstrap::{Bootstrap, StatsConfig};
use outrigger_config::tls::SdsSource;
use outrigger_xds::session::RequestMessage;
use outrigger_xds::{Protocol, Session, UpdateId, type_url};
use serde_json::{Value, json};

use super::{Engine, Listeners, Resolve};
use crate::control::lifecycle::State;
use crate::control::store::{Options, Store, Table};
use crate::control::subscription::Xds;
use crate::stats::page::{Query, text};
use crate::upstream::cluster::Cluster;

struct Ads(Rc<RefCell<Session>>);

impl Xds for Ads {
    fn subscribe_wildcard(&mut self, type_url: &str) {
        self.0.borrow_mut().subscribe_wildcard(type_url);
    }
    fn subscribe(&mut self, type_url: &str, names: Vec<String>) {
        self.0.borrow_mut().subscribe(type_url, &names);
    }
    fn unsubscribe(&mut self, type_url: &str, names: Vec<String>) {
        self.0.borrow_mut().unsubscribe(type_url, &names);
    }
    fn ack(&mut self, id: UpdateId) {
        self.0.borrow_mut().ack(&id);
    }
    fn nack(&mut self, id: UpdateId, message: String) {
        self.0.borrow_mut().nack(&id, message);
    }
}

/// Records what is put into service; refuses listeners named `refused`.
#[derive(Default, Clone)]
struct Served(Rc<RefCell<Vec<String>>>);

impl Listeners for Served {
    fn apply(
        &mut self,
        listener: &Arc<outrigger_config::listener::Listener>,
        _: Option<&[u8]>,
    ) -> Result<(), String> {
        if &*listener.name == "refused" {
            return Err("cannot bind".to_owned());
        }
        self.0.borrow_mut().push(format!("+{}", listener.name));
        Ok(())
    }
    fn remove(&mut self, name: &str) {
        self.0.borrow_mut().push(format!("-{name}"));
    }
}

struct NoDns;

impl Resolve for NoDns {
    fn watch(&mut self, _: &Arc<Cluster>) {}
    fn forget(&mut self, _: &str) {}
}

fn bytes(kind: &str, value: &Value) -> Vec<u8> {
    encode(kind, value, &EncodeOptions::default())
        .expect("valid JSON of the message")
        .bytes
}

fn bootstrap() -> Bootstrap {
    let value = json!({
        "node": {"id": "sidecar~1.1.1.1~a.b~b.svc", "cluster": "a"},
        "dynamic_resources": {
            "lds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
            "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]},
        },
        "static_resources": {"clusters": [{"name": "xds-grpc", "type": "STATIC",
            "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"pipe": {"path": "./XDS"}}}}]}]}}]},
    });
    let raw = bytes("envoy.config.bootstrap.v3.Bootstrap", &value);
    outrigger_config::parse_bootstrap(&raw)
        .expect("a bootstrap")
        .value
}

struct Harness {
    engine: Engine,
    session: Rc<RefCell<Session>>,
    served: Served,
    store: Arc<Store>,
    nonce: u32,
}

impl Harness {
    fn new() -> Self {
        let bootstrap = bootstrap();
        let stats = Arc::new(crate::stats::Stats::new(&StatsConfig::default()).expect("no tags"));
        let store = Arc::new(Store {
            clusters: Table::default(),
            routes: Table::default(),
            secrets: crate::tls::secret::SecretStore::default(),
            logs: Arc::default(),
            stats,
            options: Options {
                node_id: Arc::clone(&bootstrap.node_id),
                reject_path_with_fragment: true,
                zipkin: None,
                local_address: None,
                drain_time: Duration::from_secs(1),
            },
        });
        let served = Served::default();
        let mut engine = Engine::new(
            Arc::clone(&store),
            &bootstrap,
            Box::new(served.clone()),
            Box::new(NoDns),
            Box::new(|_| None),
        );
        engine
            .start_static(&bootstrap)
            .expect("static resources are good");
        let session = Rc::new(RefCell::new(Session::new(Protocol::Delta)));
        session.borrow_mut().on_stream_open();
        engine.start_ads(Box::new(Ads(Rc::clone(&session))));
        Self {
            engine,
            session,
            served,
            store,
            nonce: 0,
        }
    }

    /// What was sent since the last call.
    fn sent(&self) -> Vec<String> {
        let mut out = Vec::new();
        while let Some(request) = self.session.borrow_mut().next_request() {
            let RequestMessage::Delta(m) = request.message else {
                continue;
            };
            let kind = m.type_url.rsplit('.').next().unwrap_or("").to_owned();
            let mut text = kind;
            if !m.resource_names_subscribe.is_empty() {
                text += &format!(" +{}", m.resource_names_subscribe.join(","));
            }
            if !m.resource_names_unsubscribe.is_empty() {
                text += &format!(" -{}", m.resource_names_unsubscribe.join(","));
            }
            match m.error_detail {
                Some(error) => text += &format!(" NACK {}", error.message),
                None if !m.response_nonce.is_empty() => text += " ACK",
                None => {}
            }
            out.push(text);
        }
        out
    }

    fn push(&mut self, kind: &str, version: &str, resources: &[Value], removed: &[&str]) {
        self.nonce += 1;
        let message = kind.rsplit('/').next().expect("type URL");
        let resources = resources
            .iter()
            .map(|value| discovery::Resource {
                name: value
                    .get("name")
                    .or_else(|| value.get("cluster_name"))
                    .and_then(Value::as_str)
                    .unwrap_or("")
                    .to_owned(),
                version: version.to_owned(),
                resource: Some(outrigger_api::envoy::google::protobuf::Any {
                    type_url: kind.to_owned(),
                    value: bytes(message, value),
                }),
                ..discovery::Resource::default()
            })
            .collect();
        let response = discovery::DeltaDiscoveryResponse {
            system_version_info: version.to_owned(),
            resources,
            type_url: kind.to_owned(),
            removed_resources: removed.iter().map(|r| (*r).to_owned()).collect(),
            nonce: self.nonce.to_string(),
            ..discovery::DeltaDiscoveryResponse::default()
        };
        let update = self
            .session
            .borrow_mut()
            .on_delta_response(response)
            .expect("subscribed to the type");
        self.engine.ads_update(update);
    }

    fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        self.store.clusters.lookup(name).and_then(|s| s.load())
    }

    fn stat(&self, name: &str) -> String {
        let filter = regex::Regex::new(&format!("^{}$", regex::escape(name))).expect("escaped");
        text(
            &self.store.stats,
            &Query {
                filter: Some(filter),
                ..Query::default()
            },
        )
    }
}

fn eds(name: &str) -> Value {
    json!({"name": name, "type": "EDS", "eds_cluster_config": {
        "eds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}}})
}

fn fixed(name: &str, address: &str) -> Value {
    json!({"name": name, "type": "STATIC", "load_assignment": {"cluster_name": name, "endpoints": [
        {"lb_endpoints": [{"endpoint": {"address": {"socket_address":
            {"address": address, "port_value": 80}}}}]}]}})
}

fn assignment(name: &str, address: &str) -> Value {
    json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
        {"socket_address": {"address": address, "port_value": 80}}}}]}]})
}

fn listener(name: &str, port: u16, rds: Option<(&str, Option<&str>)>) -> Value {
    let mut hcm = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    });
    match rds {
        Some((route, timeout)) => {
            hcm["rds"] = json!({"route_config_name": route,
                "config_source": {"ads": {}, "resource_api_version": "V3"}});
            if let Some(timeout) = timeout {
                hcm["rds"]["config_source"]["initial_fetch_timeout"] = timeout.into();
            }
        }
        None => hcm["route_config"] = json!({"name": "inline"}),
    }
    json!({"name": name, "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}]}]})
}

fn route(name: &str, cluster: &str) -> Value {
    json!({"name": name, "virtual_hosts": [{"name": "v", "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}]})
}

#[test]
fn start_goes_clusters_endpoints_listeners_routes_in_that_order() {
    let mut h = Harness::new();
    assert_eq!(h.sent(), ["Cluster"]);
    assert_eq!(h.engine.state(), State::PreInitializing);
    h.push(
        type_url::CLUSTER,
        "1",
        &[eds("a"), eds("b"), fixed("c", "1.2.3.4")],
        &[],
    );
    // Endpoints are asked for before the ACK; listeners not before clusters are warm.
    assert_eq!(h.sent(), ["ClusterLoadAssignment +a,b", "Cluster ACK"]);
    assert!(h.cluster("a").is_none() && h.cluster("c").is_some());
    assert_eq!(
        h.stat("cluster_manager.warming_clusters"),
        "cluster_manager.warming_clusters: 2\n"
    );
    h.push(type_url::ENDPOINT, "1", &[assignment("a", "10.0.0.1")], &[]);
    assert_eq!(h.sent(), ["ClusterLoadAssignment ACK"]);
    assert_eq!(h.engine.state(), State::PreInitializing);
    h.push(type_url::ENDPOINT, "1", &[assignment("b", "10.0.0.2")], &[]);
    assert_eq!(h.sent(), ["ClusterLoadAssignment ACK", "Listener"]);
    assert_eq!(h.engine.state(), State::Initializing);
    assert_eq!(h.cluster("b").expect("warm").all_hosts().len(), 1);
    h.push(
        type_url::LISTENER,
        "1",
        &[listener("l", 80, Some(("80", Some("0s"))))],
        &[],
    );
    assert_eq!(h.sent(), ["RouteConfiguration +80", "Listener ACK"]);
    assert!(h.served.0.borrow().is_empty());
    assert_eq!(h.engine.unready().len(), 1);
    h.push(type_url::ROUTE, "1", &[route("80", "a")], &[]);
    assert_eq!(h.sent(), ["RouteConfiguration ACK"]);
    assert_eq!(*h.served.0.borrow(), ["+l"]);
    assert_eq!(h.engine.state(), State::Live);
    assert_eq!(
        h.stat("listener_manager.workers_started"),
        "listener_manager.workers_started: 1\n"
    );
    for prefix in ["cluster_manager.cds", "listener_manager.lds"] {
        let name = format!("{prefix}.update_success");
        assert_eq!(h.stat(&name), format!("{name}: 1\n"));
    }
}

#[test]
fn one_bad_cluster_of_three_is_refused_and_the_others_serve() {
    let mut h = Harness::new();
    let bad = json!({"name": "badc", "type": "STATIC", "load_assignment": {"cluster_name": "badc",
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address":
            {"address": "not-an-ip", "port_value": 80}}}}]}]}});
    h.push(
        type_url::CLUSTER,
        "1",
        &[fixed("x", "1.1.1.1"), bad, fixed("y", "2.2.2.2")],
        &[],
    );
    let sent = h.sent();
    let nack = sent.iter().find(|s| s.contains("NACK")).expect("a NACK");
    assert!(
        nack.starts_with("Cluster NACK Error adding/updating cluster(s) badc: "),
        "{nack}"
    );
    assert!(nack.contains("malformed IP address: not-an-ip"), "{nack}");
    assert!(h.cluster("x").is_some() && h.cluster("y").is_some() && h.cluster("badc").is_none());
    assert_eq!(
        h.stat("cluster_manager.cds.update_success"),
        "cluster_manager.cds.update_success: 0\n"
    );
    assert_eq!(
        h.stat("cluster_manager.cds.update_rejected"),
        "cluster_manager.cds.update_rejected: 1\n"
    );
    assert!(h.engine.registry.clusters.errors.contains_key("badc"));
    // The good ones again, now alone: accepted, and the refused one is forgotten with its removal.
    h.push(type_url::CLUSTER, "2", &[fixed("x", "1.1.1.1")], &["badc"]);
    assert_eq!(
        h.stat("cluster_manager.cds.update_success"),
        "cluster_manager.cds.update_success: 1\n"
    );
    assert!(h.engine.registry.clusters.errors.is_empty());
}

#[test]
fn an_unchanged_cluster_is_not_rebuilt_and_a_changed_one_is() {
    let mut h = Harness::new();
    h.push(type_url::CLUSTER, "1", &[fixed("x", "1.1.1.1")], &[]);
    let before = h.cluster("x").expect("serves");
    h.push(type_url::CLUSTER, "2", &[fixed("x", "1.1.1.1")], &[]);
    assert!(Arc::ptr_eq(&before, &h.cluster("x").expect("serves")));
    assert_eq!(
        h.stat("cluster_manager.cluster_modified"),
        "cluster_manager.cluster_modified: 0\n"
    );
    h.push(type_url::CLUSTER, "3", &[fixed("x", "2.2.2.2")], &[]);
    assert!(!Arc::ptr_eq(&before, &h.cluster("x").expect("serves")));
    assert_eq!(
        h.stat("cluster_manager.cluster_modified"),
        "cluster_manager.cluster_modified: 1\n"
    );
}

#[test]
fn duplicate_names_are_refused_and_the_first_one_serves() {
    let mut h = Harness::new();
    h.push(
        type_url::CLUSTER,
        "1",
        &[fixed("a", "1.1.1.1"), fixed("a", "2.2.2.2")],
        &[],
    );
    assert!(
        h.sent()
            .iter()
            .any(|s| s.ends_with("a: duplicate cluster a found"))
    );
    assert_eq!(
        &*h.cluster("a").expect("serves").all_hosts()[0].address_text,
        "1.1.1.1:80"
    );
}

#[test]
fn a_changed_eds_cluster_uses_the_endpoints_that_are_known() {
    let mut h = Harness::new();
    h.push(type_url::CLUSTER, "1", &[eds("a")], &[]);
    h.push(type_url::ENDPOINT, "1", &[assignment("a", "10.0.0.1")], &[]);
    h.sent();
    let mut changed = eds("a");
    changed["connect_timeout"] = "3s".into();
    h.push(type_url::CLUSTER, "2", &[changed], &[]);
    assert_eq!(h.sent(), ["Cluster ACK"]);
    let cluster = h.cluster("a").expect("serves");
    assert_eq!(cluster.config.connect_timeout, Duration::from_secs(3));
    assert_eq!(cluster.all_hosts().len(), 1);
}

#[test]
fn a_removed_cluster_is_gone_with_its_subscription() {
    let mut h = Harness::new();
    h.push(type_url::CLUSTER, "1", &[eds("a"), eds("b")], &[]);
    h.push(
        type_url::ENDPOINT,
        "1",
        &[assignment("a", "10.0.0.1"), assignment("b", "10.0.0.2")],
        &[],
    );
    h.sent();
    h.push(type_url::CLUSTER, "2", &[], &["b", "xds-grpc"]);
    assert_eq!(h.sent(), ["ClusterLoadAssignment -b", "Cluster ACK"]);
    assert!(h.cluster("b").is_none() && h.cluster("a").is_some());
    assert!(
        h.cluster("xds-grpc").is_some(),
        "static clusters cannot be removed"
    );
}

/// Past the first warm-up without clusters.
fn initialized() -> Harness {
    let mut h = Harness::new();
    h.push(type_url::CLUSTER, "1", &[], &[]);
    h.sent();
    h
}

#[test]
fn refused_routes_and_endpoints_keep_their_old_value() {
    let mut h = initialized();
    h.push(
        type_url::LISTENER,
        "1",
        &[listener("l", 80, Some(("80", None)))],
        &[],
    );
    h.push(type_url::ROUTE, "1", &[route("80", "a")], &[]);
    let before = h.store.routes.slot("80").load().expect("there");
    h.sent();
    let mut bad = route("80", "b");
    bad["virtual_hosts"][0]["routes"][0]["match"] = json!({"safe_regex": {"regex": "("}});
    h.push(type_url::ROUTE, "2", &[bad], &[]);
    assert!(h.sent()[0].starts_with("RouteConfiguration NACK 80: "));
    assert!(Arc::ptr_eq(
        &before,
        &h.store.routes.slot("80").load().expect("there")
    ));
    // The same good one again is no new object either.
    h.push(type_url::ROUTE, "3", &[route("80", "a")], &[]);
    assert!(Arc::ptr_eq(
        &before,
        &h.store.routes.slot("80").load().expect("there")
    ));
}

#[test]
fn fetch_timeout_releases_a_listener_after_fifteen_seconds_and_zero_never() {
    let mut h = initialized();
    let before = tokio::time::Instant::now();
    let unset = listener("unset", 80, Some(("80", None)));
    let forever = listener("forever", 81, Some(("81", Some("0s"))));
    h.push(type_url::LISTENER, "1", &[unset, forever], &[]);
    let deadline = h.engine.next_deadline().expect("one may time out");
    assert!(deadline >= before + Duration::from_secs(15));
    assert!(deadline <= tokio::time::Instant::now() + Duration::from_secs(15));
    h.engine.on_time(deadline - Duration::from_millis(1));
    assert!(h.served.0.borrow().is_empty());
    h.engine.on_time(deadline);
    assert_eq!(*h.served.0.borrow(), ["+unset"]);
    assert_eq!(h.engine.state(), State::Initializing);
    assert!(h.engine.next_deadline().is_none());
    h.push(type_url::ROUTE, "1", &[route("81", "a")], &[]);
    assert_eq!(h.engine.state(), State::Live);
}

#[test]
fn a_listener_that_cannot_be_served_is_refused_and_the_others_serve() {
    let mut h = initialized();
    h.push(
        type_url::LISTENER,
        "1",
        &[listener("refused", 80, None), listener("ok", 81, None)],
        &[],
    );
    let nack = h.sent().pop().expect("an answer");
    assert_eq!(
        nack,
        "Listener NACK Error adding/updating listener(s) refused: error adding listener '127.0.0.1:80': cannot bind\n"
    );
    assert_eq!(*h.served.0.borrow(), ["+ok"]);
    assert_eq!(h.engine.state(), State::Live);
    assert_eq!(
        h.stat("listener_manager.lds.update_success"),
        "listener_manager.lds.update_success: 0\n"
    );
    h.push(type_url::LISTENER, "2", &[], &["ok"]);
    assert_eq!(*h.served.0.borrow(), ["+ok", "-ok"]);
}

#[test]
fn endpoints_reach_every_cluster_of_their_service_in_service_and_warming() {
    let mut h = initialized();
    let subset = |name: &str| {
        json!({"name": name, "type": "EDS", "eds_cluster_config": {"service_name": "s",
            "eds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}}})
    };
    h.push(type_url::CLUSTER, "1", &[subset("v1"), subset("v2")], &[]);
    h.push(type_url::ENDPOINT, "1", &[assignment("s", "10.0.0.1")], &[]);
    h.push(
        type_url::CLUSTER,
        "2",
        &[subset("v1"), subset("v2"), subset("v3")],
        &[],
    );
    h.push(type_url::ENDPOINT, "2", &[assignment("s", "10.0.0.2")], &[]);
    for name in ["v1", "v2", "v3"] {
        let hosts = h.cluster(name).expect("in service").all_hosts();
        let addresses: Vec<_> = hosts.iter().map(|h| h.address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.2:80"], "{name}");
    }
}

/// A listener with TLS whose certificate comes over ADS, waited for without end.
fn secured(name: &str, secret: &str) -> Value {
    let mut listener = listener(name, 443, None);
    listener["filter_chains"][0]["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": secret, "sds_config": {
                "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}}]}}});
    listener
}

fn certificate(name: &str) -> Value {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["a".to_owned()]).expect("a certificate");
    json!({"name": name, "tls_certificate": {
        "certificate_chain": {"inline_string": cert.pem()},
        "private_key": {"inline_string": signing_key.serialize_pem()}}})
}

#[test]
fn what_is_refused_or_denied_is_not_waited_for() {
    let mut h = Harness::new();
    h.push(type_url::CLUSTER, "1", &[eds("bad"), eds("gone")], &[]);
    let bad = json!({"cluster_name": "bad", "policy": {"endpoint_stale_after": "1s"}});
    h.sent();
    h.push(type_url::ENDPOINT, "1", &[bad], &["gone"]);
    let sent = h.sent();
    assert!(sent[0].contains("NACK bad: "), "{sent:?}");
    assert_eq!(sent[1], "Listener");
    assert!(h.cluster("bad").is_some() && h.cluster("gone").is_some());

    let routed = listener("routed", 80, Some(("80", Some("0s"))));
    let all = [routed, secured("broken", "bad"), secured("denied", "gone")];
    h.push(type_url::LISTENER, "1", &all, &[]);
    assert!(h.served.0.borrow().is_empty());
    let mut bad = route("80", "b");
    bad["virtual_hosts"][0]["routes"][0]["match"] = json!({"safe_regex": {"regex": "("}});
    h.push(type_url::ROUTE, "1", &[bad], &[]);
    assert_eq!(*h.served.0.borrow(), ["+routed"]);
    h.push(
        type_url::SECRET,
        "1",
        &[json!({"name": "bad", "tls_certificate": {}})],
        &["gone"],
    );
    let mut served = h.served.0.borrow().clone();
    served.sort();
    assert_eq!(served, ["+broken", "+denied", "+routed"]);
    assert_eq!(h.engine.state(), State::Live);

    // Nor by who comes later; once nobody has asked for a while, the wait starts anew.
    h.push(type_url::LISTENER, "2", &[secured("later", "gone")], &[]);
    assert!(h.served.0.borrow().contains(&"+later".to_owned()));
    h.push(type_url::LISTENER, "3", &[], &["later", "denied"]);
    h.push(type_url::LISTENER, "4", &[secured("anew", "gone")], &[]);
    assert!(!h.served.0.borrow().contains(&"+anew".to_owned()));
}

#[test]
fn a_secret_stays_until_nothing_names_it() {
    let mut h = initialized();
    let (source, name) = (SdsSource::Ads, "s".into());
    h.push(type_url::LISTENER, "1", &[secured("l", "s")], &[]);
    h.push(type_url::SECRET, "1", &[certificate("s")], &[]);
    h.push(type_url::SECRET, "2", &[], &["s"]);
    assert!(
        h.store.secrets.has(&source, &name),
        "taken away by the server"
    );
    assert!(h.engine.registry.secrets.active.get("s").is_some());
    h.push(type_url::LISTENER, "2", &[], &["l"]);
    assert!(!h.store.secrets.has(&source, &name));
    assert!(h.engine.registry.secrets.active.get("s").is_none());
}

#[test]
fn a_deadline_that_has_passed_wakes_nobody_again() {
    let mut h = initialized();
    let mut both = secured("l", "s");
    both["filter_chains"][0]["filters"] =
        listener("l", 443, Some(("80", None)))["filter_chains"][0]["filters"].take();
    h.push(type_url::LISTENER, "1", &[both], &[]);
    let deadline = h.engine.next_deadline().expect("of the route");
    h.engine.on_time(deadline);
    assert!(h.served.0.borrow().is_empty(), "the secret is waited for");
    assert_eq!(h.engine.next_deadline(), None);
}
