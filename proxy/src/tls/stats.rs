//! The `ssl.` counters of a listener or cluster. Handles of names that depend on the handshake are resolved
//! once per value seen, not per handshake.

use std::sync::{Arc, OnceLock};

use rustls::CommonState;

use super::crypto::{cipher_name, curve_name};
use super::failure::{FailureKind, TlsFailure};
use crate::stats::{Counter, Stats};
use crate::stream_info::TlsInfo;

const CIPHERS: [&str; 10] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "UNKNOWN",
];
const CURVES: [&str; 5] = ["X25519MLKEM768", "X25519", "P-256", "P-384", "UNKNOWN"];
const VERSIONS: [&str; 2] = ["TLSv1.2", "TLSv1.3"];

/// Counters under `<prefix>.ssl.`.
#[derive(Debug)]
pub struct SslStats {
    registry: Arc<Stats>,
    prefix: Box<str>,
    handshake: Counter,
    session_reused: Counter,
    no_certificate: Counter,
    connection_error: Counter,
    fail_verify_no_cert: Counter,
    fail_verify_error: Counter,
    fail_verify_san: Counter,
    fail_verify_cert_hash: Counter,
    ciphers: [OnceLock<Counter>; CIPHERS.len()],
    curves: [OnceLock<Counter>; CURVES.len()],
    versions: [OnceLock<Counter>; VERSIONS.len()],
}

impl SslStats {
    /// Handles under `prefix` (`listener.0.0.0.0_15006` or `cluster.<name>`).
    #[must_use]
    pub fn new(registry: &Arc<Stats>, prefix: &str) -> Self {
        let counter = |name: &str| registry.counter(&format!("{prefix}.ssl.{name}"));
        Self {
            handshake: counter("handshake"),
            session_reused: counter("session_reused"),
            no_certificate: counter("no_certificate"),
            connection_error: counter("connection_error"),
            fail_verify_no_cert: counter("fail_verify_no_cert"),
            fail_verify_error: counter("fail_verify_error"),
            fail_verify_san: counter("fail_verify_san"),
            fail_verify_cert_hash: counter("fail_verify_cert_hash"),
            ciphers: Default::default(),
            curves: Default::default(),
            versions: Default::default(),
            registry: Arc::clone(registry),
            prefix: prefix.into(),
        }
    }

    /// Counts a finished handshake.
    pub fn succeeded(&self, info: &TlsInfo, connection: &CommonState) {
        self.handshake.inc();
        if info.resumed {
            self.session_reused.inc();
        }
        if info.peer_certificate.is_none() {
            self.no_certificate.inc();
        }
        if let Some(suite) = connection.negotiated_cipher_suite() {
            self.dynamic(
                "ciphers",
                &CIPHERS,
                &self.ciphers,
                cipher_name(suite.suite()),
            );
        }
        if let Some(group) = connection.negotiated_key_exchange_group() {
            self.dynamic("curves", &CURVES, &self.curves, curve_name(group.name()));
        }
        self.dynamic("versions", &VERSIONS, &self.versions, info.version);
    }

    fn dynamic(&self, family: &str, names: &[&str], cells: &[OnceLock<Counter>], name: &str) {
        let Some(cell) = names
            .iter()
            .position(|n| *n == name)
            .and_then(|i| cells.get(i))
        else {
            return;
        };
        cell.get_or_init(|| {
            self.registry
                .counter(&format!("{}.ssl.{family}.{name}", self.prefix))
        })
        .inc();
    }

    /// Counts a failed handshake.
    pub fn failed(&self, failure: &TlsFailure) {
        match failure.kind {
            FailureKind::SecretMissing => {}
            FailureKind::Connection => self.connection_error.inc(),
            FailureKind::NoCertificate => self.fail_verify_no_cert.inc(),
            FailureKind::Chain => self.fail_verify_error.inc(),
            FailureKind::San => self.fail_verify_san.inc(),
            FailureKind::Pin => self.fail_verify_cert_hash.inc(),
        }
    }
}
