use super::*;

fn operators(text: &str) -> Vec<O> {
    Format::parse(text, false)
        .expect(text)
        .segments
        .into_iter()
        .map(|s| match s {
            Segment::Operator(o) => o,
            Segment::Literal(l) => panic!("unexpected literal {l:?} in {text}"),
        })
        .collect()
}

fn header(name: &str, alternative: Option<&str>, max_length: Option<usize>) -> HeaderOperand {
    HeaderOperand {
        name: name.into(),
        alternative: alternative.map(Arc::from),
        max_length,
    }
}

#[test]
fn operators_with_parameters_are_read() {
    let strftime = |f: &str| TimeFormat::Strftime(f.into());
    for (text, expected) in [
        ("%REQ(:METHOD)%", O::Req(header(":method", None, None))),
        (
            "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):10%",
            O::Req(header("x-envoy-original-path", Some(":path"), Some(10))),
        ),
        ("%RESP(X?Y)%", O::Resp(header("x", Some("y"), None))),
        ("%TRAILER(Z):3%", O::Trailer(header("z", None, Some(3)))),
        (
            "%REQ_WITHOUT_QUERY(:PATH)%",
            O::ReqWithoutQuery(header(":path", None, None)),
        ),
        ("%START_TIME%", O::StartTime(TimeFormat::Default)),
        (
            "%START_TIME(%Y/%m/%dT%H:%M:%S%z %s)%",
            O::StartTime(strftime("%Y/%m/%dT%H:%M:%S%z %s")),
        ),
        ("%START_TIME(%s.%3f)%", O::StartTime(strftime("%s.%3f"))),
        ("%EMIT_TIME(%f)%", O::EmitTime(strftime("%f"))),
        ("%GRPC_STATUS%", O::GrpcStatus),
        ("%GRPC_STATUS(CAMEL_STRING)%", O::GrpcStatus),
        ("%GRPC_STATUS(NUMBER)%", O::GrpcStatusNumber),
        (
            "%ENVIRONMENT(OUTRIGGER_SURELY_UNSET)%",
            O::Environment(None),
        ),
    ] {
        assert_eq!(operators(text), [expected], "{text}");
    }
    let path = std::env::var("PATH").expect("PATH is set where tests run");
    assert_eq!(
        operators("%ENVIRONMENT(PATH)%"),
        [O::Environment(Some(path.as_str().into()))]
    );
}

#[test]
fn every_plain_operator_of_the_model_is_read() {
    let names = "PROTOCOL UPSTREAM_PROTOCOL RESPONSE_CODE RESPONSE_CODE_DETAILS \
        CONNECTION_TERMINATION_DETAILS RESPONSE_FLAGS RESPONSE_FLAGS_LONG BYTES_RECEIVED \
        BYTES_SENT DURATION REQUEST_DURATION REQUEST_TX_DURATION RESPONSE_DURATION \
        RESPONSE_TX_DURATION UPSTREAM_HOST UPSTREAM_CLUSTER UPSTREAM_CLUSTER_RAW \
        UPSTREAM_LOCAL_ADDRESS UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT UPSTREAM_LOCAL_PORT \
        UPSTREAM_REMOTE_ADDRESS UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT UPSTREAM_REMOTE_PORT \
        UPSTREAM_REQUEST_ATTEMPT_COUNT UPSTREAM_TRANSPORT_FAILURE_REASON \
        DOWNSTREAM_TRANSPORT_FAILURE_REASON DOWNSTREAM_REMOTE_ADDRESS \
        DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_REMOTE_PORT \
        DOWNSTREAM_DIRECT_REMOTE_ADDRESS DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT \
        DOWNSTREAM_LOCAL_ADDRESS DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT DOWNSTREAM_LOCAL_PORT \
        DOWNSTREAM_DIRECT_LOCAL_ADDRESS CONNECTION_ID REQUESTED_SERVER_NAME ROUTE_NAME \
        FILTER_CHAIN_NAME HOSTNAME GRPC_STATUS_NUMBER DOWNSTREAM_PEER_URI_SAN \
        DOWNSTREAM_PEER_DNS_SAN DOWNSTREAM_PEER_SUBJECT DOWNSTREAM_PEER_ISSUER \
        DOWNSTREAM_PEER_SERIAL DOWNSTREAM_PEER_FINGERPRINT_256 DOWNSTREAM_LOCAL_URI_SAN \
        DOWNSTREAM_LOCAL_SUBJECT DOWNSTREAM_TLS_VERSION DOWNSTREAM_TLS_CIPHER \
        UPSTREAM_PEER_URI_SAN UPSTREAM_LOCAL_URI_SAN UPSTREAM_TLS_VERSION UPSTREAM_TLS_CIPHER \
        STREAM_ID";
    for name in names.split_whitespace() {
        // The variant's name is the operator's in another case.
        let camel = format!("{:?}", operators(&format!("%{name}%"))[0]);
        assert_eq!(camel.to_ascii_uppercase(), name.replace('_', ""), "{name}");
    }
}

