//! Cluster.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb;
use pb::envoy::config::cluster::v3 as api;
use pb::envoy::config::core::v3 as core;
use pb::envoy::extensions::upstreams::http::v3 as up;
use pb::google::protobuf as gp;

use super::endpoint::{Names, load_assignment};
use super::network_filter::METADATA_EXCHANGE;
use super::tls::upstream_socket;
use super::wkt::{
    ads_source, enum_of, extension, ignore_runtime_key, ip_socket_address, non_empty, optional_str,
    percent, port, positive_duration, sorted, struct_str, truthy, u32_in, u32_of, unregistered,
};
use super::{Cx, METADATA, Result, TELEMETRY, UNSUPPORTED, ignore_set, protocol, refuse_set};
use crate::cluster::{
    CircuitBreakers, Cluster, Discovery, DnsFamily, DnsOptions, IstioClusterMetadata, LbPolicy,
    LoadAssignment, OutlierDetection, SlowStart, TcpKeepalive, TransportSocket,
    TransportSocketMatch, UpstreamProtocol,
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// `Cluster` with defaults applied.
#[allow(
    clippy::too_many_lines,
    reason = "one message with sixty fields, taken apart in one place"
)]
pub(super) fn cluster(cx: &mut Cx, value: api::Cluster) -> Result<Cluster> {
    let api::Cluster {
        transport_socket_matches,
        transport_socket_matcher,
        name,
        alt_stat_name,
        stats_matcher,
        eds_cluster_config,
        connect_timeout,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        lb_policy,
        load_assignment: assignment,
        health_checks,
        max_requests_per_connection,
        circuit_breakers,
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        typed_extension_protocol_options,
        dns_refresh_rate,
        dns_jitter,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_lookup_family,
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        wait_for_warm_on_init,
        outlier_detection,
        cleanup_interval,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        metadata,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure,
        ignore_health_on_host_removal,
        filters,
        load_balancing_policy,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type,
        lb_config,
    } = value;
    refuse_set!(cx; transport_socket_matcher, per_connection_buffer_high_watermark_timeout,
        health_checks, dns_resolvers, use_tcp_for_dns_lookups, dns_resolution_config,
        lb_subset_config, close_connections_on_host_health_failure, load_balancing_policy,
        upstream_config, connection_pool_per_downstream_connection, queuing_policies);
    ignore_set!(cx, TELEMETRY; stats_matcher, lrs_server, lrs_report_endpoint_metrics,
        track_timeout_budgets, track_cluster_stats);
    ignore_set!(cx, "only opens connections ahead of need"; preconnect_policy);
    ignore_set!(cx, "only spreads or paces DNS queries"; dns_jitter, dns_failure_refresh_rate);
    ignore_set!(cx, "clusters warm in any order"; wait_for_warm_on_init);
    ignore_set!(cx, "there are no active health checks"; ignore_health_on_host_removal);
    let name = non_empty(cx, "name", name)?;
    cx.opt(
        "typed_dns_resolver_config",
        typed_dns_resolver_config,
        resolver,
    )?;
    for (i, filter) in filters.into_iter().enumerate() {
        cx.item("filters", i, |cx| upstream_filter(cx, filter))?;
    }
    let http = http_options(
        cx,
        typed_extension_protocol_options,
        Deprecated {
            upstream: upstream_http_protocol_options,
            common: common_http_protocol_options,
            http1: http_protocol_options,
            http2: http2_protocol_options,
            selection: protocol_selection,
        },
    )?;
    let dns = DnsOptions {
        family: dns_family(cx, dns_lookup_family)?,
        refresh_rate: positive_duration(cx, "dns_refresh_rate", dns_refresh_rate)?
            .unwrap_or(Duration::from_secs(5)),
        respect_ttl: respect_dns_ttl,
    };
    let original_dst = match &lb_config {
        Some(api::cluster::LbConfig::OriginalDstLbConfig(c)) => Some(c.clone()),
        _ => None,
    };
    let discovery = discovery(
        cx,
        &name,
        Parts {
            kind: cluster_discovery_type,
            assignment,
            eds: eds_cluster_config,
            dns,
            cleanup_interval,
            original_dst,
        },
    )?;
    let (lb_policy, slow_start) = lb_policy_of(cx, lb_policy, lb_config, &discovery)?;
    let common_lb = cx.field("common_lb_config", |cx| {
        common_lb(cx, common_lb_config.unwrap_or_default())
    })?;
    Ok(Cluster {
        observability_name: optional_str(alt_stat_name).unwrap_or_else(|| Arc::clone(&name)),
        discovery,
        lb_policy,
        connect_timeout: positive_duration(cx, "connect_timeout", connect_timeout)?
            .unwrap_or(Duration::from_secs(5)),
        per_connection_buffer_limit_bytes: u32_of(per_connection_buffer_limit_bytes)
            .unwrap_or(1024 * 1024),
        transport_socket_matches: cx.each(
            "transport_socket_matches",
            transport_socket_matches,
            socket_match,
        )?,
        transport_socket: cx
            .opt("transport_socket", transport_socket, upstream_socket)?
            .unwrap_or(TransportSocket::RawBuffer),
        protocol: http.protocol,
        http2: http.http2,
        idle_timeout: http.common.idle_timeout,
        max_requests_per_connection: http
            .common
            .max_requests_per_connection
            .or(u32_of(max_requests_per_connection))
            .unwrap_or(0),
        max_connection_duration: http.common.max_connection_duration,
        auto_sni: http.auto_sni,
        auto_san_validation: http.auto_san_validation,
        preserve_case: http.preserve_case,
        circuit_breakers: cx
            .opt("circuit_breakers", circuit_breakers, breakers)?
            .unwrap_or_default(),
        outlier_detection: cx.opt("outlier_detection", outlier_detection, outlier)?,
        source_addresses: cx
            .opt("upstream_bind_config", upstream_bind_config, bind_config)?
            .unwrap_or_default(),
        tcp_keepalive: cx
            .opt(
                "upstream_connection_options",
                upstream_connection_options,
                connection_options,
            )?
            .flatten(),
        healthy_panic_threshold: common_lb.panic_threshold,
        locality_weighted: common_lb.locality_weighted,
        close_connections_on_host_set_change: common_lb.close_on_host_set_change,
        slow_start,
        istio: istio_metadata(cx, metadata.unwrap_or_default()),
        name,
    })
}

