//! Bootstrap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb;
use pb::envoy::config::bootstrap::v3 as api;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::metrics::v3 as metrics;
use pb::envoy::config::overload::v3 as overload;
use pb::google::protobuf as gp;
use prost::Message;

use super::cluster::{cluster, resolver};
use super::listener::listener;
use super::matcher::string;
use super::tls::secret;
use super::wkt::{
    ads_source, api_config_source, bind_address, bool_or, extension, json, json_object, non_empty,
    positive_duration, sorted, unregistered,
};
use super::{Cx, Result, TELEMETRY, UNSUPPORTED, ignore_set, refuse_set};
use crate::bootstrap::{AdsConfig, Bootstrap, LogFormat, StatsConfig, StatsMatcher, Zipkin};
use crate::listener::FilterChainTable;

/// `Bootstrap`; `raw` are its bytes.
/// The Zipkin provider of the bootstrap: connection managers without a provider of their own propagate its headers.
fn zipkin(tracing: Option<&pb::envoy::config::trace::v3::Tracing>) -> Option<Zipkin> {
    use pb::envoy::config::trace::v3::{ZipkinConfig, tracing::http::ConfigType};
    let Some(ConfigType::TypedConfig(any)) = tracing?.http.as_ref()?.config_type.as_ref() else {
        return None;
    };
    if !any
        .type_url
        .ends_with("/envoy.config.trace.v3.ZipkinConfig")
    {
        return None;
    }
    let config = <ZipkinConfig as Message>::decode(any.value.as_slice()).ok()?;
    Some(Zipkin {
        trace_id_128bit: config.trace_id_128bit,
        shared_span_context: config.shared_span_context.is_none_or(|b| b.value),
    })
}

#[allow(
    clippy::too_many_lines,
    reason = "one message with forty fields, taken apart in one place"
)]
pub(super) fn bootstrap(cx: &mut Cx, value: api::Bootstrap, raw: &[u8]) -> Result<Bootstrap> {
    let api::Bootstrap {
        node,
        node_context_params,
        static_resources,
        dynamic_resources,
        cluster_manager,
        hds_config,
        flags_path,
        stats_sinks,
        deferred_stat_options,
        stats_config,
        stats_flush_interval,
        watchdog,
        watchdogs,
        tracing,
        layered_runtime,
        admin,
        overload_manager,
        enable_dispatcher_stats,
        header_prefix,
        stats_server_version_override,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        bootstrap_extensions,
        fatal_actions,
        config_sources,
        default_config_source,
        default_socket_interface,
        certificate_provider_instances,
        inline_headers,
        perf_tracing_file_path,
        default_regex_engine,
        xds_delegate_extension,
        xds_config_tracker_extension,
        listener_manager,
        application_log_config,
        grpc_async_client_manager_config,
        memory_allocator_manager,
        enable_worker_cpu_affinity,
        stats_flush,
        stats_eviction,
    } = value;
    refuse_set!(cx; hds_config, header_prefix, use_tcp_for_dns_lookups, dns_resolution_config,
        config_sources, default_config_source, default_socket_interface,
        certificate_provider_instances, default_regex_engine, xds_delegate_extension,
        listener_manager);
    ignore_set!(cx, TELEMETRY; stats_sinks, deferred_stat_options, enable_dispatcher_stats,
        stats_server_version_override, perf_tracing_file_path, xds_config_tracker_extension,
        stats_flush, stats_eviction);
    let zipkin = zipkin(tracing.as_ref());
    ignore_set!(cx, "spans are not exported; B3 headers are written for Zipkin"; tracing);
    ignore_set!(cx, "tunes threads and memory of Envoy itself"; flags_path, watchdog, watchdogs,
        fatal_actions, inline_headers, grpc_async_client_manager_config, memory_allocator_manager,
        enable_worker_cpu_affinity, node_context_params);
    cx.opt(
        "typed_dns_resolver_config",
        typed_dns_resolver_config,
        resolver,
    )?;
    cx.opt("cluster_manager", cluster_manager, manager)?;
    for (i, ext) in bootstrap_extensions.into_iter().enumerate() {
        cx.item("bootstrap_extensions", i, |cx| bootstrap_extension(cx, ext))?;
    }
    let api::bootstrap::StaticResources {
        listeners,
        clusters,
        secrets,
    } = static_resources.unwrap_or_default();
    let (clusters, listeners, secrets) = cx.field("static_resources", |cx| {
        let clusters = cx.each("clusters", clusters, |cx, c| cluster(cx, c).map(Arc::new))?;
        let listeners = cx.each("listeners", listeners, |cx, l| {
            let l = listener(cx, l)?;
            FilterChainTable::build(&l).map_err(|e| cx.err_at(&e.path, e.reason))?;
            Ok(Arc::new(l))
        })?;
        Ok((clusters, listeners, cx.each("secrets", secrets, secret)?))
    })?;
    let dynamic = cx
        .opt("dynamic_resources", dynamic_resources, dynamic)?
        .unwrap_or_default();
    let (runtime, runtime_layers) = cx
        .opt("layered_runtime", layered_runtime, runtime)?
        .unwrap_or_default();
    let node = node.unwrap_or_default();
    Ok(Bootstrap {
        node: Bytes::from(node.encode_to_vec()),
        node_id: node.id.into(),
        node_cluster: node.cluster.into(),
        zipkin,
        clusters,
        listeners,
        secrets,
        ads: dynamic.ads,
        lds_ads: dynamic.lds,
        cds_ads: dynamic.cds,
        admin: cx.opt("admin", admin, admin_address)?.flatten(),
        log_format: cx
            .opt("application_log_config", application_log_config, log_format)?
            .flatten(),
        stats: cx.field("stats_config", |cx| {
            stats(cx, stats_config.unwrap_or_default())
        })?,
        stats_flush_interval: positive_duration(cx, "stats_flush_interval", stats_flush_interval)?
            .unwrap_or(Duration::from_secs(5)),
        runtime,
        runtime_layers,
        max_active_downstream_connections: cx
            .opt("overload_manager", overload_manager, overload_limits)?
            .flatten(),
        raw: Bytes::copy_from_slice(raw),
    })
}