#[test]
fn literals_and_percent_signs_are_kept() {
    let format = Format::parse("[%START_TIME%] 100%% %PROTOCOL%\n", true).expect("is a format");
    assert_eq!(
        format.segments,
        [
            Segment::Literal("[".into()),
            Segment::Operator(O::StartTime(TimeFormat::Default)),
            Segment::Literal("] 100% ".into()),
            Segment::Operator(O::Protocol),
            Segment::Literal("\n".into()),
        ]
    );
    assert!(format.omit_empty_values);
    assert_eq!(Format::parse("", false).expect("empty"), Format::default());
}

#[test]
fn malformed_formats_are_refused_in_envoys_words() {
    for (text, expected) in [
        (
            "%UPSTREAM_HOSTNAME%",
            "Not supported field in StreamInfo: UPSTREAM_HOSTNAME",
        ),
        (
            "%VIRTUAL_HOST_NAME%",
            "Not supported field in StreamInfo: VIRTUAL_HOST_NAME",
        ),
        (
            "%DYNAMIC_METADATA(a:b)%",
            "Not supported field in StreamInfo: DYNAMIC_METADATA",
        ),
        (
            "%GRPC_STATUS(SNAKE_STRING)%",
            "Not supported field in StreamInfo: GRPC_STATUS(SNAKE_STRING)",
        ),
        (
            "a %lower%",
            "Incorrect configuration: a %lower%. Couldn't find valid command at position 2",
        ),
        (
            "%REQ(x",
            "Incorrect configuration: %REQ(x. Couldn't find valid command at position 0",
        ),
        (
            "50%",
            "Incorrect configuration: 50%. Couldn't find valid command at position 2",
        ),
        (
            "%REQ(a):%",
            "Incorrect configuration: %REQ(a):%. Couldn't find valid command at position 0",
        ),
        ("%REQ%", "REQ requires parameters"),
        ("%REQ(a?b?c)%", "Invalid header operand: a?b?c"),
        ("%REQ()%", "Invalid header operand: "),
        (
            "%PROTOCOL(x)%",
            "PROTOCOL does not take any parameters or length",
        ),
        (
            "%PROTOCOL:3%",
            "PROTOCOL does not take any parameters or length",
        ),
        (
            "%START_TIME:3%",
            "START_TIME does not allow length to be specified.",
        ),
        (
            "%REQ(a):99999999999999999999999%",
            "Length must be an integer, given: 99999999999999999999999",
        ),
    ] {
        let error = Format::parse(text, false).expect_err(text);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn json_formats_sort_their_keys_and_keep_types() {
    let object = serde_json::json!({
        "z": "%PROTOCOL%", "a": {"c": 1, "b": true}, "l": ["%DURATION%", null],
    });
    let object = object.as_object().expect("is an object");
    let format = JsonFormat::parse(object, true).expect("is a format");
    let keys: Vec<_> = format.fields.iter().map(|(k, _)| &**k).collect();
    assert_eq!(keys, ["a", "l", "z"]);
    assert_eq!(
        format.fields[0].1,
        JsonValue::Object(vec![
            ("b".into(), JsonValue::Literal("true".into())),
            ("c".into(), JsonValue::Literal("1".into())),
        ])
    );
    assert!(
        JsonFormat::parse(
            serde_json::json!({"a": "%X%"}).as_object().expect("object"),
            false
        )
        .is_err()
    );
}
