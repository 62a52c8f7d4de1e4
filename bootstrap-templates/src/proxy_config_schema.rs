//! The field tables of ProxyConfig and the messages under it, as of Istio's API 1.31. Names and
//! types only; meaning lives in `proxy_config`.

use crate::schema::Kind::{
    Bool, BoolValue, Double, Duration, Enum, Int32, Int32Value, Int64Value, MapOf, Message as Msg,
    Repeated, String as Str, UInt32,
};
use crate::schema::{Message, field, one_of};

const STRINGS: crate::schema::Kind = Repeated(&Str);
const STRING_MAP: crate::schema::Kind = MapOf(&Str);
const FORWARD_CLIENT_CERT: crate::schema::Kind = Enum(&[
    ("UNDEFINED", 0),
    ("SANITIZE", 1),
    ("FORWARD_ONLY", 2),
    ("APPEND_FORWARD", 3),
    ("SANITIZE_SET", 4),
    ("ALWAYS_FORWARD_ONLY", 5),
]);

pub(crate) static PROXY_CONFIG: Message = Message {
    fields: &[
        field("config_path", Str),
        field("binary_path", Str),
        one_of("cluster_name", "service_cluster", Str),
        one_of(
            "cluster_name",
            "tracing_service_name",
            Enum(&[
                ("APP_LABEL_AND_NAMESPACE", 0),
                ("CANONICAL_NAME_ONLY", 1),
                ("CANONICAL_NAME_AND_NAMESPACE", 2),
            ]),
        ),
        field("drain_duration", Duration),
        field("discovery_address", Str),
        field("discovery_refresh_delay", Duration),
        field("zipkin_address", Str),
        field("statsd_udp_address", Str),
        field("envoy_metrics_service_address", Str),
        field("proxy_admin_port", Int32),
        field("availability_zone", Str),
        field(
            "control_plane_auth_policy",
            Enum(&[("NONE", 0), ("MUTUAL_TLS", 1), ("INHERIT", 1000)]),
        ),
        field("custom_config_file", Str),
        field("stat_name_length", Int32),
        field("concurrency", Int32Value),
        field("proxy_bootstrap_template_path", Str),
        field(
            "interception_mode",
            Enum(&[("REDIRECT", 0), ("TPROXY", 1), ("NONE", 2)]),
        ),
        field("tracing", Msg(&TRACING)),
        field("sds", Msg(&SDS)),
        field("envoy_access_log_service", Msg(&REMOTE_SERVICE)),
        field("envoy_metrics_service", Msg(&REMOTE_SERVICE)),
        field("proxy_metadata", STRING_MAP),
        field("runtime_values", STRING_MAP),
        field("status_port", Int32),
        field("extra_stat_tags", STRINGS),
        field("gateway_topology", Msg(&TOPOLOGY)),
        field("termination_drain_duration", Duration),
        field("mesh_id", Str),
        field("readiness_probe", Msg(&READINESS_PROBE)),
        field("proxy_stats_matcher", Msg(&STATS_MATCHER)),
        field("hold_application_until_proxy_starts", BoolValue),
        field("ca_certificates_pem", STRINGS),
        field("image", Msg(&PROXY_IMAGE)),
        field("private_key_provider", Msg(&PRIVATE_KEY_PROVIDER)),
        field("proxy_headers", Msg(&PROXY_HEADERS)),
        field("file_flush_interval", Duration),
        field("file_flush_min_size_kb", UInt32),
        field("stats_compression", BoolValue),
        field("connection_settings", Msg(&CONNECTION_SETTINGS)),
    ],
};

static TRACING: Message = Message {
    fields: &[
        one_of("tracer", "zipkin", Msg(&ADDRESS_ONLY)),
        one_of("tracer", "lightstep", Msg(&LIGHTSTEP)),
        one_of("tracer", "datadog", Msg(&ADDRESS_ONLY)),
        one_of("tracer", "stackdriver", Msg(&STACKDRIVER)),
        one_of("tracer", "open_census_agent", Msg(&OPEN_CENSUS)),
        field("custom_tags", MapOf(&Msg(&CUSTOM_TAG))),
        field("max_path_tag_length", UInt32),
        field("sampling", Double),
        field("tls_settings", Msg(&CLIENT_TLS)),
        field("enable_istio_tags", BoolValue),
    ],
};

