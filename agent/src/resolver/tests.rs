//! Parsing tables; the wire exchange runs against a server in the process.

use super::*;

#[test]
fn resolv_conf_follows_the_search_and_ndots_rules() {
    let conf = ResolvConf::parse(
        "# kubelet\nsearch ns.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\n\
         nameserver fd00::a\nnameserver bogus\noptions ndots:5 timeout:2 attempts:9 edns0\n",
    );
    assert_eq!(conf.servers.len(), 2);
    assert_eq!(conf.ndots, 5);
    assert_eq!(conf.timeout, Duration::from_secs(2));
    assert_eq!(conf.attempts, 5);
    assert_eq!(
        conf.candidates("istiod.istio-system.svc"),
        [
            "istiod.istio-system.svc.ns.svc.cluster.local.",
            "istiod.istio-system.svc.svc.cluster.local.",
            "istiod.istio-system.svc.",
        ]
    );
    assert_eq!(conf.candidates("a.b.c.d.e.f")[0], "a.b.c.d.e.f.");
    assert_eq!(conf.candidates("istiod."), ["istiod."]);
}

#[test]
fn hosts_file_beats_dns_and_lists_ipv4_first() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("hosts");
    std::fs::write(
        &path,
        "::1 istiod\n10.0.0.7 other ISTIOD # x\n10.0.0.8 not-istiod\n",
    )
    .expect("write hosts");
    assert_eq!(
        hosts_entries(&path, "istiod"),
        [
            "10.0.0.7".parse::<IpAddr>().expect("ip"),
            "::1".parse().expect("ip")
        ]
    );
    assert!(hosts_entries(&path, "absent").is_empty());
}

/// Answers one UDP query with `truncated`, then one TCP query with an address.
async fn serve_truncated(udp: UdpSocket, tcp: tokio::net::TcpListener) {
    let mut buf = [0; 512];
    let (len, from) = udp.recv_from(&mut buf).await.expect("query");
    let query = Message::from_vec(&buf[..len]).expect("DNS query");
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.add_queries(query.queries.clone());
    // A forged answer with another id comes first and must be skipped.
    answer.metadata.id = query.metadata.id.wrapping_add(1);
    udp.send_to(&answer.to_vec().expect("encode"), from)
        .await
        .expect("send");
    answer.metadata.id = query.metadata.id;
    answer.metadata.truncation = true;
    udp.send_to(&answer.to_vec().expect("encode"), from)
        .await
        .expect("send");

    let (mut stream, _) = tcp.accept().await.expect("accept");
    let len = stream.read_u16().await.expect("length");
    let mut buf = vec![0; usize::from(len)];
    stream.read_exact(&mut buf).await.expect("query");
    answer.metadata.truncation = false;
    let name = query.queries[0].name().clone();
    let data = hickory_proto::rr::RData::A(std::net::Ipv4Addr::new(10, 9, 8, 7).into());
    answer.add_answer(hickory_proto::rr::Record::from_rdata(name, 5, data));
    let bytes = answer.to_vec().expect("encode");
    stream
        .write_u16(u16::try_from(bytes.len()).expect("short"))
        .await
        .expect("send");
    stream.write_all(&bytes).await.expect("send");
}

#[tokio::test]
async fn truncated_udp_answer_is_fetched_over_tcp() {
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let server = tcp.local_addr().expect("address");
    let udp = UdpSocket::bind(server).await.expect("bind");
    let task = tokio::spawn(serve_truncated(udp, tcp));
    let name = Name::from_ascii("istiod.istio-system.svc.").expect("name");
    let found = exchange(server, &name, RecordType::A, Duration::from_secs(5)).await;
    assert_eq!(found, Ok(vec!["10.9.8.7".parse().expect("ip")]));
    task.await.expect("server");
}
