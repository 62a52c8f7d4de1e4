use std::sync::Arc;

use outrigger_config::bootstrap::{StatsConfig, StatsMatcher};
use outrigger_config::matcher::{StringMatcher, StringPattern};

use super::page::Query;
use super::tags::Tags;
use super::{Stats, page, prometheus};

/// The extractors of Istio's bootstrap.
fn istio_tags() -> Vec<(Arc<str>, Arc<str>)> {
    [
        ("cluster_name", r"^cluster(\.(.+);)"),
        (
            "http_conn_manager_prefix",
            r"^http\.(((?:[_.[:digit:]\w]*|[_\[\]aAbBcCdDeEfF[:digit:]\w\:]*));\.)",
        ),
        ("thread_name", r"^server(\.(.+))\.watchdog"),
        ("tcp_prefix", r"^tcp\.((.*?)\.)\w+?$"),
        ("response_code", r"_rq(_(\d{3}))$"),
        ("response_code_class", r"_rq(_(\dxx))$"),
        (
            "http_conn_manager_listener_prefix",
            r"^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
        ),
        (
            "listener_address",
            r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
        ),
        (
            "mongo_prefix",
            r"^mongo\.(.+?)\.(collection|cmd|cx_|op_|delays_|decoding_)(.*?)$",
        ),
        ("my_tag", r"(my_tag=\.=(.*?);\.;)"),
        ("cache", r"(cache\.(.+?)\.)"),
        ("component", r"(component\.(.+?)\.)"),
        ("tag", r"(tag\.(.+?);\.)"),
        ("wasm_filter", r"(wasm_filter\.(.+?)\.)"),
        ("authz_enforce_result", r"rbac(\.(allowed|denied))"),
        ("authz_dry_run_action", r"(\.istio_dry_run_(allow|deny)_)"),
        ("authz_dry_run_result", r"(\.shadow_(allowed|denied))"),
    ]
    .iter()
    .map(|(n, r)| (Arc::from(*n), Arc::from(*r)))
    .collect()
}

fn istio() -> StatsConfig {
    StatsConfig {
        tags: istio_tags(),
        ..StatsConfig::default()
    }
}

#[test]
fn tag_regexes_of_istio_cut_the_same_parts_as_envoy() {
    let tags = Tags::new(&istio()).expect("each regex translates");
    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);
    let table: [Row<'_>; 11] = [
        (
            "cluster.outbound|80||a.b.svc;.upstream_cx_total",
            "cluster.upstream_cx_total",
            &[("cluster_name", "outbound|80||a.b.svc")],
        ),
        (
            "cluster.xds-grpc;.upstream_rq_200",
            "cluster.upstream_rq",
            &[("cluster_name", "xds-grpc"), ("response_code", "200")],
        ),
        (
            "cluster.xds-grpc;.internal.upstream_rq_2xx",
            "cluster.internal.upstream_rq",
            &[("cluster_name", "xds-grpc"), ("response_code_class", "2xx")],
        ),
        (
            "http.inbound_0.0.0.0_80;.downstream_rq_total",
            "http.downstream_rq_total",
            &[("http_conn_manager_prefix", "inbound_0.0.0.0_80")],
        ),
        (
            "server.worker_0.watchdog_miss",
            "server.watchdog_miss",
            &[("thread_name", "worker_0")],
        ),
        (
            "listener.0.0.0.0_15006.downstream_cx_active",
            "listener.downstream_cx_active",
            &[("listener_address", "0.0.0.0_15006")],
        ),
        (
            "listener.0.0.0.0_80.http.0.0.0.0_80.downstream_rq_2xx",
            "listener.http.downstream_rq",
            &[
                ("response_code_class", "2xx"),
                ("http_conn_manager_listener_prefix", "0.0.0.0_80"),
                ("listener_address", "0.0.0.0_80"),
            ],
        ),
        (
            "tcp.PassthroughCluster.downstream_cx_total",
            "tcp.downstream_cx_total",
            &[("tcp_prefix", "PassthroughCluster")],
        ),
        (
            "http.outbound_1;.rbac.allowed",
            "http.rbac",
            &[
                ("http_conn_manager_prefix", "outbound_1"),
                ("authz_enforce_result", "allowed"),
            ],
        ),
        ("server.live", "server.live", &[]),
        (
            "cluster_manager.cds.update_success",
            "cluster_manager.cds.update_success",
            &[],
        ),
    ];
    for (name, extracted, labels) in table {
        let got = tags.extract(&name.into());
        assert_eq!(&*got.name, extracted, "{name}");
        let got: Vec<_> = got.labels.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(got, labels, "{name}");
    }
}

