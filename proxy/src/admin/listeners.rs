//! `/listeners`.

use serde_json::{Value, json};

use super::server::{Request, Response};
use crate::server::Process;

/// Text or `format=json`.
pub(super) fn page(process: &Process, request: &Request) -> Response {
    let mut list = process.listeners.borrow().list();
    let engine = process.engine.borrow();
    let (fixed, dynamic) = (
        &process.bootstrap.listeners,
        &engine.registry.listeners.active,
    );
    let order: Vec<_> = fixed
        .iter()
        .map(|l| &l.name)
        .chain(dynamic.ordered().into_iter().map(|(n, _)| n))
        .collect();
    list.sort_by_key(|l| order.iter().position(|n| **n == l.name));
    if request.parameter("format") != Some("json") {
        let mut out = String::new();
        for listener in &list {
            for address in &listener.addresses {
                out.push_str(&format!("{}::{address}\n", listener.name));
            }
        }
        return Response::text(out);
    }
    if list.is_empty() {
        return Response::json(&json!({}));
    }
    let statuses: Vec<_> = list
        .iter()
        .map(|listener| {
            let mut status = json!({"name": &*listener.name});
            let mut addresses = listener.addresses.iter().map(socket_address);
            if let Some(first) = addresses.next() {
                status["local_address"] = first;
            }
            let more: Vec<_> = addresses.collect();
            if !more.is_empty() {
                status["additional_local_addresses"] = more.into();
            }
            status
        })
        .collect();
    Response::json(&json!({"listener_statuses": statuses}))
}

/// An address as protobuf JSON.
pub(super) fn socket_address(address: &std::net::SocketAddr) -> Value {
    let (ip, port) = (address.ip().to_string(), address.port());
    json!({"socket_address": {"address": ip, "port_value": port}})
}