/// `typed_dns_resolver_config`: the resolver may be tuned, not replaced.
pub(super) fn resolver(cx: &mut Cx, value: core::TypedExtensionConfig) -> Result<()> {
    use pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
    let core::TypedExtensionConfig { name, typed_config } = value;
    cx.field("typed_config", |cx| {
        let ext = extension(cx, &name, typed_config)?;
        if ext.type_name != "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"
        {
            return Err(unregistered(cx, &name, &ext.type_name));
        }
        let CaresDnsResolverConfig {
            resolvers,
            use_resolvers_as_fallback,
            filter_unroutable_families,
            dns_resolver_options,
            udp_max_queries,
            query_timeout_seconds,
            query_tries,
            rotate_nameservers,
            edns0_max_payload_size,
            max_udp_channel_duration,
            reinit_channel_on_timeout,
            qcache_max_ttl,
        } = ext.decode(cx)?;
        refuse_set!(cx; resolvers, use_resolvers_as_fallback, filter_unroutable_families,
            dns_resolver_options);
        ignore_set!(cx, "only tunes how the resolver of Envoy asks"; udp_max_queries,
            query_timeout_seconds, query_tries, rotate_nameservers, edns0_max_payload_size,
            max_udp_channel_duration, reinit_channel_on_timeout, qcache_max_ttl);
        Ok(())
    })
}

/// Network filters on upstream connections.
fn upstream_filter(cx: &mut Cx, value: api::Filter) -> Result<()> {
    let api::Filter {
        name,
        typed_config,
        config_discovery,
    } = value;
    refuse_set!(cx; config_discovery);
    cx.field("typed_config", |cx| {
        let ext = extension(cx, &name, typed_config)?;
        match ext.type_name.as_str() {
            "envoy.tcp.metadataexchange.config.MetadataExchange" => {
                cx.ignore_here(&name, METADATA_EXCHANGE);
                Ok(())
            }
            t => Err(unregistered(cx, &name, t)),
        }
    })
}

fn dns_family(cx: &Cx, value: i32) -> Result<DnsFamily> {
    use api::cluster::DnsLookupFamily as D;
    Ok(match enum_of::<D>(cx, "dns_lookup_family", value)? {
        D::Auto => DnsFamily::Auto,
        D::V4Only => DnsFamily::V4Only,
        D::V6Only => DnsFamily::V6Only,
        D::V4Preferred => DnsFamily::V4Preferred,
        D::All => DnsFamily::All,
    })
}

