//! The table of cases. `number` is the row in section 14 of the proxy specification.

use std::time::Duration;

use serde_json::{Value, json};

use super::bootstrap::typed;

/// What a client does.
#[derive(Debug, Clone)]
pub(super) enum Send {
    /// These bytes, then read the answer and see whether the connection ends.
    Raw(Vec<u8>),
    /// These bytes, a pause, more bytes; then read as above.
    Paused(Vec<u8>, Duration, Vec<u8>),
    /// These bytes on a TCP listener, then half-close, then read everything.
    HalfClose(Vec<u8>),
    /// One HTTP/2 request: method, path, headers, body.
    H2(
        &'static str,
        &'static str,
        Vec<(&'static str, &'static str)>,
        &'static str,
    ),
}

/// One row.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) number: u32,
    pub(super) name: &'static str,
    /// Merged over the connection manager (or TCP proxy).
    pub(super) hcm: Value,
    pub(super) hosts: Value,
    pub(super) filters: Vec<Value>,
    pub(super) send: Send,
    /// TCP proxy to this cluster instead of HTTP.
    pub(super) tcp: Option<&'static str>,
    /// How long to wait for the end of the connection after the answer.
    pub(super) linger: Duration,
    /// Headers must also come in the same order.
    pub(super) ordered: bool,
    /// FIN or reset is a matter of whether the client's bytes arrive before the proxy closes.
    pub(super) either_end: bool,
}

impl Case {
    pub(super) fn id(&self) -> String {
        format!("{}-{}", self.number, self.name.replace([' ', '/'], "_"))
    }

    /// The product refuses the case's filter so far: instead of a comparison there is a test that it says so.
    pub(super) fn is_refused(&self) -> bool {
        let refused = [
            "envoy.filters.http.rbac",
            "envoy.filters.http.local_ratelimit",
        ];
        self.filters
            .iter()
            .any(|f| refused.iter().any(|r| f["name"] == *r))
    }

    fn hcm(mut self, hcm: Value) -> Self {
        self.hcm = hcm;
        self
    }

    fn filter(mut self, name: &str, kind: &str, config: Value) -> Self {
        self.filters
            .push(json!({"name": name, "typed_config": typed(kind, config)}));
        self
    }

    fn linger(mut self, time: Duration) -> Self {
        self.linger = time;
        self
    }

    fn either_end(mut self) -> Self {
        self.either_end = true;
        self
    }

    fn ordered(mut self) -> Self {
        self.ordered = true;
        self
    }
}

fn new(number: u32, name: &'static str, hosts: Value, send: Send) -> Case {
    Case {
        number,
        name,
        hcm: json!({}),
        hosts,
        filters: Vec::new(),
        send,
        tcp: None,
        linger: Duration::from_millis(150),
        ordered: false,
        either_end: false,
    }
}

fn hosts(routes: Value) -> Value {
    json!([{"name": "all", "domains": ["*"], "routes": routes}])
}

