//! `oci://` references, and the docker configuration with the registries' credentials.

use base64::Engine;
use serde::Deserialize;
use zeroize::Zeroizing;

/// Docker Hub's registry, which references without a registry mean.
const DOCKER_HUB: &str = "index.docker.io";

/// `registry/repository:tag@digest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) registry: String,
    pub(super) repository: String,
    pub(super) tag: String,
    /// `sha256:<hex>`.
    pub(super) digest: Option<String>,
}

/// Not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no image reference")]
pub struct ReferenceError(pub String);

impl Reference {
    /// Reads what follows `oci://`. The tag is `latest` by default.
    pub(super) fn parse(text: &str) -> Result<Self, ReferenceError> {
        let bad = || ReferenceError(text.to_owned());
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let hex = digest.strip_prefix("sha256:").ok_or_else(bad)?;
                if !is_sha256(hex) {
                    return Err(bad());
                }
                (rest, Some(digest.to_owned()))
            }
            None => (text, None),
        };
        let (registry, path) = match rest.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, path)
            }
            _ => (DOCKER_HUB, rest),
        };
        let registry = if registry == "docker.io" {
            DOCKER_HUB
        } else {
            registry
        };
        let (repository, tag) = path.rsplit_once(':').unwrap_or((path, "latest"));
        let repository = if registry == DOCKER_HUB && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        let plain = |text: &str, extra: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || extra.contains(c);
            !text.is_empty() && text.chars().all(allowed)
        };
        let valid = plain(registry, ".-:[]")
            && plain(&repository, "._-/")
            && plain(tag, "._-")
            && !repository
                .split('/')
                .any(|part| part.is_empty() || part.starts_with('.'));
        if !valid {
            return Err(bad());
        }
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag: tag.to_owned(),
            digest,
        })
    }

    /// The digest, or else the tag.
    pub(super) fn version(&self) -> &str {
        self.digest.as_deref().unwrap_or(&self.tag)
    }

    /// Name without version, as modules are cached under.
    pub(super) fn name(&self) -> String {
        format!("oci://{}/{}", self.registry, self.repository)
    }
}

/// 64 lower-case hex digits.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// A pull secret that cannot be read. Says nothing of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PullSecretError {
    /// The secret is there and empty: istiod could not read it.
    #[error("cannot fetch Wasm module: missing image pulling secret")]
    Empty,
    /// Not a docker configuration.
    #[error("image pull secret is no docker configuration")]
    Malformed,
}

/// `user:password` for a registry; `None` if the configuration does not know it.
pub(super) fn credentials(
    secret: &str,
    registry: &str,
) -> Result<Option<Zeroizing<String>>, PullSecretError> {
    let config: DockerConfig =
        serde_json::from_str(secret).map_err(|_| PullSecretError::Malformed)?;
    let known = |key: &String| {
        let key = key.split_once("://").map_or(key.as_str(), |(_, rest)| rest);
        let host = key.split('/').next().unwrap_or_default();
        host == registry || (host == "docker.io" && registry == DOCKER_HUB)
    };
    let Some((_, auth)) = config.auths.into_iter().find(|(key, _)| known(key)) else {
        return Ok(None);
    };
    if auth.auth.is_empty() {
        let pair = format!("{}:{}", auth.username, auth.password);
        return Ok(Some(Zeroizing::new(pair)));
    }
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(auth.auth.as_bytes())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    decoded
        .map(|pair| Some(Zeroizing::new(pair)))
        .ok_or(PullSecretError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_completed_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, registry, repository, version) in [
            ("r.test:5000/a/b:v1", "r.test:5000", "a/b", "v1"),
            ("r.test/a", "r.test", "a", "latest"),
            ("localhost/a", "localhost", "a", "latest"),
            ("nginx", DOCKER_HUB, "library/nginx", "latest"),
            ("docker.io/user/x:1", DOCKER_HUB, "user/x", "1"),
            ("user/x", DOCKER_HUB, "user/x", "latest"),
            (&format!("r.test/a@{digest}"), "r.test", "a", &digest),
            (&format!("r.test/a:v1@{digest}"), "r.test", "a", &digest),
        ] {
            let got = Reference::parse(text).expect("a reference");
            assert_eq!(got.registry, registry, "{text}");
            assert_eq!(got.repository, repository, "{text}");
            assert_eq!(got.version(), version, "{text}");
        }
        for text in [
            "",
            "r.test/",
            "r.test/a@sha256:12",
            "r.test/a@md5:12",
            "r.test/../a",
            "r.test/a//b",
            "r.test/a b",
            "user@r.test/a",
            "r.test/a?x=1",
        ] {
            let error = Reference::parse(text).expect_err("refused");
            assert_eq!(error, ReferenceError(text.to_owned()));
        }
    }

    #[test]
    fn credentials_are_found_by_host_and_never_printed() {
        let secret = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "r.test:5000": {"username": "u", "password": "p"},
            "broken.test": {"auth": "%"}
        }}"#;
        let found = |registry| credentials(secret, registry).map(|c| c.map(|c| c.to_string()));
        assert_eq!(found(DOCKER_HUB), Ok(Some("hub:pw".to_owned())));
        assert_eq!(found("r.test:5000"), Ok(Some("u:p".to_owned())));
        assert_eq!(found("r.test"), Ok(None));
        assert_eq!(found("broken.test"), Err(PullSecretError::Malformed));
        let error = credentials("hunter2", "r.test").expect_err("no JSON");
        assert!(!error.to_string().contains("hunter2"));
    }
}
