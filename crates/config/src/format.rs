//! Command-operator strings (`%REQ(X?Y):Z%`), compiled once and shared by access logs, header values and
//! tcp_proxy. Operators that do not exist are refused here, never at run time.

use std::sync::Arc;

pub use self::parse::FormatError;

mod parse;

/// A compiled format string.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Format {
    /// Literals and operators in order.
    pub segments: Vec<Segment>,
    /// `omit_empty_values`: a missing operand renders as nothing instead of `-`.
    pub omit_empty_values: bool,
}

/// Part of a [`Format`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Text as is (`%%` already unescaped).
    Literal(Arc<str>),
    /// An operator.
    Operator(Operator),
}

/// JSON format: an object whose string leaves are format strings.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonFormat {
    /// Keys sorted as Envoy prints them.
    pub fields: Vec<(Arc<str>, JsonValue)>,
    /// `omit_empty_values`: leave out keys whose single operator has no value.
    pub omit_empty_values: bool,
}

/// Value in a [`JsonFormat`].
#[derive(Debug, Clone, PartialEq)]
pub enum JsonValue {
    /// A string of the format: one operator keeps its type, mixed text is a string.
    Format(Format),
    /// A number, boolean or null of the configuration, as JSON text.
    Literal(Arc<str>),
    /// A nested object.
    Object(Vec<(Arc<str>, Self)>),
    /// An array.
    Array(Vec<Self>),
}

/// Header operand of REQ, RESP and TRAILER: `X?Y` and `:Z`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderOperand {
    /// Lower-case main name.
    pub name: Arc<str>,
    /// Lower-case alternative name.
    pub alternative: Option<Arc<str>>,
    /// Longest rendered value in bytes.
    pub max_length: Option<usize>,
}

/// Time format of START_TIME and EMIT_TIME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeFormat {
    /// `2026-11-21T03:51:18.276Z`.
    Default,
    /// strftime with `%f`, `%1f` to `%9f`, `%s`.
    Strftime(Arc<str>),
}

