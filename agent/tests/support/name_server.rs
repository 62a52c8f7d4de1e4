//! A name server in the process, UDP and TCP on one port. The first label of a question says how
//! it behaves, so that a test reads as a table.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{PTR, SRV, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Records that `big` and `fat` answer with.
const MANY: u8 = 60;

/// A question as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) transport: &'static str,
    /// As asked, with the final dot.
    pub(crate) name: String,
    pub(crate) packet: Vec<u8>,
    pub(crate) peer: SocketAddr,
}

/// A running name server; its port goes with it.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    gate: Arc<Semaphore>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[derive(Clone)]
struct Shared {
    /// Answers to the label `who`: tells servers apart.
    own: IpAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// One permit per answer to `late`.
    gate: Arc<Semaphore>,
}

impl NameServer {
    /// On a free port of `127.0.0.1`; `own` is its address for `who.…`.
    pub(crate) async fn start(own: &str) -> Self {
        // The port of the one must be free for the other.
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("bind");
            let address = tcp.local_addr().expect("address");
            if let Ok(udp) = UdpSocket::bind(address).await {
                break (tcp, Arc::new(udp));
            }
        };
        let address = tcp.local_addr().expect("address");
        let shared = Shared {
            own: own.parse().expect("address"),
            seen: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
        };
        let (seen, gate) = (Arc::clone(&shared.seen), Arc::clone(&shared.gate));
        let tasks = [
            tokio::spawn(serve_udp(udp, shared.clone())),
            tokio::spawn(serve_tcp(tcp, shared)),
        ];
        Self {
            address,
            seen,
            gate,
            tasks,
        }
    }

    /// Lets one question for `late` be answered.
    pub(crate) fn release(&self) {
        self.gate.add_permits(1);
    }

    /// Every question so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// Transports by which `name` was asked.
    pub(crate) fn asked(&self, name: &str) -> Vec<&'static str> {
        let seen = self.seen();
        let same = seen.iter().filter(|s| s.name.eq_ignore_ascii_case(name));
        same.map(|s| s.transport).collect()
    }
}

impl Shared {
    fn record(
        &self,
        transport: &'static str,
        packet: &[u8],
        peer: SocketAddr,
    ) -> (Message, String) {
        let query = Message::from_vec(packet).expect("the agent sends good queries");
        let name = query.queries[0].name().to_ascii();
        let label = name
            .split('.')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        self.seen.lock().push(Seen {
            transport,
            name,
            packet: packet.to_vec(),
            peer,
        });
        (query, label)
    }

    /// How often `name` was asked.
    fn times(&self, query: &Message) -> usize {
        let name = query.queries[0].name().to_ascii();
        self.seen.lock().iter().filter(|s| s.name == name).count()
    }

