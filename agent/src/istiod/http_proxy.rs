//! `HTTPS_PROXY` and `NO_PROXY`: the way to istiod and the CA through an HTTP CONNECT proxy.

use std::io;
use std::net::IpAddr;

use base64::Engine;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

/// Longest answer head accepted from a proxy.
const MAX_HEAD: usize = 16 * 1024;
/// Port of a proxy URL without one.
const DEFAULT_PORT: u16 = 80;

/// An HTTP proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpsProxy {
    /// Host name or address of the proxy.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `user:password` of the URL.
    credentials: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for HttpsProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpsProxy")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// `HTTPS_PROXY` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpsProxyError {
    /// Only plain `http://` proxies can be spoken to.
    #[error("HTTPS_PROXY: scheme {0:?} is not supported, only http")]
    Scheme(String),
    /// Not `host[:port]`.
    #[error("HTTPS_PROXY: no valid host and port")]
    Address,
}

impl HttpsProxy {
    /// The proxy for `host` and `port`, from the values of `HTTPS_PROXY` and `NO_PROXY`. Empty
    /// means none; `localhost` and loopback addresses never go through a proxy.
    ///
    /// # Errors
    /// If the URL cannot be used.
    pub fn for_host(
        https_proxy: &str,
        no_proxy: &str,
        (host, port): (&str, u16),
    ) -> Result<Option<Self>, HttpsProxyError> {
        let url = https_proxy.trim();
        if url.is_empty() || bypasses(no_proxy, host, port) {
            return Ok(None);
        }
        let rest = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => return Err(HttpsProxyError::Scheme(scheme.to_owned())),
            None => url,
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (credentials, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (Some(Zeroizing::new(user.to_owned())), address),
            None => (None, authority),
        };
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().map_err(|_| HttpsProxyError::Address)?)
            }
            _ => (address, DEFAULT_PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(HttpsProxyError::Address);
        }
        Ok(Some(Self {
            host: host.to_owned(),
            port,
            credentials,
        }))
    }

    /// Asks the proxy on `stream` for a tunnel to `target` (`host:port`).
    pub(crate) async fn tunnel(&self, stream: &mut TcpStream, target: &str) -> io::Result<()> {
        let mut request =
            Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"));
        if let Some(credentials) = &self.credentials {
            let encoded = base64::engine::general_purpose::STANDARD.encode(credentials.as_bytes());
            request.push_str(&format!("Proxy-Authorization: Basic {encoded}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        // Byte by byte: what follows the head belongs to the tunnel.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= MAX_HEAD {
                return Err(io::Error::other("proxy answers with an endless head"));
            }
            head.push(stream.read_u8().await?);
        }
        let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        match line.split_whitespace().nth(1) {
            Some(code) if line.starts_with("HTTP/1.") && code.starts_with('2') => Ok(()),
            _ => Err(io::Error::other(format!(
                "proxy refuses the tunnel: {line:?}"
            ))),
        }
    }
}

/// True if `host` is reached without proxy.
fn bypasses(no_proxy: &str, host: &str, port: u16) -> bool {
    let ip: Option<IpAddr> = host.parse().ok();
    if host.eq_ignore_ascii_case("localhost") || ip.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    no_proxy
        .split(',')
        .map(|rule| rule.trim().to_ascii_lowercase())
        .any(|rule| rule == "*" || rule_matches(&rule, &host, ip, port))
}

/// One rule: an address, a CIDR block, `domain` (and what is below it), `.domain` or `*.domain`
/// (only what is below it), each but the block perhaps with `:port`.
fn rule_matches(rule: &str, host: &str, ip: Option<IpAddr>, port: u16) -> bool {
    if let Some(ip) = ip
        && (rule.trim_matches(['[', ']']).parse() == Ok(ip) || in_block(rule, ip))
    {
        return true;
    }
    let (rule, wanted) = match rule.rsplit_once(':') {
        Some((name, number)) if !name.contains(':') || name.ends_with(']') => (name, Some(number)),
        _ => (rule, None),
    };
    if rule.is_empty() || wanted.is_some_and(|wanted| wanted.parse() != Ok(port)) {
        return false;
    }
    if let Some(ip) = ip {
        return rule.trim_matches(['[', ']']).parse() == Ok(ip);
    }
    match rule.strip_prefix('*').unwrap_or(rule).strip_prefix('.') {
        Some(domain) => below(host, domain),
        None => host == rule || below(host, rule),
    }
}

fn below(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain)
        .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