fn manager(cx: &mut Cx, value: api::ClusterManager) -> Result<()> {
    let api::ClusterManager {
        local_cluster_name,
        outlier_detection,
        upstream_bind_config,
        load_stats_config,
        enable_deferred_cluster_creation,
    } = value;
    refuse_set!(cx; upstream_bind_config);
    ignore_set!(cx, "only zone-aware routing reads it, which is not done"; local_cluster_name);
    ignore_set!(cx, TELEMETRY; outlier_detection, load_stats_config);
    // Clusters are built on first use in any case.
    let _ = enable_deferred_cluster_creation;
    Ok(())
}

fn bootstrap_extension(cx: &mut Cx, value: core::TypedExtensionConfig) -> Result<()> {
    let core::TypedExtensionConfig { name, typed_config } = value;
    let ext = extension(cx, &name, typed_config)?;
    match ext.type_name.as_str() {
        "envoy.extensions.bootstrap.internal_listener.v3.InternalListener" => {
            cx.ignore_here(
                &name,
                "listeners and endpoints that would use it are refused",
            );
            Ok(())
        }
        "istio.workload.BootstrapExtension" => {
            cx.ignore_here(&name, TELEMETRY);
            Ok(())
        }
        t => Err(unregistered(cx, &name, t)),
    }
}

#[derive(Default)]
struct Dynamic {
    ads: Option<AdsConfig>,
    lds: bool,
    cds: bool,
}

