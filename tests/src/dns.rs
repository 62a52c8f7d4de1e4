//! The cluster's DNS server: a table of A records, NXDOMAIN for the rest, and a count of queries.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct Dns {
    table: Arc<Mutex<BTreeMap<String, Ipv4Addr>>>,
    queries: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Dns {
    /// Serves on a bound, non-blocking socket.
    pub fn serve(socket: std::net::UdpSocket) -> io::Result<Self> {
        let socket = UdpSocket::from_std(socket)?;
        let table: Arc<Mutex<BTreeMap<String, Ipv4Addr>>> = Arc::default();
        let queries: Arc<Mutex<Vec<String>>> = Arc::default();
        let (names, seen) = (table.clone(), queries.clone());
        let task = tokio::spawn(async move {
            let mut buffer = [0_u8; 1500];
            loop {
                let Ok((size, peer)) = socket.recv_from(&mut buffer).await else {
                    continue;
                };
                let reply = answer(&buffer[..size], |name| {
                    seen.lock().push(name.to_owned());
                    let table = names.lock();
                    (table.get(name).copied(), table.contains_key(name))
                });
                if let Some(reply) = reply {
                    let _ = socket.send_to(&reply, peer).await;
                }
            }
        });
        Ok(Self {
            table,
            queries,
            task: task.abort_handle(),
        })
    }

    /// Adds a name, lower case and without the final dot.
    pub fn insert(&self, name: impl Into<String>, address: Ipv4Addr) {
        self.table.lock().insert(name.into(), address);
    }

    /// Every name asked so far.
    pub fn queries(&self) -> Vec<String> {
        self.queries.lock().clone()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
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
