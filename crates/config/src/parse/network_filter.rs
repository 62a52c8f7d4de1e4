//! Network filters of a chain.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb;
use pb::envoy::config::listener::v3 as listener;
use pb::envoy::extensions::filters::network::mongo_proxy::v3 as mongo;
use pb::envoy::extensions::filters::network::sni_cluster::v3 as sni;
use pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;

use super::access_log::access_logs;
use super::http::http_connection_manager;
use super::wkt::{extension, non_empty, timer, u32_in, unregistered};
use super::{Cx, Result, TELEMETRY, UNSUPPORTED, ignore_set, refuse_set};
use crate::listener::{NetworkFilter, TcpProxy, TcpWeightedCluster, TerminalFilter};

enum Entry {
    Filter(NetworkFilter),
    Skipped,
    Terminal(TerminalFilter, &'static str),
}

/// `filters`: what runs before the terminal filter, and that filter. An empty chain closes its connections.
pub(super) fn network_filters(
    cx: &mut Cx,
    filters: Vec<listener::Filter>,
) -> Result<(Vec<NetworkFilter>, Option<TerminalFilter>)> {
    let last = filters.len().saturating_sub(1);
    let mut kept = Vec::new();
    let mut terminal = None;
    for (i, filter) in filters.into_iter().enumerate() {
        let name = filter.name.clone();
        match cx.item("filters", i, |cx| network_filter(cx, filter))? {
            Entry::Terminal(t, _) if i == last => terminal = Some(t),
            Entry::Terminal(_, kind) => {
                return Err(cx.err_at(
                    &format!("filters[{i}]"),
                    format!(
                        "Error: terminal filter named {name} of type {kind} must be the last \
                         filter in a network filter chain."
                    ),
                ));
            }
            Entry::Filter(_) | Entry::Skipped if i == last => {
                return Err(cx.err_at(
                    &format!("filters[{i}]"),
                    format!(
                        "Error: non-terminal filter named {name} of type {name} is the last \
                         filter in a network filter chain."
                    ),
                ));
            }
            Entry::Filter(f) => kept.push(f),
            Entry::Skipped => {}
        }
    }
    Ok((kept, terminal))
}

fn network_filter(cx: &mut Cx, value: listener::Filter) -> Result<Entry> {
    let listener::Filter { name, config_type } = value;
    let name = non_empty(cx, "name", name)?;
    let any = match config_type {
        Some(listener::filter::ConfigType::TypedConfig(any)) => Some(any),
        Some(listener::filter::ConfigType::ConfigDiscovery(_)) => {
            return Err(cx.err_at("config_discovery", UNSUPPORTED));
        }
        None => None,
    };
    cx.field("typed_config", |cx| {
        let ext = extension(cx, &name, any)?;
        match ext.type_name.as_str() {
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
                let message = ext.decode(cx)?;
                let hcm = http_connection_manager(cx, message)?;
                Ok(Entry::Terminal(
                    TerminalFilter::Http(Arc::new(hcm)),
                    "envoy.filters.network.http_connection_manager",
                ))
            }
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
                let message = ext.decode(cx)?;
                let proxy = tcp_proxy(cx, message)?;
                Ok(Entry::Terminal(
                    TerminalFilter::TcpProxy(Arc::new(proxy)),
                    "envoy.filters.network.tcp_proxy",
                ))
            }
            "envoy.extensions.filters.network.sni_cluster.v3.SniCluster" => {
                let sni::SniCluster {} = ext.decode(cx)?;
                Ok(Entry::Filter(NetworkFilter::SniCluster))
            }
            "envoy.tcp.metadataexchange.config.MetadataExchange" => {
                cx.ignore_here(&name, METADATA_EXCHANGE);
                Ok(Entry::Skipped)
            }
            "stats.PluginConfig" | "envoy.extensions.filters.network.mysql_proxy.v3.MySQLProxy" => {
                cx.ignore_here(&name, TELEMETRY);
                Ok(Entry::Skipped)
            }
            "envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy" => {
                let message = ext.decode(cx)?;
                mongo_proxy(cx, message)?;
                cx.ignore_here(&name, TELEMETRY);
                Ok(Entry::Skipped)
            }
            t => Err(unregistered(cx, &name, t)),
        }
    })
}

