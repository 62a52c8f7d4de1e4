//! Statistics part of Envoy's bootstrap: tag regexes, the inclusion list, histogram buckets and
//! the flush and eviction intervals.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::duration::{format_proto_duration, parse_go_duration};
use crate::error::Warning;
use crate::node::Node;
use crate::proxy_config::ProxySettings;

/// Tags before the user's. The `;` in the regexes is what `alt_stat_name` of every cluster ends in.
const LEADING_TAGS: &[(&str, &str)] = &[
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
];

/// Tags after the user's.
const TRAILING_TAGS: &[(&str, &str)] = &[
    ("cache", r"(cache\.(.+?)\.)"),
    ("component", r"(component\.(.+?)\.)"),
    ("tag", r"(tag\.(.+?);\.)"),
    ("wasm_filter", r"(wasm_filter\.(.+?)\.)"),
    ("authz_enforce_result", r"rbac(\.(allowed|denied))"),
    ("authz_dry_run_action", r"(\.istio_dry_run_(allow|deny)_)"),
    ("authz_dry_run_result", r"(\.shadow_(allowed|denied))"),
];

/// The agent's readiness and drain checks read these.
const REQUIRED_PREFIXES: &[&str] = &[
    "cluster_manager",
    "listener_manager",
    "server",
    "cluster.xds-grpc",
    "wasm",
];
const REQUIRED_SUFFIXES: &[&str] = &[
    "rbac.allowed",
    "rbac.denied",
    "shadow_allowed",
    "shadow_denied",
];
const DRAIN_SUFFIX: &str = "downstream_cx_active";
const REQUIRED_REGEX: &str = r"vhost\..*\.route\..*";

const EXTRA_TAGS: &str = "sidecar.istio.io/extraStatTags";
const PREFIXES: &str = "sidecar.istio.io/statsInclusionPrefixes";
const SUFFIXES: &str = "sidecar.istio.io/statsInclusionSuffixes";
const REGEXPS: &str = "sidecar.istio.io/statsInclusionRegexps";
const BUCKETS: &str = "sidecar.istio.io/statsHistogramBuckets";
const FLUSH: &str = "sidecar.istio.io/statsFlushInterval";
const EVICTION: &str = "sidecar.istio.io/statsEvictionInterval";

/// Envoy's default, against which the eviction interval is checked.
const DEFAULT_FLUSH: Duration = Duration::from_secs(5);

/// `stats_config`.
pub(super) fn stats_config(
    node: &Node,
    settings: &ProxySettings,
    metadata_discovery: bool,
    warnings: &mut Vec<Warning>,
) -> Value {
    let mut config = json!({
        "use_all_default_tags": false,
        "stats_tags": stats_tags(node, settings),
        "stats_matcher": { "inclusion_list": {
            "patterns": patterns(node, settings, metadata_discovery),
        }},
    });
    if let Some(buckets) = histogram_buckets(node, warnings) {
        config["histogram_bucket_settings"] = buckets;
    }
    config
}

fn stats_tags(node: &Node, settings: &ProxySettings) -> Vec<Value> {
    let fixed = |(name, regex): &(&str, &str)| json!({ "tag_name": name, "regex": regex });
    let extra = extra_tags(node, settings);
    let extra = extra
        .iter()
        .map(|name| json!({ "tag_name": name, "regex": format!(r"({name}=\.=(.*?);\.;)") }));
    LEADING_TAGS
        .iter()
        .map(fixed)
        .chain(extra)
        .chain(TRAILING_TAGS.iter().map(fixed))
        .collect()
}

