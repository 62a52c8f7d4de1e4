//! The bearer token shown to istiod and the CA. Read anew for every RPC, never kept, never logged.

use std::path::PathBuf;

use http::{HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

/// Token of `CREDENTIAL_FETCHER_TYPE=Mock`.
const MOCK_TOKEN: &str = "test_token";

/// Where the token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// `JWT` (default): the trimmed content of a file, usually
    /// `./var/run/secrets/tokens/istio-token`.
    JwtFile(PathBuf),
    /// `Mock`: the fixed token `test_token`.
    Mock,
    /// No token; mTLS or nothing authenticates.
    None,
}

/// A fetcher type that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// `GoogleComputeEngine` needs Google's metadata server, which is not implemented.
    #[error("CREDENTIAL_FETCHER_TYPE=GoogleComputeEngine is not supported")]
    GoogleComputeEngine,
    /// Not a type at all.
    #[error("invalid credential fetcher type {0:?} (CREDENTIAL_FETCHER_TYPE)")]
    UnknownType(String),
}

impl CredentialSource {
    /// The source that `CREDENTIAL_FETCHER_TYPE` names; `token_file` is used by `JWT`.
    ///
    /// # Errors
    /// For unknown and unsupported types.
    pub fn from_type(kind: &str, token_file: PathBuf) -> Result<Self, CredentialError> {
        match kind {
            "" | "JWT" => Ok(Self::JwtFile(token_file)),
            "Mock" => Ok(Self::Mock),
            "GoogleComputeEngine" => Err(CredentialError::GoogleComputeEngine),
            other => Err(CredentialError::UnknownType(other.to_owned())),
        }
    }

    /// The token as it is now. A missing or empty file is a warning and no token: the request is
    /// sent all the same, so that a client certificate can authenticate it.
    #[must_use]
    pub fn token(&self) -> Option<Zeroizing<String>> {
        match self {
            Self::None => None,
            Self::Mock => Some(Zeroizing::new(MOCK_TOKEN.to_owned())),
            Self::JwtFile(path) => match std::fs::read_to_string(path) {
                Ok(text) => {
                    let text = Zeroizing::new(text);
                    let token = text.trim();
                    if token.is_empty() {
                        tracing::warn!(path = %path.display(), "token file is empty");
                        return None;
                    }
                    Some(Zeroizing::new(token.to_owned()))
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "failed to read token file");
                    None
                }
            },
        }
    }
}

/// What is sent with every RPC to istiod or the CA.
#[derive(Debug, Clone)]
pub struct RequestMetadata {
    /// Source of `authorization: Bearer`.
    pub credential: CredentialSource,
    /// `ISTIO_META_CLUSTER_ID`, sent as `clusterid`.
    pub cluster_id: String,
    /// `XDS_HEADER_*` or `CA_HEADER_*`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl RequestMetadata {
    /// Headers for one RPC; reads the token now.
    #[must_use]
    pub fn headers(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        if let Some(token) = self.credential.token() {
            let bearer = Zeroizing::new(format!("Bearer {}", token.as_str()));
            match HeaderValue::from_str(&bearer) {
                Ok(mut value) => {
                    value.set_sensitive(true);
                    map.insert(http::header::AUTHORIZATION, value);
                }
                Err(_) => tracing::warn!("token holds characters that no header can carry"),
            }
        }
        match HeaderValue::from_str(&self.cluster_id) {
            Ok(value) => {
                map.insert(HeaderName::from_static("clusterid"), value);
            }
            Err(_) => tracing::warn!("cluster id holds characters that no header can carry"),
        }
        for (name, value) in &self.headers {
            map.insert(name.clone(), value.clone());
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_read_anew_and_trimmed_and_may_be_missing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("istio-token");
        let metadata = RequestMetadata {
            credential: CredentialSource::JwtFile(path.clone()),
            cluster_id: "Kubernetes".to_owned(),
            headers: vec![(
                HeaderName::from_static("x-extra"),
                HeaderValue::from_static("1"),
            )],
        };
        assert!(metadata.headers().get("authorization").is_none());
        for token in ["one", "two"] {
            std::fs::write(&path, format!("  {token}\n")).expect("write token");
            let headers = metadata.headers();
            let value = headers.get("authorization").expect("bearer token");
            assert_eq!(
                value.to_str().ok(),
                Some(format!("Bearer {token}").as_str())
            );
            assert!(
                !format!("{headers:?}").contains(token),
                "the token must not be printed"
            );
        }
        std::fs::write(&path, " \n").expect("write token");
        assert!(metadata.headers().get("authorization").is_none());
        assert_eq!(
            metadata
                .headers()
                .get("clusterid")
                .map(HeaderValue::as_bytes),
            Some(&b"Kubernetes"[..])
        );
        assert!(metadata.headers().contains_key("x-extra"));
    }

    #[test]
    fn fetcher_types_other_than_jwt_and_mock_are_refused() {
        let path = PathBuf::from("t");
        assert_eq!(
            CredentialSource::from_type("", path.clone()),
            Ok(CredentialSource::JwtFile(path.clone()))
        );
        assert_eq!(
            CredentialSource::from_type("Mock", path.clone()),
            Ok(CredentialSource::Mock)
        );
        assert!(CredentialSource::from_type("GoogleComputeEngine", path.clone()).is_err());
        assert!(CredentialSource::from_type("jwt", path).is_err());
    }
}
