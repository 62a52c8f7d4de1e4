//! The bearer token shown to istiod and the CA. Read anew for every RPC, never kept, never logged.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

mod gce;
mod jwt;

pub use gce::{GceError, GceFetcher};

/// Token of `CREDENTIAL_FETCHER_TYPE=Mock`.
const MOCK_TOKEN: &str = "test_token";
/// Longest token file read, bytes; istiod takes no longer headers.
const MAX_TOKEN_FILE: u64 = 64 * 1024;

/// Where the token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// `JWT` (default): the trimmed content of a file, usually
    /// `./var/run/secrets/tokens/istio-token`.
    JwtFile(PathBuf),
    /// `GoogleComputeEngine`: the metadata server, asked for each RPC.
    Gce(GceFetcher),
    /// `Mock`: the fixed token `test_token`.
    Mock,
    /// No token; mTLS or nothing authenticates.
    None,
}

/// No token, where one is a must.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The metadata server gave none.
    #[error("token of the metadata server: {0}")]
    Gce(#[from] GceError),
}

impl CredentialSource {
    /// The token as it is now. A missing or empty file is a warning and no token: the request is
    /// sent all the same, so that a client certificate can authenticate it.
    ///
    /// # Errors
    /// If the metadata server was asked and gave none.
    pub async fn token(&self) -> Result<Option<Zeroizing<String>>, CredentialError> {
        Ok(match self {
            Self::None => None,
            Self::Mock => Some(Zeroizing::new(MOCK_TOKEN.to_owned())),
            Self::Gce(fetcher) => Some(fetcher.fetch().await?),
            Self::JwtFile(path) => match read_token(path) {
                Ok(token) => {
                    if jwt::expiry(&token).is_some_and(|expiry| expiry <= SystemTime::now()) {
                        tracing::warn!(path = %path.display(), "token is expired");
                    }
                    Some(token)
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "failed to read token file");
                    None
                }
            },
        })
    }
}

/// The trimmed content of a token file.
fn read_token(path: &Path) -> io::Result<Zeroizing<String>> {
    let file = std::fs::File::open(path)?;
    // All at once: a growing buffer would leave copies behind.
    let size = file.metadata()?.len().min(MAX_TOKEN_FILE) + 1;
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(size).unwrap_or(0)));
    file.take(MAX_TOKEN_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_TOKEN_FILE {
        return Err(io::Error::other("longer than 64 KiB"));
    }
    let token = text.trim();
    if token.is_empty() {
        return Err(io::Error::other("token file is empty"));
    }
    Ok(Zeroizing::new(token.to_owned()))
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
    ///
    /// # Errors
    /// As [`CredentialSource::token`].
    pub async fn headers(&self) -> Result<HeaderMap, CredentialError> {
        let mut map = HeaderMap::new();
        if let Some(token) = self.credential.token().await? {
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
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn token_is_read_anew_and_trimmed_and_may_be_missing() {
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
        let headers = async || metadata.headers().await.expect("headers");
        assert!(headers().await.get("authorization").is_none());
        for token in ["one", "two"] {
            std::fs::write(&path, format!("  {token}\n")).expect("write token");
            let headers = headers().await;
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
        assert!(headers().await.get("authorization").is_none());
        assert_eq!(
            headers().await.get("clusterid").map(HeaderValue::as_bytes),
            Some(&b"Kubernetes"[..])
        );
        assert!(headers().await.contains_key("x-extra"));
    }

    #[tokio::test]
    async fn token_file_of_any_length_or_content_is_bounded() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("istio-token");
        let source = CredentialSource::JwtFile(path.clone());
        let token = async || source.token().await.expect("no failure");
        std::fs::write(&path, "x".repeat(64 * 1024)).expect("write");
        assert_eq!(token().await.map(|t| t.len()), Some(64 * 1024));
        std::fs::write(&path, "x".repeat(64 * 1024 + 1)).expect("write");
        assert!(token().await.is_none());
        std::fs::write(&path, [0xff, 0xfe]).expect("write");
        assert!(token().await.is_none());
        std::fs::write(&path, "line\nbreak").expect("write");
        let metadata = RequestMetadata {
            credential: source.clone(),
            cluster_id: "two\nlines".to_owned(),
            headers: Vec::new(),
        };
        assert!(metadata.headers().await.expect("headers").is_empty());
    }
}
