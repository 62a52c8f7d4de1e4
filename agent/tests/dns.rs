//! The DNS server over real sockets, with a name server in the process behind it.

#[path = "support/name_server.rs"]
mod name_server;
#[path = "support/ports.rs"]
mod ports;

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use name_server::{NameServer, describe};
use pilot_agent::dns::{DnsConfig, DnsServer, Scope, Table, UpstreamConfig};
use pilot_agent::metrics::Metrics;
use pilot_agent::xds_proxy::{NameInfo, NameTable};
use ports::free_port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// Every wait of a test ends after this.
async fn within<F: Future>(future: F) -> F::Output {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, future).await.expect("in time")
}

/// Hosts: name, addresses, and for a service of Kubernetes `short/namespace`.
const HOSTS: &[(&str, &str, &str)] = &[
    ("web.ns1.svc.cluster.local", "10.96.0.1", "web/ns1"),
    ("other.ns2.svc.cluster.local", "10.96.0.2", "other/ns2"),
    ("remote.ns1.svc.cluster.remote", "10.97.0.1", "remote/ns1"),
    (
        "dual.ns1.svc.cluster.local",
        "10.96.0.3 fd00::3",
        "dual/ns1",
    ),
    ("six.ns1.svc.cluster.local", "fd00::6", "six/ns1"),
    (
        "db.ns1.svc.cluster.local",
        "10.1.0.1 10.1.0.2 10.1.0.3",
        "db/ns1",
    ),
    ("db-0.db.ns1.svc.cluster.local", "10.1.0.1", "db-0.db/ns1"),
    ("api.example.com", "240.240.0.5 2001:2::5", ""),
    ("*.wild.example.com", "240.240.0.6", ""),
    ("*.deep.wild.example.com", "240.240.0.7", ""),
    ("*.six.example.com", "2001:2::7", ""),
    ("Mixed.Example.COM", "240.240.0.8", ""),
    ("single", "240.240.0.9", ""),
    ("empty.up", "", ""),
    ("cidr.up", "10.0.0.0/8", ""),
];

fn scope() -> Scope {
    Scope::new(
        "ns1",
        "ns1.svc.cluster.local",
        Some("ns1.svc.cluster.local"),
    )
}

fn table(hosts: &[(&str, &str, &str)]) -> Table {
    let table = hosts.iter().map(|(host, ips, service)| {
        let (shortname, namespace) = service.split_once('/').unwrap_or_default();
        let registry = if service.is_empty() {
            "External"
        } else {
            "Kubernetes"
        };
        let info = NameInfo {
            ips: ips.split_whitespace().map(str::to_owned).collect(),
            registry: registry.to_owned(),
            shortname: shortname.to_owned(),
            namespace: namespace.to_owned(),
            alt_hosts: if *host == "web.ns1.svc.cluster.local" {
                vec!["web.alt.local".to_owned()]
            } else {
                Vec::new()
            },
        };
        ((*host).to_owned(), info)
    });
    let names = NameTable {
        table: table.collect(),
    };
    Table::build(&names, &scope()).expect("built")
}

fn config(servers: &[SocketAddr]) -> DnsConfig {
    DnsConfig {
        // The kernel would choose one for UDP that may be taken for TCP.
        addresses: vec![([127, 0, 0, 1], free_port()).into()],
        upstream: UpstreamConfig {
            servers: servers.to_vec(),
            parallel: false,
            timeout: Duration::from_secs(5),
        },
        forward_before_sync: false,
    }
}

fn start(config: DnsConfig) -> DnsServer {
    DnsServer::start(config).expect("starts")
}

async fn fixture() -> (NameServer, DnsServer) {
    let upstream = NameServer::start("192.0.2.1").await;
    let agent = start(config(&[upstream.address]));
    agent.publish(table(HOSTS));
    (upstream, agent)
}

fn query(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 0x4242;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
    message.edns = edns.map(|size| {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        edns
    });
    message.to_vec().expect("encodes")
}

async fn ask_udp(agent: &DnsServer, packet: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    socket.connect(agent.addresses()[0]).await.expect("connect");
    socket.send(packet).await.expect("send");
    let mut buffer = vec![0; 65_535];
    let len = within(socket.recv(&mut buffer)).await.expect("answer");
    buffer.truncate(len);
    buffer
}

