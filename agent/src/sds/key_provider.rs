//! ProxyConfig `privateKeyProvider`: the key inside the configuration of an accelerator of Envoy.

use std::time::Duration;

use bootstrap_templates::parse_proto_duration;
use outrigger_xds::pb::envoy::config::core::v3::DataSource;
use outrigger_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    PrivateKeyProvider, private_key_provider::ConfigType,
};
use outrigger_xds::pb::google::protobuf::Any;
use prost::Message;
use serde_json::{Map, Value};

/// `CryptoMbPrivateKeyMethodConfig` and `QatPrivateKeyMethodConfig` have the same fields.
#[derive(Clone, PartialEq, Message)]
struct MethodConfig {
    #[prost(message, optional, tag = "1")]
    private_key: Option<DataSource>,
    #[prost(message, optional, tag = "2")]
    poll_delay: Option<PollDelay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, Message)]
struct PollDelay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// An accelerator for private keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyProvider {
    name: &'static str,
    type_url: &'static str,
    poll_delay: Duration,
    /// Whether Envoy may use the key itself where the accelerator is missing.
    pub fallback: bool,
}

/// A setting that Envoy would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("privateKeyProvider: {0}")]
pub struct KeyProviderError(&'static str);

impl KeyProvider {
    /// The `privateKeyProvider` of a merged ProxyConfig.
    ///
    /// # Errors
    /// Without provider, or without a positive poll delay, which Envoy requires.
    pub fn parse(config: &Map<String, Value>) -> Result<Option<Self>, KeyProviderError> {
        let Some(setting) = config.get("privateKeyProvider") else {
            return Ok(None);
        };
        let (name, type_url, settings) = if let Some(settings) = setting.get("cryptomb") {
            let type_url = "type.googleapis.com/envoy.extensions.private_key_providers.cryptomb.\
                            v3alpha.CryptoMbPrivateKeyMethodConfig";
            ("cryptomb", type_url, settings)
        } else if let Some(settings) = setting.get("qat") {
            let type_url = "type.googleapis.com/envoy.extensions.private_key_providers.qat.\
                            v3alpha.QatPrivateKeyMethodConfig";
            ("qat", type_url, settings)
        } else {
            return Err(KeyProviderError("neither cryptomb nor qat is set"));
        };
        let delay = settings["pollDelay"]
            .as_str()
            .and_then(parse_proto_duration);
        Ok(Some(Self {
            name,
            type_url,
            poll_delay: delay
                .filter(|delay| !delay.is_zero())
                .ok_or(KeyProviderError("pollDelay must be set and positive"))?,
            fallback: settings["fallback"].as_bool().unwrap_or(false),
        }))
    }

    /// The provider with the key in it.
    pub(super) fn encode(&self, private_key: Option<DataSource>) -> PrivateKeyProvider {
        let mut config = MethodConfig {
            private_key,
            poll_delay: Some(PollDelay {
                seconds: i64::try_from(self.poll_delay.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(self.poll_delay.subsec_nanos()).unwrap_or(0),
            }),
        };
        let value = config.encode_to_vec();
        super::encode::wipe(config.private_key.as_mut());
        PrivateKeyProvider {
            provider_name: self.name.to_owned(),
            fallback: self.fallback,
            config_type: Some(ConfigType::TypedConfig(Any {
                type_url: self.type_url.to_owned(),
                value,
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<KeyProvider>, KeyProviderError> {
        KeyProvider::parse(&serde_json::from_str(text).expect("JSON"))
    }

    #[test]
    fn provider_needs_a_name_and_a_delay() {
        assert_eq!(parse("{}"), Ok(None));
        let qat = parse(r#"{"privateKeyProvider":{"qat":{"pollDelay":"0.002s","fallback":true}}}"#);
        let qat = qat.expect("valid").expect("set");
        assert_eq!(
            (qat.name, qat.poll_delay),
            ("qat", Duration::from_millis(2))
        );
        assert!(qat.fallback);
        for broken in [
            r#"{"privateKeyProvider":{}}"#,
            r#"{"privateKeyProvider":{"cryptomb":{}}}"#,
            r#"{"privateKeyProvider":{"cryptomb":{"pollDelay":"0s"}}}"#,
        ] {
            assert!(parse(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn key_is_in_the_provider_s_configuration() {
        let text = r#"{"privateKeyProvider":{"cryptomb":{"pollDelay":"1.5s"}}}"#;
        let provider = parse(text).expect("valid").expect("set");
        let encoded = provider.encode(super::super::encode::inline(b"key"));
        assert_eq!(encoded.provider_name, "cryptomb");
        let Some(ConfigType::TypedConfig(any)) = encoded.config_type else {
            panic!("typed")
        };
        assert!(
            any.type_url
                .ends_with(".v3alpha.CryptoMbPrivateKeyMethodConfig")
        );
        // { private_key { inline_bytes: "key" }, poll_delay { 1, 500000000 } }.
        let expected = b"\x0a\x05\x12\x03key\x12\x08\x08\x01\x10\x80\xca\xb5\xee\x01";
        assert_eq!(any.value, expected);
    }
}