fn to(cluster: &str) -> Value {
    hosts(json!([{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]))
}

/// A route to `ok` with more fields.
fn route(more: Value) -> Value {
    route_to("ok", more)
}

fn route_to(cluster: &str, more: Value) -> Value {
    let mut action = json!({"cluster": cluster});
    if let (Some(action), Value::Object(more)) = (action.as_object_mut(), more) {
        action.extend(more);
    }
    hosts(json!([{"match": {"prefix": "/"}, "route": action}]))
}

fn raw(bytes: &str) -> Send {
    Send::Raw(bytes.as_bytes().to_vec())
}

fn get(path: &str, headers: &str) -> Send {
    raw(&format!(
        "GET {path} HTTP/1.1\r\nhost: a.example\r\n{headers}\r\n"
    ))
}

fn tcp(number: u32, name: &'static str, cluster: &'static str, send: Send) -> Case {
    Case {
        tcp: Some(cluster),
        ..new(number, name, json!([]), send)
    }
}

/// All rows.
pub(super) fn all() -> Vec<Case> {
    let mut cases = codec();
    cases.extend(paths());
    cases.extend(failures());
    cases.extend(routing());
    cases.extend(headers());
    cases.extend(filters());
    cases.extend(streams());
    cases
}

fn codec() -> Vec<Case> {
    let ok = || to("ok");
    let big = "x".repeat(62 * 1024);
    let many: String = (0..110).map(|i| format!("h{i}: v\r\n")).collect();
    let pause = Duration::from_millis(50);
    vec![
        new(1, "no host", ok(), raw("GET / HTTP/1.1\r\n\r\n")),
        new(2, "two hosts", ok(), raw("GET /echo HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")),
        new(3, "http 1.0", ok(), raw("GET / HTTP/1.0\r\nhost: a\r\n\r\n")),
        new(4, "http 1.0 accepted", ok(), raw("GET /hello HTTP/1.0\r\nhost: a\r\n\r\n"))
            .hcm(json!({"http_protocol_options": {"accept_http_10": true}})),
        new(5, "http 1.0 without host", ok(), raw("GET / HTTP/1.0\r\n\r\n"))
            .hcm(json!({"http_protocol_options": {"accept_http_10": true}})),
        new(6, "bad method", ok(), raw("G@T / HTTP/1.1\r\nhost: a\r\n\r\n")),
        new(7, "not http", ok(), raw("hello world\r\n\r\n")),
        new(8, "length and chunked", ok(),
            raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        new(9, "two lengths", ok(),
            raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd")),
        new(10, "gzip coding", ok(),
            raw("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n")),
        new(11, "bad chunk", ok(), Send::Paused(
            b"POST /len HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(), pause * 4,
            b"zz\r\n".to_vec())),
        new(12, "control in value", ok(), raw("GET / HTTP/1.1\r\nhost: a\r\nx: a\x01b\r\n\r\n")),
        new(13, "nul in path", ok(), raw("GET /a\0b HTTP/1.1\r\nhost: a\r\n\r\n")),
        new(14, "folded header", ok(), raw("GET /echo HTTP/1.1\r\nhost: a\r\nx: a\r\n b\r\n\r\n")),
        new(15, "bare line feeds", ok(), raw("GET /hello HTTP/1.1\nhost: a\n\n")),
        new(16, "space in host", ok(), raw("GET / HTTP/1.1\r\nhost: a b\r\n\r\n")),
        new(17, "big header", ok(), get("/", &format!("x: {big}\r\n"))),
        new(18, "many headers", ok(), get("/", &many)),
        new(19, "fragment", ok(), get("/echo#frag", "")),
        new(21, "options star", ok(), raw("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n")),
        new(22, "connect", ok(), raw("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n")),
        new(23, "unknown upgrade", ok(), get("/", "connection: upgrade\r\nupgrade: foo\r\n")),
        new(24, "h2c upgrade", ok(),
            get("/echo", "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n")),
        new(25, "websocket refused", ok(), get("/hello", "connection: upgrade\r\nupgrade: websocket\r\n")),
        new(26, "websocket", ok(), Send::Paused(
            b"GET /misbehave/switch HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_vec(),
            pause * 4, b"ping".to_vec())),
        new(27, "expect continue", ok(), Send::Paused(
            b"POST /len HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n".to_vec(),
            pause * 4, b"abc".to_vec())),
        new(28, "absolute form", ok(), raw("GET http://b.example/echo HTTP/1.1\r\nhost: a\r\n\r\n")),
        new(29, "half a request line", ok(), raw("GET /he")).hcm(json!({"request_headers_timeout": "0.5s"}))
            .linger(Duration::from_secs(3)),
        new(30, "half a body", ok(),
            raw("POST /len HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"))
            .hcm(json!({"request_timeout": "0.5s"})).linger(Duration::from_secs(3)),
        new(31, "idle connection", ok(), raw(""))
            .hcm(json!({"common_http_protocol_options": {"idle_timeout": "0.5s"}}))
            .linger(Duration::from_secs(3)),
        new(32, "delayed close", ok(), raw("hello world\r\n\r\n")).linger(Duration::from_secs(3)),
    ]
}

fn paths() -> Vec<Case> {
    let ok = || to("ok");
    vec![
        new(33, "odd reason", ok(), get("/misbehave/odd-reason", "")),
        new(34, "dots and slashes", ok(), get("/a/../ok/./b//c%2Fd%2e", "")),
        new(34, "merged slashes", ok(), get("/ok//b///c", "")).hcm(json!({"merge_slashes": true})),
        new(35, "escaped slash kept", ok(), get("/..%2fx", ""))
            .hcm(json!({"path_with_escaped_slashes_action": "KEEP_UNCHANGED"})),
        new(35, "escaped slash refused", ok(), get("/..%2fx", ""))
            .hcm(json!({"path_with_escaped_slashes_action": "REJECT_REQUEST"})),
        new(35, "escaped slash redirected", ok(), get("/a/..%2fx", ""))
            .hcm(json!({"path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT"})),
        new(35, "escaped slash forwarded", ok(), get("/a/..%2fx", ""))
            .hcm(json!({"path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD"})),
        new(36, "underscore passed", ok(), get("/echo", "a_b: c\r\n")),
        new(36, "underscore refused", ok(), get("/echo", "a_b: c\r\n")).hcm(
            json!({"common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"}})),
        new(36, "underscore dropped", ok(), get("/echo", "a_b: c\r\n")).hcm(
            json!({"common_http_protocol_options": {"headers_with_underscores_action": "DROP_HEADER"}})),
    ]
}

fn failures() -> Vec<Case> {
    let grpc = || vec![("content-type", "application/grpc"), ("te", "trailers")];
    let retry = json!({"retry_policy": {"retry_on": "connect-failure", "num_retries": 1,
        "retry_back_off": {"base_interval": "0.001s"}}});
    let codes = json!({"retry_policy": {"retry_on": "retriable-status-codes", "num_retries": 2,
        "retriable_status_codes": [503], "retry_back_off": {"base_interval": "0.001s"}}});
    vec![
        new(
            37,
            "grpc without route",
            hosts(json!([])),
            Send::H2("POST", "/a.B/C", grpc(), ""),
        ),
        new(
            39,
            "grpc refused",
            to("dead"),
            get("/a.B/C", "content-type: application/grpc\r\n"),
        ),
        new(40, "missing cluster", to("nowhere"), get("/", "")),
        new(
            41,
            "missing cluster 500",
            route_to(
                "nowhere",
                json!({"cluster_not_found_response_code": "INTERNAL_SERVER_ERROR"}),
            ),
            get("/", ""),
        ),
        new(42, "empty cluster", to("empty"), get("/", "")),
        new(43, "refused", to("dead"), get("/", "")),
        new(44, "reset", to("reset"), get("/", "")),
        new(44, "closed", to("ok"), get("/misbehave/close", "")),
        new(45, "cut body", to("ok"), get("/misbehave/partial", "")),
        new(46, "garbage", to("ok"), get("/misbehave/garbage", "")),
        new(
            46,
            "bad chunk from upstream",
            to("ok"),
            get("/misbehave/bad-chunk", ""),
        ),
        new(
            46,
            "body until close",
            to("ok"),
            get("/misbehave/until-close", ""),
        ),
        new(
            46,
            "http 1.0 upstream",
            to("ok"),
            get("/misbehave/http10", ""),
        ),
        new(
            46,
            "continue from upstream",
            to("ok"),
            get("/misbehave/hundred", ""),
        ),
        new(47, "breaker", to("full"), get("/", "")),
        new(
            48,
            "overloaded header",
            to("ok"),
            get("/header?n=overloaded&v=true", ""),
        ),
        new(
            49,
            "route timeout",
            route(json!({"timeout": "0.5s"})),
            get("/misbehave/hang", ""),
        ),
        new(
            50,
            "per try timeout",
            route(json!({"timeout": "5s", "retry_policy": {
            "retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.2s",
            "retry_back_off": {"base_interval": "0.001s"}}})),
            get("/misbehave/hang", ""),
        ),
        new(
            51,
            "route idle timeout",
            route(json!({"timeout": "0s", "idle_timeout": "0.5s"})),
            get("/misbehave/hang", ""),
        ),
        new(
            52,
            "max duration",
            route(json!({"timeout": "0s", "max_stream_duration": {
            "max_stream_duration": "0.5s"}})),
            get("/misbehave/hang", ""),
        ),
        new(
            54,
            "timeout header from outside",
            route(json!({"timeout": "5s"})),
            get("/slow?s=1", "x-envoy-upstream-rq-timeout-ms: 100\r\n"),
        )
        .hcm(json!({"use_remote_address": true,
                "internal_address_config": {"cidr_ranges": []}})),
        new(56, "retried status", route(codes), get("/status/503", "")),
        new(
            57,
            "no codes to retry",
            route(json!({"retry_policy": {
            "retry_on": "retriable-status-codes", "num_retries": 2}})),
            get("/status/503", ""),
        ),
        new(
            59,
            "refused with retries",
            route_to("dead", retry),
            get("/", ""),
        ),
    ]
}

fn routing() -> Vec<Case> {
    let direct = |text: &str| json!({"status": 200, "body": {"inline_string": text}});
    let host = |name: &str, domains: Value| {
        json!({"name": name, "domains": domains, "routes": [
        {"match": {"prefix": "/"}, "direct_response": direct(name)}]})
    };
    let order = || {
        json!([
            host("exact", json!(["foo.com"])),
            host("suffix", json!(["*.foo.com"])),
            host("long", json!(["*.bar.foo.com"])),
            host("prefix", json!(["foo.*"])),
            host("all", json!(["*"]))
        ])
    };
    let at = |host: &str| raw(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"));
    let matches = || {
        hosts(json!([
        {"match": {"safe_regex": {"regex": "/r/[0-9]+"}}, "direct_response": direct("regex")},
        {"match": {"path": "/exact"}, "direct_response": direct("path")},
        {"match": {"path_separated_prefix": "/sep"}, "direct_response": direct("separated")},
        {"match": {"prefix": "/q", "query_parameters": [{"name": "a", "string_match": {"exact": "1"}}]},
            "direct_response": direct("query")},
        {"match": {"prefix": "/h", "headers": [{"name": "x", "string_match": {"exact": "a"}}]},
            "direct_response": direct("header")},
        {"match": {"prefix": "/i", "headers": [{"name": "x", "string_match": {"exact": "a"},
            "invert_match": true}]}, "direct_response": direct("inverted")},
        {"match": {"prefix": "/t", "headers": [{"name": "x", "string_match": {"exact": "a"},
            "invert_match": true, "treat_missing_header_as_empty": true}]},
            "direct_response": direct("treated")},
        {"match": {"prefix": "/CASE", "case_sensitive": false}, "direct_response": direct("case")}]))
    };
    let redirect = |r: Value| hosts(json!([{"match": {"prefix": "/"}, "redirect": r}]));
    vec![
        new(67, "exact host", order(), at("foo.com")),
        new(67, "suffix host", order(), at("a.foo.com")),
        new(67, "longest suffix", order(), at("x.bar.foo.com")),
        new(67, "prefix host", order(), at("foo.org")),
        new(67, "any host", order(), at("bar.com")),
        new(67, "host with port", order(), at("foo.com:81")),
        new(68, "final dot", order(), at("foo.com.")),
        new(69, "regex", matches(), get("/r/12?x=y", "")),
        new(69, "regex is whole", matches(), get("/r/12/b", "")),
        new(69, "exact path", matches(), get("/exact?a", "")),
        new(69, "separated", matches(), get("/sep/a", "")),
        new(69, "not separated", matches(), get("/sepa", "")),
        new(69, "query", matches(), get("/q?a=1", "")),
        new(69, "any case", matches(), get("/case/x", "")),
        new(
            70,
            "repeated header",
            matches(),
            get("/h", "x: a\r\nx: b\r\n"),
        ),
        new(70, "one header", matches(), get("/h", "x: a\r\n")),
        new(71, "inverted missing", matches(), get("/i", "")),
        new(71, "inverted treated as empty", matches(), get("/t", "")),
        new(
            72,
            "prefix rewrite",
            hosts(
                json!([{"match": {"prefix": "/old"}, "route": {"cluster": "ok",
            "prefix_rewrite": "/new", "host_rewrite_literal": "b.example", "append_x_forwarded_host": true}}]),
            ),
            get("/old/x?y", ""),
        ),
        new(
            72,
            "regex rewrite",
            hosts(json!([{"match": {"prefix": "/"}, "route": {"cluster": "ok",
            "regex_rewrite": {"pattern": {"regex": "^/(.*)/(.*)$"}, "substitution": "/\\2/\\1"}}}])),
            get("/a/b?c", ""),
        ),
        new(
            75,
            "https redirect",
            redirect(json!({"https_redirect": true})),
            get("/a?b", ""),
        ),
        new(
            75,
            "host redirect",
            redirect(json!({"host_redirect": "b.example", "response_code": "FOUND"})),
            get("/a?b", ""),
        ),
        new(
            75,
            "path redirect",
            redirect(json!({"path_redirect": "/z"})),
            get("/a?b", ""),
        ),
        new(
            75,
            "prefix redirect",
            redirect(json!({"prefix_rewrite": "/z", "strip_query": true,
            "response_code": "PERMANENT_REDIRECT"})),
            get("/a?b", ""),
        ),
        new(
            75,
            "port redirect",
            redirect(json!({"port_redirect": 8443, "scheme_redirect": "https"})),
            get("/a", ""),
        ),
        new(
            76,
            "tls required",
            json!([{"name": "all", "domains": ["*"], "require_tls": "ALL", "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "ok"}}]}]),
            get("/a", ""),
        ),
    ]
}

fn headers() -> Vec<Case> {
    let ok = || to("ok");
    let add = |name: &str, value: &str, action: &str| {
        json!([{"header": {"key": name, "value": value},
        "append_action": action}])
    };
    let levels = json!([{"name": "all", "domains": ["*"],
        "request_headers_to_add": add("x-level", "host", "APPEND_IF_EXISTS_OR_ADD"),
        "response_headers_to_add": add("x-level", "host", "APPEND_IF_EXISTS_OR_ADD"),
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "ok"},
            "request_headers_to_add": add("x-level", "route", "APPEND_IF_EXISTS_OR_ADD"),
            "request_headers_to_remove": ["x-gone"],
            "response_headers_to_add": add("x-level", "route", "OVERWRITE_IF_EXISTS_OR_ADD"),
            "response_headers_to_remove": ["x-app"]}]}]);
    let formatted = json!([{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"},
        "route": {"cluster": "ok"},
        "request_headers_to_add": [
            {"header": {"key": "x-none", "value": "%REQ(x-nope)%"}},
            {"header": {"key": "x-some", "value": "a%REQ(x-nope)%b"}},
            {"header": {"key": "x-method", "value": "%REQ(:METHOD)% %PROTOCOL% 100%%"}}]}]}]);
    let xff = "x-forwarded-for: 1.2.3.4, 10.0.0.1\r\n";
    vec![
        new(
            73,
            "added at levels",
            levels,
            get("/echo", "x-gone: 1\r\nx-level: own\r\n"),
        )
        .ordered(),
        new(74, "formatters", formatted, get("/echo", "")),
        new(84, "forwarded for", ok(), get("/echo", xff)),
        new(84, "forwarded for with hops", ok(), get("/echo", xff))
            .hcm(json!({"xff_num_trusted_hops": 1})),
        new(84, "forwarded for at the edge", ok(), get("/echo", xff))
            .hcm(json!({"use_remote_address": true})),
        new(84, "edge with a hop", ok(), get("/echo", xff))
            .hcm(json!({"use_remote_address": true, "xff_num_trusted_hops": 1})),
        new(
            85,
            "request id kept",
            ok(),
            get("/echo", "x-request-id: mine\r\n"),
        ),
        new(
            85,
            "request id regenerated",
            ok(),
            get("/echo", &format!("{xff}x-request-id: mine\r\n")),
        )
        .hcm(json!({"use_remote_address": true, "xff_num_trusted_hops": 1})),
        new(
            86,
            "server overwritten",
            ok(),
            get("/header?n=server&v=app", ""),
        ),
        new(
            86,
            "server appended",
            ok(),
            get("/header?n=server&v=app", ""),
        )
        .hcm(json!({"server_header_transformation": "APPEND_IF_ABSENT"})),
        new(86, "server passed", ok(), get("/header?n=server&v=app", ""))
            .hcm(json!({"server_header_transformation": "PASS_THROUGH"})),
        new(86, "server passed absent", ok(), get("/hello", ""))
            .hcm(json!({"server_header_transformation": "PASS_THROUGH"})),
        new(87, "case", ok(), get("/echo", "X-MiXeD: a\r\n")),
        new(88, "via", ok(), get("/echo", "via: 1.1 x\r\n")).hcm(json!({"via": "me"})),
        new(
            83,
            "client certificate header",
            ok(),
            get("/echo", "x-forwarded-client-cert: By=a\r\n"),
        ),
        new(
            83,
            "client certificate header always forwarded",
            ok(),
            get("/echo", "x-forwarded-client-cert: By=a\r\n"),
        )
        .hcm(json!({"forward_client_cert_details": "ALWAYS_FORWARD_ONLY"})),
        new(
            147,
            "head",
            ok(),
            raw("HEAD /hello HTTP/1.1\r\nhost: a\r\n\r\n"),
        ),
        new(147, "no content", ok(), get("/status/204", "")),
        new(147, "not modified", ok(), get("/status/304", "")),
        new(147, "chunked answer", ok(), get("/hello?chunked=1", "")),
        new(
            147,
            "chunked request",
            ok(),
            raw(
                "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            ),
        ),
        new(
            147,
            "connection close",
            ok(),
            get("/hello", "connection: close\r\n"),
        ),
        new(
            147,
            "connection header nominates",
            ok(),
            get("/echo", "connection: x-hop\r\nx-hop: 1\r\n"),
        ),
    ]
}

fn filters() -> Vec<Case> {
    const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
    const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
    const LIMIT: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
    const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
    let deny = || {
        json!({"rules": {"action": "DENY", "policies": {"p": {
        "permissions": [{"any": true}], "principals": [{"any": true}]}}}})
    };
    let grpc = vec![("content-type", "application/grpc"), ("te", "trailers")];
    let cors = || {
        json!([{"name": "all", "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "ok"}}],
        "typed_per_filter_config": {"envoy.filters.http.cors": typed(
            "envoy.extensions.filters.http.cors.v3.CorsPolicy", json!({
                "allow_origin_string_match": [{"exact": "http://a"}], "allow_methods": "GET,POST",
                "allow_headers": "x-a", "max_age": "60", "expose_headers": "x-b",
                "allow_credentials": true}))}}])
    };
    let preflight = |origin: &str| {
        raw(&format!(
            "OPTIONS /echo HTTP/1.1\r\nhost: a\r\norigin: {origin}\r\n\
        access-control-request-method: GET\r\n\r\n"
        ))
    };
    let percent = json!({"numerator": 100, "denominator": "HUNDRED"});
    vec![
        new(38, "grpc denied", to("h2"), Send::H2("POST", "/a.B/C", grpc, ""))
            .filter("envoy.filters.http.rbac", RBAC, deny()),
        new(38, "denied", to("ok"), get("/", "")).filter("envoy.filters.http.rbac", RBAC, deny()),
        new(77, "preflight", cors(), preflight("http://a"))
            .filter("envoy.filters.http.cors", CORS, json!({})).ordered(),
        new(77, "preflight of another origin", cors(), preflight("http://b"))
            .filter("envoy.filters.http.cors", CORS, json!({})),
        new(77, "actual request", cors(), get("/echo", "origin: http://a\r\n"))
            .filter("envoy.filters.http.cors", CORS, json!({})),
        new(78, "abort", to("ok"), get("/", "")).filter("envoy.filters.http.fault", FAULT,
            json!({"abort": {"http_status": 418, "percentage": percent}})),
        new(78, "delay", to("ok"), get("/hello", "")).filter("envoy.filters.http.fault", FAULT,
            json!({"delay": {"fixed_delay": "0.1s", "percentage": percent}})),
        new(79, "rate limit", to("ok"), get("/", "")).filter("envoy.filters.http.local_ratelimit", LIMIT,
            json!({"stat_prefix": "l", "token_bucket": {"max_tokens": 1, "tokens_per_fill": 1,
                "fill_interval": "3600s"},
                "filter_enabled": {"default_value": percent}, "filter_enforced": {"default_value": percent},
                "response_headers_to_add": [{"header": {"key": "x-limited", "value": "yes"}}]})),
    ]
}

fn streams() -> Vec<Case> {
    let bytes = b"some bytes".to_vec();
    vec![
        new(
            90,
            "h2 request",
            to("ok"),
            Send::H2("GET", "/echo", vec![("x-a", "b")], ""),
        ),
        new(
            90,
            "h2 to h2 with body",
            to("h2"),
            Send::H2("POST", "/echo", vec![], "body"),
        ),
        new(
            90,
            "h2 trailers",
            to("h2"),
            Send::H2(
                "POST",
                "/lab.Echo/Unary",
                vec![("content-type", "application/grpc")],
                "\0\0\0\0\0",
            ),
        ),
        tcp(106, "tcp refused", "dead", Send::HalfClose(bytes.clone())).either_end(),
        tcp(107, "tcp empty", "empty", Send::HalfClose(bytes.clone())).either_end(),
        tcp(
            107,
            "tcp missing",
            "nowhere",
            Send::HalfClose(bytes.clone()),
        )
        .either_end(),
        tcp(109, "tcp half close", "tcp", Send::HalfClose(bytes.clone())),
        tcp(110, "tcp idle", "tcp", Send::Raw(bytes))
            .hcm(json!({"idle_timeout": "0.5s"}))
            .linger(Duration::from_secs(3)),
    ]
}