static ADDRESS_ONLY: Message = Message {
    fields: &[field("address", Str)],
};

static LIGHTSTEP: Message = Message {
    fields: &[field("address", Str), field("access_token", Str)],
};

static STACKDRIVER: Message = Message {
    fields: &[
        field("debug", Bool),
        field("max_number_of_attributes", Int64Value),
        field("max_number_of_annotations", Int64Value),
        field("max_number_of_message_events", Int64Value),
    ],
};

static OPEN_CENSUS: Message = Message {
    fields: &[
        field("address", Str),
        field(
            "context",
            Repeated(&Enum(&[
                ("UNSPECIFIED", 0),
                ("W3C_TRACE_CONTEXT", 1),
                ("GRPC_BIN", 2),
                ("CLOUD_TRACE_CONTEXT", 3),
                ("B3", 4),
            ])),
        ),
    ],
};

static CUSTOM_TAG: Message = Message {
    fields: &[
        one_of(
            "type",
            "literal",
            Msg(&Message {
                fields: &[field("value", Str)],
            }),
        ),
        one_of("type", "environment", Msg(&NAME_AND_DEFAULT)),
        one_of("type", "header", Msg(&NAME_AND_DEFAULT)),
    ],
};

static NAME_AND_DEFAULT: Message = Message {
    fields: &[field("name", Str), field("default_value", Str)],
};

static CLIENT_TLS: Message = Message {
    fields: &[
        field(
            "mode",
            Enum(&[
                ("DISABLE", 0),
                ("SIMPLE", 1),
                ("MUTUAL", 2),
                ("ISTIO_MUTUAL", 3),
            ]),
        ),
        field("client_certificate", Str),
        field("private_key", Str),
        field("ca_certificates", Str),
        field("credential_name", Str),
        field("subject_alt_names", STRINGS),
        field("sni", Str),
        field("insecure_skip_verify", BoolValue),
        field("ca_crl", Str),
    ],
};

static REMOTE_SERVICE: Message = Message {
    fields: &[
        field("address", Str),
        field("tls_settings", Msg(&CLIENT_TLS)),
        field(
            "tcp_keepalive",
            Msg(&Message {
                fields: &[
                    field("probes", UInt32),
                    field("time", Duration),
                    field("interval", Duration),
                ],
            }),
        ),
    ],
};

static SDS: Message = Message {
    fields: &[field("enabled", Bool), field("k8s_sa_jwt_path", Str)],
};

static TOPOLOGY: Message = Message {
    fields: &[
        field("num_trusted_proxies", UInt32),
        field("forward_client_cert_details", FORWARD_CLIENT_CERT),
        field("proxy_protocol", Msg(&Message { fields: &[] })),
    ],
};

static READINESS_PROBE: Message = Message {
    fields: &[
        field("initial_delay_seconds", Int32),
        field("timeout_seconds", Int32),
        field("period_seconds", Int32),
        field("success_threshold", Int32),
        field("failure_threshold", Int32),
        one_of(
            "health_check_method",
            "http_get",
            Msg(&Message {
                fields: &[
                    field("path", Str),
                    field("port", UInt32),
                    field("host", Str),
                    field("scheme", Str),
                    field(
                        "http_headers",
                        Repeated(&Msg(&Message {
                            fields: &[field("name", Str), field("value", Str)],
                        })),
                    ),
                ],
            }),
        ),
        one_of(
            "health_check_method",
            "tcp_socket",
            Msg(&Message {
                fields: &[field("host", Str), field("port", UInt32)],
            }),
        ),
        one_of(
            "health_check_method",
            "exec",
            Msg(&Message {
                fields: &[field("command", STRINGS)],
            }),
        ),
        one_of(
            "health_check_method",
            "grpc",
            Msg(&Message {
                fields: &[field("port", UInt32), field("service", Str)],
            }),
        ),
    ],
};

