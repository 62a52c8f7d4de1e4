//! Listener, filter chains, listener filters.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb;
use pb::envoy::config::core::v3 as core;
use pb::envoy::config::listener::v3 as api;
use pb::envoy::extensions::filters::listener as lf;

use super::access_log::access_logs;
use super::network_filter::network_filters;
use super::tls::downstream_socket;
use super::wkt::{
    bind_address, bool_or, cidr, enum_of, extension, optional_str, port, timer, truthy, u32_of,
    unregistered,
};
use super::{Cx, METADATA, Result, TELEMETRY, UNSUPPORTED, ignore_set, refuse_set};
use crate::listener::{
    FilterChain, FilterChainMatch, Listener, ListenerFilter, ListenerFilterKind,
    ListenerFilterPredicate, SourceType, TrafficDirection,
};

/// `Listener`.
#[allow(
    clippy::too_many_lines,
    reason = "one message with forty fields, taken apart in one place"
)]
pub(super) fn listener(cx: &mut Cx, value: api::Listener) -> Result<Listener> {
    let api::Listener {
        name,
        address,
        additional_addresses,
        stat_prefix,
        stats_matcher,
        filter_chains,
        fcds_config,
        filter_chain_matcher,
        use_original_dst,
        default_filter_chain,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        metadata,
        deprecated_v1,
        drain_type,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        transparent,
        freebind,
        socket_options,
        tcp_fast_open_queue_length,
        traffic_direction,
        udp_listener_config,
        api_listener,
        connection_balance_config,
        reuse_port,
        enable_reuse_port,
        access_log,
        tcp_backlog_size,
        max_connections_to_accept_per_socket_event,
        bind_to_port,
        enable_mptcp,
        ignore_global_conn_limit,
        bypass_overload_manager,
        tcp_keepalive,
        listener_specifier,
    } = value;
    refuse_set!(cx; fcds_config, filter_chain_matcher,
        per_connection_buffer_high_watermark_timeout, deprecated_v1, socket_options,
        udp_listener_config, api_listener, enable_mptcp, tcp_keepalive);
    cx.refuse_if(listener_specifier.is_some(), "internal_listener")?;
    ignore_set!(cx, TELEMETRY; stats_matcher);
    ignore_set!(cx, METADATA; metadata);
    ignore_set!(cx, "how workers share a socket changes no answer"; reuse_port, enable_reuse_port,
        max_connections_to_accept_per_socket_event, tcp_fast_open_queue_length);
    ignore_set!(cx, "there are no overload actions to bypass"; bypass_overload_manager);
    ignore_set!(cx, "only a health-check failure would tell the types apart"; drain_type);
    let mut addresses = vec![cx.required("address", address, bind_address)?];
    addresses.extend(
        cx.each("additional_addresses", additional_addresses, |cx, a| {
            let api::AdditionalAddress {
                address,
                socket_options,
                tcp_keepalive,
            } = a;
            refuse_set!(cx; socket_options, tcp_keepalive);
            cx.required("address", address, bind_address)
        })?,
    );
    if filter_chains.is_empty() && default_filter_chain.is_none() {
        return Err(cx.err_at(
            "filter_chains",
            format!(
                "error adding listener '{}': no filter chains specified",
                addresses
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default()
            ),
        ));
    }
    Ok(Listener {
        name: name.into(),
        addresses,
        bind_to_port: bool_or(bind_to_port, true),
        use_original_dst: truthy(use_original_dst),
        transparent: truthy(transparent),
        freebind: truthy(freebind),
        exact_balance: cx
            .opt(
                "connection_balance_config",
                connection_balance_config,
                balance,
            )?
            .unwrap_or(false),
        tcp_backlog_size: u32_of(tcp_backlog_size),
        listener_filters: cx.each("listener_filters", listener_filters, listener_filter)?,
        listener_filters_timeout: timer(
            cx,
            "listener_filters_timeout",
            listener_filters_timeout,
            Some(Duration::from_secs(15)),
        )?,
        continue_on_listener_filters_timeout,
        filter_chains: cx.each("filter_chains", filter_chains, |cx, c| {
            filter_chain(cx, c).map(Arc::new)
        })?,
        default_filter_chain: cx
            .opt("default_filter_chain", default_filter_chain, filter_chain)?
            .map(Arc::new),
        access_log: access_logs(cx, access_log)?,
        traffic_direction: match enum_of::<core::TrafficDirection>(
            cx,
            "traffic_direction",
            traffic_direction,
        )? {
            core::TrafficDirection::Unspecified => TrafficDirection::Unspecified,
            core::TrafficDirection::Inbound => TrafficDirection::Inbound,
            core::TrafficDirection::Outbound => TrafficDirection::Outbound,
        },
        stat_prefix: optional_str(stat_prefix),
        per_connection_buffer_limit_bytes: u32_of(per_connection_buffer_limit_bytes)
            .unwrap_or(1024 * 1024),
        ignore_global_conn_limit,
    })
}

