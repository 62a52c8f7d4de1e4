//! `/clusters`, text and JSON.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_config::cluster::{CircuitBreakers, Discovery, HealthStatus};
use regex::Regex;
use serde_json::{Map, Value, json};

use super::listeners::socket_address;
use super::server::{Request, Response};
use crate::server::Process;
use crate::upstream::cluster::Cluster;
use crate::upstream::host::{Host, HostAddress};

/// Text or `format=json`, optionally only names that match `filter`.
pub(super) fn page(process: &Process, request: &Request) -> Response {
    let filter = match request.parameter("filter").map(Regex::new) {
        None => None,
        Some(Ok(regex)) => Some(regex),
        Some(Err(error)) => return Response::error(400, format!("Invalid re2 regex: {error}\n")),
    };
    let clusters: Vec<_> = process
        .store
        .clusters
        .values()
        .into_iter()
        .filter(|c| filter.as_ref().is_none_or(|f| f.is_match(c.name())))
        .collect();
    if request.parameter("format") == Some("json") {
        let statuses: Vec<_> = clusters.iter().map(|c| json_status(c)).collect();
        return Response::json(&match statuses.is_empty() {
            true => json!({}),
            false => json!({"cluster_statuses": statuses}),
        });
    }
    let mut out = String::new();
    for cluster in &clusters {
        text_status(cluster, &mut out);
    }
    Response::text(out)
}

