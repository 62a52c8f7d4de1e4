use proptest::prelude::*;

use super::*;
use crate::listener::TrafficDirection;

fn chain(name: usize, m: FilterChainMatch) -> Arc<FilterChain> {
    Arc::new(FilterChain {
        name: name.to_string().into(),
        filter_chain_match: m,
        transport_socket: None,
        transport_socket_connect_timeout: None,
        filters: Vec::new(),
        terminal: None,
    })
}

fn listener(matches: Vec<FilterChainMatch>, default: bool) -> Listener {
    Listener {
        name: "l".into(),
        addresses: vec![SocketAddr::from(([127, 0, 0, 1], 12001))],
        bind_to_port: true,
        use_original_dst: false,
        transparent: false,
        freebind: false,
        exact_balance: false,
        tcp_backlog_size: None,
        listener_filters: Vec::new(),
        listener_filters_timeout: None,
        continue_on_listener_filters_timeout: false,
        filter_chains: matches
            .into_iter()
            .enumerate()
            .map(|(i, m)| chain(i, m))
            .collect(),
        default_filter_chain: default.then(|| chain(99, FilterChainMatch::default())),
        access_log: Vec::new(),
        traffic_direction: TrafficDirection::Unspecified,
        stat_prefix: None,
        per_connection_buffer_limit_bytes: 0,
        ignore_global_conn_limit: false,
    }
}

fn net(s: &str) -> IpNet {
    s.parse().expect("is a prefix")
}

fn strings(list: &[&str]) -> Vec<Arc<str>> {
    list.iter().map(|s| Arc::from(*s)).collect()
}

fn m() -> FilterChainMatch {
    FilterChainMatch::default()
}

/// Name of the chosen chain.
fn select(matches: Vec<FilterChainMatch>, input: &ChainInput<'_>) -> String {
    let table = FilterChainTable::build(&listener(matches, true)).expect("no duplicates");
    match table.select(input) {
        Selected::Chain(c) => c.name.to_string(),
        Selected::Default(_) => "default".into(),
        Selected::None => "none".into(),
    }
}

const RAW: ChainInput<'static> = ChainInput {
    destination: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1)), 80),
    server_name: None,
    transport_protocol: "raw_buffer",
    application_protocols: &[],
    direct_source: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9)),
    source: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9)), 4000),
};

#[test]
fn a_longer_prefix_is_never_left_again() {
    let matches = vec![
        FilterChainMatch {
            prefix_ranges: vec![net("127.0.0.1/32")],
            application_protocols: strings(&["http/1.1"]),
            ..m()
        },
        FilterChainMatch {
            prefix_ranges: vec![net("127.0.0.0/8")],
            ..m()
        },
    ];
    assert_eq!(select(matches.clone(), &RAW), "default");
    let http = ChainInput {
        application_protocols: &["http/1.1"],
        ..RAW
    };
    assert_eq!(select(matches.clone(), &http), "0");
    let other = ChainInput {
        destination: SocketAddr::from(([127, 0, 0, 2], 80)),
        ..RAW
    };
    assert_eq!(select(matches, &other), "1");
}

#[test]
fn a_server_name_wins_over_an_application_protocol() {
    let matches = vec![
        FilterChainMatch {
            server_names: strings(&["*.com"]),
            ..m()
        },
        FilterChainMatch {
            application_protocols: strings(&["istio"]),
            ..m()
        },
    ];
    let input = ChainInput {
        server_name: Some("z.com"),
        transport_protocol: "tls",
        application_protocols: &["istio"],
        ..RAW
    };
    assert_eq!(select(matches, &input), "0");
}

#[test]
fn a_transport_bucket_is_never_left_again() {
    let matches = vec![
        FilterChainMatch {
            transport_protocol: "tls".into(),
            application_protocols: strings(&["istio"]),
            ..m()
        },
        FilterChainMatch {
            source_prefix_ranges: vec![net("10.0.0.0/8")],
            ..m()
        },
    ];
    let input = ChainInput {
        server_name: Some("nobody.org"),
        transport_protocol: "tls",
        application_protocols: &["h2"],
        ..RAW
    };
    assert_eq!(select(matches.clone(), &input), "default");
    assert_eq!(select(matches, &RAW), "1");
}

