//! `envoy.filters.http.fault`: delay, then abort.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use outrigger_config::http::{Fault, FaultAbort};

use crate::error::Flag;
use crate::http::headers::Headers;
use crate::http::local_reply::LocalReply;
use crate::http::route::{header_matches, hit};

/// What to do with one request.
#[derive(Debug, Default)]
pub struct Injection {
    /// Wait first.
    pub delay: Option<Duration>,
    /// Then answer.
    pub abort: Option<LocalReply>,
}

/// Faults under way in one filter, for `max_active_faults`.
#[derive(Debug, Default)]
pub struct ActiveFaults(AtomicU32);

/// Counts an active fault while it lives.
#[derive(Debug)]
pub struct ActiveFault<'a>(&'a ActiveFaults);

impl ActiveFaults {
    /// Counts one more unless the limit is reached.
    pub fn enter(&self, limit: Option<u32>) -> Option<ActiveFault<'_>> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        if limit.is_some_and(|l| before >= l) {
            self.0.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(ActiveFault(self))
    }
}

impl Drop for ActiveFault<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Decides delay and abort, each with its own dice.
#[must_use]
pub fn decide(fault: &Fault, headers: &Headers, random: impl Fn() -> u64) -> Injection {
    if !fault.headers.iter().all(|m| header_matches(m, headers)) {
        return Injection::default();
    }
    let delay = fault
        .delay
        .filter(|(_, p)| hit(*p, random()))
        .map(|(d, _)| d);
    let abort = fault
        .abort
        .filter(|(_, p)| hit(*p, random()))
        .map(|(a, _)| {
            let reply = |status| {
                LocalReply::new(status, "fault_filter_abort")
                    .body("fault filter abort")
                    .flag(Flag::FaultInjected)
            };
            match a {
                FaultAbort::Http(status) => reply(status),
                FaultAbort::Grpc(status) => {
                    let grpc = crate::http::local_reply::is_grpc(headers);
                    if grpc {
                        reply(200).header("grpc-status", status.to_string())
                    } else {
                        reply(200)
                    }
                }
            }
        });
    Injection { delay, abort }
}