    fn answer(&self, query: &Message, label: &str) -> Message {
        let question = &query.queries[0];
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_query(question.clone());
        answer.metadata.response_code = match label {
            "nx" => ResponseCode::NXDomain,
            "refused" => ResponseCode::Refused,
            "servfail" => ResponseCode::ServFail,
            _ => ResponseCode::NoError,
        };
        if answer.metadata.response_code != ResponseCode::NoError {
            return answer;
        }
        let count = if matches!(label, "big" | "fat") {
            MANY
        } else {
            1
        };
        for n in 1..=count {
            let data = match question.query_type() {
                RecordType::A if label == "who" => match self.own {
                    IpAddr::V4(ip) => RData::A(ip.into()),
                    IpAddr::V6(ip) => RData::AAAA(ip.into()),
                },
                RecordType::A => RData::A(Ipv4Addr::new(192, 0, 2, n).into()),
                RecordType::AAAA => RData::AAAA(std::net::Ipv6Addr::from(u128::from(n)).into()),
                RecordType::TXT => RData::TXT(TXT::new(vec!["text".to_owned()])),
                RecordType::PTR => RData::PTR(PTR(question.name().clone())),
                RecordType::SRV => RData::SRV(SRV::new(1, 2, 3, question.name().clone())),
                _ => break,
            };
            answer.add_answer(Record::from_rdata(question.name().clone(), 60, data));
        }
        answer
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Shared) {
    let mut buffer = [0; 4096];
    loop {
        let (len, peer) = socket.recv_from(&mut buffer).await.expect("receive");
        let (query, label) = shared.record("udp", &buffer[..len], peer);
        let mut answer = shared.answer(&query, &label);
        let send = async |message: &Message| {
            let bytes = message.to_vec().expect("encodes");
            socket.send_to(&bytes, peer).await.expect("send");
        };
        match label.as_str() {
            "silent" => continue,
            // One packet is lost.
            "lost" if shared.times(&query) == 1 => continue,
            "garbage" => {
                socket.send_to(b"\xff\xff", peer).await.expect("send");
                continue;
            }
            // Wrong ids, wrong questions, a stranger: all before the answer.
            "forged" => {
                let stranger = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
                let mut wrong = answer.clone();
                wrong.answers[0].data = RData::A(Ipv4Addr::new(6, 6, 6, 6).into());
                stranger
                    .send_to(&wrong.to_vec().expect("encodes"), peer)
                    .await
                    .expect("send");
                wrong.metadata.id = query.metadata.id.wrapping_add(1);
                send(&wrong).await;
                wrong.metadata.id = query.metadata.id;
                wrong.queries[0].set_query_type(RecordType::AAAA);
                send(&wrong).await;
            }
            // What fits, and the bit that says there is more.
            "big" => {
                let room = query
                    .edns
                    .as_ref()
                    .map_or(512, |e| usize::from(e.max_payload()));
                while answer.to_vec().expect("encodes").len() > room {
                    answer.metadata.truncation = true;
                    answer.answers.pop();
                }
            }
            // `fat` is longer than a client without EDNS may be sent.
            _ => {}
        }
        send(&answer).await;
    }
}

async fn serve_tcp(listener: TcpListener, shared: Shared) {
    loop {
        let (stream, peer) = listener.accept().await.expect("accept");
        tokio::spawn(serve_connection(stream, peer, shared.clone()));
    }
}

async fn serve_connection(mut stream: TcpStream, peer: SocketAddr, shared: Shared) {
    while let Ok(len) = stream.read_u16().await {
        let mut packet = vec![0; usize::from(len)];
        stream.read_exact(&mut packet).await.expect("query");
        let (query, label) = shared.record("tcp", &packet, peer);
        let bytes = shared.answer(&query, &label).to_vec().expect("encodes");
        match label.as_str() {
            // Held until the agent gives up.
            "silent" => {
                let mut rest = [0; 1];
                let _ = stream.read(&mut rest).await;
                return;
            }
            // The connection ends in the middle of the answer.
            "cut" => {
                let _ = stream.write_all(&[0, 200, 1, 2, 3]).await;
                return;
            }
            "late" => shared.gate.acquire().await.expect("never closed").forget(),
            _ => {}
        }
        let len = u16::try_from(bytes.len()).expect("short enough");
        let framed = [&len.to_be_bytes(), bytes.as_slice()].concat();
        // The agent may have enough of it.
        if stream.write_all(&framed).await.is_err() {
            return;
        }
    }
}

/// An answer as one line: code, flags, then the records; addresses in order of their value, since
/// the agent shuffles them.
pub(crate) fn describe(bytes: &[u8]) -> String {
    let message = Message::from_vec(bytes).expect("the agent sends good answers");
    let flags = message.metadata;
    let mut text = format!("{:?}", flags.response_code);
    for (set, name) in [
        (flags.authoritative, "aa"),
        (flags.truncation, "tc"),
        (flags.recursion_available, "ra"),
        (message.edns.is_some(), "edns"),
    ] {
        if set {
            text.push(' ');
            text.push_str(name);
        }
    }
    let mut addresses: BTreeMap<(String, IpAddr), u32> = BTreeMap::new();
    for record in &message.answers {
        let owner = record.name.to_ascii();
        match record.data.ip_addr() {
            Some(ip) => {
                addresses.insert((owner, ip), record.ttl);
            }
            None => text.push_str(&format!(" | {owner} {} {}", record.ttl, record.data)),
        }
    }
    if addresses.len() > 9 {
        return format!("{text} | {} addresses", addresses.len());
    }
    for ((owner, ip), ttl) in addresses {
        text.push_str(&format!(" | {owner} {ttl} {ip}"));
    }
    text
}
