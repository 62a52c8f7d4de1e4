//! Names of the mesh through the real redirect rules: what an application of a captured pod gets
//! when it asks the name server of its resolv.conf.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use outrigger_tests::istiod::snapshot::NAMES;
use outrigger_tests::pod::{Pod, PodSpec};
use prost::Message;

use crate::bench::{Bench, SLEEP, SOON, recorded, until};

const HELLO: &str = "helloworld.sample.svc.cluster.local";
const OUTSIDE: &str = "outside.example";

/// `NameTable` of the name discovery service, as far as addresses go.
#[derive(Clone, PartialEq, Message)]
struct NameTable {
    #[prost(btree_map = "string, message", tag = "1")]
    table: BTreeMap<String, NameInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct NameInfo {
    #[prost(string, repeated, tag = "1")]
    ips: Vec<String>,
}

/// Asks from a given port; prints the name server's address, the code and the last four bytes,
/// which are the address of an answer with one.
const CLIENT: &str = "
import socket, sys
port, name = int(sys.argv[1]), sys.argv[2]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.bind(('0.0.0.0', port))
labels = b''.join(bytes([len(l)]) + l.encode() for l in name.split('.'))
query = b'\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0' + labels + b'\\0\\0\\x01\\0\\x01'
s.sendto(query, ('10.244.0.1', 53))
reply, peer = s.recvfrom(4096)
address = socket.inet_ntoa(reply[-4:]) if reply[7] else '-'
print(peer[0], peer[1], reply[3] & 15, address)
";

async fn captured(bench: &Bench) -> Pod {
    let spec = PodSpec {
        env: vec![("ISTIO_META_DNS_CAPTURE".to_owned(), "true".to_owned())],
        hosts: Vec::new(),
        ..bench.spec(SLEEP)
    };
    let mut pod = bench.lab.start(spec).expect("a pod");
    let ready = pod.ready(SOON).await;
    assert!(ready.is_ok(), "{ready:?}: {:#?}", bench.refusals());
    pod
}

/// Addresses by the C library's resolver; `tcp`: over TCP only. Empty if there is none.
async fn resolve(pod: &Pod, name: &str, tcp: bool) -> Vec<String> {
    let option = if tcp {
        "RES_OPTIONS=use-vc"
    } else {
        "RES_OPTIONS="
    };
    let words = ["/usr/bin/env", option, "/usr/bin/getent", "ahostsv4", name];
    let text = pod.exec(&words).await.unwrap_or_default();
    let streams = text.lines().filter(|l| l.contains("STREAM"));
    let first = streams.filter_map(|l| l.split_whitespace().next());
    first.map(str::to_owned).collect()
}

#[tokio::test]
async fn applications_get_the_names_of_the_mesh_over_udp_and_tcp() {
    let Some(bench) = Bench::new() else { return };
    bench.lab.dns.insert(OUTSIDE, Ipv4Addr::new(192, 0, 2, 7));
    let pod = captured(&bench).await;

    // The agent's sockets: the proxy's user, the loopback address.
    let sockets = pod.exec(&["/usr/bin/ss", "-Hlnute"]).await.expect("ss");
    let own: Vec<_> = sockets.lines().filter(|l| l.contains(":15053 ")).collect();
    assert_eq!(own.len(), 2, "{sockets}");
    for socket in own {
        assert!(socket.contains(" 127.0.0.1:15053 "), "{socket}");
        assert!(socket.contains(" uid:1337 "), "{socket}");
    }

    for tcp in [false, true] {
        let transport = if tcp { "TCP" } else { "UDP" };
        for name in [HELLO, "helloworld", "helloworld.sample.svc.cluster.local."] {
            assert_eq!(
                resolve(&pod, name, tcp).await,
                ["10.96.0.11"],
                "{name} {transport}"
            );
        }
        assert_eq!(
            resolve(&pod, OUTSIDE, tcp).await,
            ["192.0.2.7"],
            "{transport}"
        );
        let none = resolve(&pod, "nowhere.example", tcp).await;
        assert!(none.is_empty(), "{none:?} {transport}");
    }
    let asked = bench.lab.dns.queries();
    assert!(asked.iter().any(|q| q == OUTSIDE), "{asked:?}");
    assert!(!asked.iter().any(|q| q == HELLO), "{asked:?}");

    // Conntrack zones: the same port, address and server, once captured and once exempt.
    let python = "/usr/bin/python3";
    let mesh = pod.exec(&[python, "-c", CLIENT, "40053", HELLO]).await;
    assert_eq!(
        mesh.expect("an answer").trim(),
        "10.244.0.1 53 0 10.96.0.11"
    );
    let exempt = pod
        .exec_proxy(&[python, "-c", CLIENT, "40053", HELLO])
        .await;
    assert_eq!(exempt.expect("an answer").trim(), "10.244.0.1 53 3 -");
    let asked = bench.lab.dns.queries();
    assert!(asked.iter().any(|q| q == HELLO), "{asked:?}");
}

#[tokio::test]
async fn names_outlive_istiod_and_follow_its_pushes() {
    let Some(bench) = Bench::new() else { return };
    let pod = captured(&bench).await;
    assert_eq!(resolve(&pod, HELLO, false).await, ["10.96.0.11"]);

    bench.lab.istiod.refuse(true);
    bench.lab.istiod.kill_connections();
    for tcp in [false, true] {
        assert_eq!(
            resolve(&pod, HELLO, tcp).await,
            ["10.96.0.11"],
            "without istiod"
        );
    }

    let mut changed = recorded("02-helloworld", "sleep");
    let edit = |names: &mut NameTable| {
        let info = names.table.get_mut(HELLO).expect("as recorded");
        info.ips = vec!["10.96.0.99".to_owned()];
    };
    changed.edit(NAMES, edit).expect("as recorded");
    bench.configure(SLEEP, changed);
    bench.lab.istiod.refuse(false);
    let ask = async || resolve(&pod, HELLO, false).await;
    until("the new name table", ask, |ips| ips == &["10.96.0.99"]).await;
}