fn balance(cx: &mut Cx, value: api::listener::ConnectionBalanceConfig) -> Result<bool> {
    use api::listener::connection_balance_config::BalanceType as B;
    let api::listener::ConnectionBalanceConfig { balance_type } = value;
    match balance_type {
        Some(B::ExactBalance(_)) => Ok(true),
        Some(B::ExtendBalance(_)) => Err(cx.err_at("extend_balance", UNSUPPORTED)),
        Some(B::CpuLocalityBalance(_)) => Err(cx.err_at("cpu_locality_balance", UNSUPPORTED)),
        None => Err(cx.err("balance_type: is required")),
    }
}

fn listener_filter(cx: &mut Cx, value: api::ListenerFilter) -> Result<ListenerFilter> {
    let api::ListenerFilter {
        name,
        filter_disabled,
        config_type,
    } = value;
    let any = match config_type {
        Some(api::listener_filter::ConfigType::TypedConfig(any)) => Some(any),
        Some(api::listener_filter::ConfigType::ConfigDiscovery(_)) => {
            return Err(cx.err_at("config_discovery", UNSUPPORTED));
        }
        None => None,
    };
    let kind = cx.field("typed_config", |cx| {
        let ext = extension(cx, &name, any)?;
        match ext.type_name.as_str() {
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => {
                let lf::original_dst::v3::OriginalDst {} = ext.decode(cx)?;
                Ok(ListenerFilterKind::OriginalDst)
            }
            "envoy.extensions.filters.listener.original_src.v3.OriginalSrc" => {
                let lf::original_src::v3::OriginalSrc { bind_port, mark } = ext.decode(cx)?;
                refuse_set!(cx; bind_port);
                Ok(ListenerFilterKind::OriginalSrc { mark })
            }
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
                let message = ext.decode(cx)?;
                tls_inspector(cx, message)
            }
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
                let lf::http_inspector::v3::HttpInspector {} = ext.decode(cx)?;
                Ok(ListenerFilterKind::HttpInspector)
            }
            "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
                let message = ext.decode(cx)?;
                proxy_protocol(cx, message)
            }
            t => Err(unregistered(cx, &name, t)),
        }
    })?;
    Ok(ListenerFilter {
        kind,
        disabled: cx.opt("filter_disabled", filter_disabled, predicate)?,
    })
}

fn tls_inspector(
    cx: &mut Cx,
    value: lf::tls_inspector::v3::TlsInspector,
) -> Result<ListenerFilterKind> {
    let lf::tls_inspector::v3::TlsInspector {
        enable_ja3_fingerprinting,
        enable_ja4_fingerprinting,
        initial_read_buffer_size,
        close_connection_on_client_hello_parsing_errors,
        max_client_hello_size,
    } = value;
    refuse_set!(cx; close_connection_on_client_hello_parsing_errors, max_client_hello_size);
    ignore_set!(cx, TELEMETRY; enable_ja3_fingerprinting, enable_ja4_fingerprinting);
    ignore_set!(cx, "only tunes how many bytes are peeked first"; initial_read_buffer_size);
    Ok(ListenerFilterKind::TlsInspector)
}

fn proxy_protocol(
    cx: &mut Cx,
    value: lf::proxy_protocol::v3::ProxyProtocol,
) -> Result<ListenerFilterKind> {
    let lf::proxy_protocol::v3::ProxyProtocol {
        rules,
        allow_requests_without_proxy_protocol,
        pass_through_tlvs,
        disallowed_versions,
        stat_prefix,
        tlv_location,
    } = value;
    refuse_set!(cx; rules, pass_through_tlvs, disallowed_versions);
    ignore_set!(cx, TELEMETRY; stat_prefix);
    ignore_set!(cx, "no TLV is kept"; tlv_location);
    Ok(ListenerFilterKind::ProxyProtocol {
        allow_requests_without_proxy_protocol,
    })
}

