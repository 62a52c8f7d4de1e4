//! `ISTIO_KUBE_APP_PROBERS`: which probe of the application stands behind which path.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

/// Probes that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeConfigError {
    /// Not the expected JSON.
    #[error("invalid JSON: {0}")]
    Json(String),
    /// A path that the injector does not write.
    #[error(
        "invalid path {0:?}: must be /app-health/<container>/livez, readyz or startupz, or \
         /app-lifecycle/<container>/prestopz or poststartz"
    )]
    Path(String),
    /// None, or more than one, of httpGet, tcpSocket and grpc.
    #[error("{0}: exactly one of httpGet, tcpSocket, grpc is needed")]
    Method(String),
    /// A named port, or none.
    #[error("{0}: port must be a number between 1 and 65535")]
    Port(String),
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) method: ProbeMethod,
    /// Zero means none, except for gRPC.
    pub(super) timeout: Duration,
}

/// What to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ProbeMethod {
    HttpGet {
        port: u16,
        path: String,
        https: bool,
    },
    TcpSocket {
        port: u16,
    },
    Grpc {
        port: u16,
        service: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    http_get: Option<HttpGet>,
    tcp_socket: Option<Port>,
    grpc: Option<Grpc>,
    #[serde(default)]
    timeout_seconds: u32,
}

#[derive(Deserialize)]
struct HttpGet {
    port: serde_json::Value,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: String,
}

#[derive(Deserialize)]
struct Port {
    port: serde_json::Value,
}

#[derive(Deserialize)]
struct Grpc {
    port: serde_json::Value,
    service: Option<String>,
}

/// Probes by path.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, Probe>, ProbeConfigError> {
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    let json = |e: serde_json::Error| ProbeConfigError::Json(e.to_string());
    let entries: BTreeMap<String, Entry> = serde_json::from_str(text).map_err(json)?;
    entries
        .into_iter()
        .map(|(path, entry)| Ok((path.clone(), checked(path, entry)?)))
        .collect()
}

fn checked(path: String, entry: Entry) -> Result<Probe, ProbeConfigError> {
    if !is_probe_path(&path) {
        return Err(ProbeConfigError::Path(path));
    }
    let method = match (entry.http_get, entry.tcp_socket, entry.grpc) {
        (Some(get), None, None) => ProbeMethod::HttpGet {
            port: port(&path, &get.port)?,
            path: if get.path.starts_with('/') {
                get.path
            } else {
                format!("/{}", get.path)
            },
            https: get.scheme.eq_ignore_ascii_case("https"),
        },
        (None, Some(tcp), None) => ProbeMethod::TcpSocket {
            port: port(&path, &tcp.port)?,
        },
        (None, None, Some(grpc)) => ProbeMethod::Grpc {
            port: port(&path, &grpc.port)?,
            service: grpc.service.unwrap_or_default(),
        },
        _ => return Err(ProbeConfigError::Method(path)),
    };
    Ok(Probe {
        method,
        timeout: Duration::from_secs(u64::from(entry.timeout_seconds)),
    })
}

fn is_probe_path(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let ["", kind, container, verb] = parts[..] else {
        return false;
    };
    let verbs = ["livez", "readyz", "startupz", "prestopz", "poststartz"];
    matches!(kind, "app-health" | "app-lifecycle") && !container.is_empty() && verbs.contains(&verb)
}

fn port(path: &str, value: &serde_json::Value) -> Result<u16, ProbeConfigError> {
    let port = value
        .as_u64()
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n != 0);
    port.ok_or_else(|| ProbeConfigError::Port(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(entry: &str) -> Result<Probe, ProbeConfigError> {
        let text = format!(r#"{{"/app-health/c/readyz":{entry}}}"#);
        parse(&text).map(|mut probes| probes.pop_first().expect("one").1)
    }

    #[test]
    fn probes_are_read_and_normalised() {
        let path = "/app-health/c/readyz".to_owned();
        for (entry, want) in [
            (
                r#"{"httpGet":{"path":"ready","port":8080,"scheme":"HTTPS"},"timeoutSeconds":3}"#,
                Ok(Probe {
                    method: ProbeMethod::HttpGet {
                        port: 8080,
                        path: "/ready".to_owned(),
                        https: true,
                    },
                    timeout: Duration::from_secs(3),
                }),
            ),
            (
                r#"{"tcpSocket":{"port":1}}"#,
                Ok(Probe {
                    method: ProbeMethod::TcpSocket { port: 1 },
                    timeout: Duration::ZERO,
                }),
            ),
            (
                r#"{"grpc":{"port":2,"service":null}}"#,
                Ok(Probe {
                    method: ProbeMethod::Grpc {
                        port: 2,
                        service: String::new(),
                    },
                    timeout: Duration::ZERO,
                }),
            ),
            (
                r#"{"tcpSocket":{"port":"http"}}"#,
                Err(ProbeConfigError::Port(path.clone())),
            ),
            (
                r#"{"tcpSocket":{"port":0}}"#,
                Err(ProbeConfigError::Port(path.clone())),
            ),
            ("{}", Err(ProbeConfigError::Method(path.clone()))),
            (
                r#"{"tcpSocket":{"port":1},"grpc":{"port":2}}"#,
                Err(ProbeConfigError::Method(path)),
            ),
        ] {
            assert_eq!(one(entry), want, "{entry}");
        }
    }

    #[test]
    fn only_paths_of_the_injector_are_accepted() {
        for (path, want) in [
            ("/app-health/c/livez", true),
            ("/app-lifecycle/c/prestopz", true),
            ("/app-health//livez", false),
            ("/app-health/c/other", false),
            ("/app-health/c/livez/x", false),
            ("app-health/c/livez", false),
            ("/healthz/ready", false),
        ] {
            assert_eq!(is_probe_path(path), want, "{path}");
        }
        let error = parse(r#"{"/x":{"tcpSocket":{"port":1}}}"#).expect_err("path");
        assert_eq!(error, ProbeConfigError::Path("/x".to_owned()));
    }
}