/// What the kinds of discovery read.
struct Parts {
    kind: Option<api::cluster::ClusterDiscoveryType>,
    assignment: Option<pb::envoy::config::endpoint::v3::ClusterLoadAssignment>,
    eds: Option<api::cluster::EdsClusterConfig>,
    dns: DnsOptions,
    cleanup_interval: Option<gp::Duration>,
    original_dst: Option<api::cluster::OriginalDstLbConfig>,
}

fn discovery(cx: &mut Cx, name: &Arc<str>, parts: Parts) -> Result<Discovery> {
    use api::cluster::{ClusterDiscoveryType as K, DiscoveryType as D};
    let kind = match parts.kind {
        Some(K::Type(t)) => enum_of::<D>(cx, "type", t)?,
        None => D::Static,
        Some(K::ClusterType(api::cluster::CustomClusterType { name, typed_config })) => {
            return Err(cx.field("cluster_type", |cx| {
                match extension(cx, &name, typed_config) {
                    Ok(ext) => unregistered(cx, &name, &ext.type_name),
                    Err(e) => e,
                }
            }));
        }
    };
    let cleanup_interval = positive_duration(cx, "cleanup_interval", parts.cleanup_interval)?;
    let assignment = |cx: &mut Cx, names| -> Result<LoadAssignment> {
        let parsed = cx.opt("load_assignment", parts.assignment.clone(), |cx, a| {
            load_assignment(cx, a, names)
        })?;
        Ok(parsed.unwrap_or_else(|| LoadAssignment {
            cluster_name: Arc::clone(name),
            overprovisioning_factor: 140,
            ..LoadAssignment::default()
        }))
    };
    Ok(match kind {
        D::Static => Discovery::Static(assignment(cx, Names::Literal)?),
        D::StrictDns => Discovery::StrictDns(assignment(cx, Names::Resolved)?, parts.dns),
        D::LogicalDns => {
            let a = assignment(cx, Names::Resolved)?;
            let endpoints: usize = a.localities.iter().map(|l| l.endpoints.len()).sum();
            if a.localities.len() != 1 || endpoints != 1 {
                return Err(cx.err_at(
                    "load_assignment",
                    "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single \
                     lb_endpoint",
                ));
            }
            Discovery::LogicalDns(a, parts.dns)
        }
        D::Eds => cx.required("eds_cluster_config", parts.eds, |cx, eds| {
            let api::cluster::EdsClusterConfig {
                eds_config,
                service_name,
            } = eds;
            Ok(Discovery::Eds {
                initial_fetch_timeout: cx.required("eds_config", eds_config, ads_source)?,
                service_name: optional_str(service_name).unwrap_or_else(|| Arc::clone(name)),
            })
        })?,
        D::OriginalDst => {
            if parts.assignment.is_some() {
                return Err(cx.err_at(
                    "load_assignment",
                    "ORIGINAL_DST clusters must have no load assignment configured",
                ));
            }
            let (http_header, upstream_port_override) = cx
                .opt("original_dst_lb_config", parts.original_dst, original_dst)?
                .unwrap_or_default();
            Discovery::OriginalDst {
                cleanup_interval: cleanup_interval.unwrap_or(Duration::from_secs(5)),
                upstream_port_override,
                http_header,
            }
        }
    })
}

type OriginalDst = (Option<Arc<str>>, Option<u16>);

fn original_dst(cx: &mut Cx, value: api::cluster::OriginalDstLbConfig) -> Result<OriginalDst> {
    let api::cluster::OriginalDstLbConfig {
        use_http_header,
        http_header_name,
        upstream_port_override,
        metadata_key,
    } = value;
    refuse_set!(cx; metadata_key);
    let header = if http_header_name.is_empty() {
        "x-envoy-original-dst-host".into()
    } else {
        super::matcher::header_name(cx, "http_header_name", http_header_name)?
    };
    let port = upstream_port_override
        .map(|p| port(cx, "upstream_port_override", p.value))
        .transpose()?;
    Ok((use_http_header.then_some(header), port))
}