fn predicate(
    cx: &mut Cx,
    value: api::ListenerFilterChainMatchPredicate,
) -> Result<ListenerFilterPredicate> {
    use api::listener_filter_chain_match_predicate::{MatchSet, Rule as R};
    let api::ListenerFilterChainMatchPredicate { rule } = value;
    let branches = |cx: &mut Cx, MatchSet { rules }: MatchSet| {
        if rules.len() < 2 {
            return Err(cx.err_at("rules", "value must contain at least 2 item(s)"));
        }
        cx.each("rules", rules, predicate)
    };
    Ok(match rule {
        Some(R::OrMatch(set)) => {
            ListenerFilterPredicate::Or(cx.field("or_match", |cx| branches(cx, set))?)
        }
        Some(R::AndMatch(set)) => {
            ListenerFilterPredicate::And(cx.field("and_match", |cx| branches(cx, set))?)
        }
        Some(R::NotMatch(inner)) => ListenerFilterPredicate::Not(Box::new(
            cx.field("not_match", |cx| predicate(cx, *inner))?,
        )),
        Some(R::AnyMatch(true)) => ListenerFilterPredicate::Any,
        Some(R::AnyMatch(false)) => {
            return Err(cx.err_at("any_match", "value must equal true"));
        }
        Some(R::DestinationPortRange(pb::envoy::r#type::v3::Int32Range { start, end })) => {
            let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) else {
                return Err(cx.err_at("destination_port_range", "ports are not negative"));
            };
            ListenerFilterPredicate::DestinationPort { start, end }
        }
        None => return Err(cx.err("rule: is required")),
    })
}

fn filter_chain(cx: &mut Cx, value: api::FilterChain) -> Result<FilterChain> {
    let api::FilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata,
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = value;
    let use_proxy_proto = truthy(use_proxy_proto);
    refuse_set!(cx; use_proxy_proto);
    ignore_set!(cx, METADATA; metadata);
    let filter_chain_match = cx
        .opt("filter_chain_match", filter_chain_match, chain_match)?
        .unwrap_or_default();
    let transport_socket = cx
        .opt("transport_socket", transport_socket, downstream_socket)?
        .flatten();
    let (filters, terminal) = network_filters(cx, filters)?;
    Ok(FilterChain {
        name: name.into(),
        filter_chain_match,
        transport_socket,
        transport_socket_connect_timeout: timer(
            cx,
            "transport_socket_connect_timeout",
            transport_socket_connect_timeout,
            None,
        )?,
        filters,
        terminal,
    })
}

fn chain_match(cx: &mut Cx, value: api::FilterChainMatch) -> Result<FilterChainMatch> {
    use api::filter_chain_match::ConnectionSourceType as S;
    let api::FilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = value;
    refuse_set!(cx; address_suffix, suffix_len);
    let port_of = |cx: &Cx, field: &str, value: u32| match port(cx, field, value)? {
        0 => Err(cx.err_at(field, "value must be inside range [1, 65535]")),
        p => Ok(p),
    };
    let ranges =
        |cx: &mut Cx, field: &str, list| cx.each(field, list, |cx: &mut Cx, c| cidr(cx, c));
    Ok(FilterChainMatch {
        destination_port: destination_port
            .map(|p| port_of(cx, "destination_port", p.value))
            .transpose()?,
        prefix_ranges: ranges(cx, "prefix_ranges", prefix_ranges)?,
        server_names: cx.each("server_names", server_names, |cx, n| {
            let name = n.to_ascii_lowercase();
            if name.strip_prefix("*.").unwrap_or(&name).contains('*') || name.is_empty() {
                return Err(cx.err("partial wildcards are not supported in \"server_names\""));
            }
            Ok(name.into())
        })?,
        transport_protocol: transport_protocol.into(),
        application_protocols: application_protocols.into_iter().map(Arc::from).collect(),
        direct_source_prefix_ranges: ranges(
            cx,
            "direct_source_prefix_ranges",
            direct_source_prefix_ranges,
        )?,
        source_type: match enum_of::<S>(cx, "source_type", source_type)? {
            S::Any => SourceType::Any,
            S::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            S::External => SourceType::External,
        },
        source_prefix_ranges: ranges(cx, "source_prefix_ranges", source_prefix_ranges)?,
        source_ports: cx.each("source_ports", source_ports, |cx, p| port_of(cx, "", p))?,
    })
}