fn dynamic(cx: &mut Cx, value: api::bootstrap::DynamicResources) -> Result<Dynamic> {
    let api::bootstrap::DynamicResources {
        lds_config,
        lds_resources_locator,
        cds_config,
        cds_resources_locator,
        ads_config,
    } = value;
    refuse_set!(cx; lds_resources_locator, cds_resources_locator);
    let lds = cx.opt("lds_config", lds_config, ads_source)?.is_some();
    let cds = cx.opt("cds_config", cds_config, ads_source)?.is_some();
    let ads = cx.opt("ads_config", ads_config, |cx, a| {
        let (delta, cluster) = api_config_source(cx, a)?;
        Ok(AdsConfig { delta, cluster })
    })?;
    if ads.is_none() && (lds || cds) {
        return Err(cx.err_at(
            "ads_config",
            "value is required by lds_config or cds_config",
        ));
    }
    Ok(Dynamic { ads, lds, cds })
}

fn admin_address(cx: &mut Cx, value: api::Admin) -> Result<Option<std::net::SocketAddr>> {
    let api::Admin {
        access_log,
        access_log_path,
        profile_path,
        address,
        socket_options,
        ignore_global_conn_limit,
        allow_paths,
    } = value;
    refuse_set!(cx; socket_options, allow_paths);
    ignore_set!(cx, "requests to the admin port are not logged"; access_log, access_log_path);
    ignore_set!(cx, "there is no profiler to write there"; profile_path);
    ignore_set!(cx, "the admin port is never counted"; ignore_global_conn_limit);
    cx.opt("address", address, bind_address)
}

fn log_format(
    cx: &mut Cx,
    value: api::bootstrap::ApplicationLogConfig,
) -> Result<Option<LogFormat>> {
    use alc::log_format::LogFormat as L;
    use api::bootstrap::application_log_config as alc;
    let api::bootstrap::ApplicationLogConfig { log_format } = value;
    cx.opt("log_format", log_format, |cx, f| {
        let alc::LogFormat { log_format } = f;
        match log_format {
            Some(L::TextFormat(t)) => Ok(LogFormat::Text(t.into())),
            Some(L::JsonFormat(s)) => Ok(LogFormat::Json(
                serde_json::Value::Object(json_object(s)).to_string().into(),
            )),
            None => Err(cx.err("log_format: is required")),
        }
    })
}

