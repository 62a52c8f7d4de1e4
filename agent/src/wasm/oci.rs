//! Modules in registries: manifest, token and blob over the registry's HTTP API.

use base64::Engine;
use http::header::{ACCEPT, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, Response, StatusCode, Uri};
use hyper::body::Incoming;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::client::{Client, FetchError};
use super::module::{Entry, hex};
use super::reference::{Reference, is_sha256};
use crate::request::percent_encoded;

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json, \
                         application/vnd.oci.image.index.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json";
/// Layer of an OCI artifact that is the module itself.
const WASM_LAYER: &str = "application/vnd.module.wasm.content.layer.v1+wasm";

/// Where a module lies in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    /// SHA-256 of the manifest, hex: the checksum of the module.
    pub(super) digest: String,
    /// `sha256:<hex>` of the layer with the module.
    pub(super) layer: String,
    /// How the layer holds it.
    pub(super) entry: Entry,
}

/// Manifest of an image, or list of them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Manifest {
    layers: Vec<Descriptor>,
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Descriptor {
    media_type: String,
    digest: String,
    platform: Platform,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// One repository, with the credentials for it.
pub(super) struct Repository<'a> {
    pub(super) client: &'a Client,
    pub(super) reference: &'a Reference,
    /// `user:password`.
    pub(super) credentials: Option<Zeroizing<String>>,
    scheme: &'static str,
    authorization: Option<HeaderValue>,
}

impl<'a> Repository<'a> {
    pub(super) fn new(
        client: &'a Client,
        reference: &'a Reference,
        credentials: Option<Zeroizing<String>>,
    ) -> Self {
        Self {
            client,
            reference,
            credentials,
            scheme: "https",
            authorization: None,
        }
    }

    fn wrong(&self, reason: impl Into<String>) -> FetchError {
        FetchError::Registry {
            registry: self.reference.registry.clone(),
            reason: reason.into(),
        }
    }

    fn url(&self, kind: &str, version: &str) -> Result<Uri, FetchError> {
        let Reference {
            registry,
            repository,
            ..
        } = self.reference;
        format!(
            "{}://{registry}/v2/{repository}/{kind}/{version}",
            self.scheme
        )
        .parse()
        .map_err(|_| self.wrong("cannot be part of a URL"))
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(value) = &self.authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        headers
    }

    /// Finds the layer with the module.
    pub(super) async fn image(&mut self) -> Result<Image, FetchError> {
        let (mut manifest, mut digest) = self.manifest(self.reference.version()).await?;
        if !manifest.manifests.is_empty() {
            let child = choose(&manifest.manifests);
            let child = child.ok_or_else(|| self.wrong("no image for this platform"))?;
            let child = child.digest.clone();
            (manifest, digest) = self.manifest(&child).await?;
        }
        let mut modules = manifest.layers.iter();
        let (layer, entry) = match modules.find(|layer| layer.media_type == WASM_LAYER) {
            Some(layer) => (Some(layer), Entry::First),
            None => (manifest.layers.last(), Entry::Plugin),
        };
        let layer = layer.ok_or_else(|| self.wrong("the manifest has no layers"))?;
        let known = layer.digest.strip_prefix("sha256:").is_some_and(is_sha256);
        if !known {
            return Err(self.wrong("a layer without SHA-256 digest"));
        }
        Ok(Image {
            digest,
            layer: layer.digest.clone(),
            entry,
        })
    }

    /// A manifest and its digest in hex, which is checked if it was asked for by it.
    async fn manifest(&mut self, version: &str) -> Result<(Manifest, String), FetchError> {
        let answer = self.authorized(version).await?;
        if answer.status() != StatusCode::OK {
            let status = answer.status();
            return Err(self.wrong(format!("manifest {version}: {status}")));
        }
        let bytes = self.client.document(answer).await?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        let digest = hex(digest.as_ref());
        if let Some(wanted) = version.strip_prefix("sha256:")
            && wanted != digest
        {
            return Err(FetchError::Checksum {
                url: self.reference.name(),
                actual: digest,
                wanted: wanted.to_owned(),
            });
        }
        let manifest = serde_json::from_slice(&bytes)
            .map_err(|error| self.wrong(format!("manifest {version}: {error}")))?;
        Ok((manifest, digest))
    }