/// The operators of spec section 8.3 that are supported.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operator {
    /// `%REQ(X?Y):Z%`.
    Req(HeaderOperand),
    /// `%RESP(X?Y):Z%`.
    Resp(HeaderOperand),
    /// `%TRAILER(X?Y):Z%`.
    Trailer(HeaderOperand),
    /// `%START_TIME%`.
    StartTime(TimeFormat),
    /// `%EMIT_TIME%`.
    EmitTime(TimeFormat),
    /// `%PROTOCOL%`.
    Protocol,
    /// `%UPSTREAM_PROTOCOL%`.
    UpstreamProtocol,
    /// `%RESPONSE_CODE%`.
    ResponseCode,
    /// `%RESPONSE_CODE_DETAILS%`.
    ResponseCodeDetails,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    ConnectionTerminationDetails,
    /// `%RESPONSE_FLAGS%`.
    ResponseFlags,
    /// `%RESPONSE_FLAGS_LONG%`.
    ResponseFlagsLong,
    /// `%BYTES_RECEIVED%`.
    BytesReceived,
    /// `%BYTES_SENT%`.
    BytesSent,
    /// `%DURATION%`.
    Duration,
    /// `%REQUEST_DURATION%`.
    RequestDuration,
    /// `%REQUEST_TX_DURATION%`.
    RequestTxDuration,
    /// `%RESPONSE_DURATION%`.
    ResponseDuration,
    /// `%RESPONSE_TX_DURATION%`.
    ResponseTxDuration,
    /// `%UPSTREAM_HOST%`.
    UpstreamHost,
    /// `%UPSTREAM_CLUSTER%`: the alt_stat_name.
    UpstreamCluster,
    /// `%UPSTREAM_CLUSTER_RAW%`.
    UpstreamClusterRaw,
    /// `%UPSTREAM_LOCAL_ADDRESS%`.
    UpstreamLocalAddress,
    /// `%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%`.
    UpstreamLocalAddressWithoutPort,
    /// `%UPSTREAM_LOCAL_PORT%`.
    UpstreamLocalPort,
    /// `%UPSTREAM_REMOTE_ADDRESS%`.
    UpstreamRemoteAddress,
    /// `%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%`.
    UpstreamRemoteAddressWithoutPort,
    /// `%UPSTREAM_REMOTE_PORT%`.
    UpstreamRemotePort,
    /// `%UPSTREAM_REQUEST_ATTEMPT_COUNT%`.
    UpstreamRequestAttemptCount,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    UpstreamTransportFailureReason,
    /// `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`.
    DownstreamTransportFailureReason,
    /// `%DOWNSTREAM_REMOTE_ADDRESS%`.
    DownstreamRemoteAddress,
    /// `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%`.
    DownstreamRemoteAddressWithoutPort,
    /// `%DOWNSTREAM_REMOTE_PORT%`.
    DownstreamRemotePort,
    /// `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%`.
    DownstreamDirectRemoteAddress,
    /// `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%`.
    DownstreamDirectRemoteAddressWithoutPort,
    /// `%DOWNSTREAM_LOCAL_ADDRESS%`.
    DownstreamLocalAddress,
    /// `%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%`.
    DownstreamLocalAddressWithoutPort,
    /// `%DOWNSTREAM_LOCAL_PORT%`.
    DownstreamLocalPort,
    /// `%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%`.
    DownstreamDirectLocalAddress,
    /// `%CONNECTION_ID%`.
    ConnectionId,
    /// `%REQUESTED_SERVER_NAME%`.
    RequestedServerName,
    /// `%ROUTE_NAME%`.
    RouteName,
    /// `%FILTER_CHAIN_NAME%`.
    FilterChainName,
    /// `%HOSTNAME%`.
    Hostname,
    /// `%ENVIRONMENT(X)%`, resolved when compiled.
    Environment(Option<Arc<str>>),
    /// `%GRPC_STATUS%` (CamelCase name).
    GrpcStatus,
    /// `%GRPC_STATUS_NUMBER%`.
    GrpcStatusNumber,
    /// `%DOWNSTREAM_PEER_URI_SAN%`.
    DownstreamPeerUriSan,
    /// `%DOWNSTREAM_PEER_DNS_SAN%`.
    DownstreamPeerDnsSan,
    /// `%DOWNSTREAM_PEER_SUBJECT%`.
    DownstreamPeerSubject,
    /// `%DOWNSTREAM_PEER_ISSUER%`.
    DownstreamPeerIssuer,
    /// `%DOWNSTREAM_PEER_SERIAL%`.
    DownstreamPeerSerial,
    /// `%DOWNSTREAM_PEER_FINGERPRINT_256%`.
    DownstreamPeerFingerprint256,
    /// `%DOWNSTREAM_LOCAL_URI_SAN%`.
    DownstreamLocalUriSan,
    /// `%DOWNSTREAM_LOCAL_SUBJECT%`.
    DownstreamLocalSubject,
    /// `%DOWNSTREAM_TLS_VERSION%`.
    DownstreamTlsVersion,
    /// `%DOWNSTREAM_TLS_CIPHER%`.
    DownstreamTlsCipher,
    /// `%UPSTREAM_PEER_URI_SAN%`.
    UpstreamPeerUriSan,
    /// `%UPSTREAM_LOCAL_URI_SAN%`.
    UpstreamLocalUriSan,
    /// `%UPSTREAM_TLS_VERSION%`.
    UpstreamTlsVersion,
    /// `%UPSTREAM_TLS_CIPHER%`.
    UpstreamTlsCipher,
    /// `%STREAM_ID%`: the request id.
    StreamId,
    /// `%REQ_WITHOUT_QUERY(X?Y):Z%`.
    ReqWithoutQuery(HeaderOperand),
}