async fn read_message(stream: &mut TcpStream) -> Vec<u8> {
    let len = within(stream.read_u16()).await.expect("length");
    let mut reply = vec![0; usize::from(len)];
    within(stream.read_exact(&mut reply)).await.expect("answer");
    reply
}

fn framed(packet: &[u8]) -> Vec<u8> {
    let len = u16::try_from(packet.len()).expect("short");
    [&len.to_be_bytes(), packet].concat()
}

async fn connect(agent: &DnsServer) -> TcpStream {
    let stream = TcpStream::connect(agent.addresses()[0]).await;
    stream.expect("connect")
}

async fn ask_tcp(agent: &DnsServer, packet: &[u8]) -> Vec<u8> {
    let mut stream = connect(agent).await;
    stream.write_all(&framed(packet)).await.expect("send");
    read_message(&mut stream).await
}

/// Transport and EDNS size, type, name, answer, and whether the name server is asked.
type Row = (&'static str, &'static str, &'static str, &'static str, bool);

const WEB: &str = "NoError aa | web.ns1.svc.cluster.local. 30 10.96.0.1";
const UP: &str = "NoError ra | plain.up. 60 192.0.2.1";

/// What specification sections 9.2 to 9.4 say about each question.
const QUESTIONS: &[Row] = &[
    // Names of a service of the own namespace.
    ("udp", "A", "web.ns1.svc.cluster.local.", WEB, false),
    ("tcp", "A", "web.ns1.svc.cluster.local.", WEB, false),
    ("udp", "A", "web.", "NoError aa | web. 30 10.96.0.1", false),
    (
        "udp",
        "A",
        "web.ns1.",
        "NoError aa | web.ns1. 30 10.96.0.1",
        false,
    ),
    (
        "udp",
        "A",
        "web.ns1.svc.",
        "NoError aa | web.ns1.svc. 30 10.96.0.1",
        false,
    ),
    (
        "udp",
        "A",
        "web.alt.local.",
        "NoError aa | web.alt.local. 30 10.96.0.1",
        false,
    ),
    (
        "udp",
        "A",
        "web.ns1.svc.cluster.",
        "NoError ra | web.ns1.svc.cluster. 60 192.0.2.1",
        true,
    ),
    // Of another namespace: no name of one label.
    (
        "udp",
        "A",
        "other.ns2.",
        "NoError aa | other.ns2. 30 10.96.0.2",
        false,
    ),
    (
        "udp",
        "A",
        "other.ns2.svc.",
        "NoError aa | other.ns2.svc. 30 10.96.0.2",
        false,
    ),
    (
        "udp",
        "A",
        "other.",
        "NoError ra | other. 60 192.0.2.1",
        true,
    ),
    // Of another cluster's domain: its own name only.
    (
        "udp",
        "A",
        "remote.ns1.svc.cluster.remote.",
        "NoError aa | remote.ns1.svc.cluster.remote. 30 10.97.0.1",
        false,
    ),
    (
        "udp",
        "A",
        "remote.ns1.",
        "NoError ra | remote.ns1. 60 192.0.2.1",
        true,
    ),
    (
        "udp",
        "A",
        "remote.",
        "NoError ra | remote. 60 192.0.2.1",
        true,
    ),
    // The first search domain appended: an alias, unless the result is a name of the service.
    (
        "udp",
        "A",
        "other.ns2.ns1.svc.cluster.local.",
        "NoError aa | other.ns2.ns1.svc.cluster.local. 30 other.ns2. | other.ns2. 30 10.96.0.2",
        false,
    ),
    (
        "tcp",
        "A",
        "other.ns2.svc.ns1.svc.cluster.local.",
        "NoError aa | other.ns2.svc.ns1.svc.cluster.local. 30 other.ns2.svc. | \
         other.ns2.svc. 30 10.96.0.2",
        false,
    ),
    (
        "udp",
        "A",
        "other.ns2.svc.cluster.local.ns1.svc.cluster.local.",
        "NoError aa | other.ns2.svc.cluster.local.ns1.svc.cluster.local. 30 \
         other.ns2.svc.cluster.local. | other.ns2.svc.cluster.local. 30 10.96.0.2",
        false,
    ),
    (
        "udp",
        "A",
        "web.ns1.ns1.svc.cluster.local.",
        "NoError aa | web.ns1.ns1.svc.cluster.local. 30 web.ns1. | web.ns1. 30 10.96.0.1",
        false,
    ),
    (
        "udp",
        "A",
        "api.example.com.ns1.svc.cluster.local.",
        "NoError aa | api.example.com.ns1.svc.cluster.local. 30 api.example.com. | \
         api.example.com. 30 240.240.0.5",
        false,
    ),
    (
        "udp",
        "A",
        "web.ns1.svc.cluster.local.ns1.svc.cluster.local.",
        "NoError ra | web.ns1.svc.cluster.local.ns1.svc.cluster.local. 60 192.0.2.1",
        true,
    ),
    (
        "udp",
        "A",
        "api.example.com.svc.cluster.local.",
        "NoError ra | api.example.com.svc.cluster.local. 60 192.0.2.1",
        true,
    ),
    (
        "udp",
        "A",
        "other.ns2.cluster.local.",
        "NoError ra | other.ns2.cluster.local. 60 192.0.2.1",
        true,
    ),
    (
        "udp",
        "AAAA",
        "api.example.com.ns1.svc.cluster.local.",
        "NoError aa | api.example.com.ns1.svc.cluster.local. 30 api.example.com. | \
         api.example.com. 30 2001:2::5",
        false,
    ),
    // The other family: an empty answer, never NXDOMAIN, and no alias either.
    (
        "udp",
        "AAAA",
        "web.ns1.svc.cluster.local.",
        "NoError aa",
        false,
    ),
    ("tcp", "AAAA", "web.", "NoError aa", false),
    (
        "udp",
        "A",
        "six.ns1.svc.cluster.local.",
        "NoError aa",
        false,
    ),
    ("udp", "AAAA", "six.", "NoError aa | six. 30 fd00::6", false),
    (
        "udp",
        "AAAA",
        "other.ns2.ns1.svc.cluster.local.",
        "NoError aa",
        false,
    ),
    (
        "udp",
        "A",
        "dual.",
        "NoError aa | dual. 30 10.96.0.3",
        false,
    ),
    (
        "udp",
        "AAAA",
        "dual.",
        "NoError aa | dual. 30 fd00::3",
        false,
    ),
    // Headless: every pod, and each by its own name.
    (
        "udp",
        "A",
        "db.",
        "NoError aa | db. 30 10.1.0.1 | db. 30 10.1.0.2 | db. 30 10.1.0.3",
        false,
    ),
    (
        "udp",
        "A",
        "db-0.db.ns1.svc.cluster.local.",
        "NoError aa | db-0.db.ns1.svc.cluster.local. 30 10.1.0.1",
        false,
    ),
    (
        "udp",
        "A",
        "db-0.db.",
        "NoError aa | db-0.db. 30 10.1.0.1",
        false,
    ),
    (
        "udp",
        "A",
        "db-1.db.ns1.svc.cluster.local.",
        "NoError ra | db-1.db.ns1.svc.cluster.local. 60 192.0.2.1",
        true,
    ),
    // ServiceEntries, allocated addresses of both families.
    (
        "udp",
        "A",
        "api.example.com.",
        "NoError aa | api.example.com. 30 240.240.0.5",
        false,
    ),
    (
        "udp",
        "AAAA",
        "api.example.com.",
        "NoError aa | api.example.com. 30 2001:2::5",
        false,
    ),
    ("udp", "A", "api.", "NoError ra | api. 60 192.0.2.1", true),
    (
        "udp",
        "A",
        "single.",
        "NoError aa | single. 30 240.240.0.9",
        false,
    ),
    (
        "udp",
        "A",
        "single.ns1.svc.cluster.local.",
        "NoError aa | single.ns1.svc.cluster.local. 30 single. | single. 30 240.240.0.9",
        false,
    ),
    (
        "udp",
        "A",
        "empty.up.",
        "NoError ra | empty.up. 60 192.0.2.1",
        true,
    ),
    (
        "udp",
        "A",
        "cidr.up.",
        "NoError ra | cidr.up. 60 192.0.2.1",
        true,
    ),
    // Wildcards: any depth, the longest parent, never the parent itself.
    (
        "udp",
        "A",
        "x.wild.example.com.",
        "NoError aa | x.wild.example.com. 30 240.240.0.6",
        false,
    ),
    (
        "tcp",
        "A",
        "y.x.wild.example.com.",
        "NoError aa | y.x.wild.example.com. 30 240.240.0.6",
        false,
    ),
    (
        "udp",
        "A",
        "x.deep.wild.example.com.",
        "NoError aa | x.deep.wild.example.com. 30 240.240.0.7",
        false,
    ),
    (
        "udp",
        "A",
        "deep.wild.example.com.",
        "NoError aa | deep.wild.example.com. 30 240.240.0.6",
        false,
    ),
    (
        "udp",
        "A",
        "wild.example.com.",
        "NoError ra | wild.example.com. 60 192.0.2.1",
        true,
    ),
    (
        "udp",
        "A",
        "*.wild.example.com.",
        "NoError aa | *.wild.example.com. 30 240.240.0.6",
        false,
    ),
    ("udp", "AAAA", "x.wild.example.com.", "NoError aa", false),
    (
        "udp",
        "AAAA",
        "x.six.example.com.",
        "NoError aa | x.six.example.com. 30 2001:2::7",
        false,
    ),
    ("udp", "A", "x.six.example.com.", "NoError aa", false),
    (
        "udp",
        "A",
        "x.wild.example.com.ns1.svc.cluster.local.",
        "NoError aa | x.wild.example.com.ns1.svc.cluster.local. 30 *.wild.example.com. | \
         *.wild.example.com. 30 240.240.0.6",
        false,
    ),
    (
        "udp",
        "A",
        "wild.example.com.ns1.svc.cluster.local.",
        "NoError ra | wild.example.com.ns1.svc.cluster.local. 60 192.0.2.1",
        true,
    ),
    // Case: found in any, answered in the client's.
    (
        "udp",
        "A",
        "WEB.Ns1.",
        "NoError aa | WEB.Ns1. 30 10.96.0.1",
        false,
    ),
    (
        "udp",
        "A",
        "mixed.example.com.",
        "NoError aa | mixed.example.com. 30 240.240.0.8",
        false,
    ),
    (
        "udp",
        "A",
        "MIXED.example.COM.",
        "NoError aa | MIXED.example.COM. 30 240.240.0.8",
        false,
    ),
    (
        "udp",
        "A",
        "X.Wild.Example.Com.",
        "NoError aa | X.Wild.Example.Com. 30 240.240.0.6",
        false,
    ),
    (
        "udp",
        "A",
        "Other.NS2.ns1.SVC.cluster.local.",
        "NoError aa | Other.NS2.ns1.SVC.cluster.local. 30 Other.NS2. | Other.NS2. 30 10.96.0.2",
        false,
    ),
    (
        "udp",
        "A",
        "Plain.UP.",
        "NoError ra | Plain.UP. 60 192.0.2.1",
        true,
    ),
    // EDNS: answered with EDNS; without, not.
    (
        "udp+1232",
        "A",
        "web.",
        "NoError aa edns | web. 30 10.96.0.1",
        false,
    ),
    (
        "tcp+4096",
        "A",
        "web.",
        "NoError aa edns | web. 30 10.96.0.1",
        false,
    ),
    ("udp+4096", "A", "plain.up.", UP, true),
    // Other types: not the mesh's, even for its names.
    ("udp", "TXT", "web.", "NoError ra | web. 60 text", true),
    (
        "udp",
        "SRV",
        "web.ns1.",
        "NoError ra | web.ns1. 60 1 2 3 web.ns1.",
        true,
    ),
    (
        "udp",
        "PTR",
        "1.0.96.10.in-addr.arpa.",
        "NoError ra | 1.0.96.10.in-addr.arpa. 60 1.0.96.10.in-addr.arpa.",
        true,
    ),
    ("udp", "HTTPS", "web.", "NoError ra", true),
    ("udp", "ANY", "web.", "NoError ra", true),
    ("tcp", "MX", "api.example.com.", "NoError ra", true),
    // The name server's word, whatever it is.
    ("udp", "A", "plain.up.", UP, true),
    ("tcp", "A", "plain.up.", UP, true),
    (
        "udp",
        "AAAA",
        "plain.up.",
        "NoError ra | plain.up. 60 ::1",
        true,
    ),
    ("udp", "A", "nx.up.", "NXDomain ra", true),
    ("tcp", "A", "nx.up.", "NXDomain ra", true),
    ("udp", "A", "refused.up.", "Refused ra", true),
    ("udp", "A", "servfail.up.", "ServFail ra", true),
    ("udp", "NS", ".", "NoError ra", true),
    (
        "udp",
        "A",
        "lost.up.",
        "NoError ra | lost.up. 60 192.0.2.1",
        true,
    ),
    (
        "udp",
        "A",
        "forged.up.",
        "NoError ra | forged.up. 60 192.0.2.1",
        true,
    ),
    // Sizes. Of 60 addresses 30 fit into 512 bytes with this name.
    ("udp", "A", "big.up.", "NoError tc ra | 30 addresses", true),
    (
        "udp+4096",
        "A",
        "big.up.",
        "NoError ra | 60 addresses",
        true,
    ),
    ("tcp", "A", "big.up.", "NoError ra | 60 addresses", true),
    ("udp", "A", "fat.up.", "NoError tc ra | 30 addresses", true),
    (
        "udp+600",
        "A",
        "fat.up.",
        "NoError tc ra | 36 addresses",
        true,
    ),
    (
        "udp+4096",
        "A",
        "fat.up.",
        "NoError ra | 60 addresses",
        true,
    ),
    // Cut connections.
    ("tcp", "A", "cut.up.", "ServFail", true),
];

