//! Facts of a certificate, printed as Envoy prints them. Reads untrusted bytes: never panics on them.

use std::fmt::Write as _;
use std::net::IpAddr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use outrigger_config::tls::SanType;

/// A subject alternative name of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct San {
    /// Its type.
    pub kind: SanType,
    /// Its text; IP addresses in their usual form.
    pub value: String,
}

/// What is read from a certificate once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateFacts {
    /// SANs in certificate order; types Envoy cannot match are left out.
    pub sans: Vec<San>,
    /// RFC 2253 subject.
    pub subject: String,
    /// RFC 2253 issuer.
    pub issuer: String,
    /// Lower-case hex.
    pub serial: String,
    /// Seconds since the epoch.
    pub not_before: i64,
    /// Seconds since the epoch.
    pub not_after: i64,
    /// Subject and issuer are the same name.
    pub self_issued: bool,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
}

impl CertificateFacts {
    /// SANs of one type, in order.
    pub fn sans_of(&self, kind: SanType) -> impl Iterator<Item = &str> {
        self.sans
            .iter()
            .filter(move |s| s.kind == kind)
            .map(|s| s.value.as_str())
    }

    /// Reads a DER certificate; `None` when it is not one.
    #[must_use]
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        Some(Self {
            sans: sans(&cert)?,
            subject: rfc2253(cert.subject()),
            issuer: rfc2253(cert.issuer()),
            serial: serial(cert.raw_serial()),
            not_before: cert.validity().not_before.timestamp(),
            not_after: cert.validity().not_after.timestamp(),
            self_issued: cert.subject().as_raw() == cert.issuer().as_raw(),
            spki_sha256: sha256(cert.public_key().raw),
        })
    }
}

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        let _ = write!(out, "{b:02x}"); // writing to a String cannot fail
    }
    out
}

/// Without the sign byte and leading zero digits, as BN_bn2hex gives it (bytes stay whole).
fn serial(raw: &[u8]) -> String {
    let start = raw.iter().position(|b| *b != 0).unwrap_or(raw.len());
    hex(&raw[start..])
}

fn sans(cert: &X509Certificate<'_>) -> Option<Vec<San>> {
    let Some(extension) = cert.subject_alternative_name().ok()? else {
        return Some(Vec::new());
    };
    let names = extension.value.general_names.iter().filter_map(|name| {
        Some(match name {
            GeneralName::RFC822Name(v) => San {
                kind: SanType::Email,
                value: (*v).into(),
            },
            GeneralName::DNSName(v) => San {
                kind: SanType::Dns,
                value: (*v).into(),
            },
            GeneralName::URI(v) => San {
                kind: SanType::Uri,
                value: (*v).into(),
            },
            GeneralName::IPAddress(v) => San {
                kind: SanType::IpAddress,
                value: ip_text(v)?,
            },
            _ => return None,
        })
    });
    Some(names.collect())
}

fn ip_text(bytes: &[u8]) -> Option<String> {
    let ip: IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        16 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    Some(ip.to_string())
}

fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "2.5.4.17" => "postalCode",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

/// RFC 2253: last RDN first, `+` inside one, values escaped.
fn rfc2253(name: &X509Name<'_>) -> String {
    let rdns: Vec<_> = name.iter_rdn().collect();
    let mut out = String::new();
    for rdn in rdns.iter().rev() {
        if !out.is_empty() {
            out.push(',');
        }
        for (i, attribute) in rdn.iter().enumerate() {
            if i > 0 {
                out.push('+');
            }
            let oid = attribute.attr_type().to_id_string();
            match (short_name(&oid), attribute.as_str()) {
                (Some(short), Ok(value)) => {
                    out.push_str(short);
                    out.push('=');
                    escape(value, &mut out);
                }
                (short, _) => {
                    // OpenSSL dumps the whole DER of what it cannot name; the value alone is close enough
                    // to be unambiguous.
                    out.push_str(short.unwrap_or(&oid));
                    out.push_str("=#");
                    out.push_str(&hex(attribute.attr_value().data));
                }
            }
        }
    }
    out
}

fn escape(value: &str, out: &mut String) {
    let last = value.len().saturating_sub(1);
    for (i, b) in value.bytes().enumerate() {
        let edge = (i == 0 && (b == b'#' || b == b' ')) || (i == last && b == b' ');
        match b {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(b as char);
            }
            _ if edge => {
                out.push('\\');
                out.push(b as char);
            }
            0x20..=0x7e => out.push(b as char),
            _ => {
                let _ = write!(out, "\\{b:02X}"); // writing to a String cannot fail
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_printed_as_the_reference_prints_them() {
        let mut params = rcgen::CertificateParams::new(vec!["a.example".into()]).expect("name");
        let uri = "spiffe://cluster.local/ns/a/sa/b"
            .try_into()
            .expect("ascii");
        params.subject_alt_names.insert(0, rcgen::SanType::URI(uri));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "Acme, Inc");
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "x");
        params.serial_number = Some(vec![0x0a, 0xbc].into());
        let key = rcgen::KeyPair::generate().expect("key");
        let cert = params.self_signed(&key).expect("signed");
        let facts = CertificateFacts::parse(cert.der()).expect("parses");
        assert_eq!(facts.subject, "CN=x,O=Acme\\, Inc");
        assert_eq!(facts.issuer, facts.subject);
        assert_eq!(facts.serial, "0abc");
        assert!(facts.self_issued);
        let values: Vec<_> = facts.sans.iter().map(|s| s.value.as_str()).collect();
        assert_eq!(values, ["spiffe://cluster.local/ns/a/sa/b", "a.example"]);
    }

    #[test]
    fn garbage_is_no_certificate() {
        assert_eq!(CertificateFacts::parse(b"\x30\x82garbage"), None);
    }
}