static STATS_MATCHER: Message = Message {
    fields: &[
        field("inclusion_prefixes", STRINGS),
        field("inclusion_suffixes", STRINGS),
        field("inclusion_regexps", STRINGS),
    ],
};

static PROXY_IMAGE: Message = Message {
    fields: &[field("image_type", Str)],
};

static PRIVATE_KEY_PROVIDER: Message = Message {
    fields: &[
        one_of("provider", "cryptomb", Msg(&POLLED_PROVIDER)),
        one_of("provider", "qat", Msg(&POLLED_PROVIDER)),
    ],
};

static POLLED_PROVIDER: Message = Message {
    fields: &[field("poll_delay", Duration), field("fallback", BoolValue)],
};

static DISABLED: Message = Message {
    fields: &[field("disabled", BoolValue)],
};
static ENABLED: Message = Message {
    fields: &[field("enabled", BoolValue)],
};

static PROXY_HEADERS: Message = Message {
    fields: &[
        field("forwarded_client_cert", FORWARD_CLIENT_CERT),
        field(
            "set_current_client_cert_details",
            Msg(&Message {
                fields: &[
                    field("subject", BoolValue),
                    field("cert", BoolValue),
                    field("chain", BoolValue),
                    field("dns", BoolValue),
                    field("uri", BoolValue),
                ],
            }),
        ),
        field("request_id", Msg(&DISABLED)),
        field(
            "server",
            Msg(&Message {
                fields: &[field("disabled", BoolValue), field("value", Str)],
            }),
        ),
        field("attempt_count", Msg(&DISABLED)),
        field("envoy_debug_headers", Msg(&DISABLED)),
        field(
            "metadata_exchange_headers",
            Msg(&Message {
                fields: &[field("mode", Enum(&[("UNDEFINED", 0), ("IN_MESH", 1)]))],
            }),
        ),
        field("preserve_http1_header_case", BoolValue),
        field("x_forwarded_host", Msg(&ENABLED)),
        field("x_forwarded_port", Msg(&ENABLED)),
    ],
};

static CONNECTION_SETTINGS: Message = Message {
    fields: &[
        field("profile", Enum(&[("SIDECAR", 0), ("EDGE", 1)])),
        field("listener_per_connection_buffer_limit_bytes", Int32Value),
        field("cluster_per_connection_buffer_limit_bytes", Int32Value),
        field("http_idle_timeout", Duration),
        field("http_max_connection_duration", Duration),
        field("http_drain_timeout", Duration),
        field("http_request_timeout", Duration),
        field("http_request_headers_timeout", Duration),
        field("http_stream_idle_timeout", Duration),
        field("http_max_stream_duration", Duration),
        field("http_max_concurrent_streams", Int32Value),
        field("http2_initial_stream_window_size", Int32Value),
        field("http2_initial_connection_window_size", Int32Value),
        field(
            "http_headers_with_underscores_action",
            Enum(&[
                ("HEADERS_WITH_UNDERSCORES_UNSPECIFIED", 0),
                ("HEADERS_WITH_UNDERSCORES_ALLOW", 1),
                ("HEADERS_WITH_UNDERSCORES_REJECT_REQUEST", 2),
                ("HEADERS_WITH_UNDERSCORES_DROP_HEADER", 3),
            ]),
        ),
        field("http_merge_slashes", BoolValue),
        field(
            "http_path_with_escaped_slashes_action",
            Enum(&[
                ("PATH_WITH_ESCAPED_SLASHES_UNSPECIFIED", 0),
                ("KEEP_UNCHANGED", 1),
                ("REJECT_REQUEST", 2),
                ("UNESCAPE_AND_REDIRECT", 3),
                ("UNESCAPE_AND_FORWARD", 4),
            ]),
        ),
        field("listener_connection_limit", Int32Value),
        field("global_downstream_connection_limit", Int32Value),
    ],
};
