//! Listener filters: original destination and source, PROXY protocol, TLS and HTTP inspectors. They look at
//! the first bytes; what they read is replayed to the filter chain. Reads only when a filter asks for it.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_config::listener::{ListenerFilterKind, ListenerFilterPredicate};
use tokio::net::TcpStream;

use super::http_first_line::{FirstLine, parse_first_line};
use super::proxy_protocol::{Header, parse_header};
use super::runtime::ListenerRuntime;
use super::tls_hello::{Hello, parse_client_hello};
use crate::io::socket;

/// What is known of a connection before a filter chain is chosen.
#[derive(Debug)]
pub struct Inspection {
    /// Bytes read and to be replayed.
    pub bytes: Vec<u8>,
    /// Local address, restored where a filter says so.
    pub local: SocketAddr,
    /// Whether it was restored.
    pub local_restored: bool,
    /// Peer, or the client the PROXY protocol names.
    pub remote: SocketAddr,
    /// `tls` or `raw_buffer`.
    pub transport_protocol: &'static str,
    /// SNI as sent.
    pub server_name: Option<Arc<str>>,
    /// ALPN offered, or what the HTTP inspector found.
    pub application_protocols: Vec<Arc<str>>,
    /// Mark of the original_src filter.
    pub original_src_mark: Option<u32>,
    /// Filters already run.
    done: usize,
}

/// Why inspection ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InspectError {
    /// The client went away.
    RemoteClose,
    /// The bytes are refused by a filter (no PROXY header, ClientHello too large).
    Refused,
}

thread_local! {
    /// Reads go here first, so that a connection keeps no more than what it got.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; 16 * 1024].into());
}