fn lb_policy_of(
    cx: &mut Cx,
    policy: i32,
    config: Option<api::cluster::LbConfig>,
    discovery: &Discovery,
) -> Result<(LbPolicy, Option<SlowStart>)> {
    use api::cluster::{LbConfig as C, LbPolicy as P};
    let policy = enum_of::<P>(cx, "lb_policy", policy)?;
    let provided = policy == P::ClusterProvided;
    match (matches!(discovery, Discovery::OriginalDst { .. }), provided) {
        (true, false) => {
            return Err(cx.err_at(
                "lb_policy",
                format!(
                    "cluster: LB policy {} is not valid for Cluster type ORIGINAL_DST. Only \
                     'CLUSTER_PROVIDED' is allowed with cluster type 'ORIGINAL_DST'",
                    policy.as_str_name()
                ),
            ));
        }
        (false, true) => {
            return Err(cx.err_at(
                "lb_policy",
                "cluster: LB policy CLUSTER_PROVIDED is allowed only for clusters that provide one",
            ));
        }
        _ => {}
    }
    let mut slow_start = None;
    let lb = match (policy, config) {
        (P::RoundRobin, Some(C::RoundRobinLbConfig(c))) => {
            let api::cluster::RoundRobinLbConfig { slow_start_config } = c;
            slow_start = cx.opt(
                "round_robin_lb_config.slow_start_config",
                slow_start_config,
                slow_start_of,
            )?;
            LbPolicy::RoundRobin
        }
        (P::LeastRequest, Some(C::LeastRequestLbConfig(c))) => {
            cx.field("least_request_lb_config", |cx| {
                let api::cluster::LeastRequestLbConfig {
                    choice_count,
                    active_request_bias,
                    slow_start_config,
                } = c;
                refuse_set!(cx; active_request_bias);
                slow_start = cx.opt("slow_start_config", slow_start_config, slow_start_of)?;
                Ok(LbPolicy::LeastRequest {
                    choice_count: u32_in(cx, "choice_count", choice_count, 2..=u32::MAX, 2)?,
                })
            })?
        }
        (P::RingHash, Some(C::RingHashLbConfig(c))) => {
            cx.field("ring_hash_lb_config", |cx| ring_hash(cx, c))?
        }
        (P::Maglev, Some(C::MaglevLbConfig(c))) => {
            cx.field("maglev_lb_config", |cx| maglev(cx, c))?
        }
        (P::RoundRobin, _) => LbPolicy::RoundRobin,
        (P::LeastRequest, _) => LbPolicy::LeastRequest { choice_count: 2 },
        (P::Random, _) => LbPolicy::Random,
        (P::RingHash, _) => LbPolicy::RingHash {
            minimum_ring_size: 1024,
            maximum_ring_size: MAX_RING,
        },
        (P::Maglev, _) => LbPolicy::Maglev { table_size: 65_537 },
        (P::ClusterProvided, _) => LbPolicy::ClusterProvided,
        (P::LoadBalancingPolicyConfig, _) => return Err(cx.err_at("lb_policy", UNSUPPORTED)),
    };
    Ok((lb, slow_start))
}

/// Largest ring.
const MAX_RING: u64 = 8 * 1024 * 1024;

fn ring_hash(cx: &Cx, value: api::cluster::RingHashLbConfig) -> Result<LbPolicy> {
    let api::cluster::RingHashLbConfig {
        minimum_ring_size,
        hash_function,
        maximum_ring_size,
    } = value;
    refuse_set!(cx; hash_function);
    let min = minimum_ring_size.map_or(1024, |v| v.value);
    let max = maximum_ring_size.map_or(MAX_RING, |v| v.value);
    if min > MAX_RING || max > MAX_RING {
        return Err(cx.err("ring sizes must be less than or equal to 8388608"));
    }
    if min > max {
        return Err(cx.err(format!(
            "ring hash: minimum_ring_size ({min}) > maximum_ring_size ({max})"
        )));
    }
    Ok(LbPolicy::RingHash {
        minimum_ring_size: min,
        maximum_ring_size: max,
    })
}

fn maglev(cx: &Cx, value: api::cluster::MaglevLbConfig) -> Result<LbPolicy> {
    let api::cluster::MaglevLbConfig { table_size } = value;
    let table_size = table_size.map_or(65_537, |v| v.value);
    if table_size > 5_000_011 {
        return Err(cx.err_at("table_size", "value must be less than or equal to 5000011"));
    }
    let prime = table_size >= 2
        && (2..)
            .take_while(|d| d * d <= table_size)
            .all(|d| !table_size.is_multiple_of(d));
    if prime {
        Ok(LbPolicy::Maglev { table_size })
    } else {
        Err(cx.err_at(
            "table_size",
            "The table size of maglev must be prime number",
        ))
    }
}