#[tokio::test]
async fn questions_are_answered_as_specified() {
    assert!(QUESTIONS.len() >= 60);
    let (upstream, agent) = fixture().await;
    for &(how, kind, name, want, forwarded) in QUESTIONS {
        let (transport, edns) = match how.split_once('+') {
            Some((transport, size)) => (transport, Some(size.parse().expect("size"))),
            None => (how, None),
        };
        let packet = query(name, kind.parse().expect("type"), edns);
        let before = upstream.seen().len();
        let reply = match transport {
            "udp" => ask_udp(&agent, &packet).await,
            _ => ask_tcp(&agent, &packet).await,
        };
        assert_eq!(describe(&reply), want, "{how} {kind} {name}");
        assert_eq!(reply[..2], packet[..2], "{how} {kind} {name}: id");
        let asked = upstream.seen().split_off(before);
        assert_eq!(
            !asked.is_empty(),
            forwarded,
            "{how} {kind} {name}: forwarded"
        );
        for question in asked {
            // The client's transport, and the client's packet but for the id.
            assert_eq!(question.transport, transport, "{name}");
            assert_eq!(question.packet[2..], packet[2..], "{name}");
        }
    }
}

#[tokio::test]
async fn a_truncated_answer_is_whole_over_tcp() {
    let (_upstream, agent) = fixture().await;
    let ips: Vec<String> = (0..200).map(|n| format!("10.2.0.{n}")).collect();
    let ips = ips.join(" ");
    agent.publish(table(&[("pods.ns1.svc.cluster.local", &ips, "pods/ns1")]));
    let packet = query("pods.", RecordType::A, None);
    let mut seen = BTreeSet::new();
    for _ in 0..50 {
        let reply = ask_udp(&agent, &packet).await;
        assert!(reply.len() <= 512);
        assert_eq!(describe(&reply), "NoError aa tc | 30 addresses");
        let message = Message::from_vec(&reply).expect("answer");
        seen.extend(message.answers.iter().filter_map(|r| r.data.ip_addr()));
    }
    // A cut answer is a random choice: everybody gets a share. All 200 with p > 1 - 1e-4.
    assert!(seen.len() > 150, "{}", seen.len());
    assert_eq!(
        describe(&ask_tcp(&agent, &packet).await),
        "NoError aa | 200 addresses"
    );
    let wide = query("pods.", RecordType::A, Some(4096));
    assert_eq!(
        describe(&ask_udp(&agent, &wide).await),
        "NoError aa edns | 200 addresses"
    );
}

