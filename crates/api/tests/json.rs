//! Rules of the JSON form and of refusals.

use outrigger_api::json::{self, DecodeOptions, EncodeOptions};
use proptest::prelude::*;
use serde_json::json;

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

#[test]
fn refusals_carry_the_field_path() {
    let table = [
        (json!({"nope": 1}), "nope: unknown field in envoy.config.cluster.v3.Cluster"),
        (json!({"connect_timeout": "5"}), "connect_timeout: expected a duration such as \"1.5s\""),
        (json!({"type": "NOPE"}), "type: unknown enum value \"NOPE\""),
        (json!({"name": 5}), "name: expected a string, found 5"),
        (json!({"load_assignment": {"endpoints": [{"priority": "x"}]}}),
         "load_assignment.endpoints[0].priority: expected an unsigned 32-bit integer, found \"x\""),
        (json!({"transport_socket": {"typed_config": {"@type": "a/b.C"}}}),
         "transport_socket.typed_config: unknown message type b.C"),
        (json!({"name": "a", "alt_stat_name": "b", "altStatName": "c"}), "altStatName: field given twice"),
    ];
    for (value, want) in table {
        let error = json::encode(CLUSTER, &value, &EncodeOptions::default()).expect_err("refused");
        assert_eq!(error.to_string(), want);
    }
}

#[test]
fn unknown_fields_are_listed_when_allowed() {
    let options = EncodeOptions { allow_unknown_fields: true };
    let encoded = json::encode(CLUSTER, &json!({"name": "a", "x": {"y": 1}}), &options).expect("accepted");
    assert_eq!(encoded.unknown_fields, ["x"]);
}

#[test]
fn both_spellings_of_a_name_mean_the_same() {
    let a = json::encode(CLUSTER, &json!({"connectTimeout": "0.250s"}), &EncodeOptions::default());
    let b = json::encode(CLUSTER, &json!({"connect_timeout": "0.25s"}), &EncodeOptions::default());
    assert_eq!(a, b);
}

#[test]
fn private_keys_are_redacted() {
    let secret = json!({
        "name": "default",
        "tls_certificate": {
            "certificate_chain": {"inline_string": "CERT"},
            "private_key": {"inline_string": "VERY SECRET"}
        }
    });
    let name = "envoy.extensions.transport_sockets.tls.v3.Secret";
    let encoded = json::encode(name, &secret, &EncodeOptions::default()).expect("encodes");
    let shown = json::decode(name, &encoded.bytes, &DecodeOptions { redact: true }).expect("decodes");
    assert_eq!(shown["tls_certificate"]["private_key"]["inline_bytes"], "W3JlZGFjdGVkXQ==");
    assert_eq!(shown["tls_certificate"]["certificate_chain"]["inline_string"], "CERT");
    assert!(!shown.to_string().contains("SECRET"));
}

#[test]
fn an_any_of_an_unknown_type_is_shown_as_base64() {
    // field 1 = "x/not.Known", field 2 = "hi"
    let any = b"\x0a\x0bx/not.Known\x12\x02hi";
    let shown = json::decode("google.protobuf.Any", any, &DecodeOptions::default()).expect("decodes");
    assert_eq!(shown, json!({"@type": "x/not.Known", "value": "aGk="}));
}

proptest! {
    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for name in [CLUSTER, "envoy.config.listener.v3.Listener", "google.protobuf.Struct"] {
            // Only the absence of a panic is asked for; most noise is refused.
            let _ = json::decode(name, &bytes, &DecodeOptions::default());
        }
    }
}
