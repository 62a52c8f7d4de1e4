//! `envoy.filters.http.cors`.

use outrigger_config::route::CorsPolicy;

use crate::http::headers::Headers;
use crate::http::local_reply::LocalReply;

/// What a request's origin means for its answer.
#[derive(Debug, Default, Clone)]
pub struct CorsState {
    /// Origin to echo.
    origin: Option<Vec<u8>>,
    credentials: bool,
    expose: Option<std::sync::Arc<str>>,
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// Handles a request on a route with a policy.
///
/// # Errors
/// The answer to a preflight.
pub fn decode(policy: &CorsPolicy, headers: &Headers) -> Result<CorsState, LocalReply> {
    let Some(origin) = headers.get(b"origin").filter(|o| !o.is_empty()) else {
        return Ok(CorsState::default());
    };
    let allowed = policy.allow_origin.iter().any(|m| m.matches(origin));
    let preflight = headers.method() == b"OPTIONS"
        && headers
            .get(b"access-control-request-method")
            .is_some_and(|m| !m.is_empty());
    if !preflight {
        let state = CorsState {
            origin: Some(origin.to_vec()),
            credentials: policy.allow_credentials,
            expose: Some(policy.expose_headers.clone()).filter(|e| !e.is_empty()),
        };
        return Ok(if allowed { state } else { CorsState::default() });
    }
    let mut reply = LocalReply::new(200, "cors_response");
    if !allowed {
        return if policy.forward_not_matching_preflights {
            Ok(CorsState::default())
        } else {
            Err(reply)
        };
    }
    reply = reply.header("access-control-allow-origin", text(origin));
    if policy.allow_credentials {
        reply = reply.header("access-control-allow-credentials", "true");
    }
    for (name, value) in [
        ("access-control-allow-methods", &policy.allow_methods),
        ("access-control-allow-headers", &policy.allow_headers),
        ("access-control-max-age", &policy.max_age),
        ("access-control-expose-headers", &policy.expose_headers),
    ] {
        if !value.is_empty() {
            reply = reply.header(name, &**value);
        }
    }
    Err(reply)
}

impl CorsState {
    /// Adds what an actual request's answer carries.
    pub fn encode(&self, response: &mut Headers) {
        let Some(origin) = &self.origin else { return };
        response.set(b"access-control-allow-origin", origin);
        if self.credentials {
            response.set(b"access-control-allow-credentials", b"true");
        }
        if let Some(expose) = &self.expose {
            response.set(b"access-control-expose-headers", expose.as_bytes());
        }
    }
}