#[tokio::test]
async fn addresses_are_shuffled() {
    let (_upstream, agent) = fixture().await;
    let packet = query("db.", RecordType::A, None);
    let mut orders = BTreeSet::new();
    while orders.len() < 6 {
        // All six orders of three; a missing one would end in the deadline of the test.
        let reply = Message::from_vec(&ask_udp(&agent, &packet).await).expect("answer");
        let order: Vec<_> = reply
            .answers
            .iter()
            .filter_map(|r| r.data.ip_addr())
            .collect();
        assert_eq!(order.len(), 3);
        orders.insert(order);
    }
}

#[tokio::test]
async fn before_the_first_table_answers_are_servfail_or_forwarded() {
    let upstream = NameServer::start("192.0.2.1").await;
    let agent = start(config(&[upstream.address]));
    for name in ["web.", "plain.up."] {
        let reply = ask_udp(&agent, &query(name, RecordType::A, None)).await;
        assert_eq!(describe(&reply), "ServFail", "{name}");
    }
    assert!(upstream.seen().is_empty());
    let machine = start(DnsConfig {
        forward_before_sync: true,
        ..config(&[upstream.address])
    });
    let packet = query("plain.up.", RecordType::A, None);
    assert_eq!(describe(&ask_udp(&machine, &packet).await), UP);
    assert_eq!(describe(&ask_tcp(&machine, &packet).await), UP);
}

