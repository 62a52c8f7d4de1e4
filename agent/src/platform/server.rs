//! A cloud's metadata server: plain HTTP to a link-local address. Answers are short and untrusted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use tokio::time::Instant;

use crate::request;

/// Azure's whole document has some 10 kB.
const MAX_ANSWER: usize = 256 << 10;
/// The address of every cloud's server.
const LINK_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// AWS's address in networks without IPv4.
const LINK_LOCAL_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// An address and the name it is asked under.
#[derive(Debug, Clone)]
pub(super) struct MetadataServer {
    address: SocketAddr,
    authority: String,
}

impl MetadataServer {
    pub(super) fn at(address: SocketAddr) -> Self {
        Self {
            address,
            authority: address.to_string(),
        }
    }

    pub(super) fn link_local(ipv6: bool) -> Self {
        let ip: IpAddr = if ipv6 {
            LINK_LOCAL_V6.into()
        } else {
            LINK_LOCAL.into()
        };
        Self::at(SocketAddr::new(ip, 80))
    }

    /// `host` is an address with or without a port. A name is not looked up: that could take
    /// longer than the whole search may.
    pub(super) fn google(host: &str) -> Self {
        let address = host.parse().ok().or_else(|| {
            let ip: Option<IpAddr> = host.parse().ok();
            ip.map(|ip| SocketAddr::new(ip, 80))
        });
        if address.is_none() && !host.is_empty() {
            tracing::warn!("GCE_METADATA_HOST={host} is not an address and is not used");
        }
        Self::at(address.unwrap_or_else(|| SocketAddr::new(LINK_LOCAL.into(), 80)))
    }

    /// The body of a 200 answer that carries `expected` as a header, if one is given.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        header: Option<(&str, &str)>,
        expected: Option<(&str, &str)>,
        until: Instant,
    ) -> Option<String> {
        let mut builder = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, &self.authority);
        if let Some((name, value)) = header {
            builder = builder.header(name, value);
        }
        let request = builder.body(Full::new(Bytes::new())).ok()?;
        let exchange = async {
            let response = request::send(&[self.address], request).await.ok()?;
            let marked = expected.is_none_or(|(name, value)| {
                response
                    .headers()
                    .get(name)
                    .is_some_and(|found| found == value)
            });
            if response.status() != StatusCode::OK || !marked {
                return None;
            }
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await;
            let text = String::from_utf8(body.ok()?.to_bytes().to_vec()).ok()?;
            Some(text.trim().to_owned())
        };
        let answer = tokio::time::timeout_at(until, exchange).await;
        let answer = answer.ok().flatten().filter(|text| !text.is_empty());
        if answer.is_none() {
            tracing::debug!("metadata server {} has no {path}", self.authority);
        }
        answer
    }

    /// [`MetadataServer::ask`] with GET and no check of the answer's headers.
    pub(super) async fn get(
        &self,
        path: &str,
        header: Option<(&str, &str)>,
        until: Instant,
    ) -> Option<String> {
        self.ask(Method::GET, path, header, None, until).await
    }
}