impl Inspection {
    /// A connection nothing is known of.
    #[must_use]
    pub const fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            bytes: Vec::new(),
            local,
            local_restored: false,
            remote,
            transport_protocol: "raw_buffer",
            server_name: None,
            application_protocols: Vec::new(),
            original_src_mark: None,
            done: 0,
        }
    }

    /// Restores the original destination, if the connection was redirected.
    pub fn restore_destination(&mut self, stream: &TcpStream, transparent: bool) {
        if let Some(original) = socket::original_dst(stream, self.local) {
            self.local = original;
            self.local_restored = true;
        } else if transparent {
            // TPROXY: the socket's own address is where the client wanted to go.
            self.local_restored = true;
        }
    }

    /// Runs the filters in order. May be dropped at any await (timeout): what is known so far stays.
    ///
    /// # Errors
    /// When the connection must be closed.
    pub async fn run(
        &mut self,
        stream: &TcpStream,
        listener: &ListenerRuntime,
    ) -> Result<(), InspectError> {
        while let Some(filter) = listener.config.listener_filters.get(self.done) {
            let skip = filter
                .disabled
                .as_ref()
                .is_some_and(|d| matches(d, self.local.port()));
            while !skip && !self.step(stream, listener, &filter.kind)? {
                self.read(stream).await?;
            }
            self.done += 1;
        }
        Ok(())
    }

    /// One look at the bytes. `false` = more are needed.
    fn step(
        &mut self,
        stream: &TcpStream,
        listener: &ListenerRuntime,
        kind: &ListenerFilterKind,
    ) -> Result<bool, InspectError> {
        match kind {
            ListenerFilterKind::OriginalDst => {
                self.restore_destination(stream, listener.config.transparent);
                Ok(true)
            }
            ListenerFilterKind::OriginalSrc { mark } => {
                self.original_src_mark = Some(*mark);
                Ok(true)
            }
            ListenerFilterKind::TlsInspector => self.inspect_tls(listener),
            ListenerFilterKind::HttpInspector => Ok(self.inspect_http(listener)),
            ListenerFilterKind::ProxyProtocol {
                allow_requests_without_proxy_protocol,
            } => self.read_proxy_header(*allow_requests_without_proxy_protocol),
        }
    }

    fn inspect_tls(&mut self, listener: &ListenerRuntime) -> Result<bool, InspectError> {
        let stats = &listener.inspectors;
        match parse_client_hello(&self.bytes) {
            Hello::NeedMore => return Ok(false),
            Hello::NotTls => stats.tls_not_found.inc(),
            Hello::TooLarge => {
                stats.client_hello_too_large.inc();
                return Err(InspectError::Refused);
            }
            Hello::Found { server_name, alpn } => {
                stats.tls_found.inc();
                let counters = [
                    (
                        server_name.is_some(),
                        &stats.sni_found,
                        &stats.sni_not_found,
                    ),
                    (!alpn.is_empty(), &stats.alpn_found, &stats.alpn_not_found),
                ];
                for (found, yes, no) in counters {
                    if found { yes.inc() } else { no.inc() }
                }
                self.transport_protocol = "tls";
                self.server_name = server_name.map(Into::into);
                self.application_protocols = alpn.into_iter().map(Into::into).collect();
            }
        }
        stats.bytes_processed.record(self.bytes.len() as u64);
        Ok(true)
    }

    fn inspect_http(&mut self, listener: &ListenerRuntime) -> bool {
        if self.transport_protocol == "tls" {
            return true;
        }
        let stats = &listener.inspectors;
        let (counter, protocol) = match parse_first_line(&self.bytes) {
            FirstLine::NeedMore => return false,
            FirstLine::NotHttp => {
                stats.http_not_found.inc();
                return true;
            }
            FirstLine::Http10 => (&stats.http10_found, "http/1.0"),
            FirstLine::Http11 => (&stats.http11_found, "http/1.1"),
            FirstLine::Http2 => (&stats.http2_found, "h2c"),
        };
        counter.inc();
        self.application_protocols = vec![protocol.into()];
        true
    }

    fn read_proxy_header(&mut self, optional: bool) -> Result<bool, InspectError> {
        match parse_header(&self.bytes) {
            Header::NeedMore => Ok(false),
            Header::Absent if optional => Ok(true),
            Header::Absent | Header::Invalid => Err(InspectError::Refused),
            Header::Found { length, addresses } => {
                self.bytes.drain(..length);
                if let Some((source, destination)) = addresses {
                    self.remote = socket::canonical(source);
                    let destination = socket::canonical(destination);
                    self.local_restored |= destination != self.local;
                    self.local = destination;
                }
                Ok(true)
            }
        }
    }

    async fn read(&mut self, stream: &TcpStream) -> Result<(), InspectError> {
        loop {
            stream
                .readable()
                .await
                .map_err(|_| InspectError::RemoteClose)?;
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let n = stream.try_read(scratch)?;
                self.bytes.extend_from_slice(&scratch[..n]);
                io::Result::Ok(n)
            });
            match read {
                Ok(0) => return Err(InspectError::RemoteClose),
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(InspectError::RemoteClose),
            }
        }
    }
}

/// Whether a `filter_disabled` predicate holds for a destination port.
fn matches(predicate: &ListenerFilterPredicate, port: u16) -> bool {
    match predicate {
        ListenerFilterPredicate::And(all) => all.iter().all(|p| matches(p, port)),
        ListenerFilterPredicate::Or(any) => any.iter().any(|p| matches(p, port)),
        ListenerFilterPredicate::Not(p) => !matches(p, port),
        ListenerFilterPredicate::Any => true,
        ListenerFilterPredicate::DestinationPort { start, end } => {
            (*start..*end).contains(&u32::from(port))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_of_disabled_filters_are_half_open() {
        use ListenerFilterPredicate::{And, Any, DestinationPort, Not, Or};
        let range = || DestinationPort { start: 80, end: 81 };
        let cases = [
            (range(), 80, true),
            (range(), 81, false),
            (Not(Box::new(range())), 80, false),
            (And(vec![Any, range()]), 81, false),
            (Or(vec![Not(Box::new(Any)), range()]), 80, true),
        ];
        for (predicate, port, expected) in cases {
            assert_eq!(matches(&predicate, port), expected, "{predicate:?} {port}");
        }
    }
}