#[tokio::test]
async fn a_new_table_replaces_the_old_one_at_once() {
    let (upstream, agent) = fixture().await;
    let packet = query("web.", RecordType::A, None);
    assert!(describe(&ask_udp(&agent, &packet).await).contains("10.96.0.1"));
    agent.publish(table(&[(
        "web.ns1.svc.cluster.local",
        "10.96.0.99",
        "web/ns1",
    )]));
    let reply = ask_udp(&agent, &packet).await;
    assert_eq!(describe(&reply), "NoError aa | web. 30 10.96.0.99");
    let gone = ask_udp(&agent, &query("single.", RecordType::A, None)).await;
    assert_eq!(describe(&gone), "NoError ra | single. 60 192.0.2.1");
    // Without any name of the mesh everything is the name server's.
    agent.publish(table(&[]));
    assert_eq!(
        describe(&ask_udp(&agent, &packet).await),
        "NoError ra | web. 60 192.0.2.1"
    );
    assert_eq!(upstream.asked("web."), ["udp"]);
}

#[tokio::test]
async fn what_is_no_lookup_is_refused_or_ignored() {
    let (upstream, agent) = fixture().await;
    let good = query("web.", RecordType::A, Some(1232));
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    for (packet, want) in [
        (changed(&|p| p[5] = 0), "FormErr"),
        (changed(&|p| p[5] = 2), "FormErr"),
        (changed(&|p| p[2] |= 5 << 3), "NotImp"),
        (changed(&|p| p.truncate(20)), "FormErr"),
    ] {
        let reply = ask_udp(&agent, &packet).await;
        assert_eq!(reply[..2], packet[..2]);
        assert_eq!(reply[2] & 0x80, 0x80, "{want}");
        let code = ["NoError", "FormErr", "ServFail", "", "NotImp"][usize::from(reply[3] & 0xf)];
        assert_eq!(code, want);
        assert_eq!(ask_tcp(&agent, &packet).await, reply, "{want} over TCP");
    }
    // EDNS version 1: code 16, which the codec of the test calls by its other name.
    let version = changed(&|p| {
        let at = p.len() - 5;
        p[at] = 1;
    });
    assert_eq!(describe(&ask_udp(&agent, &version).await), "BADSIG edns");
    // Class CHAOS is not the mesh's.
    let mut message = Message::from_vec(&good).expect("query");
    message.queries[0].set_query_class(DNSClass::CH);
    let chaos = message.to_vec().expect("encodes");
    assert!(describe(&ask_udp(&agent, &chaos).await).contains(" ra"));
    assert_eq!(upstream.asked("web."), ["udp"]);
    // Answers and fragments get nothing; the next query on the socket does.
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    socket.connect(agent.addresses()[0]).await.expect("connect");
    for packet in [
        changed(&|p| p[2] |= 0x80),
        good[..11].to_vec(),
        Vec::new(),
        good.clone(),
    ] {
        socket.send(&packet).await.expect("send");
    }
    let mut buffer = [0; 512];
    let len = within(socket.recv(&mut buffer)).await.expect("answer");
    assert_eq!(
        describe(&buffer[..len]),
        "NoError aa edns | web. 30 10.96.0.1"
    );
}