/// Also the reason for the cluster filter of the same name.
pub(super) const METADATA_EXCHANGE: &str =
    "telemetry only: changes no answer, and its ALPN is never negotiated";

/// A sniffer that only counts, unless it injects delays.
fn mongo_proxy(cx: &mut Cx, value: mongo::MongoProxy) -> Result<()> {
    let mongo::MongoProxy {
        stat_prefix,
        access_log,
        delay,
        emit_dynamic_metadata,
        commands,
        max_bson_depth,
    } = value;
    refuse_set!(cx; delay, max_bson_depth);
    ignore_set!(cx, TELEMETRY; access_log, emit_dynamic_metadata, commands);
    non_empty(cx, "stat_prefix", stat_prefix).map(drop)
}

fn tcp_proxy(cx: &mut Cx, value: tcp::TcpProxy) -> Result<TcpProxy> {
    let tcp::TcpProxy {
        stat_prefix,
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy,
        upstream_connect_mode,
        max_early_data_bytes,
        check_drain_close,
        cluster_specifier,
    } = value;
    let check_drain_close = check_drain_close.is_some_and(|b| b.value);
    refuse_set!(cx; on_demand, metadata_match, downstream_idle_timeout, upstream_idle_timeout,
        backoff_options, tunneling_config, access_log_flush_interval,
        flush_access_log_on_connected, access_log_options, proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy, upstream_connect_mode, max_early_data_bytes,
        check_drain_close);
    ignore_set!(cx, "only spreads the ends of connections";
        max_downstream_connection_duration_jitter_percentage);
    Ok(TcpProxy {
        stat_prefix: non_empty(cx, "stat_prefix", stat_prefix)?,
        clusters: clusters(cx, cluster_specifier)?,
        idle_timeout: timer(
            cx,
            "idle_timeout",
            idle_timeout,
            Some(Duration::from_secs(3600)),
        )?,
        max_downstream_connection_duration: timer(
            cx,
            "max_downstream_connection_duration",
            max_downstream_connection_duration,
            None,
        )?,
        max_connect_attempts: u32_in(
            cx,
            "max_connect_attempts",
            max_connect_attempts,
            1..=u32::MAX,
            1,
        )?,
        hash_source_ip: hash_source_ip(cx, hash_policy)?,
        access_log: access_logs(cx, access_log)?,
    })
}

fn clusters(
    cx: &mut Cx,
    value: Option<tcp::tcp_proxy::ClusterSpecifier>,
) -> Result<Vec<TcpWeightedCluster>> {
    use tcp::tcp_proxy::ClusterSpecifier as C;
    match value {
        Some(C::Cluster(name)) => Ok(vec![TcpWeightedCluster {
            name: non_empty(cx, "cluster", name)?,
            weight: 1,
        }]),
        Some(C::WeightedClusters(tcp::tcp_proxy::WeightedCluster { clusters })) => {
            cx.field("weighted_clusters", |cx| {
                if clusters.is_empty() {
                    return Err(cx.err_at("clusters", "value must contain at least 1 item(s)"));
                }
                cx.each("clusters", clusters, |cx, c| {
                    let tcp::tcp_proxy::weighted_cluster::ClusterWeight {
                        name,
                        weight,
                        metadata_match,
                    } = c;
                    refuse_set!(cx; metadata_match);
                    if weight == 0 {
                        return Err(cx.err_at("weight", "value must be greater than or equal to 1"));
                    }
                    Ok(TcpWeightedCluster {
                        name: non_empty(cx, "name", name)?,
                        weight,
                    })
                })
            })
        }
        None => Err(cx.err("cluster_specifier: is required")),
    }
}

fn hash_source_ip(cx: &mut Cx, value: Vec<pb::envoy::r#type::v3::HashPolicy>) -> Result<bool> {
    use pb::envoy::r#type::v3::{HashPolicy, hash_policy::PolicySpecifier as P};
    if value.len() > 1 {
        return Err(cx.err_at("hash_policy", "value must contain no more than 1 item(s)"));
    }
    let found = cx.each(
        "hash_policy",
        value,
        |cx, HashPolicy { policy_specifier }| match policy_specifier {
            Some(P::SourceIp(_)) => Ok(()),
            Some(P::FilterState(_)) => Err(cx.err_at("filter_state", UNSUPPORTED)),
            None => Err(cx.err("policy_specifier: is required")),
        },
    )?;
    Ok(!found.is_empty())
}