/// True if `rule` is a CIDR block that holds `ip`.
fn in_block(rule: &str, ip: IpAddr) -> bool {
    let Some((base, bits)) = rule.split_once('/') else {
        return false;
    };
    let (Ok(base), Ok(bits)) = (base.parse::<IpAddr>(), bits.parse::<u32>()) else {
        return false;
    };
    match (base, ip) {
        (IpAddr::V4(base), IpAddr::V4(ip)) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            base.to_bits() & mask == ip.to_bits() & mask
        }
        (IpAddr::V6(base), IpAddr::V6(ip)) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            base.to_bits() & mask == ip.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_exceptions_follow_the_usual_rules() {
        let target = "istiod.istio-system.svc";
        for (url, no_proxy, host, expected) in [
            ("", "", target, Ok(None)),
            ("http://p:3128", "", target, Ok(Some(("p", 3128)))),
            ("http://u:pw@p:3128/x", "", target, Ok(Some(("p", 3128)))),
            ("p:3128", "", target, Ok(Some(("p", 3128)))),
            ("http://p", "", target, Ok(Some(("p", 80)))),
            (
                "http://[fd00::1]:3128",
                "",
                target,
                Ok(Some(("fd00::1", 3128))),
            ),
            (
                "https://p:1",
                "",
                target,
                Err(HttpsProxyError::Scheme("https".to_owned())),
            ),
            ("http://p:x", "", target, Err(HttpsProxyError::Address)),
            ("http://", "", target, Err(HttpsProxyError::Address)),
            ("p:1", "*", target, Ok(None)),
            ("p:1", "other, .svc", target, Ok(None)),
            ("p:1", "*.svc", target, Ok(None)),
            ("p:1", "istiod.istio-system.svc", target, Ok(None)),
            (
                "p:1",
                "*.istiod.istio-system.svc, .istiod.istio-system.svc, , :",
                target,
                Ok(Some(("p", 1))),
            ),
            ("p:1", "svc:15012", target, Ok(None)),
            ("p:1", "svc:443, svc:x", target, Ok(Some(("p", 1)))),
            ("p:1", "10.244.0.1:15012", "10.244.0.1", Ok(None)),
            ("p:1", "10.244.0.1:1", "10.244.0.1", Ok(Some(("p", 1)))),
            ("p:1", "fd12::1", "fd12::1", Ok(None)),
            ("p:1", "[fd12::1]:15012", "fd12::1", Ok(None)),
            ("p:1", "svc", target, Ok(None)),
            ("p:1", "vc", target, Ok(Some(("p", 1)))),
            ("p:1", "10.0.0.0/8", "10.244.0.1", Ok(None)),
            ("p:1", "10.0.0.0/8", "11.244.0.1", Ok(Some(("p", 1)))),
            ("p:1", "fd00::/8", "fd12::1", Ok(None)),
            ("p:1", "", "localhost", Ok(None)),
            ("p:1", "", "127.0.0.1", Ok(None)),
        ] {
            let got = HttpsProxy::for_host(url, no_proxy, (host, 15012))
                .map(|proxy| proxy.map(|p| (p.host, p.port)));
            let expected = expected.map(|p| p.map(|(h, port)| (h.to_owned(), port)));
            assert_eq!(got, expected, "{url} {no_proxy} {host}");
        }
    }

    #[tokio::test]
    async fn tunnel_is_asked_for_with_credentials_and_a_refusal_is_an_error() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("bind");
        let address = listener.local_addr().expect("address");
        let proxy = HttpsProxy::for_host("http://u:pw@p:1", "", ("istiod", 1)).expect("url");
        let proxy = proxy.expect("a proxy");
        assert!(!format!("{proxy:?}").contains("pw"));
        for (answer, ok) in [
            (
                &b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n!"[..],
                true,
            ),
            (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", false),
            (b"\x16\x03\x01\r\n\r\n", false),
        ] {
            let server = async {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("request"));
                }
                stream.write_all(answer).await.expect("answer");
                head
            };
            let client = async {
                let mut stream = TcpStream::connect(address).await.expect("connect");
                let result = proxy.tunnel(&mut stream, "istiod:15012").await;
                if result.is_ok() {
                    assert_eq!(stream.read_u8().await.expect("tunnel"), b'!');
                }
                result
            };
            let (head, result) = tokio::join!(server, client);
            assert_eq!(
                String::from_utf8_lossy(&head),
                "CONNECT istiod:15012 HTTP/1.1\r\nHost: istiod:15012\r\n\
                 Proxy-Authorization: Basic dTpwdw==\r\n\r\n"
            );
            assert_eq!(result.is_ok(), ok, "{result:?}");
        }
    }
}