    /// Asks for a manifest; over plain HTTP only if the registry is known as insecure; with a
    /// token if the registry wants one.
    async fn authorized(&mut self, version: &str) -> Result<Response<Incoming>, FetchError> {
        let mut answer = self.manifest_request(version).await;
        if let Err(FetchError::Handshake { .. }) = &answer
            && self.is_insecure()
        {
            self.scheme = "http";
            answer = self.manifest_request(version).await;
        }
        let answer = answer?;
        if answer.status() != StatusCode::UNAUTHORIZED || self.authorization.is_some() {
            return Ok(answer);
        }
        let challenges = answer.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges: Vec<String> = challenges
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        drop(answer);
        self.authorization = Some(self.answer_challenge(&challenges).await?);
        self.manifest_request(version).await
    }

    fn is_insecure(&self) -> bool {
        let registry: Option<http::uri::Authority> = self.reference.registry.parse().ok();
        registry.is_some_and(|authority| {
            let port = authority.port_u16().unwrap_or(443);
            self.client.0.is_insecure(authority.host(), port)
        })
    }

    async fn manifest_request(&self, version: &str) -> Result<Response<Incoming>, FetchError> {
        let url = self.url("manifests", version)?;
        let mut headers = self.headers();
        headers.insert(ACCEPT, HeaderValue::from_static(MANIFESTS));
        let (client, url, headers) = (self.client, &url, &headers);
        client
            .retried(move || Box::pin(client.get(url, headers)))
            .await
    }

    async fn answer_challenge(&self, challenges: &[String]) -> Result<HeaderValue, FetchError> {
        for challenge in challenges {
            let (scheme, parameters) = challenge.split_once(' ').unwrap_or((challenge, ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                return self.token(parameters).await;
            }
            if scheme.eq_ignore_ascii_case("basic")
                && let Some(value) = self.basic()
            {
                return Ok(value);
            }
        }
        Err(self.wrong("needs credentials that there are none of"))
    }

    fn basic(&self) -> Option<HeaderValue> {
        let pair = self.credentials.as_ref()?;
        let encoded = base64::engine::general_purpose::STANDARD.encode(pair.as_bytes());
        sensitive(&format!("Basic {encoded}"))
    }

    /// The token service that the registry names gives a token for this repository.
    async fn token(&self, parameters: &str) -> Result<HeaderValue, FetchError> {
        let realm = parameter(parameters, "realm").unwrap_or_default();
        let realm: Uri = realm
            .parse()
            .map_err(|_| self.wrong("bearer realm is no URL"))?;
        if !is_public(&realm) {
            return Err(self.wrong(format!("bearer realm {realm} is refused")));
        }
        let scope = format!("repository:{}:pull", self.reference.repository);
        let mut query = vec![("scope", scope)];
        if let Some(service) = parameter(parameters, "service") {
            query.push(("service", service));
        }
        let separator = if realm.query().is_some() { '&' } else { '?' };
        let query: Vec<String> = query
            .iter()
            .map(|(name, value)| format!("{name}={}", encoded(value)))
            .collect();
        let url: Uri = format!("{realm}{separator}{}", query.join("&"))
            .parse()
            .map_err(|_| self.wrong("bearer realm is no URL"))?;
        let mut headers = HeaderMap::new();
        headers.extend(self.basic().map(|value| (AUTHORIZATION, value)));
        let (client, url, headers) = (self.client, &url, &headers);
        let answer = client
            .retried(move || Box::pin(client.get(url, headers)))
            .await?;
        if answer.status() != StatusCode::OK {
            return Err(self.wrong(format!("token service answered {}", answer.status())));
        }
        let bytes = self.client.document(answer).await?;
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|_| self.wrong("token service answered no token"))?;
        let token = token.token.or(token.access_token).map(Zeroizing::new);
        token
            .and_then(|token| sensitive(&format!("Bearer {}", token.as_str())))
            .ok_or_else(|| self.wrong("token service answered no token"))
    }