/// An address where nobody listens.
async fn dead() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    socket.local_addr().expect("address")
}

#[tokio::test]
async fn dead_name_servers_are_passed_over() {
    let upstream = NameServer::start("192.0.2.1").await;
    let mut servers = vec![dead().await, dead().await, upstream.address];
    let agent = start(config(&servers));
    agent.publish(table(HOSTS));
    let packet = query("plain.up.", RecordType::A, None);
    for _ in 0..8 {
        assert_eq!(describe(&ask_udp(&agent, &packet).await), UP);
        assert_eq!(describe(&ask_tcp(&agent, &packet).await), UP);
    }
    drop(upstream);
    assert_eq!(describe(&ask_udp(&agent, &packet).await), "ServFail");
    assert_eq!(describe(&ask_tcp(&agent, &packet).await), "ServFail");
    // The mesh's own names need nobody.
    let own = ask_udp(&agent, &query("web.", RecordType::A, None)).await;
    assert_eq!(describe(&own), "NoError aa | web. 30 10.96.0.1");
    // A refusal is seen at once; nobody waits for the timeout of the name server.
    let mut patient = config(&servers[..1]);
    patient.upstream.timeout = Duration::from_secs(600);
    let patient = start(patient);
    patient.publish(table(HOSTS));
    assert_eq!(describe(&ask_udp(&patient, &packet).await), "ServFail");
    servers.clear();
    let alone = start(config(&servers));
    alone.publish(table(HOSTS));
    assert_eq!(describe(&ask_udp(&alone, &packet).await), "ServFail");
}