fn slow_start_of(cx: &mut Cx, value: api::cluster::SlowStartConfig) -> Result<SlowStart> {
    let api::cluster::SlowStartConfig {
        slow_start_window,
        aggression,
        min_weight_percent,
    } = value;
    let aggression = match aggression {
        None => 1.0,
        Some(core::RuntimeDouble {
            default_value,
            runtime_key,
        }) => {
            // "(" is istiod's way to satisfy the field's own rule; it names no key.
            if runtime_key != "(" {
                ignore_runtime_key(cx, &runtime_key);
            }
            default_value
        }
    };
    if !aggression.is_finite() || aggression <= 0.0 {
        return Err(cx.err_at("aggression", "value must be greater than 0"));
    }
    Ok(SlowStart {
        window: positive_duration(cx, "slow_start_window", slow_start_window)?
            .ok_or_else(|| cx.err_at("slow_start_window", "value is required"))?,
        aggression,
        min_weight_percent: percent(cx, "min_weight_percent", min_weight_percent)?.unwrap_or(10.0),
    })
}

struct CommonLb {
    panic_threshold: f64,
    locality_weighted: bool,
    close_on_host_set_change: bool,
}

fn common_lb(cx: &mut Cx, value: api::cluster::CommonLbConfig) -> Result<CommonLb> {
    use api::cluster::common_lb_config::{LocalityConfigSpecifier as L, ZoneAwareLbConfig};
    let api::cluster::CommonLbConfig {
        healthy_panic_threshold,
        update_merge_window,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
    } = value;
    refuse_set!(cx; consistent_hashing_lb_config);
    ignore_set!(cx, "updates are applied at once"; update_merge_window);
    ignore_set!(cx, "there are no active health checks"; ignore_new_hosts_until_first_hc);
    ignore_set!(cx, "no filter overrides the chosen host"; override_host_status);
    let locality_weighted = match locality_config_specifier {
        None => false,
        Some(L::LocalityWeightedLbConfig(_)) => true,
        Some(L::ZoneAwareLbConfig(ZoneAwareLbConfig {
            routing_enabled,
            min_cluster_size,
            fail_traffic_on_panic,
        })) => {
            refuse_set!(cx; fail_traffic_on_panic);
            ignore_set!(cx, "endpoints of every zone are chosen from: zone-aware routing is not done";
                routing_enabled, min_cluster_size);
            false
        }
    };
    Ok(CommonLb {
        panic_threshold: percent(cx, "healthy_panic_threshold", healthy_panic_threshold)?
            .unwrap_or(50.0),
        locality_weighted,
        close_on_host_set_change: close_connections_on_host_set_change,
    })
}

