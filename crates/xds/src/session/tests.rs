//! Message sequences as recorded from the reference client.

use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::*;
use crate::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};

/// Requests in a short notation: `type sub=[..] unsub=[..] init={..} nonce err` (delta) or
/// `type names=[..] ver nonce err` (SotW), `node ` in front of the first of a stream.
fn drain(session: &mut Session) -> Vec<String> {
    std::iter::from_fn(|| session.next_request())
        .map(|r| describe(&r))
        .collect()
}

fn describe(request: &Request) -> String {
    let mut text = if request.with_node {
        "node ".to_owned()
    } else {
        String::new()
    };
    match &request.message {
        RequestMessage::Delta(m) => {
            text += &m.type_url[m.type_url.rfind('.').map_or(0, |at| at + 1)..];
            if !m.resource_names_subscribe.is_empty() {
                text += &format!(" sub={:?}", m.resource_names_subscribe);
            }
            if !m.resource_names_unsubscribe.is_empty() {
                text += &format!(" unsub={:?}", m.resource_names_unsubscribe);
            }
            if !m.initial_resource_versions.is_empty() {
                let mut init: Vec<_> = m.initial_resource_versions.iter().collect();
                init.sort();
                text += &format!(" init={init:?}");
            }
            if !m.response_nonce.is_empty() {
                text += &format!(" nonce={}", m.response_nonce);
            }
            if let Some(error) = &m.error_detail {
                text += &format!(" err={}:{}", error.code, error.message);
            }
        }
        RequestMessage::Sotw(m) => {
            text += &m.type_url[m.type_url.rfind('.').map_or(0, |at| at + 1)..];
            text += &format!(
                " names={:?} ver={} nonce={}",
                m.resource_names, m.version_info, m.response_nonce
            );
            if let Some(error) = &m.error_detail {
                text += &format!(" err={}:{}", error.code, error.message);
            }
        }
    }
    text
}

