//! Rules of the JSON form and of refusals.

use outrigger_api::any;
use outrigger_api::json::{self, DecodeOptions, EncodeOptions};
use proptest::prelude::*;
use serde_json::{Value, json};

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

#[test]
fn refusals_carry_the_field_path() {
    let table = [
        (
            json!({"nope": 1}),
            "nope: unknown field in envoy.config.cluster.v3.Cluster",
        ),
        (
            json!({"connect_timeout": "5"}),
            "connect_timeout: expected a duration such as \"1.5s\"",
        ),
        (json!({"type": "NOPE"}), "type: unknown enum value \"NOPE\""),
        (json!({"name": 5}), "name: expected a string, found 5"),
        (
            json!({"load_assignment": {"endpoints": [{"priority": "x"}]}}),
            "load_assignment.endpoints[0].priority: expected an unsigned 32-bit integer, found \"x\"",
        ),
        (
            json!({"transport_socket": {"typed_config": {"@type": "a/b.C"}}}),
            "transport_socket.typed_config: unknown message type b.C",
        ),
        (
            json!({"name": "a", "alt_stat_name": "b", "altStatName": "c"}),
            "altStatName: field given twice",
        ),
        (
            json!({"type": "EDS", "cluster_type": {"name": "x"}}),
            "cluster_type: another field of the same oneof is set",
        ),
        (
            json!({"@type": "x"}),
            "@type: unknown field in envoy.config.cluster.v3.Cluster",
        ),
        (
            json!({"load_assignment": {"policy": {"drop_overloads": [{"drop_percentage": {"numerator": -1}}]}}}),
            "load_assignment.policy.drop_overloads[0].drop_percentage.numerator: expected an unsigned 32-bit integer, found -1",
        ),
    ];
    for (value, want) in table {
        let error = json::encode(CLUSTER, &value, &EncodeOptions::default()).expect_err("refused");
        assert_eq!(error.to_string(), want);
    }
}

#[test]
fn unknown_fields_are_listed_when_allowed() {
    let options = EncodeOptions {
        allow_unknown_fields: true,
    };
    let encoded =
        json::encode(CLUSTER, &json!({"name": "a", "x": {"y": 1}}), &options).expect("accepted");
    assert_eq!(encoded.unknown_fields, ["x"]);
}

#[test]
fn both_spellings_of_a_name_mean_the_same() {
    let a = json::encode(
        CLUSTER,
        &json!({"connectTimeout": "0.250s"}),
        &EncodeOptions::default(),
    );
    let b = json::encode(
        CLUSTER,
        &json!({"connect_timeout": "0.25s"}),
        &EncodeOptions::default(),
    );
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
    let shown =
        json::decode(name, &encoded.bytes, &DecodeOptions { redact: true }).expect("decodes");
    assert_eq!(
        shown["tls_certificate"]["private_key"]["inline_string"],
        "[redacted]"
    );
    assert_eq!(
        shown["tls_certificate"]["certificate_chain"]["inline_string"],
        "CERT"
    );
    assert!(!shown.to_string().contains("SECRET"));
}

/// JSON of the message that `value` describes, redacted.
fn redacted(name: &str, value: &Value) -> Value {
    let encoded = json::encode(name, value, &EncodeOptions::default()).expect("encodes");
    json::decode(name, &encoded.bytes, &DecodeOptions { redact: true }).expect("decodes")
}

