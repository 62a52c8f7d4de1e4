//! Secrets as protobuf. Intermediate copies of keys are wiped.

use std::path::PathBuf;

use bytes::Bytes;
use outrigger_xds::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use outrigger_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, private_key_provider::ConfigType,
    secret::Type,
};
use outrigger_xds::pb::envoy::service::discovery::v3::DiscoveryResponse;
use outrigger_xds::pb::google::protobuf::Any;
use outrigger_xds::type_url::SECRET;
use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use super::key_provider::KeyProvider;
use crate::secret_manager::SecretValue;

pub(super) fn inline(bytes: &[u8]) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::InlineBytes(bytes.to_vec())),
        ..DataSource::default()
    })
}

/// Overwrites an inline key.
pub(super) fn wipe(source: Option<&mut DataSource>) {
    if let Some(Specifier::InlineBytes(key)) = source.and_then(|s| s.specifier.as_mut()) {
        key.zeroize();
    }
}

/// How secrets are written.
#[derive(Debug, Clone, Default)]
pub(super) struct Encoding {
    /// CRL that validation contexts refer to while it exists.
    pub(super) crl: Option<PathBuf>,
    /// Accelerator that gets the keys.
    pub(super) key_provider: Option<KeyProvider>,
}

impl Encoding {
    /// One secret as `Any`.
    pub(super) fn secret(&self, name: &str, value: &SecretValue) -> Any {
        let kind = match value {
            SecretValue::Certificate { chain, key, .. } => {
                let provider = self.key_provider.as_ref();
                // Beside a provider only where Envoy may fall back to it.
                let plain = provider.is_none_or(|provider| provider.fallback);
                Type::TlsCertificate(TlsCertificate {
                    certificate_chain: inline(chain),
                    private_key: plain.then(|| inline(key)).flatten(),
                    private_key_provider: provider.map(|p| p.encode(inline(key))),
                    ..TlsCertificate::default()
                })
            }
            SecretValue::Roots(pem) => Type::ValidationContext(CertificateValidationContext {
                trusted_ca: inline(pem),
                crl: self.existing_crl(),
                ..CertificateValidationContext::default()
            }),
        };
        let mut message = Secret {
            name: name.to_owned(),
            r#type: Some(kind),
        };
        let any = Any {
            type_url: SECRET.to_owned(),
            value: message.encode_to_vec(),
        };
        if let Some(Type::TlsCertificate(certificate)) = &mut message.r#type {
            wipe(certificate.private_key.as_mut());
            let provider = certificate.private_key_provider.as_mut();
            if let Some(ConfigType::TypedConfig(config)) =
                provider.and_then(|provider| provider.config_type.as_mut())
            {
                config.value.zeroize();
            }
        }
        any
    }

    fn existing_crl(&self) -> Option<DataSource> {
        let path = self.crl.as_ref().filter(|path| path.exists())?;
        Some(DataSource {
            specifier: Some(Specifier::Filename(path.to_string_lossy().into_owned())),
            ..DataSource::default()
        })
    }
}

/// A response with `resources`. They and the bytes are wiped when they are not needed any more.
pub(super) fn response(version: String, nonce: &str, resources: Vec<Any>) -> Bytes {
    let mut message = DiscoveryResponse {
        version_info: version,
        resources,
        type_url: SECRET.to_owned(),
        nonce: nonce.to_owned(),
        ..DiscoveryResponse::default()
    };
    let bytes = Bytes::from_owner(Zeroizing::new(message.encode_to_vec()));
    for any in &mut message.resources {
        any.value.zeroize();
    }
    bytes
}

/// A random UUID (version 4).
pub(super) fn nonce() -> String {
    let mut bits: u128 = rand::random();
    bits = bits & !(0xf << 76) | 0x4 << 76;
    bits = bits & !(0x3 << 62) | 0x2 << 62;
    let hex = format!("{bits:032x}");
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_are_version_4_uuids_and_differ() {
        let (a, b) = (nonce(), nonce());
        assert_ne!(a, b);
        for nonce in [a, b] {
            assert_eq!(nonce.len(), 36);
            assert_eq!(nonce.as_bytes()[14], b'4');
            assert!(b"89ab".contains(&nonce.as_bytes()[19]), "{nonce}");
        }
    }

    #[test]
    fn key_is_beside_an_accelerator_only_as_its_fallback() {
        let value = SecretValue::Certificate {
            chain: Bytes::from_static(b"chain"),
            key: Zeroizing::new(b"key".to_vec()),
            not_after: None,
        };
        for (fallback, plain) in [("true", true), ("false", false)] {
            let config = format!(
                r#"{{"privateKeyProvider":{{"qat":{{"pollDelay":"1s","fallback":{fallback}}}}}}}"#
            );
            let config = serde_json::from_str(&config).expect("JSON");
            let encoding = Encoding {
                crl: None,
                key_provider: KeyProvider::parse(&config).expect("valid"),
            };
            let any = encoding.secret("default", &value);
            let secret = Secret::decode(any.value.as_slice()).expect("secret");
            let Some(Type::TlsCertificate(certificate)) = secret.r#type else {
                panic!("certificate")
            };
            let provider = certificate.private_key_provider.expect("provider");
            assert_eq!(provider.fallback, plain);
            assert_eq!(
                certificate.private_key,
                plain.then(|| inline(b"key")).flatten()
            );
        }
    }
}