fn delta(
    type_url: &str,
    nonce: &str,
    added: &[(&str, &str)],
    removed: &[&str],
) -> discovery::DeltaDiscoveryResponse {
    discovery::DeltaDiscoveryResponse {
        system_version_info: format!("system-{nonce}"),
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        removed_resources: removed.iter().map(|&n| n.to_owned()).collect(),
        resources: added
            .iter()
            .map(|(name, version)| discovery::Resource {
                name: (*name).to_owned(),
                version: (*version).to_owned(),
                resource: Some(Any {
                    type_url: type_url.to_owned(),
                    value: b"body".to_vec(),
                }),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

/// A body whose field 1 is `name`.
fn named(type_url: &str, name: &str) -> Any {
    let mut value = vec![0x0a, u8::try_from(name.len()).expect("short name")];
    value.extend_from_slice(name.as_bytes());
    Any {
        type_url: type_url.to_owned(),
        value,
    }
}

fn sotw(
    type_url: &str,
    version: &str,
    nonce: &str,
    names: &[&str],
) -> discovery::DiscoveryResponse {
    discovery::DiscoveryResponse {
        version_info: version.to_owned(),
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        resources: names.iter().map(|n| named(type_url, n)).collect(),
        ..Default::default()
    }
}

#[test]
fn delta_start_reconnect_and_nack_follow_the_recorded_sequence() {
    let mut s = Session::new(Protocol::Delta);
    s.subscribe_wildcard(CLUSTER);
    assert!(drain(&mut s).is_empty(), "nothing is sent without a stream");
    s.on_stream_open();
    assert_eq!(drain(&mut s), ["node Cluster"]);

    let update = s
        .on_delta_response(delta(CLUSTER, "n1", &[("a", "1"), ("b", "1")], &[]))
        .expect("subscribed type");
    assert_eq!(update.added.len(), 2);
    assert_eq!(update.version, "system-n1");
    s.subscribe(ENDPOINT, &["a", "b"]);
    s.ack(&update.id());
    assert_eq!(
        drain(&mut s),
        [
            r#"ClusterLoadAssignment sub=["a", "b"]"#,
            "Cluster nonce=n1"
        ]
    );

    let update = s
        .on_delta_response(delta(ENDPOINT, "n2", &[("a", "1"), ("b", "1")], &[]))
        .expect("known");
    s.ack(&update.id());
    s.subscribe_wildcard(LISTENER);
    assert_eq!(
        drain(&mut s),
        ["ClusterLoadAssignment nonce=n2", "Listener"]
    );

    let update = s
        .on_delta_response(delta(LISTENER, "n3", &[("bad", "1")], &[]))
        .expect("known");
    s.subscribe(ROUTE, &["80"]);
    s.nack(&update.id(), "Error adding/updating listener(s) bad: why");
    assert_eq!(
        drain(&mut s),
        [
            r#"RouteConfiguration sub=["80"]"#,
            "Listener nonce=n3 err=13:Error adding/updating listener(s) bad: why"
        ]
    );
    let update = s
        .on_delta_response(delta(ROUTE, "n4", &[("80", "1")], &[]))
        .expect("known");
    s.ack(&update.id());

    let update = s
        .on_delta_response(delta(CLUSTER, "n5", &[], &["b"]))
        .expect("known");
    assert_eq!(update.removed, ["b"]);
    s.unsubscribe(ENDPOINT, &["b", "never"]);
    s.ack(&update.id());
    assert_eq!(
        drain(&mut s),
        [
            "RouteConfiguration nonce=n4",
            r#"ClusterLoadAssignment unsub=["b"]"#,
            "Cluster nonce=n5"
        ]
    );

    s.on_stream_closed();
    s.on_stream_open();
    assert_eq!(
        drain(&mut s),
        [
            r#"node Cluster init=[("a", "1")]"#,
            r#"ClusterLoadAssignment sub=["a"] init=[("a", "1")]"#,
            "Listener",
            r#"RouteConfiguration sub=["80"] init=[("80", "1")]"#,
        ]
    );
}

#[test]
fn repeated_subscriptions_send_nothing() {
    let mut s = Session::new(Protocol::Delta);
    s.on_stream_open();
    s.subscribe(ENDPOINT, &["a", "a"]);
    s.subscribe(ENDPOINT, &["a"]);
    s.subscribe::<&str>(ENDPOINT, &[]);
    s.unsubscribe(ENDPOINT, &["x"]);
    s.unsubscribe(ROUTE, &["x"]);
    assert_eq!(drain(&mut s), [r#"node ClusterLoadAssignment sub=["a"]"#]);
}

#[test]
fn wildcard_with_names_is_spelled_out() {
    let mut s = Session::new(Protocol::Delta);
    s.on_stream_open();
    s.subscribe(CLUSTER, &["a"]);
    s.subscribe_wildcard(CLUSTER);
    s.subscribe_wildcard(CLUSTER);
    assert_eq!(
        drain(&mut s),
        [r#"node Cluster sub=["a"]"#, r#"Cluster sub=["*"]"#]
    );
    s.on_stream_open();
    assert_eq!(drain(&mut s), [r#"node Cluster sub=["*", "a"]"#]);
}

#[test]
fn type_without_names_is_not_requested_on_reconnect() {
    let mut s = Session::new(Protocol::Delta);
    s.on_stream_open();
    s.subscribe(ROUTE, &["80"]);
    s.unsubscribe(ROUTE, &["80"]);
    drain(&mut s);
    s.on_stream_open();
    assert!(
        drain(&mut s).is_empty(),
        "an empty request would mean wildcard"
    );
    s.subscribe(ROUTE, &["81"]);
    assert_eq!(drain(&mut s), [r#"node RouteConfiguration sub=["81"]"#]);
}

#[test]
fn verdict_on_an_earlier_stream_is_recorded_but_not_sent() {
    let mut s = Session::new(Protocol::Delta);
    s.subscribe_wildcard(CLUSTER);
    s.on_stream_open();
    let late = s
        .on_delta_response(delta(CLUSTER, "n1", &[("a", "1")], &[]))
        .expect("known");
    s.on_stream_closed();
    s.on_stream_open();
    assert_eq!(
        drain(&mut s),
        [r#"node Cluster init=[("a", "1")]"#],
        "perhaps being applied"
    );
    s.ack(&late.id());
    assert!(
        drain(&mut s).is_empty(),
        "the nonce means nothing on this stream"
    );
    s.ack(&late.id());
    s.on_stream_open();
    assert_eq!(drain(&mut s), [r#"node Cluster init=[("a", "1")]"#]);

    let late = s
        .on_delta_response(delta(CLUSTER, "n2", &[("b", "1")], &["a"]))
        .expect("known");
    s.on_stream_open();
    assert_eq!(drain(&mut s), [r#"node Cluster init=[("b", "1")]"#]);
    s.nack(&late.id(), "no");
    s.on_stream_open();
    assert_eq!(drain(&mut s), [r#"node Cluster init=[("a", "1")]"#]);
}

#[test]
fn nack_keeps_the_version_recorded_before() {
    let mut s = Session::new(Protocol::Delta);
    s.subscribe_wildcard(CLUSTER);
    s.on_stream_open();
    let good = s
        .on_delta_response(delta(CLUSTER, "n1", &[("a", "1")], &[]))
        .expect("known");
    s.ack(&good.id());
    let bad = s
        .on_delta_response(delta(CLUSTER, "n2", &[("a", "2"), ("b", "2")], &[]))
        .expect("known");
    s.nack(&bad.id(), "no");
    s.on_stream_open();
    assert_eq!(drain(&mut s), [r#"node Cluster init=[("a", "1")]"#]);
}

#[test]
fn entry_without_body_is_no_update() {
    let mut s = Session::new(Protocol::Delta);
    s.subscribe_wildcard(CLUSTER);
    s.on_stream_open();
    let mut response = delta(CLUSTER, "n1", &[("a", "1")], &[]);
    response.resources[0].resource = None;
    assert!(
        s.on_delta_response(response)
            .expect("known")
            .added
            .is_empty()
    );
}

#[test]
fn sotw_sends_full_lists_and_keeps_the_old_version_in_a_nack() {
    let mut s = Session::new(Protocol::Sotw);
    s.subscribe_wildcard(CLUSTER);
    s.on_stream_open();
    assert_eq!(drain(&mut s), ["node Cluster names=[] ver= nonce="]);
    let update = s
        .on_sotw_response(sotw(CLUSTER, "v1", "n1", &["a", "b"]))
        .expect("known");
    let names: Vec<&str> = update.added.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    s.subscribe(ENDPOINT, &["a", "b"]);
    s.ack(&update.id());
    assert_eq!(
        drain(&mut s),
        [
            r#"ClusterLoadAssignment names=["a", "b"] ver= nonce="#,
            "Cluster names=[] ver=v1 nonce=n1"
        ]
    );
    let update = s
        .on_sotw_response(sotw(CLUSTER, "v2", "n2", &["b", "c"]))
        .expect("known");
    assert_eq!(update.removed, ["a"], "Cluster responses are the full set");
    s.nack(&update.id(), "bad c");
    s.unsubscribe(ENDPOINT, &["a"]);
    assert_eq!(
        drain(&mut s),
        [
            "Cluster names=[] ver=v1 nonce=n2 err=13:bad c",
            r#"ClusterLoadAssignment names=["b"] ver= nonce="#
        ]
    );
    let update = s
        .on_sotw_response(sotw(ENDPOINT, "e1", "n3", &["b"]))
        .expect("known");
    assert!(
        update.removed.is_empty(),
        "a missing assignment is not removed"
    );
    s.ack(&update.id());
    drain(&mut s);
    s.on_stream_closed();
    s.on_stream_open();
    assert_eq!(
        drain(&mut s),
        [
            "node Cluster names=[] ver=v1 nonce=",
            r#"ClusterLoadAssignment names=["b"] ver=e1 nonce="#
        ]
    );
}

#[test]
fn sotw_unwraps_resources_and_nacks_bodies_without_readable_name() {
    let mut s = Session::new(Protocol::Sotw);
    s.subscribe_wildcard(LISTENER);
    s.on_stream_open();
    drain(&mut s);
    let mut response = sotw(LISTENER, "v1", "n1", &[]);
    let wrapped = discovery::Resource {
        name: "outer".to_owned(),
        resource: Some(named(LISTENER, "inner")),
        ..Default::default()
    };
    response.resources.push(Any {
        type_url: crate::type_url::RESOURCE_WRAPPER.to_owned(),
        value: wrapped.encode_to_vec(),
    });
    let update = s.on_sotw_response(response).expect("known");
    assert_eq!(update.added[0].name, "outer");
    assert_eq!(update.added[0].type_url, LISTENER);
    s.ack(&update.id());
    drain(&mut s);

    let mut response = sotw(LISTENER, "v2", "n2", &["a"]);
    response.resources.push(Any {
        type_url: LISTENER.to_owned(),
        value: vec![0x0a, 9],
    });
    assert!(matches!(
        s.on_sotw_response(response),
        Err(SessionError::Malformed { index: 1, .. })
    ));
    let sent = drain(&mut s);
    assert!(
        sent[0].starts_with("Listener names=[] ver=v1 nonce=n2 err=13:"),
        "{sent:?}"
    );
}

#[test]
fn unknown_types_and_the_other_variant_are_errors() {
    let mut s = Session::new(Protocol::Delta);
    s.on_stream_open();
    assert_eq!(
        s.on_delta_response(delta(CLUSTER, "n", &[], &[])),
        Err(SessionError::UnknownType(CLUSTER.to_owned()))
    );
    assert_eq!(
        s.on_sotw_response(sotw(CLUSTER, "v", "n", &[])),
        Err(SessionError::WrongProtocol)
    );
    assert!(drain(&mut s).is_empty());
}