    /// Downloads a layer and checks its digest.
    pub(super) async fn layer(
        &self,
        layer: &str,
        target: &std::path::Path,
    ) -> Result<(), FetchError> {
        let url = self.url("blobs", layer)?;
        let headers = self.headers();
        let (client, from, headers) = (self.client, &url, &headers);
        let actual = client
            .retried(move || Box::pin(client.download(from, headers, target)))
            .await?;
        match layer.strip_prefix("sha256:") {
            Some(wanted) if wanted == actual => Ok(()),
            _ => Err(FetchError::Checksum {
                url: url.to_string(),
                actual,
                wanted: layer.to_owned(),
            }),
        }
    }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The image for this machine, or the only one there is.
fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits =
        |d: &&Descriptor| d.platform.os == "linux" && d.platform.architecture == architecture;
    let only = || manifests.first().filter(|_| manifests.len() == 1);
    manifests.iter().find(fits).or_else(only)
}

/// A parameter of a challenge, with or without quotation marks.
fn parameter(parameters: &str, name: &str) -> Option<String> {
    let mut rest = parameters;
    loop {
        let (key, after) = rest.split_once('=')?;
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        if key.trim_matches([' ', ',']).eq_ignore_ascii_case(name) {
            return Some(value.to_owned());
        }
        rest = next;
    }
}

/// False for realms that only an attacker names: the machine itself, its network, its cloud.
fn is_public(realm: &Uri) -> bool {
    let Some(host) = realm.host() else {
        return false;
    };
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    let http = matches!(realm.scheme_str(), Some("http" | "https"));
    if !http || host == "localhost" || host == "metadata.google.internal" {
        return false;
    }
    match host.parse::<std::net::IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(std::net::IpAddr::V4(ip)) => {
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local())
        }
        Ok(std::net::IpAddr::V6(ip)) => {
            !(ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local())
        }
        Err(_) => true,
    }
}

/// Percent-encoding of all that is not plain.
fn encoded(text: &str) -> String {
    percent_encoded(text, |b| {
        b.is_ascii_alphanumeric() || b"-._~:/".contains(&b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_in_their_spellings() {
        let text =
            r#"realm="https://a.test/token?x=1",service=reg, scope="repository:a:pull,push""#;
        let get = |name| parameter(text, name);
        assert_eq!(get("realm").as_deref(), Some("https://a.test/token?x=1"));
        assert_eq!(get("Service").as_deref(), Some("reg"));
        assert_eq!(get("scope").as_deref(), Some("repository:a:pull,push"));
        assert_eq!(get("error"), None);
        assert_eq!(parameter("realm=\"open", "realm"), None);
        assert_eq!(parameter("", "realm"), None);
        assert_eq!(encoded("a b&c/ü"), "a%20b%26c/%C3%BC");
    }

    #[test]
    fn realms_inside_the_machine_or_its_network_are_refused() {
        for (realm, public) in [
            ("https://auth.test/token", true),
            ("http://8.8.8.8/token", true),
            ("https://localhost/token", false),
            ("https://LOCALHOST/token", false),
            ("http://metadata.google.internal/x", false),
            ("http://127.0.0.1/x", false),
            ("http://10.0.0.1/x", false),
            ("http://169.254.169.254/x", false),
            ("http://[::1]/x", false),
            ("http://[fd00::1]/x", false),
            ("http://[::ffff:10.0.0.1]/x", false),
            ("ftp://auth.test/x", false),
            ("/token", false),
        ] {
            let uri = realm.parse().expect("a URI");
            assert_eq!(is_public(&uri), public, "{realm}");
        }
    }
}