fn stats(cx: &mut Cx, value: metrics::StatsConfig) -> Result<StatsConfig> {
    use metrics::tag_specifier::TagValue;
    let metrics::StatsConfig {
        stats_tags,
        use_all_default_tags,
        stats_matcher,
        histogram_bucket_settings,
        allow_default_tag_overrides,
    } = value;
    ignore_set!(cx, TELEMETRY; allow_default_tag_overrides);
    let mut tags = Vec::new();
    let mut fixed_tags = Vec::new();
    for metrics::TagSpecifier {
        tag_name,
        tag_value,
    } in stats_tags
    {
        match tag_value {
            Some(TagValue::Regex(r)) => tags.push((tag_name.into(), r.into())),
            Some(TagValue::FixedValue(v)) => fixed_tags.push((tag_name.into(), v.into())),
            None => cx.ignore(
                "stats_tags",
                &tag_name,
                "names a default tag without a value",
            ),
        }
    }
    Ok(StatsConfig {
        use_all_default_tags: bool_or(use_all_default_tags, true),
        tags,
        fixed_tags,
        matcher: cx
            .opt("stats_matcher", stats_matcher, matcher)?
            .unwrap_or_default(),
        histogram_buckets: cx.each(
            "histogram_bucket_settings",
            histogram_bucket_settings,
            |cx, s| {
                let metrics::HistogramBucketSettings {
                    r#match,
                    buckets,
                    bins,
                } = s;
                ignore_set!(cx, TELEMETRY; bins);
                if buckets.iter().any(|b| !b.is_finite() || *b <= 0.0) {
                    return Err(cx.err_at("buckets", "value must be greater than 0"));
                }
                Ok((cx.required("match", r#match, string)?, buckets))
            },
        )?,
    })
}

fn matcher(cx: &mut Cx, value: metrics::StatsMatcher) -> Result<StatsMatcher> {
    use metrics::stats_matcher::StatsMatcher as M;
    let metrics::StatsMatcher { stats_matcher } = value;
    Ok(match stats_matcher {
        None | Some(M::RejectAll(false)) => StatsMatcher::All,
        Some(M::RejectAll(true)) => StatsMatcher::None,
        Some(M::InclusionList(l)) => StatsMatcher::Include(cx.field("inclusion_list", |cx| {
            cx.each("patterns", l.patterns, string)
        })?),
        Some(M::ExclusionList(l)) => StatsMatcher::Exclude(cx.field("exclusion_list", |cx| {
            cx.each("patterns", l.patterns, string)
        })?),
    })
}

/// Flattened values, and the names of the layers.
type Runtime = (Vec<(Arc<str>, Arc<str>)>, Vec<Arc<str>>);

fn runtime(cx: &mut Cx, value: api::LayeredRuntime) -> Result<Runtime> {
    use api::runtime_layer::LayerSpecifier as L;
    let api::LayeredRuntime { layers } = value;
    let mut values = BTreeMap::new();
    let mut names: Vec<Arc<str>> = Vec::with_capacity(layers.len());
    for (i, layer) in layers.into_iter().enumerate() {
        let api::RuntimeLayer {
            name,
            layer_specifier,
        } = layer;
        cx.item("layers", i, |cx| {
            let name = non_empty(cx, "name", name)?;
            if names.contains(&name) {
                return Err(cx.err_at("name", format!("Duplicate layer name: {name}")));
            }
            names.push(name);
            match layer_specifier {
                Some(L::StaticLayer(s)) => {
                    flatten("", s, &mut values);
                    Ok(())
                }
                Some(L::AdminLayer(api::runtime_layer::AdminLayer {})) => Ok(()),
                Some(L::DiskLayer(_)) => Err(cx.err_at("disk_layer", UNSUPPORTED)),
                Some(L::RtdsLayer(_)) => Err(cx.err_at("rtds_layer", UNSUPPORTED)),
                None => Err(cx.err("layer_specifier: is required")),
            }
        })?;
    }
    Ok((values.into_iter().collect(), names))
}

/// Later layers win; nested structs become dotted keys.
fn flatten(prefix: &str, value: gp::Struct, out: &mut BTreeMap<Arc<str>, Arc<str>>) {
    for (key, v) in sorted(value.fields) {
        let path = if prefix.is_empty() {
            key
        } else {
            format!("{prefix}.{key}")
        };
        match v.kind {
            Some(gp::value::Kind::StructValue(s)) => flatten(&path, s, out),
            _ => {
                out.insert(path.into(), json(v).to_string().into());
            }
        }
    }
}

fn overload_limits(cx: &mut Cx, value: overload::OverloadManager) -> Result<Option<u64>> {
    use pb::envoy::extensions::resource_monitors::downstream_connections::v3 as dc;
    let overload::OverloadManager {
        refresh_interval,
        resource_monitors,
        actions,
        loadshed_points,
        buffer_factory_config,
    } = value;
    refuse_set!(cx; actions, loadshed_points);
    ignore_set!(cx, "there are no overload actions to pace"; refresh_interval,
        buffer_factory_config);
    let limits = cx.each("resource_monitors", resource_monitors, |cx, m| {
        let overload::ResourceMonitor { name, config_type } = m;
        let any = config_type.map(|overload::resource_monitor::ConfigType::TypedConfig(a)| a);
        let ext = extension(cx, &name, any)?;
        match ext.type_name.as_str() {
            "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig" => {
                let dc::DownstreamConnectionsConfig {
                    max_active_downstream_connections: max,
                } = ext.decode(cx)?;
                u64::try_from(max).ok().filter(|m| *m > 0).ok_or_else(|| {
                    cx.err_at(
                        "max_active_downstream_connections",
                        "value must be greater than 0",
                    )
                })
            }
            t => Err(unregistered(cx, &name, t)),
        }
    })?;
    Ok(limits.into_iter().min())
}
