//! `x-forwarded-client-cert`.

use std::fmt::Write as _;

use outrigger_config::http::{ClientCertDetails, ForwardClientCert};

use crate::http::headers::Headers;
use crate::stream_info::TlsInfo;

const NAME: &[u8] = b"x-forwarded-client-cert";

/// Applies the configured mode to a request.
pub fn apply(
    headers: &mut Headers,
    mode: ForwardClientCert,
    details: ClientCertDetails,
    tls: Option<&TlsInfo>,
) {
    let peer = tls.filter(|t| t.peer_certificate.is_some() && t.peer_validated);
    match (mode, peer) {
        (ForwardClientCert::AlwaysForwardOnly, _) | (ForwardClientCert::ForwardOnly, Some(_)) => {}
        (ForwardClientCert::AppendForward, Some(tls)) => {
            let element = element(tls, details);
            match headers.get(NAME).map(<[u8]>::to_vec) {
                Some(mut old) if !old.is_empty() => {
                    old.push(b',');
                    old.extend_from_slice(element.as_bytes());
                    headers.set(NAME, &old);
                }
                _ => headers.set(NAME, element.as_bytes()),
            }
        }
        (ForwardClientCert::SanitizeSet, Some(tls)) => {
            headers.set(NAME, element(tls, details).as_bytes());
        }
        _ => {
            headers.remove(NAME);
        }
    }
}

/// One element: By, Hash, Cert, Chain, Subject, URI, DNS in this order.
#[must_use]
pub fn element(tls: &TlsInfo, details: ClientCertDetails) -> String {
    let mut out = String::with_capacity(256);
    let mut add = |key: &str, value: &str| {
        if !out.is_empty() {
            out.push(';');
        }
        out.push_str(key);
        out.push('=');
        out.push_str(value);
    };
    for san in &tls.local_uri_sans {
        add("By", san);
    }
    add("Hash", &tls.peer_fingerprint_256);
    if let Some(der) = tls.peer_certificate.as_ref().filter(|_| details.cert) {
        add("Cert", &format!("\"{}\"", url_encoded_pem(der)));
    }
    if let Some(der) = tls.peer_certificate.as_ref().filter(|_| details.chain) {
        add("Chain", &format!("\"{}\"", url_encoded_pem(der)));
    }
    if details.subject {
        add("Subject", &format!("\"{}\"", tls.peer_subject));
    }
    if details.uri {
        if tls.peer_uri_sans.is_empty() {
            add("URI", "");
        }
        for san in &tls.peer_uri_sans {
            add("URI", san);
        }
    }
    if details.dns {
        for san in &tls.peer_dns_sans {
            add("DNS", san);
        }
    }
    out
}

/// PEM with everything but unreserved characters escaped.
fn url_encoded_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in base64.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    let mut out = String::with_capacity(pem.len() * 5 / 4);
    for byte in pem.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls() -> TlsInfo {
        TlsInfo {
            peer_validated: true,
            peer_certificate: Some(vec![1]),
            peer_fingerprint_256: "ab".into(),
            peer_uri_sans: vec!["spiffe://td/ns/a/sa/b".into()],
            peer_dns_sans: vec!["x".into()],
            peer_subject: "CN=client,O=acme".into(),
            local_uri_sans: vec!["spiffe://td/ns/c/sa/d".into()],
            ..TlsInfo::default()
        }
    }

    #[test]
    fn modes_follow_the_table_of_the_spec() {
        use ForwardClientCert as M;
        let details = ClientCertDetails {
            subject: true,
            uri: true,
            dns: true,
            ..Default::default()
        };
        let new = "By=spiffe://td/ns/c/sa/d;Hash=ab;Subject=\"CN=client,O=acme\";URI=spiffe://td/ns/a/sa/b;DNS=x";
        let appended = format!("old,{new}");
        let table = [
            (M::Sanitize, true, None),
            (M::ForwardOnly, true, Some("old")),
            (M::AppendForward, true, Some(appended.as_str())),
            (M::SanitizeSet, true, Some(new)),
            (M::AlwaysForwardOnly, true, Some("old")),
            (M::Sanitize, false, None),
            (M::ForwardOnly, false, None),
            (M::AppendForward, false, None),
            (M::SanitizeSet, false, None),
            (M::AlwaysForwardOnly, false, Some("old")),
        ];
        for (mode, mtls, want) in table {
            let mut headers = Headers::new();
            headers.append(NAME, b"old");
            let tls = tls();
            apply(&mut headers, mode, details, mtls.then_some(&tls));
            let got = headers.get(NAME).map(String::from_utf8_lossy);
            assert_eq!(got.as_deref(), want, "{mode:?} mtls={mtls}");
        }
    }
}