fn socket_match(
    cx: &mut Cx,
    value: api::cluster::TransportSocketMatch,
) -> Result<TransportSocketMatch> {
    let api::cluster::TransportSocketMatch {
        name,
        r#match,
        transport_socket,
    } = value;
    let criteria = sorted(r#match.unwrap_or_default().fields)
        .into_iter()
        .map(|(k, v)| match v.kind {
            Some(gp::value::Kind::StringValue(s)) => Ok((k.into(), s.into())),
            _ => Err(cx.err_at(&format!("match[{k:?}]"), "only strings are supported")),
        })
        .collect::<Result<_>>()?;
    Ok(TransportSocketMatch {
        name: non_empty(cx, "name", name)?,
        criteria,
        socket: cx
            .opt("transport_socket", transport_socket, upstream_socket)?
            .unwrap_or(TransportSocket::RawBuffer),
    })
}

/// The fields that `HttpProtocolOptions` replaces.
struct Deprecated {
    upstream: Option<core::UpstreamHttpProtocolOptions>,
    common: Option<core::HttpProtocolOptions>,
    http1: Option<core::Http1ProtocolOptions>,
    http2: Option<core::Http2ProtocolOptions>,
    selection: i32,
}

struct Http {
    protocol: UpstreamProtocol,
    common: protocol::Common,
    http2: crate::http::Http2Options,
    preserve_case: bool,
    auto_sni: bool,
    auto_san_validation: bool,
}

fn http_options(
    cx: &mut Cx,
    options: HashMap<String, gp::Any>,
    deprecated: Deprecated,
) -> Result<Http> {
    let mut typed = None;
    for (key, any) in sorted(options) {
        typed = Some(cx.entry("typed_extension_protocol_options", &key, |cx| {
            let ext = extension(cx, &key, Some(any))?;
            if key != HTTP_OPTIONS || ext.type_name != HTTP_OPTIONS {
                return Err(unregistered(cx, &key, &ext.type_name));
            }
            let message = ext.decode(cx)?;
            typed_options(cx, message)
        })?);
    }
    match typed {
        Some(http) => Ok(http),
        None => deprecated_options(cx, deprecated),
    }
}

fn deprecated_options(cx: &mut Cx, value: Deprecated) -> Result<Http> {
    use api::cluster::ClusterProtocolSelection as S;
    let selection = enum_of::<S>(cx, "protocol_selection", value.selection)?;
    let protocol = match (selection, value.http2.is_some()) {
        (S::UseDownstreamProtocol, _) => UpstreamProtocol::Downstream,
        (S::UseConfiguredProtocol, true) => UpstreamProtocol::Http2,
        (S::UseConfiguredProtocol, false) => UpstreamProtocol::Http1,
    };
    let (auto_sni, auto_san_validation) = auto(cx, value.upstream)?;
    Ok(Http {
        protocol,
        common: cx.field("common_http_protocol_options", |cx| {
            protocol::common(cx, value.common)
        })?,
        http2: cx.field("http2_protocol_options", |cx| {
            protocol::http2(cx, value.http2)
        })?,
        preserve_case: cx
            .field("http_protocol_options", |cx| {
                protocol::http1(cx, value.http1)
            })?
            .preserve_case,
        auto_sni,
        auto_san_validation,
    })
}

fn auto(cx: &mut Cx, value: Option<core::UpstreamHttpProtocolOptions>) -> Result<(bool, bool)> {
    cx.field("upstream_http_protocol_options", |cx| {
        let core::UpstreamHttpProtocolOptions {
            auto_sni,
            auto_san_validation,
            override_auto_sni_header,
        } = value.unwrap_or_default();
        refuse_set!(cx; override_auto_sni_header);
        Ok((auto_sni, auto_san_validation))
    })
}

fn typed_options(cx: &mut Cx, value: up::HttpProtocolOptions) -> Result<Http> {
    use up::http_protocol_options as o;
    use up::http_protocol_options::UpstreamProtocolOptions as U;
    let up::HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = value;
    refuse_set!(cx; http_filters, header_validation_config, outlier_detection,
        request_mirror_policies, hash_policy, retry_policy);
    let (protocol, http1, http2) = match upstream_protocol_options {
        Some(U::ExplicitHttpConfig(o::ExplicitHttpConfig { protocol_config })) => {
            explicit(cx, protocol_config)?
        }
        Some(U::UseDownstreamProtocolConfig(o::UseDownstreamHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
        })) => {
            refuse_set!(cx; http3_protocol_options);
            (
                UpstreamProtocol::Downstream,
                http_protocol_options,
                http2_protocol_options,
            )
        }
        Some(U::AutoConfig(o::AutoHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
            alternate_protocols_cache_options,
        })) => {
            refuse_set!(cx; http3_protocol_options, alternate_protocols_cache_options);
            (
                UpstreamProtocol::Auto,
                http_protocol_options,
                http2_protocol_options,
            )
        }
        None => return Err(cx.err("upstream_protocol_options: is required")),
    };
    let (auto_sni, auto_san_validation) = auto(cx, upstream_http_protocol_options)?;
    Ok(Http {
        protocol,
        common: cx.field("common_http_protocol_options", |cx| {
            protocol::common(cx, common_http_protocol_options)
        })?,
        http2: cx.field("http2_protocol_options", |cx| protocol::http2(cx, http2))?,
        preserve_case: cx
            .field("http_protocol_options", |cx| protocol::http1(cx, http1))?
            .preserve_case,
        auto_sni,
        auto_san_validation,
    })
}

type Explicit = (
    UpstreamProtocol,
    Option<core::Http1ProtocolOptions>,
    Option<core::Http2ProtocolOptions>,
);

fn explicit(
    cx: &Cx,
    value: Option<up::http_protocol_options::explicit_http_config::ProtocolConfig>,
) -> Result<Explicit> {
    use up::http_protocol_options::explicit_http_config::ProtocolConfig as P;
    match value {
        Some(P::HttpProtocolOptions(h)) => Ok((UpstreamProtocol::Http1, Some(h), None)),
        Some(P::Http2ProtocolOptions(h)) => Ok((UpstreamProtocol::Http2, None, Some(h))),
        Some(P::Http3ProtocolOptions(_)) => {
            Err(cx.err_at("explicit_http_config.http3_protocol_options", UNSUPPORTED))
        }
        None => Err(cx.err("explicit_http_config.protocol_config: is required")),
    }
}