#[test]
fn look_ahead_that_cannot_be_translated_is_refused_with_its_tag() {
    for regex in [r"a.*(?=b)c", r"x(?!y)", r"^a(?=b"] {
        let config = StatsConfig {
            tags: vec![("t".into(), regex.into())],
            ..StatsConfig::default()
        };
        let error = Tags::new(&config).expect_err(regex).to_string();
        assert!(
            error.starts_with("stats_config.stats_tags[t].regex: "),
            "{error}"
        );
    }
}

#[test]
fn a_stat_outside_the_inclusion_list_does_not_exist() {
    let prefix = StringMatcher {
        pattern: StringPattern::Prefix("cluster_manager".into()),
        ignore_case: false,
    };
    let config = StatsConfig {
        matcher: StatsMatcher::Include(vec![prefix]),
        ..StatsConfig::default()
    };
    let stats = Stats::new(&config).expect("no tags");
    let out = stats.counter("http.a.rq");
    out.inc();
    assert!(out.0.is_none());
    stats.counter("cluster_manager.x").inc();
    assert_eq!(
        page::text(&stats, &Query::default()),
        "cluster_manager.x: 1\n"
    );
}

fn sample() -> Stats {
    let stats = Stats::new(&istio()).expect("translates");
    stats.counter("cluster.ok;.upstream_rq_200").add(24);
    stats.counter("cluster.ok;.upstream_rq_2xx").add(24);
    stats.counter("cluster.ok2;.upstream_rq_200").add(1);
    stats.counter("server.worker_0.watchdog_miss").add(0);
    stats.gauge("server.state").set(0);
    let _ = stats.gauge("server.live");
    stats.text("cluster_manager.cds.version_text").set("v\"1");
    stats
        .histogram("cluster_manager.cds.update_duration")
        .record(22);
    stats
        .histogram("listener_manager.lds.update_duration")
        .record(105);
    let _ = stats.histogram("server.initialization_time_ms");
    stats
}

#[test]
fn text_page_lists_readouts_then_numbers_then_histograms() {
    let p = "P0(nan,22.5) P25(nan,22.5) P50(nan,22.5) P75(nan,22.5) P90(nan,22.5) P95(nan,22.5) P99(nan,22.5) P99.5(nan,22.5) P99.9(nan,22.5) P100(nan,22.5)";
    let expected = format!(
        "cluster_manager.cds.version_text: \"v\\\"1\"\n\
         cluster.ok2;.upstream_rq_200: 1\n\
         cluster.ok;.upstream_rq_200: 24\n\
         cluster.ok;.upstream_rq_2xx: 24\n\
         server.live: 0\n\
         server.state: 0\n\
         server.worker_0.watchdog_miss: 0\n\
         cluster_manager.cds.update_duration: {p}\n\
         listener_manager.lds.update_duration: {}\n\
         server.initialization_time_ms: No recorded values\n",
        p.replace("22.5", "105")
    );
    assert_eq!(page::text(&sample(), &Query::default()), expected);
}