fn thresholds(cluster: &Cluster) -> [(&'static str, CircuitBreakers); 2] {
    [
        ("default", cluster.config.circuit_breakers),
        ("high", CircuitBreakers::default()),
    ]
}

fn service_name(cluster: &Cluster) -> Option<&str> {
    match &cluster.config.discovery {
        Discovery::Eds { service_name, .. } => Some(service_name),
        _ => None,
    }
}

fn text_status(cluster: &Cluster, out: &mut String) {
    let name = cluster.name();
    let _ = writeln!(
        out,
        "{name}::observability_name::{}",
        cluster.config.observability_name
    );
    if cluster.outlier.is_some() {
        for prefix in ["success_rate", "local_origin_success_rate"] {
            // Success-rate ejection is not run: there is no average.
            let _ = writeln!(out, "{name}::outlier::{prefix}_average::-1");
            let _ = writeln!(out, "{name}::outlier::{prefix}_ejection_threshold::-1");
        }
    }
    for (priority, t) in thresholds(cluster) {
        let _ = writeln!(
            out,
            "{name}::{priority}_priority::max_connections::{}",
            t.max_connections
        );
        let _ = writeln!(
            out,
            "{name}::{priority}_priority::max_pending_requests::{}",
            t.max_pending_requests
        );
        let _ = writeln!(
            out,
            "{name}::{priority}_priority::max_requests::{}",
            t.max_requests
        );
        let _ = writeln!(
            out,
            "{name}::{priority}_priority::max_retries::{}",
            t.max_retries
        );
    }
    let _ = writeln!(out, "{name}::added_via_api::{}", cluster.added_via_api);
    if let Some(service) = service_name(cluster) {
        let _ = writeln!(out, "{name}::eds_service_name::{service}");
    }
    for host in cluster.all_hosts() {
        text_host(name, &host, out);
    }
}

fn value(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn text_host(cluster: &str, host: &Host, out: &mut String) {
    let s = &host.stats;
    let mut line = |key: &str, v: &dyn std::fmt::Display| {
        let _ = writeln!(out, "{cluster}::{}::{key}::{v}", host.address_text);
    };
    line("cx_active", &value(&s.cx_active));
    line("cx_connect_fail", &value(&s.cx_connect_fail));
    line("cx_total", &value(&s.cx_total));
    line("rq_active", &value(&s.rq_active));
    line("rq_error", &value(&s.rq_error));
    line("rq_pending_active", &0);
    line("rq_success", &value(&s.rq_success));
    line("rq_timeout", &value(&s.rq_timeout));
    line("rq_total", &value(&s.rq_total));
    line("hostname", &host.hostname);
    line("health_flags", &health_flags(host));
    line("weight", &host.weight());
    line("region", &host.locality.region);
    line("zone", &host.locality.zone);
    line("sub_zone", &host.locality.sub_zone);
    line("canary", &false);
    line("priority", &host.priority);
    line("success_rate", &-1);
    line("local_origin_success_rate", &-1);
}

fn health_flags(host: &Host) -> String {
    let mut flags = String::new();
    if host.is_ejected() {
        flags.push_str("/failed_outlier_check");
    }
    match host.eds_health() {
        HealthStatus::Unhealthy | HealthStatus::Timeout => flags.push_str("/failed_eds_health"),
        HealthStatus::Draining => flags.push_str("/eds_status_draining"),
        HealthStatus::Degraded => flags.push_str("/degraded_eds_health"),
        HealthStatus::Healthy | HealthStatus::Unknown => {}
    }
    if flags.is_empty() {
        "healthy".to_owned()
    } else {
        flags
    }
}

fn json_status(cluster: &Cluster) -> Value {
    let mut status = Map::new();
    status.insert("name".into(), (&**cluster.name()).into());
    if cluster.added_via_api {
        status.insert("added_via_api".into(), true.into());
    }
    let hosts: Vec<_> = cluster.all_hosts().iter().map(|h| json_host(h)).collect();
    if !hosts.is_empty() {
        status.insert("host_statuses".into(), hosts.into());
    }
    let thresholds: Vec<_> = thresholds(cluster)
        .iter()
        .map(|(priority, t)| {
            let mut entry = Map::new();
            if *priority == "high" {
                entry.insert("priority".into(), "HIGH".into());
            }
            for (key, v) in [
                ("max_connections", t.max_connections),
                ("max_pending_requests", t.max_pending_requests),
                ("max_requests", t.max_requests),
                ("max_retries", t.max_retries),
            ] {
                entry.insert(key.into(), v.into());
            }
            Value::Object(entry)
        })
        .collect();
    status.insert("circuit_breakers".into(), json!({"thresholds": thresholds}));
    let name = &*cluster.config.observability_name;
    status.insert("observability_name".into(), name.into());
    if let Some(service) = service_name(cluster) {
        status.insert("eds_service_name".into(), service.into());
    }
    Value::Object(status)
}

fn json_host(host: &Host) -> Value {
    let s = &host.stats;
    let mut status = Map::new();
    let address = match &host.address {
        HostAddress::Tcp(a) => socket_address(a),
        HostAddress::Pipe(path) => json!({"pipe": {"path": &**path}}),
    };
    status.insert("address".into(), address);
    let mut stats = Vec::new();
    for (gauge, name, v) in [
        (false, "cx_connect_fail", value(&s.cx_connect_fail)),
        (false, "cx_total", value(&s.cx_total)),
        (false, "rq_error", value(&s.rq_error)),
        (false, "rq_success", value(&s.rq_success)),
        (false, "rq_timeout", value(&s.rq_timeout)),
        (false, "rq_total", value(&s.rq_total)),
        (true, "cx_active", value(&s.cx_active)),
        (true, "rq_active", value(&s.rq_active)),
        (true, "rq_pending_active", 0),
    ] {
        let mut stat = Map::new();
        if gauge {
            stat.insert("type".into(), "GAUGE".into());
        }
        if v > 0 {
            stat.insert("value".into(), v.to_string().into());
        }
        stat.insert("name".into(), name.into());
        stats.push(Value::Object(stat));
    }
    status.insert("stats".into(), stats.into());
    status.insert("health_status".into(), json_health(host));
    status.insert("weight".into(), host.weight().into());
    if !host.hostname.is_empty() {
        status.insert("hostname".into(), (&*host.hostname).into());
    }
    if host.priority > 0 {
        status.insert("priority".into(), host.priority.into());
    }
    let mut locality = Map::new();
    for (key, v) in [
        ("region", &host.locality.region),
        ("zone", &host.locality.zone),
        ("sub_zone", &host.locality.sub_zone),
    ] {
        if !v.is_empty() {
            locality.insert(key.into(), (&**v).into());
        }
    }
    status.insert("locality".into(), Value::Object(locality));
    Value::Object(status)
}

fn json_health(host: &Host) -> Value {
    let mut health = Map::new();
    if host.is_ejected() {
        health.insert("failed_outlier_check".into(), true.into());
    }
    // Envoy reduces what EDS said to these three; draining and timed-out hosts count as unhealthy.
    let status = match host.eds_health() {
        HealthStatus::Healthy | HealthStatus::Unknown => "HEALTHY",
        HealthStatus::Degraded => "DEGRADED",
        HealthStatus::Draining => "DRAINING",
        HealthStatus::Unhealthy | HealthStatus::Timeout => "UNHEALTHY",
    };
    health.insert("eds_health_status".into(), status.into());
    Value::Object(health)
}