fn breakers(cx: &mut Cx, value: api::CircuitBreakers) -> Result<CircuitBreakers> {
    let api::CircuitBreakers {
        thresholds,
        per_host_thresholds,
    } = value;
    refuse_set!(cx; per_host_thresholds);
    let parsed = cx.each("thresholds", thresholds, threshold)?;
    // Envoy takes the first one of a priority.
    Ok(parsed.into_iter().flatten().next().unwrap_or_default())
}

fn threshold(
    cx: &mut Cx,
    value: api::circuit_breakers::Thresholds,
) -> Result<Option<CircuitBreakers>> {
    let api::circuit_breakers::Thresholds {
        priority,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        track_remaining,
        max_connection_pools,
    } = value;
    ignore_set!(cx, TELEMETRY; track_remaining);
    refuse_set!(cx; max_connection_pools);
    let retry_budget = cx.opt("retry_budget", retry_budget, |cx, b| {
        let api::circuit_breakers::thresholds::RetryBudget {
            budget_percent,
            budget_interval,
            min_retry_concurrency,
        } = b;
        refuse_set!(cx; budget_interval);
        Ok((
            percent(cx, "budget_percent", budget_percent)?.unwrap_or(20.0),
            u32_of(min_retry_concurrency).unwrap_or(3),
        ))
    })?;
    if enum_of::<core::RoutingPriority>(cx, "priority", priority)? == core::RoutingPriority::High {
        cx.ignore_here(
            "thresholds of priority HIGH",
            "one set of limits, that of DEFAULT, applies to all requests",
        );
        return Ok(None);
    }
    let d = CircuitBreakers::default();
    Ok(Some(CircuitBreakers {
        max_connections: u32_of(max_connections).unwrap_or(d.max_connections),
        max_pending_requests: u32_of(max_pending_requests).unwrap_or(d.max_pending_requests),
        max_requests: u32_of(max_requests).unwrap_or(d.max_requests),
        max_retries: u32_of(max_retries).unwrap_or(d.max_retries),
        retry_budget,
    }))
}

