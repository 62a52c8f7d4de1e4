//! Cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb;
use pb::envoy::config::cluster::v3 as api;
use pb::envoy::config::core::v3 as core;
use pb::google::protobuf as gp;

use super::cluster_limits::{breakers, outlier};
use super::endpoint::{Names, load_assignment};
use super::lb::{common_lb, lb_policy_of};
use super::network_filter::METADATA_EXCHANGE;
use super::tls::upstream_socket;
use super::upstream_http::{Deprecated, http_options};
use super::wkt::{
    ads_source, enum_of, extension, ip_socket_address, non_empty, optional_str, port,
    positive_duration, sorted, struct_str, truthy, u32_of, unregistered,
};
use super::{Cx, METADATA, Result, TELEMETRY, ignore_set, refuse_set};
use crate::cluster::{
    Cluster, Discovery, DnsFamily, DnsOptions, IstioClusterMetadata, LoadAssignment, TcpKeepalive,
    TransportSocket, TransportSocketMatch,
};

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
    refuse_set!(cx; metadata_key, use_http_header);
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

fn socket_match(
    cx: &mut Cx,
    value: api::cluster::TransportSocketMatch,
) -> Result<TransportSocketMatch> {
    let api::cluster::TransportSocketMatch {
        name,
        r#match,
        transport_socket,
    } = value;
    let mut criteria = Vec::new();
    for (k, v) in sorted(r#match.unwrap_or_default().fields) {
        let Some(gp::value::Kind::StringValue(s)) = v.kind else {
            return Err(cx.err_at(&format!("match[{k:?}]"), "only strings are supported"));
        };
        criteria.push((k.into(), s.into()));
    }
    criteria.shrink_to_fit();
    Ok(TransportSocketMatch {
        name: non_empty(cx, "name", name)?,
        criteria,
        socket: cx
            .opt("transport_socket", transport_socket, upstream_socket)?
            .unwrap_or(TransportSocket::RawBuffer),
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
