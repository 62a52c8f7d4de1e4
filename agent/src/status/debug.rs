//! Debug pages of the status port, for loopback only: the name table, the way to istiod, and the
//! process itself under the paths of Go's pprof. Shows no secret.

mod names;
mod process;
mod profile;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};

use super::ready::{ControlPlane, Readiness};
use super::{Body, full, text};
use crate::options::ISTIO_VERSION;
use crate::supervisor::Lifecycle;

pub(super) struct Debug {
    pub(super) control_plane: Arc<OnceLock<ControlPlane>>,
    pub(super) profiling: bool,
    /// E.g. `ns.svc.cluster.local`.
    pub(super) domain: String,
}

impl Debug {
    pub(super) async fn answer<B>(
        &self,
        request: &Request<B>,
        readiness: &Readiness,
        lifecycle: &Lifecycle,
    ) -> Response<Body> {
        let path = request.uri().path();
        match path {
            "/debug/ndsz" => self.names(),
            "/debug/statusz" => self.state(readiness, lifecycle).await,
            _ => match path.strip_prefix("/debug/pprof/") {
                Some(page) if self.profiling => pprof(page, request.uri().query()).await,
                _ => not_found(),
            },
        }
    }

    /// The name table with the names that the DNS server derives; 404 before the first arrives.
    fn names(&self) -> Response<Body> {
        let control_plane = self.control_plane.get();
        let table = control_plane.and_then(|c| c.xds.name_table().borrow().clone());
        match table {
            Some(table) => page(StatusCode::OK, &names::json(&table, &self.domain)),
            None => page(StatusCode::NOT_FOUND, &json!({})),
        }
    }

    /// What a person asks first when a pod does not get ready.
    async fn state(&self, readiness: &Readiness, lifecycle: &Lifecycle) -> Response<Body> {
        let not_ready = readiness.check(lifecycle).await.err();
        let mut state = json!({
            "version": ISTIO_VERSION,
            "build": concat!("outrigger-", env!("CARGO_PKG_VERSION")),
            "ready": not_ready.is_none(),
            "not_ready_reason": not_ready.map(|reason| reason.to_string()),
            "terminating": lifecycle.is_terminating(),
        });
        if let Some(control_plane) = self.control_plane.get() {
            let xds = control_plane.xds.status().borrow().clone();
            state["istiod"] = json!({
                "connected_streams": xds.connected,
                "last_error": xds.last_error,
            });
            let secrets = control_plane.secrets.borrow().clone();
            state["certificate"] = json!({
                "not_after_unix_seconds": secrets.not_after.and_then(unix_seconds),
                "issued": secrets.issued,
                "failures": secrets.failures,
                "last_error": secrets.last_error,
            });
        }
        page(StatusCode::OK, &state)
    }
}

async fn pprof(page: &str, query: Option<&str>) -> Response<Body> {
    match page {
        "" => text(StatusCode::OK, process::INDEX),
        "cmdline" => text(StatusCode::OK, process::command_line()),
        "symbol" => text(StatusCode::OK, "num_symbols: 0\n"),
        "threads" | "threadcreate" | "goroutine" => text(StatusCode::OK, process::threads()),
        "heap" | "allocs" => text(StatusCode::OK, process::memory()),
        "profile" => match seconds(query) {
            Ok(length) => profile_page(length).await,
            Err(message) => text(StatusCode::BAD_REQUEST, message),
        },
        _ => not_found(),
    }
}

async fn profile_page(length: Duration) -> Response<Body> {
    match profile::record(length).await {
        Ok(bytes) => {
            let mut response = Response::new(full(bytes));
            let headers = response.headers_mut();
            let kind = HeaderValue::from_static("application/octet-stream");
            headers.insert(CONTENT_TYPE, kind);
            let name = HeaderValue::from_static("attachment; filename=\"profile\"");
            headers.insert(CONTENT_DISPOSITION, name);
            response
        }
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

/// `?seconds=N`; 30 without it, as in Go.
fn seconds(query: Option<&str>) -> Result<Duration, &'static str> {
    let pairs = query.unwrap_or_default().split('&');
    let text = pairs.filter_map(|p| p.strip_prefix("seconds=")).next();
    let seconds = text.map_or(Ok(30), str::parse);
    match seconds {
        Ok(n) if (1..=300).contains(&n) => Ok(Duration::from_secs(n)),
        _ => Err("seconds must be a number between 1 and 300\n"),
    }
}

fn unix_seconds(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs())
}

fn page(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = text(status, format!("{value:#}\n"));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn not_found() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_profile_is_bounded() {
        for (query, want) in [
            (None, Some(30)),
            (Some("seconds=1"), Some(1)),
            (Some("x=1&seconds=5"), Some(5)),
            (Some("seconds=0"), None),
            (Some("seconds=100000"), None),
            (Some("seconds=-1"), None),
        ] {
            let want = want.map(Duration::from_secs);
            assert_eq!(seconds(query).ok(), want, "{query:?}");
        }
    }
}