fn outlier(cx: &mut Cx, value: api::OutlierDetection) -> Result<OutlierDetection> {
    let api::OutlierDetection {
        consecutive_5xx,
        interval,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        enforcing_success_rate,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate,
        failure_percentage_threshold,
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin,
        failure_percentage_minimum_hosts,
        failure_percentage_request_volume,
        max_ejection_time,
        max_ejection_time_jitter,
        successful_active_health_check_uneject_host,
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = value;
    for (field, v) in [
        ("enforcing_success_rate", enforcing_success_rate),
        (
            "enforcing_local_origin_success_rate",
            enforcing_local_origin_success_rate,
        ),
        ("enforcing_failure_percentage", enforcing_failure_percentage),
        (
            "enforcing_failure_percentage_local_origin",
            enforcing_failure_percentage_local_origin,
        ),
    ] {
        cx.refuse_if(u32_of(v).unwrap_or(0) > 0, field)?;
    }
    if enforcing_success_rate.is_none() {
        cx.ignore(
            "enforcing_success_rate",
            "success rate ejection",
            "on by default in Envoy and always off under istiod: hosts are not compared here",
        );
    }
    let detect_degraded_hosts = truthy(detect_degraded_hosts);
    refuse_set!(cx; monitors, detect_degraded_hosts);
    ignore_set!(cx, "tunes an ejection rule that is off"; success_rate_minimum_hosts,
        success_rate_request_volume, success_rate_stdev_factor, failure_percentage_threshold,
        failure_percentage_minimum_hosts, failure_percentage_request_volume);
    ignore_set!(cx, "only spreads the ends of ejections"; max_ejection_time_jitter);
    ignore_set!(cx, "there are no active health checks";
        successful_active_health_check_uneject_host);
    let share = |cx: &Cx, field: &str, v, default| u32_in(cx, field, v, 0..=100, default);
    let base = positive_duration(cx, "base_ejection_time", base_ejection_time)?
        .unwrap_or(Duration::from_secs(30));
    let max = positive_duration(cx, "max_ejection_time", max_ejection_time)?
        .unwrap_or(Duration::from_secs(300).max(base));
    if max < base {
        return Err(cx.err_at(
            "max_ejection_time",
            "outlier detector's max_ejection_time cannot be smaller than base_ejection_time",
        ));
    }
    Ok(OutlierDetection {
        consecutive_5xx: u32_of(consecutive_5xx).unwrap_or(5),
        enforcing_consecutive_5xx: share(
            cx,
            "enforcing_consecutive_5xx",
            enforcing_consecutive_5xx,
            100,
        )?,
        consecutive_gateway_failure: u32_of(consecutive_gateway_failure).unwrap_or(5),
        enforcing_consecutive_gateway_failure: share(
            cx,
            "enforcing_consecutive_gateway_failure",
            enforcing_consecutive_gateway_failure,
            0,
        )?,
        split_external_local_origin_errors,
        consecutive_local_origin_failure: u32_of(consecutive_local_origin_failure).unwrap_or(5),
        enforcing_consecutive_local_origin_failure: share(
            cx,
            "enforcing_consecutive_local_origin_failure",
            enforcing_consecutive_local_origin_failure,
            100,
        )?,
        interval: positive_duration(cx, "interval", interval)?.unwrap_or(Duration::from_secs(10)),
        base_ejection_time: base,
        max_ejection_time: max,
        max_ejection_percent: share(cx, "max_ejection_percent", max_ejection_percent, 10)?,
        always_eject_one_host: truthy(always_eject_one_host),
    })
}

fn bind_config(cx: &mut Cx, value: core::BindConfig) -> Result<Vec<SocketAddr>> {
    let core::BindConfig {
        source_address,
        freebind,
        socket_options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces,
    } = value;
    let freebind = truthy(freebind);
    refuse_set!(cx; freebind, socket_options, local_address_selector, validate_network_namespaces);
    let mut addresses: Vec<_> = cx
        .opt("source_address", source_address, |cx, a| {
            ip_socket_address(cx, a)
        })?
        .into_iter()
        .collect();
    addresses.extend(
        cx.each("extra_source_addresses", extra_source_addresses, |cx, a| {
            let core::ExtraSourceAddress {
                address,
                socket_options,
            } = a;
            refuse_set!(cx; socket_options);
            cx.required("address", address, |cx, a| ip_socket_address(cx, a))
        })?,
    );
    addresses.extend(cx.each(
        "additional_source_addresses",
        additional_source_addresses,
        |cx, a| ip_socket_address(cx, a),
    )?);
    Ok(addresses)
}

fn connection_options(
    cx: &mut Cx,
    value: api::UpstreamConnectionOptions,
) -> Result<Option<TcpKeepalive>> {
    let api::UpstreamConnectionOptions {
        tcp_keepalive,
        set_local_interface_name_on_upstream_connections,
        happy_eyeballs_config,
    } = value;
    ignore_set!(cx, TELEMETRY; set_local_interface_name_on_upstream_connections);
    ignore_set!(cx, "only orders attempts"; happy_eyeballs_config);
    Ok(tcp_keepalive.map(
        |core::TcpKeepalive {
             keepalive_probes,
             keepalive_time,
             keepalive_interval,
         }| TcpKeepalive {
            probes: u32_of(keepalive_probes),
            time: u32_of(keepalive_time),
            interval: u32_of(keepalive_interval),
        },
    ))
}

fn istio_metadata(cx: &mut Cx, value: core::Metadata) -> IstioClusterMetadata {
    use gp::value::Kind;
    let core::Metadata {
        filter_metadata,
        typed_filter_metadata,
    } = value;
    ignore_set!(cx, METADATA; typed_filter_metadata);
    let Some(istio) = filter_metadata.get("istio") else {
        return IstioClusterMetadata::default();
    };
    let kind = |key: &str| istio.fields.get(key).and_then(|v| v.kind.as_ref());
    let service = match kind("services") {
        Some(Kind::ListValue(list)) => list.values.first().and_then(|v| match &v.kind {
            Some(Kind::StructValue(s)) => Some((
                struct_str(s, "host")?.into(),
                struct_str(s, "name")?.into(),
                struct_str(s, "namespace")?.into(),
            )),
            _ => None,
        }),
        _ => None,
    };
    IstioClusterMetadata {
        alpn_override_disabled: struct_str(istio, "alpn_override") == Some("false"),
        external: matches!(kind("external"), Some(Kind::BoolValue(true))),
        service,
        subset: struct_str(istio, "subset").map(Arc::from),
    }
}