pub(super) fn extra_tags(node: &Node, settings: &ProxySettings) -> Vec<String> {
    let annotated = list(node, EXTRA_TAGS).unwrap_or_default();
    let mut tags: Vec<String> = Vec::new();
    for tag in settings.extra_stat_tags.iter().cloned().chain(annotated) {
        if !tag.is_empty() && !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}

/// An annotation's comma list; `None` if it is absent or empty. Empty items are dropped: as a
/// prefix they would match every statistic, and Envoy refuses them.
fn list(node: &Node, annotation: &str) -> Option<Vec<String>> {
    let text = node
        .annotations
        .get(annotation)
        .filter(|text| !text.is_empty())?;
    Some(
        text.split(',')
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect(),
    )
}

/// What statistics to keep, by the start, the end, or all of their names.
pub(super) struct Inclusion {
    pub(super) prefixes: Vec<String>,
    pub(super) suffixes: Vec<String>,
    pub(super) regexps: Vec<String>,
}

/// The user's lists and what the agent and Istio's dashboards need.
pub(super) fn inclusion(node: &Node, settings: &ProxySettings) -> Inclusion {
    let matcher = settings.proxy_stats_matcher.clone().unwrap_or_default();
    let user = |annotation, configured: Vec<String>| {
        let items = list(node, annotation).unwrap_or(configured);
        items
            .into_iter()
            .filter(|item| !item.is_empty())
            .collect::<Vec<_>>()
    };
    let mut suffixes = user(SUFFIXES, matcher.inclusion_suffixes);
    suffixes.extend(REQUIRED_SUFFIXES.iter().map(ToString::to_string));
    if node.exit_on_zero {
        suffixes.push(DRAIN_SUFFIX.to_owned());
    }
    let mut prefixes = user(PREFIXES, matcher.inclusion_prefixes);
    prefixes.extend(REQUIRED_PREFIXES.iter().map(ToString::to_string));
    let mut regexps = user(REGEXPS, matcher.inclusion_regexps);
    regexps.push(REQUIRED_REGEX.to_owned());
    Inclusion {
        prefixes: per_pod_ip(node, prefixes),
        suffixes: per_pod_ip(node, suffixes),
        regexps: per_pod_ip(node, regexps),
    }
}

fn patterns(node: &Node, settings: &ProxySettings, metadata_discovery: bool) -> Vec<Value> {
    let Inclusion {
        prefixes,
        suffixes,
        regexps,
    } = inclusion(node, settings);
    let mut out = vec![json!({ "prefix": "reporter=" })];
    if metadata_discovery {
        out.push(json!({ "prefix": "workload_discovery" }));
    }
    out.extend(prefixes.iter().map(|p| json!({ "prefix": p })));
    out.extend(suffixes.iter().map(|s| json!({ "suffix": s })));
    let regexps = regexps.iter();
    out.extend(regexps.map(|r| json!({ "safe_regex": { "regex": r } })));
    out.push(json!({ "prefix": "component" }));
    out.push(json!({ "prefix": "istio" }));
    out
}

/// An entry with `{pod_ip}` becomes one entry per address.
fn per_pod_ip(node: &Node, entries: Vec<String>) -> Vec<String> {
    let expanded = entries.into_iter().flat_map(|entry| {
        if entry.contains("{pod_ip}") {
            let fill = |ip: &std::net::IpAddr| entry.replace("{pod_ip}", &ip.to_string());
            node.ips.iter().map(fill).collect()
        } else {
            vec![entry]
        }
    });
    expanded.collect()
}

pub(super) fn histogram_buckets(node: &Node, warnings: &mut Vec<Warning>) -> Option<Value> {
    let text = node.annotations.get(BUCKETS)?;
    match serde_json::from_str::<BTreeMap<String, Vec<serde_json::Number>>>(text) {
        Ok(buckets) if buckets.is_empty() => None,
        Ok(buckets) => {
            let settings = buckets
                .iter()
                .map(|(prefix, b)| json!({ "match": { "prefix": prefix }, "buckets": b }));
            Some(Value::Array(settings.collect()))
        }
        Err(e) => {
            warnings.push(Warning::BadAnnotation {
                annotation: BUCKETS,
                reason: e.to_string(),
            });
            None
        }
    }
}

/// `stats_flush_interval` and `stats_eviction_interval`, always in seconds: Envoy does not read
/// `1m30s`.
pub(super) fn intervals(node: &Node, map: &mut Map<String, Value>, warnings: &mut Vec<Warning>) {
    let mut read = |annotation: &'static str| {
        let text = node.annotations.get(annotation)?;
        let parsed = parse_go_duration(text).filter(|d| !d.is_zero());
        if parsed.is_none() {
            let reason = format!("{text:?} is not a positive duration");
            warnings.push(Warning::BadAnnotation { annotation, reason });
        }
        parsed
    };
    let flush = read(FLUSH);
    let eviction = read(EVICTION);
    if let Some(flush) = flush {
        map.insert(
            "stats_flush_interval".to_owned(),
            format_proto_duration(flush).into(),
        );
    }
    let Some(eviction) = eviction else { return };
    if eviction
        .as_nanos()
        .is_multiple_of(flush.unwrap_or(DEFAULT_FLUSH).as_nanos())
    {
        let text = format_proto_duration(eviction);
        map.insert("stats_eviction_interval".to_owned(), text.into());
    } else {
        let reason = "not a multiple of the flush interval".to_owned();
        warnings.push(Warning::BadAnnotation {
            annotation: EVICTION,
            reason,
        });
    }
}