#[test]
fn nothing_readable_is_left_below_a_sensitive_field() {
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.";
    let bytes = "W3JlZGFjdGVkXQ==";
    let table = [
        // repeated messages
        (
            json!({"session_ticket_keys": {"keys": [{"inline_bytes": "U0VDUkVU"}, {"filename": "SECRET"}]}}),
            json!({"session_ticket_keys": {"keys": [{"inline_bytes": bytes}, {"filename": "[redacted]"}]}}),
        ),
        // a map of messages keeps its keys
        (
            json!({"generic_secret": {"secrets": {"a": {"inline_string": "SECRET"}}}}),
            json!({"generic_secret": {"secrets": {"a": {"inline_string": "[redacted]"}}}}),
        ),
        // an Any, known and unknown below
        (
            json!({"tls_certificate": {"private_key_provider": {"provider_name": "p", "typed_config":
                {"@type": "x/google.protobuf.Struct", "value": {"k": "SECRET", "n": 7, "l": [true]}}}}}),
            json!({"tls_certificate": {"private_key_provider": {"provider_name": "p", "typed_config":
                {"@type": "x/google.protobuf.Struct", "value": {"k": "[redacted]", "n": 0, "l": [false]}}}}}),
        ),
    ];
    for (value, want) in &table {
        let got = redacted("envoy.extensions.transport_sockets.tls.v3.Secret", value);
        assert_eq!(got, *want);
        // The same inside an Any, and as the JSON of a TypedStruct.
        let mut any = value.clone();
        any["@type"] = json!(format!("{tls}Secret"));
        let got = redacted("google.protobuf.Any", &any);
        assert!(
            !got.to_string().contains("SECRET") && !got.to_string().contains("U0VDUkVU"),
            "{got}"
        );
        let typed = json!({"type_url": format!("{tls}Secret"), "value": value});
        for name in ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"] {
            let got = redacted(name, &typed).to_string();
            assert!(
                !got.contains("SECRET") && !got.contains("U0VDUkVU"),
                "{got}"
            );
            assert!(got.contains("[redacted]"), "{got}");
        }
    }
}

#[test]
fn typed_structs_unwrap_and_resolve() {
    let url =
        "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener";
    let value = json!({"type_url": url, "value": {"buffer_size_kb": 64}});
    let outer = "udpa.type.v1.TypedStruct";
    let encoded = json::encode(outer, &value, &EncodeOptions::default()).expect("encodes");
    let typed = any::unwrap(outer, &encoded.bytes)
        .expect("a message")
        .expect("a TypedStruct");
    assert_eq!(
        (typed.type_url.as_str(), &typed.value),
        (url, &json!({"buffer_size_kb": 64}))
    );
    let inner = typed
        .resolve(&EncodeOptions::default())
        .expect("fits")
        .expect("a known type");
    // field 1 = UInt32Value { field 1 = 64 }
    assert_eq!(inner.bytes, [0x0a, 2, 8, 64]);
    let unknown = any::Typed {
        type_url: "x/not.Known".into(),
        value: json!({}),
    };
    assert_eq!(unknown.resolve(&EncodeOptions::default()), Ok(None));
    let wrong = any::Typed {
        type_url: url.into(),
        value: json!({"nope": 1}),
    };
    assert!(wrong.resolve(&EncodeOptions::default()).is_err());
    assert_eq!(any::unwrap("x/not.Known", b""), Ok(None));
}

#[test]
fn nesting_is_bounded_both_ways() {
    let url = b"x/google.protobuf.Any";
    let mut bytes = Vec::new();
    for _ in 0..2000 {
        let mut outer = vec![0x0a, url.len() as u8];
        outer.extend_from_slice(url);
        outer.push(0x12);
        let mut n = bytes.len();
        while n >= 0x80 {
            outer.push(n as u8 | 0x80);
            n >>= 7;
        }
        outer.push(n as u8);
        outer.append(&mut bytes);
        bytes = outer;
    }
    let error = json::decode("google.protobuf.Any", &bytes, &DecodeOptions::default());
    assert_eq!(error.expect_err("refused").reason, "nested too deeply");

    let (mut any, mut list) = (json!({}), json!([]));
    for _ in 0..200 {
        any = json!({"@type": "x/google.protobuf.Any", "value": any});
        list = json!([list]);
    }
    for (name, value) in [
        ("google.protobuf.Any", any),
        ("google.protobuf.Value", list),
    ] {
        let error = json::encode(name, &value, &EncodeOptions::default()).expect_err("refused");
        assert_eq!(error.reason, "nested too deeply");
    }
}

