//! The outer fields of discovery messages, read without decoding resources, and the few requests
//! the agent makes itself.

use bytes::Bytes;
use outrigger_xds::Protocol;
use outrigger_xds::pb::envoy::service::discovery::v3 as discovery;
use outrigger_xds::pb::google::rpc::Status as RpcStatus;
use outrigger_xds::wire::{Fields, Value, WireError, bytes_field, utf8};
use prost::Message;
use prost::encoding::decode_varint;

/// gRPC code INTERNAL in `error_detail`.
const INTERNAL: i32 = 13;

/// Field numbers of the two variants.
struct Numbers {
    type_url: u32,
    nonce: u32,
    version: u32,
}

const fn request_numbers(protocol: Protocol) -> Numbers {
    match protocol {
        // The delta request has no version; 0 never matches.
        Protocol::Delta => Numbers {
            type_url: 2,
            nonce: 6,
            version: 0,
        },
        Protocol::Sotw => Numbers {
            type_url: 4,
            nonce: 5,
            version: 1,
        },
    }
}

/// Responses: the same numbers in both variants.
const RESPONSE: Numbers = Numbers {
    type_url: 4,
    nonce: 5,
    version: 1,
};
/// Field `resources` of both responses.
const RESOURCES: u32 = 2;
/// Field `resource` of `discovery.Resource`.
const RESOURCE_BODY: u32 = 2;
/// Field `type_url` of `Any`.
const ANY_TYPE_URL: u32 = 1;

/// Outer fields of a request or response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) type_url: String,
    pub(super) nonce: String,
    pub(super) version: String,
}

fn head(message: &Bytes, numbers: &Numbers) -> Result<Head, WireError> {
    let mut head = Head::default();
    for field in Fields::new(message.clone()) {
        if let (number, Value::Bytes(value)) = field? {
            if number == numbers.type_url {
                head.type_url = utf8(number, &value)?;
            } else if number == numbers.nonce {
                head.nonce = utf8(number, &value)?;
            } else if number == numbers.version {
                head.version = utf8(number, &value)?;
            }
        }
    }
    Ok(head)
}

pub(super) fn request_head(protocol: Protocol, message: &Bytes) -> Result<Head, WireError> {
    head(message, &request_numbers(protocol))
}

pub(super) fn response_head(message: &Bytes) -> Result<Head, WireError> {
    head(message, &RESPONSE)
}