#[tokio::test]
async fn all_servers_share_the_questions_and_parallel_asks_all() {
    let one = NameServer::start("192.0.2.1").await;
    let two = NameServer::start("192.0.2.2").await;
    let servers = [one.address, two.address];
    let packet = query("who.up.", RecordType::A, None);
    let agent = start(config(&servers));
    agent.publish(table(HOSTS));
    let mut answers = BTreeSet::new();
    while answers.len() < 2 {
        answers.insert(describe(&ask_udp(&agent, &packet).await));
    }
    let mut parallel = config(&servers);
    parallel.upstream.parallel = true;
    let agent = start(parallel);
    agent.publish(table(HOSTS));
    let packet = query("nx.up.", RecordType::A, None);
    assert_eq!(describe(&ask_udp(&agent, &packet).await), "NXDomain ra");
    within(async {
        while one.asked("nx.up.").is_empty() || two.asked("nx.up.").is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn silent_servers_end_in_servfail_and_are_counted() {
    let upstream = NameServer::start("192.0.2.1").await;
    let mut settings = config(&[upstream.address]);
    settings.upstream.timeout = Duration::from_millis(300);
    let agent = start(settings);
    agent.publish(table(HOSTS));
    for name in ["silent.up.", "garbage.up."] {
        let packet = query(name, RecordType::A, None);
        assert_eq!(
            describe(&ask_udp(&agent, &packet).await),
            "ServFail",
            "{name}"
        );
    }
    let packet = query("silent.up.", RecordType::A, Some(1232));
    assert_eq!(describe(&ask_tcp(&agent, &packet).await), "ServFail edns");
    // A single server is asked again by UDP, not by TCP.
    assert_eq!(upstream.asked("silent.up."), ["udp", "udp", "tcp"]);
    ask_udp(&agent, &query("web.", RecordType::A, None)).await;
    ask_udp(&agent, &query("plain.up.", RecordType::A, None)).await;
    let metrics = Metrics::default();
    let counters = agent.metrics();
    metrics.add_source(move |page| counters.render(page));
    let page = metrics.render();
    for line in [
        "istio_agent_dns_requests_total 5",
        "istio_agent_dns_upstream_requests_total 4",
        "istio_agent_dns_upstream_failures_total 3",
        "istio_agent_dns_upstream_request_duration_seconds_count 4",
        "istio_agent_dns_upstream_request_duration_seconds_bucket{le=\"+Inf\"} 4",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
    }
}

#[tokio::test]
async fn every_forwarded_query_has_its_own_port_and_id() {
    let (upstream, agent) = fixture().await;
    let packet = query("plain.up.", RecordType::A, None);
    for _ in 0..20 {
        ask_udp(&agent, &packet).await;
    }
    let seen = upstream.seen();
    let ids: BTreeSet<_> = seen.iter().map(|s| s.packet[..2].to_vec()).collect();
    // Twenty equal ids of 65536 by chance: never; two equal ones: possible.
    assert!(ids.len() > 10, "{ids:?}");
    let clients = agent.addresses()[0];
    assert!(seen.iter().all(|s| s.peer.port() != clients.port()));
}

#[tokio::test]
async fn a_connection_carries_many_queries_and_the_slow_do_not_stop_the_fast() {
    let (upstream, agent) = fixture().await;
    let mut stream = connect(&agent).await;
    let names = ["late.up.", "plain.up.", "web.", "nx.up."];
    let packets = names.map(|name| framed(&query(name, RecordType::A, None)));
    stream.write_all(&packets.concat()).await.expect("send");
    let mut others = BTreeSet::new();
    for _ in 1..names.len() {
        let reply = Message::from_vec(&read_message(&mut stream).await).expect("answer");
        others.insert(reply.queries[0].name().to_ascii());
    }
    assert!(!others.contains("late.up."));
    upstream.release();
    let late = describe(&read_message(&mut stream).await);
    assert_eq!(late, "NoError ra | late.up. 60 192.0.2.1");
    // In pieces, and with the sending side closed behind it.
    let packet = framed(&query("web.", RecordType::A, None));
    for byte in packet {
        stream.write_all(&[byte]).await.expect("send");
    }
    assert!(describe(&read_message(&mut stream).await).contains("10.96.0.1"));
    let last = framed(&query("plain.up.", RecordType::A, None));
    stream.write_all(&last).await.expect("send");
    stream.shutdown().await.expect("half close");
    assert_eq!(describe(&read_message(&mut stream).await), UP);
    assert_eq!(within(stream.read(&mut [0])).await.expect("end"), 0);
}

#[tokio::test]
async fn a_connection_that_sends_no_query_is_closed() {
    let (_upstream, agent) = fixture().await;
    let mut stream = connect(&agent).await;
    let mut answer = query("web.", RecordType::A, None);
    answer[2] |= 0x80;
    stream.write_all(&framed(&answer)).await.expect("send");
    assert_eq!(within(stream.read(&mut [0])).await.expect("end"), 0);
    // Half a query, then nothing: the idle limit applies (10 s).
    let mut stream = connect(&agent).await;
    stream.write_all(&[0, 40, 1, 2]).await.expect("send");
    assert_eq!(within(stream.read(&mut [0])).await.expect("end"), 0);
}

#[tokio::test]
async fn ports_are_bound_as_asked_and_freed() {
    let upstream = NameServer::start("192.0.2.1").await;
    let mut both = config(&[upstream.address]);
    both.addresses
        .push((Ipv6Addr::LOCALHOST, free_port()).into());
    let agent = start(both);
    assert_eq!(agent.addresses().len(), 2);
    agent.publish(table(HOSTS));
    let six = agent.addresses()[1];
    let socket = UdpSocket::bind("[::1]:0").await.expect("bind");
    socket.connect(six).await.expect("connect");
    socket
        .send(&query("web.", RecordType::A, None))
        .await
        .expect("send");
    let mut buffer = [0; 512];
    let len = within(socket.recv(&mut buffer)).await.expect("answer");
    assert_eq!(describe(&buffer[..len]), "NoError aa | web. 30 10.96.0.1");

    let four = agent.addresses()[0];
    let mut taken = config(&[upstream.address]);
    taken.addresses = vec![four];
    let error = DnsServer::start(taken.clone())
        .expect_err("taken")
        .to_string();
    assert!(
        error.starts_with(&format!("DNS server cannot listen on udp {four}: ")),
        "{error}"
    );
    drop(agent);
    drop(DnsServer::start(taken).expect("free again"));
    // Itself as its only name server: not asked.
    let mut own = config(&[four]);
    own.addresses = vec![four];
    let agent = start(own);
    agent.publish(table(HOSTS));
    let reply = ask_udp(&agent, &query("plain.up.", RecordType::A, None)).await;
    assert_eq!(describe(&reply), "ServFail");
}