#[test]
fn well_known_types_keep_their_json_form() {
    let table = [
        ("google.protobuf.Duration", json!("-1.500s")),
        (
            "google.protobuf.Timestamp",
            json!("2026-11-21T04:20:28.036Z"),
        ),
        ("google.protobuf.FieldMask", json!("a.b,c")),
        ("google.protobuf.UInt64Value", json!("18446744073709551615")),
        ("google.protobuf.BytesValue", json!("AAEC")),
        (
            "google.protobuf.Value",
            json!({"a": [null, 1.5, "x", true, {}]}),
        ),
    ];
    for (name, value) in table {
        let encoded = json::encode(name, &value, &EncodeOptions::default()).expect("encodes");
        let got = json::decode(name, &encoded.bytes, &DecodeOptions::default()).expect("decodes");
        assert_eq!(got, value, "{name}");
    }
}

#[test]
fn pretty_text_is_that_of_the_protobuf_printer() {
    let value = json!({"a": [1, {}], "b": "<x>\n\u{2028}"});
    let want = "{\n \"a\": [\n  1,\n  {}\n ],\n \"b\": \"\\u003cx\\u003e\\n\\u2028\"\n}";
    assert_eq!(json::to_string_pretty(&value), want);
}

#[test]
fn an_any_of_an_unknown_type_is_shown_as_base64() {
    // field 1 = "x/not.Known", field 2 = "hi"
    let any = b"\x0a\x0bx/not.Known\x12\x02hi";
    let shown =
        json::decode("google.protobuf.Any", any, &DecodeOptions::default()).expect("decodes");
    assert_eq!(shown, json!({"@type": "x/not.Known", "value": "aGk="}));
}

const TYPES: [&str; 6] = [
    CLUSTER,
    "envoy.config.listener.v3.Listener",
    "envoy.config.bootstrap.v3.Bootstrap",
    "google.protobuf.Any",
    "google.protobuf.Struct",
    "udpa.type.v1.TypedStruct",
];

/// JSON with keys and texts that mean something to the types above.
fn documents() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "name",
        "@type",
        "value",
        "type",
        "type_url",
        "typed_config",
        "filter_chains",
        "filters",
        "metadata",
        "filter_metadata",
        "load_assignment",
        "connect_timeout",
        "x/google.protobuf.Any",
        "EDS",
        "-0.5s",
        "NaN",
        "x/envoy.config.cluster.v3.Cluster",
        "9223372036854775808",
        "2026-02-31T25:00:00Z",
        "",
        "=",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        let key = word.clone().prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6).prop_map(|v| v.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400), redact: bool) {
        for name in TYPES {
            // Only the absence of a panic is asked for; most noise is refused.
            let _ = json::decode(name, &bytes, &DecodeOptions { redact });
        }
    }

    #[test]
    fn damaged_messages_never_panic(at in any::<prop::sample::Index>(), to: u8, cut in any::<prop::sample::Index>()) {
        let value = json!({"name": "a", "load_assignment": {"endpoints": [{"lb_endpoints": [{"metadata":
            {"filter_metadata": {"x": {"y": [1, "z"]}}}}]}]}, "connect_timeout": "1s"});
        let mut bytes = json::encode(CLUSTER, &value, &EncodeOptions::default()).expect("encodes").bytes;
        let at = at.index(bytes.len());
        bytes[at] = to;
        bytes.truncate(cut.index(bytes.len()) + 1);
        let _ = json::decode(CLUSTER, &bytes, &DecodeOptions::default());
    }

    #[test]
    fn documents_never_panic_and_what_encodes_decodes(value in documents()) {
        for name in TYPES {
            let options = EncodeOptions { allow_unknown_fields: true };
            if let Ok(encoded) = json::encode(name, &value, &options) {
                prop_assert!(json::decode(name, &encoded.bytes, &DecodeOptions::default()).is_ok());
            }
        }
    }
}