/// The type of a response of which only the beginning is there, by its `type_url` or by the type of
/// its first resource; `None` if neither is in `start`. Resources come before `type_url` in what
/// istiod sends, and may be longer than what is there.
pub(super) fn early_type(protocol: Protocol, start: &Bytes) -> Option<String> {
    let mut rest = start.clone();
    while let Some(field) = Partial::next(&mut rest) {
        let found = match field.number {
            number if number == RESPONSE.type_url => field.text(),
            RESOURCES => {
                let any = match protocol {
                    Protocol::Sotw => Some(field.value),
                    Protocol::Delta => Partial::find(field.value, RESOURCE_BODY).map(|f| f.value),
                };
                any.and_then(|any| Partial::find(any, ANY_TYPE_URL)?.text())
            }
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// A length-delimited field that may be cut off by the end of what is there.
struct Partial {
    number: u32,
    value: Bytes,
    whole: bool,
}

impl Partial {
    /// The next field; other wire types stand as number 0, which no field has.
    fn next(message: &mut Bytes) -> Option<Self> {
        let mut fields = Fields::new(message.clone());
        if let Some(Ok((number, value))) = fields.next() {
            *message = fields.rest();
            let (number, value) = match value {
                Value::Bytes(value) => (number, value),
                _ => (0, Bytes::new()),
            };
            return Some(Self {
                number,
                value,
                whole: true,
            });
        }
        let mut value = std::mem::take(message);
        let key = decode_varint(&mut value).ok()?;
        let length = decode_varint(&mut value).ok()?;
        let cut = usize::try_from(length).is_ok_and(|length| length > value.len());
        let number = u32::try_from(key >> 3).ok()?;
        (key & 7 == 2 && cut).then_some(Self {
            number,
            value,
            whole: false,
        })
    }

    fn find(mut message: Bytes, number: u32) -> Option<Self> {
        while let Some(field) = Self::next(&mut message) {
            if field.number == number {
                return Some(field);
            }
        }
        None
    }

    fn text(&self) -> Option<String> {
        let text = utf8(self.number, &self.value).ok();
        text.filter(|_| self.whole)
    }
}

/// The `Any` of every resource, still encoded.
pub(super) fn resource_anys(protocol: Protocol, message: &Bytes) -> Result<Vec<Bytes>, WireError> {
    let mut found = Vec::new();
    for field in Fields::new(message.clone()) {
        if let (RESOURCES, Value::Bytes(resource)) = field? {
            match protocol {
                Protocol::Sotw => found.push(resource),
                Protocol::Delta => found.extend(bytes_field(&resource, RESOURCE_BODY)?),
            }
        }
    }
    Ok(found)
}

fn error_detail(message: Option<String>) -> Option<RpcStatus> {
    message.map(|message| RpcStatus {
        code: INTERNAL,
        message,
        details: Vec::new(),
    })
}

/// A request with only a type and perhaps an error: subscriptions and health reports.
pub(super) fn bare_request(protocol: Protocol, type_url: &str, error: Option<String>) -> Bytes {
    verdict(
        protocol,
        &Head {
            type_url: type_url.to_owned(),
            ..Head::default()
        },
        error,
    )
}

/// ACK, or NACK with `error`. SotW repeats the version in `head`.
pub(super) fn verdict(protocol: Protocol, head: &Head, error: Option<String>) -> Bytes {
    Bytes::from(match protocol {
        Protocol::Delta => discovery::DeltaDiscoveryRequest {
            type_url: head.type_url.clone(),
            response_nonce: head.nonce.clone(),
            error_detail: error_detail(error),
            ..discovery::DeltaDiscoveryRequest::default()
        }
        .encode_to_vec(),
        Protocol::Sotw => discovery::DiscoveryRequest {
            type_url: head.type_url.clone(),
            version_info: head.version.clone(),
            response_nonce: head.nonce.clone(),
            error_detail: error_detail(error),
            ..discovery::DiscoveryRequest::default()
        }
        .encode_to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_xds::pb::google::protobuf::Any;

    #[test]
    fn type_is_known_from_the_beginning_of_both_variants_and_never_guessed() {
        let any = |size: usize| Any {
            type_url: "type".into(),
            value: vec![1; size],
        };
        let delta = discovery::DeltaDiscoveryResponse {
            system_version_info: "v".into(),
            type_url: "type".into(),
            resources: vec![discovery::Resource {
                name: "n".into(),
                version: "1".into(),
                resource: Some(any(500)),
                ..Default::default()
            }],
            ..Default::default()
        };
        let sotw = discovery::DiscoveryResponse {
            version_info: "v".into(),
            type_url: "type".into(),
            resources: vec![any(500)],
            ..Default::default()
        };
        let empty = discovery::DeltaDiscoveryResponse {
            type_url: "type".into(),
            removed_resources: vec!["x".into(); 100],
            ..Default::default()
        };
        for (protocol, bytes) in [
            (Protocol::Delta, delta.encode_to_vec()),
            (Protocol::Sotw, sotw.encode_to_vec()),
            (Protocol::Delta, empty.encode_to_vec()),
        ] {
            let bytes = Bytes::from(bytes);
            let known = |end: usize| early_type(protocol, &bytes.slice(..end));
            assert_eq!(known(40).as_deref(), Some("type"), "{protocol:?}");
            for end in 0..bytes.len() {
                let found = known(end);
                assert!(
                    matches!(found.as_deref(), None | Some("type")),
                    "{end} {found:?}"
                );
            }
        }
        for garbage in [&b"\xff\xff\xff"[..], b"\x12\xff", b"\x22\x01\xff", b""] {
            assert_eq!(
                early_type(Protocol::Delta, &Bytes::from_static(garbage)),
                None
            );
        }
    }

    #[test]
    fn heads_are_read_from_real_encodings_of_both_variants() {
        let delta = discovery::DeltaDiscoveryRequest {
            type_url: "t".into(),
            response_nonce: "n".into(),
            resource_names_subscribe: vec!["a".into()],
            ..Default::default()
        };
        let expected = Head {
            type_url: "t".into(),
            nonce: "n".into(),
            version: String::new(),
        };
        assert_eq!(
            request_head(Protocol::Delta, &delta.encode_to_vec().into()),
            Ok(expected)
        );
        let sotw = discovery::DiscoveryRequest {
            type_url: "t".into(),
            response_nonce: "n".into(),
            version_info: "v".into(),
            ..Default::default()
        };
        let expected = Head {
            type_url: "t".into(),
            nonce: "n".into(),
            version: "v".into(),
        };
        let bytes = sotw.encode_to_vec().into();
        assert_eq!(request_head(Protocol::Sotw, &bytes), Ok(expected.clone()));
        assert_eq!(verdict(Protocol::Sotw, &expected, None), bytes);
        let response = discovery::DeltaDiscoveryResponse {
            type_url: "t".into(),
            nonce: "n".into(),
            system_version_info: "v".into(),
            removed_resources: vec!["x".into()],
            ..Default::default()
        };
        assert_eq!(
            response_head(&response.encode_to_vec().into()),
            Ok(expected)
        );
    }
}