#[test]
fn each_step_takes_the_most_specific_bucket() {
    let sni = |n: &str| FilterChainMatch {
        server_names: strings(&[n]),
        ..m()
    };
    let names = || vec![sni("a.b.com"), sni("*.b.com"), sni("*.com"), m()];
    for (name, expected) in [
        ("A.B.COM", "0"),
        ("x.y.b.com", "1"),
        ("b.com", "2"),
        ("c.com", "2"),
        (".com", "3"),
        ("com", "3"),
        ("x.org", "3"),
        ("", "3"),
    ] {
        let input = ChainInput {
            server_name: Some(name),
            ..RAW
        };
        assert_eq!(select(names(), &input), expected, "{name}");
    }
    let alpn = |p: &[&str]| FilterChainMatch {
        application_protocols: strings(p),
        ..m()
    };
    let offered = ChainInput {
        application_protocols: &["x", "h2", "http/1.1"],
        ..RAW
    };
    assert_eq!(
        select(vec![alpn(&["http/1.1"]), alpn(&["h2"]), m()], &offered),
        "1"
    );
    let typed = |t| FilterChainMatch {
        source_type: t,
        ..m()
    };
    let types = || {
        vec![
            typed(SourceType::SameIpOrLoopback),
            typed(SourceType::External),
        ]
    };
    let local = ChainInput {
        source: SocketAddr::from(([127, 0, 0, 1], 1)),
        ..RAW
    };
    assert_eq!(select(types(), &local), "0");
    assert_eq!(select(types(), &RAW), "1");
    assert_eq!(
        select(vec![typed(SourceType::SameIpOrLoopback), m()], &RAW),
        "1"
    );
    let port = |p| FilterChainMatch {
        destination_port: p,
        ..m()
    };
    assert_eq!(select(vec![port(None), port(Some(80))], &RAW), "1");
    assert_eq!(select(vec![port(None), port(Some(81))], &RAW), "0");
    let source_port = |p: Vec<u16>| FilterChainMatch {
        source_ports: p,
        ..m()
    };
    assert_eq!(select(vec![source_port(vec![1, 4000]), m()], &RAW), "0");
    let direct = FilterChainMatch {
        direct_source_prefix_ranges: vec![net("10.0.0.9/32")],
        ..m()
    };
    assert_eq!(select(vec![m(), direct], &RAW), "1");
}

#[test]
fn without_a_default_nothing_is_selected() {
    let table = FilterChainTable::build(&listener(
        vec![FilterChainMatch {
            transport_protocol: "tls".into(),
            ..m()
        }],
        false,
    ))
    .expect("one chain");
    assert!(matches!(table.select(&RAW), Selected::None));
}

/// The rules as the text has them: narrow a list step by step, keep the best rank that is there.
fn naive(matches: &[FilterChainMatch], input: &ChainInput<'_>) -> Option<usize> {
    fn keep(
        left: &mut Vec<usize>,
        matches: &[FilterChainMatch],
        rank: impl Fn(&FilterChainMatch) -> Option<usize>,
    ) {
        let best = left.iter().filter_map(|i| rank(&matches[*i])).max();
        left.retain(|i| best.is_some() && rank(&matches[*i]) == best);
    }
    let longest = |nets: &[IpNet], ip: IpAddr| {
        if nets.is_empty() {
            return Some(0);
        }
        nets.iter()
            .filter(|n| n.contains(&ip))
            .map(|n| n.prefix_len() as usize + 1)
            .max()
    };
    let mut left: Vec<usize> = (0..matches.len()).collect();
    keep(&mut left, matches, |m| match m.destination_port {
        None => Some(0),
        Some(p) => (p == input.destination.port()).then_some(1),
    });
    keep(&mut left, matches, |m| {
        longest(&m.prefix_ranges, input.destination.ip())
    });
    let sni = input.server_name.unwrap_or_default().to_ascii_lowercase();
    keep(&mut left, matches, |m| {
        if m.server_names.is_empty() {
            return Some(0);
        }
        m.server_names
            .iter()
            .filter_map(|n| match n.strip_prefix('*') {
                Some(suffix) => {
                    (sni.len() > suffix.len() && sni.ends_with(suffix)).then_some(suffix.len())
                }
                None => (**n == sni && !sni.is_empty()).then_some(1000),
            })
            .max()
    });
    keep(&mut left, matches, |m| {
        if m.transport_protocol.is_empty() {
            Some(0)
        } else {
            (*m.transport_protocol == *input.transport_protocol).then_some(1)
        }
    });
    keep(&mut left, matches, |m| {
        if m.application_protocols.is_empty() {
            return Some(0);
        }
        input
            .application_protocols
            .iter()
            .position(|p| m.application_protocols.iter().any(|a| **a == **p))
            .map(|at| 100 - at)
    });
    keep(&mut left, matches, |m| {
        longest(&m.direct_source_prefix_ranges, input.direct_source)
    });
    let local = input.source.ip().is_loopback() || input.source.ip() == input.destination.ip();
    keep(&mut left, matches, |m| match m.source_type {
        SourceType::Any => Some(0),
        SourceType::SameIpOrLoopback => local.then_some(1),
        SourceType::External => (!local).then_some(1),
    });
    keep(&mut left, matches, |m| {
        longest(&m.source_prefix_ranges, input.source.ip())
    });
    keep(&mut left, matches, |m| {
        if m.source_ports.is_empty() {
            Some(0)
        } else {
            m.source_ports.contains(&input.source.port()).then_some(1)
        }
    });
    left.first().copied()
}

