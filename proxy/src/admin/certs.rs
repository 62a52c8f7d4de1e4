//! `/certs` and the days until the first certificate expires.

use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_config::tls::SanType;
use serde_json::{Value, json};

use super::server::Response;
use crate::access_log::time::rfc3339_seconds;
use crate::server::Process;
use crate::tls::x509::CertificateFacts;

fn days_left(not_after: i64) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let end = u64::try_from(not_after).unwrap_or(0);
    end.saturating_sub(now) / 86_400
}

fn details(facts: &CertificateFacts) -> Value {
    let sans: Vec<_> = facts
        .sans
        .iter()
        .filter_map(|san| match san.kind {
            SanType::Uri => Some(json!({"uri": san.value})),
            SanType::Dns => Some(json!({"dns": san.value})),
            SanType::IpAddress => Some(json!({"ip_address": san.value})),
            SanType::Email => None,
        })
        .collect();
    json!({
        "path": "<inline>",
        "serial_number": facts.serial,
        "subject_alt_names": sans,
        "days_until_expiration": days_left(facts.not_after).to_string(),
        "valid_from": rfc3339_seconds(facts.not_before),
        "expiration_time": rfc3339_seconds(facts.not_after),
    })
}

/// One entry per secret that holds certificates.
pub(super) fn page(process: &Process) -> Response {
    let certificates: Vec<_> = process
        .store
        .secrets
        .list()
        .iter()
        .filter(|s| s.leaf.is_some() || !s.authorities.is_empty())
        .map(|s| {
            let authorities: Vec<_> = s.authorities.iter().map(details).collect();
            let chain: Vec<_> = s.leaf.iter().map(details).collect();
            json!({"ca_cert": authorities, "cert_chain": chain})
        })
        .collect();
    if certificates.is_empty() {
        return Response::json(&json!({}));
    }
    Response::json(&json!({"certificates": certificates}))
}

/// `server.days_until_first_cert_expiring`; 2^32-1 without certificates, as Envoy has it.
#[must_use]
pub fn days_until_first(process: &Process) -> u64 {
    process
        .store
        .secrets
        .list()
        .iter()
        .flat_map(|s| s.leaf.iter().chain(&s.authorities))
        .map(|f| days_left(f.not_after))
        .min()
        .unwrap_or(u64::from(u32::MAX))
}
