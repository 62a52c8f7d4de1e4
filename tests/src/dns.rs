//! The cluster's DNS server: a table of A records, NXDOMAIN for the rest, and a count of queries.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::AbortHandle;

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct Dns {
    shared: Shared,
    tasks: [AbortHandle; 2],
}

#[derive(Debug, Clone, Default)]
struct Shared {
    table: Arc<Mutex<BTreeMap<String, Ipv4Addr>>>,
    queries: Arc<Mutex<Vec<String>>>,
    mute: Arc<AtomicBool>,
}

impl Shared {
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let reply = answer(query, |name| {
            self.queries.lock().push(name.to_owned());
            let table = self.table.lock();
            (table.get(name).copied(), table.contains_key(name))
        });
        reply.filter(|_| !self.mute.load(Ordering::Relaxed))
    }
}

impl Dns {
    /// Serves on bound, non-blocking sockets.
    pub fn serve(udp: std::net::UdpSocket, tcp: std::net::TcpListener) -> io::Result<Self> {
        let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
        let shared = Shared::default();
        let (datagrams, streams) = (shared.clone(), shared.clone());
        let packets = tokio::spawn(async move {
            let mut buffer = [0_u8; 1500];
            loop {
                let Ok((size, peer)) = udp.recv_from(&mut buffer).await else {
                    continue;
                };
                if let Some(reply) = datagrams.answer(&buffer[..size]) {
                    let _ = udp.send_to(&reply, peer).await;
                }
            }
        });
        let connections = tokio::spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                let shared = streams.clone();
                // A client that goes away in the middle has had enough.
                tokio::spawn(async move { serve_stream(stream, &shared).await.ok() });
            }
        });
        Ok(Self {
            shared,
            tasks: [packets.abort_handle(), connections.abort_handle()],
        })
    }

    /// Adds a name, lower case and without the final dot.
    pub fn insert(&self, name: impl Into<String>, address: Ipv4Addr) {
        self.shared.table.lock().insert(name.into(), address);
    }

    /// While true, queries are read and never answered.
    pub fn mute(&self, mute: bool) {
        self.shared.mute.store(mute, Ordering::Relaxed);
    }

    /// Every name asked so far.
    pub fn queries(&self) -> Vec<String> {
        self.shared.queries.lock().clone()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Messages with their lengths, one after the other.
async fn serve_stream(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let mut query = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut query).await?;
        let Some(reply) = shared.answer(&query) else {
            return Ok(());
        };
        stream.write_u16(reply.len() as u16).await?;
        stream.write_all(&reply).await?;
    }
}

/// The answer to a query with one question; `None` for what is not one.
fn answer(query: &[u8], find: impl FnOnce(&str) -> (Option<Ipv4Addr>, bool)) -> Option<Vec<u8>> {
    let header = query.get(..12)?;
    let one_question = header[4..6] == [0, 1];
    if header[2] & 0x80 != 0 || !one_question {
        return None;
    }
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => {
                labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase())
            }
            _ => return None,
        }
        at += length;
    }
    let kind = query.get(at..at + 2)?;
    let question = query.get(12..at + 4)?;
    let (address, exists) = find(&labels.join("."));
    let address = address.filter(|_| kind == [0, 1]);
    let code = if exists { 0 } else { 3 };
    let mut reply = vec![header[0], header[1], 0x84 | (header[2] & 1), 0x80 | code];
    reply.extend([0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    reply.extend(question);
    if let Some(address) = address {
        // Pointer to the question's name, A, IN, 30 s, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x02B9\x00\x00\x01\x00\x01";

    #[test]
    fn a_known_name_gets_its_address_and_an_unknown_one_nxdomain() {
        let known = answer(QUERY, |name| {
            assert_eq!(name, "a.b9");
            (Some(Ipv4Addr::new(10, 96, 0, 11)), true)
        });
        let known = known.expect("an answer");
        assert_eq!(&known[..8], &[0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1]);
        assert_eq!(&known[known.len() - 4..], &[10, 96, 0, 11]);
        let unknown = answer(QUERY, |_| (None, false)).expect("an answer");
        assert_eq!(unknown[3], 0x83);
        assert_eq!(unknown[7], 0);
    }

    #[test]
    fn what_is_not_a_query_gets_no_answer() {
        for bytes in [
            &b""[..],
            &QUERY[..20],
            b"\x12\x34\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00",
        ] {
            assert_eq!(answer(bytes, |_| (None, false)), None);
        }
    }
}