fn any_nets() -> impl Strategy<Value = Vec<IpNet>> {
    let list = ["10.0.0.0/8", "10.0.0.1/32", "127.0.0.0/8"]
        .map(net)
        .to_vec();
    prop_oneof![3 => Just(Vec::new()), 2 => proptest::sample::subsequence(list, 1..=2)]
}

fn any_strings(list: &'static [&'static str]) -> impl Strategy<Value = Vec<Arc<str>>> {
    prop_oneof![
        2 => Just(Vec::new()),
        2 => proptest::sample::subsequence(strings(list), 1..=2),
    ]
}

fn any_match() -> impl Strategy<Value = FilterChainMatch> {
    (
        proptest::option::of(80u16..82),
        any_nets(),
        any_strings(&["a.b.com", "*.b.com", "*.com"]),
        proptest::sample::select(vec!["", "tls", "raw_buffer"]),
        any_strings(&["h2", "istio", "http/1.1"]),
        any_nets(),
        proptest::sample::select(vec![
            SourceType::Any,
            SourceType::SameIpOrLoopback,
            SourceType::External,
        ]),
        any_nets(),
        proptest::collection::vec(1u16..3, 0..2),
    )
        .prop_map(
            |(port, dst, sni, transport, alpn, direct, source_type, src, ports)| FilterChainMatch {
                destination_port: port,
                prefix_ranges: dst,
                server_names: sni,
                transport_protocol: transport.into(),
                application_protocols: alpn,
                direct_source_prefix_ranges: direct,
                source_type,
                source_prefix_ranges: src,
                source_ports: ports,
            },
        )
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    proptest::sample::select(
        ["10.0.0.1", "10.0.0.2", "127.0.0.1", "192.0.2.1", "::1"]
            .map(|s| s.parse().expect("is an IP"))
            .to_vec(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_table_agrees_with_the_rules(
        matches in proptest::collection::vec(any_match(), 1..6),
        (dst, direct, src) in (any_ip(), any_ip(), any_ip()),
        (port, src_port) in (80u16..83, 1u16..4),
        sni in proptest::sample::select(vec!["", "a.b.com", "X.b.com", "y.com", "z.org"]),
        transport in proptest::sample::select(vec!["tls", "raw_buffer"]),
        alpn in proptest::sample::subsequence(vec!["h2", "istio", "http/1.1"], 0..=3),
    ) {
        let input = ChainInput {
            destination: SocketAddr::new(dst, port),
            server_name: Some(sni),
            transport_protocol: transport,
            application_protocols: &alpn,
            direct_source: direct,
            source: SocketAddr::new(src, src_port),
        };
        // Overlapping rules are refused, so there is nothing to compare.
        if let Ok(table) = FilterChainTable::build(&listener(matches.clone(), false)) {
            let chosen = table.select(&input).chain().map(|c| c.name.to_string());
            prop_assert_eq!(chosen, naive(&matches, &input).map(|i| i.to_string()));
        }
    }
}