#[test]
fn usedonly_and_filter_are_what_pilot_agent_asks_for() {
    let query = |text: &str| {
        let request = crate::admin::server::Request::new("GET", text);
        Query::parse(&request.query).expect("valid")
    };
    let stats = sample();
    let target = "/stats?usedonly&filter=^(server\\.state|listener_manager\\.workers_started)";
    assert_eq!(page::text(&stats, &query(target)), "server.state: 0\n");
    assert_eq!(
        page::text(&stats, &query("/stats?usedonly&filter=%5Eserver")),
        "server.state: 0\n"
    );
    assert!(page::text(&stats, &query("/stats?type=Counters")).starts_with("cluster.ok2;"));
    let bad = [("filter".to_owned(), "(".to_owned())];
    assert!(Query::parse(&bad).is_err());
}

#[test]
fn prometheus_page_is_grouped_sorted_and_exact() {
    let text = prometheus::render(&sample(), &Query::default());
    let head = "# TYPE envoy_cluster_upstream_rq counter\n\
        envoy_cluster_upstream_rq{cluster_name=\"ok2\",response_code=\"200\"} 1\n\
        envoy_cluster_upstream_rq{cluster_name=\"ok\",response_code=\"200\"} 24\n\
        envoy_cluster_upstream_rq{cluster_name=\"ok\",response_code_class=\"2xx\"} 24\n\
        # TYPE envoy_server_watchdog_miss counter\n\
        envoy_server_watchdog_miss{thread_name=\"worker_0\"} 0\n\
        # TYPE envoy_server_live gauge\n\
        envoy_server_live{} 0\n\
        # TYPE envoy_server_state gauge\n\
        envoy_server_state{} 0\n\
        # TYPE envoy_cluster_manager_cds_update_duration histogram\n\
        envoy_cluster_manager_cds_update_duration_bucket{le=\"0.5\"} 0\n";
    assert!(text.starts_with(head), "{text}");
    assert!(!text.contains("version_text"));
    // What the reference proxy printed for the same two values.
    for line in [
        "envoy_cluster_manager_cds_update_duration_bucket{le=\"10\"} 0",
        "envoy_cluster_manager_cds_update_duration_bucket{le=\"25\"} 1",
        "envoy_cluster_manager_cds_update_duration_bucket{le=\"+Inf\"} 1",
        "envoy_cluster_manager_cds_update_duration_sum{} 22.488888888888887152006645919755",
        "envoy_cluster_manager_cds_update_duration_count{} 1",
        "envoy_listener_manager_lds_update_duration_bucket{le=\"50\"} 0",
        "envoy_listener_manager_lds_update_duration_bucket{le=\"100\"} 1",
        "envoy_listener_manager_lds_update_duration_bucket{le=\"3600000\"} 1",
        "envoy_listener_manager_lds_update_duration_sum{} 104.76190476190475919793243519962",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
    }
}

#[test]
fn reset_zeroes_counters_and_histograms_but_no_gauges() {
    let stats = sample();
    stats.gauge("server.live").set(1);
    stats.reset_counters();
    let query = Query {
        used_only: true,
        ..Query::default()
    };
    assert_eq!(
        page::text(&stats, &query),
        "cluster_manager.cds.version_text: \"v\\\"1\"\nserver.live: 1\nserver.state: 0\n"
    );
}

#[test]
fn json_page_has_the_members_of_the_reference() {
    let text = page::json(&sample(), &Query::default());
    let value: serde_json::Value = serde_json::from_str(&text).expect("valid JSON");
    let stats = value["stats"].as_array().expect("list");
    assert_eq!(stats[0]["value"], "v\"1");
    assert_eq!(stats[1]["value"], 1);
    let histograms = &stats.last().expect("histograms")["histograms"];
    assert_eq!(
        histograms["supported_quantiles"].to_string(),
        "[0,25,50,75,90,95,99,99.5,99.9,100]"
    );
    let values = &histograms["computed_quantiles"][1]["values"][0];
    assert_eq!(values.to_string(), "{\"cumulative\":105,\"interval\":null}");
}
