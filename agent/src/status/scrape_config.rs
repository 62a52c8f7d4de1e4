//! `ISTIO_PROMETHEUS_ANNOTATIONS`: what of the application to merge into the agent's page.

use serde::Deserialize;

/// Ports on which the pod answers itself; scraping one would loop or leak.
const RESERVED_PORTS: [u16; 9] = [
    15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090,
];

/// Settings that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScrapeConfigError {
    /// Not the expected JSON.
    #[error("invalid JSON: {0}")]
    Json(String),
    /// Not a port.
    #[error("invalid port {0:?}")]
    Port(String),
    /// A port of the pod itself.
    #[error("port {0} is reserved")]
    Reserved(u16),
}

/// One place of the application's metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) port: u16,
    pub(super) path: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Annotations {
    scrape: String,
    path: String,
    port: String,
    targets: Vec<AnnotatedTarget>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AnnotatedTarget {
    path: String,
    port: String,
}

/// Targets of the annotations; none without them or with `scrape` false.
pub(super) fn parse(
    text: Option<&str>,
    status_port: u16,
) -> Result<Vec<Target>, ScrapeConfigError> {
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    let json = |e: serde_json::Error| ScrapeConfigError::Json(e.to_string());
    let annotations: Annotations = serde_json::from_str(text).map_err(json)?;
    if annotations.scrape == "false" {
        return Ok(Vec::new());
    }
    let mut targets = annotations.targets;
    if targets.is_empty() {
        targets.push(AnnotatedTarget {
            path: annotations.path,
            port: annotations.port,
        });
    }
    targets
        .into_iter()
        .map(|target| checked(target, status_port))
        .collect()
}

fn checked(target: AnnotatedTarget, status_port: u16) -> Result<Target, ScrapeConfigError> {
    let text = if target.port.is_empty() {
        "80".to_owned()
    } else {
        target.port
    };
    let port = text.parse().ok().filter(|port| *port != 0);
    let port: u16 = port.ok_or(ScrapeConfigError::Port(text))?;
    if port == status_port || RESERVED_PORTS.contains(&port) {
        return Err(ScrapeConfigError::Reserved(port));
    }
    let path = match target.path.as_str() {
        "" => "/metrics".to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    Ok(Target { port, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_become_targets() {
        let target = |port, path: &str| Target {
            port,
            path: path.to_owned(),
        };
        for (text, want) in [
            (None, Ok(vec![])),
            (Some(r#"{"scrape":"false","port":"99999"}"#), Ok(vec![])),
            (Some("{}"), Ok(vec![target(80, "/metrics")])),
            (
                Some(r#"{"port":"8080","path":"stats"}"#),
                Ok(vec![target(8080, "/stats")]),
            ),
            (
                Some(r#"{"targets":[{"port":"1","path":"/a"},{"port":"2"}]}"#),
                Ok(vec![target(1, "/a"), target(2, "/metrics")]),
            ),
            (
                Some(r#"{"port":"http"}"#),
                Err(ScrapeConfigError::Port("http".to_owned())),
            ),
            (
                Some(r#"{"port":"0"}"#),
                Err(ScrapeConfigError::Port("0".to_owned())),
            ),
            (
                Some(r#"{"port":"15090"}"#),
                Err(ScrapeConfigError::Reserved(15090)),
            ),
            (
                Some(r#"{"port":"4321"}"#),
                Err(ScrapeConfigError::Reserved(4321)),
            ),
        ] {
            assert_eq!(parse(text, 4321), want, "{text:?}");
        }
        assert!(matches!(
            parse(Some("["), 1),
            Err(ScrapeConfigError::Json(_))
        ));
    }
}
