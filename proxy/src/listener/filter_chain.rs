//! From an accepted socket to the terminal filter: hand-off by original destination, listener filters, chain
//! choice, TLS, network filters. Ends every connection it refuses, with the listener's access log.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use outrigger_config::listener::ChainInput;
use smallvec::SmallVec;
use tokio::net::TcpStream;

use super::acceptor::Accepted;

use super::inspect::{InspectError, Inspection};
use super::runtime::{ChainRuntime, ListenerRuntime, ListenerStats, Terminal};
use crate::error::Flag;
use crate::io::socket;
use crate::io::stream::{Rewound, Stream};
use crate::stats::Gauge;
use crate::stream_info::{ConnectionInfo, StreamInfo, TlsInfo};
use crate::tls::context::{DownstreamContext, TlsFailure};
use crate::worker::Worker;

/// Serves one accepted connection to its end.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted, stream: TcpStream) {
    let mut seen = Inspection::new(accepted.direct_local, accepted.remote);
    let runtime = hand_off(&accepted, &stream, &mut seen);
    if !inspect(&runtime, &stream, &mut seen).await {
        return;
    }
    let connection = Connection {
        worker,
        runtime,
        accepted,
        seen,
    };
    match connection.select() {
        Some(chain) => connection.serve_chain(chain, stream).await,
        None => connection.refuse(stream),
    }
}

/// The listener that serves: with `use_original_dst` the one of the original destination, if there is one.
/// The target's own `use_original_dst` is not looked at, so nothing loops.
fn hand_off(
    accepted: &Accepted,
    stream: &TcpStream,
    seen: &mut Inspection,
) -> Arc<ListenerRuntime> {
    let own = &accepted.runtime;
    if own.config.use_original_dst {
        seen.restore_destination(stream, own.config.transparent);
        if seen.local_restored
            && let Some(target) = own.shared.table.find(seen.local)
        {
            return target;
        }
    }
    Arc::clone(own)
}

/// Counts a connection that is not yet one.
struct PreConnection<'a>(&'a Gauge);

impl Drop for PreConnection<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// Runs the listener filters. `false` = the connection ends here.
async fn inspect(runtime: &ListenerRuntime, stream: &TcpStream, seen: &mut Inspection) -> bool {
    if runtime.config.listener_filters.is_empty() {
        return true;
    }
    let stats = &runtime.stats;
    stats.pre_cx_active.add(1);
    let _pre = PreConnection(&stats.pre_cx_active);
    let result = match runtime
        .config
        .listener_filters_timeout
        .filter(|_| runtime.inspects)
    {
        None => Ok(seen.run(stream, runtime).await),
        Some(limit) => tokio::time::timeout(limit, seen.run(stream, runtime)).await,
    };
    match result {
        Ok(Ok(())) => true,
        Ok(Err(InspectError::RemoteClose)) => {
            stats.filter_remote_close.inc();
            false
        }
        Ok(Err(InspectError::Refused)) => {
            stats.filter_error.inc();
            false
        }
        Err(_) => {
            stats.pre_cx_timeout.inc();
            runtime.config.continue_on_listener_filters_timeout
        }
    }
}

/// Counts a connection for as long as it lives.
struct ActiveConnection {
    stats: Arc<ListenerStats>,
    worker: usize,
    start: Instant,
}

impl ActiveConnection {
    fn new(stats: &Arc<ListenerStats>, worker: usize, start: Instant) -> Self {
        stats.cx_total.inc();
        stats.cx_active.add(1);
        if let Some((total, active)) = stats.workers.get(worker) {
            total.inc();
            active.add(1);
        }
        Self {
            stats: Arc::clone(stats),
            worker,
            start,
        }
    }
}

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        self.stats.cx_active.add(-1);
        self.stats.cx_destroy.inc();
        self.stats
            .cx_length_ms
            .record(self.start.elapsed().as_millis() as u64);
        if let Some((_, active)) = self.stats.workers.get(self.worker) {
            active.add(-1);
        }
    }
}

/// An inspected connection.
struct Connection {
    worker: Rc<Worker>,
    runtime: Arc<ListenerRuntime>,
    accepted: Accepted,
    seen: Inspection,
}

impl Connection {
    fn select(&self) -> Option<Arc<ChainRuntime>> {
        let protocols: SmallVec<[&str; 8]> = self
            .seen
            .application_protocols
            .iter()
            .map(|p| &**p)
            .collect();
        let input = ChainInput {
            destination: self.seen.local,
            server_name: self.seen.server_name.as_deref(),
            transport_protocol: self.seen.transport_protocol,
            application_protocols: &protocols,
            direct_source: self.accepted.remote.ip(),
            source: self.seen.remote,
        };
        let chosen = self.runtime.chains.select(&input).chain()?;
        self.runtime.chain(chosen).cloned()
    }

    /// No chain: RST, as the reference does.
    fn refuse(self, stream: TcpStream) {
        self.runtime.stats.no_filter_chain_match.inc();
        socket::reset_on_close(&stream);
        drop(stream);
        let (runtime, info) = self.into_info("".into(), None);
        let mut info = stream_info(&info);
        info.flags.set(Flag::NoRouteFound);
        info.details = Cow::Borrowed("filter_chain_not_found");
        runtime.logs.log_connection(&info);
    }

    fn into_info(
        self,
        chain: Arc<str>,
        tls: Option<Arc<TlsInfo>>,
    ) -> (Arc<ListenerRuntime>, Rc<ConnectionInfo>) {
        let info = ConnectionInfo {
            id: self.accepted.id,
            start: self.accepted.start,
            start_time: self.accepted.start_time,
            local: self.seen.local,
            direct_local: self.accepted.direct_local,
            local_restored: self.seen.local_restored,
            remote: self.seen.remote,
            server_name: self.seen.server_name,
            tls,
            application_protocols: self.seen.application_protocols,
            filter_chain: chain,
            original_src_mark: self.seen.original_src_mark,
        };
        (self.runtime, Rc::new(info))
    }

    async fn serve_chain(mut self, chain: Arc<ChainRuntime>, stream: TcpStream) {
        let stats = Arc::clone(&self.runtime.stats);
        let worker = Rc::clone(&self.worker);
        let _active = ActiveConnection::new(&stats, worker.index as usize, self.accepted.start);
        let rewound = Rewound::new(Bytes::from(std::mem::take(&mut self.seen.bytes)), stream);
        let name = Arc::clone(&chain.config.name);
        let (stream, tls) = match &chain.tls {
            None => (Stream::Plain(rewound), None),
            Some(context) => match self.handshake(context, &chain, rewound).await {
                Ok((stream, info)) => (stream, Some(info)),
                Err(failure) => {
                    let (runtime, info) = self.into_info(name, None);
                    let mut info = stream_info(&info);
                    info.downstream_transport_failure = failure.map(|f| f.reason);
                    runtime.logs.log_connection(&info);
                    return;
                }
            },
        };
        let (runtime, info) = self.into_info(name, tls);
        let drain = chain.drain.subscribe();
        let start = (!runtime.config.access_log.is_empty()).then(|| Rc::clone(&info));
        match &chain.terminal {
            Terminal::None => drop(stream),
            Terminal::Tcp(tcp) => Arc::clone(tcp).serve(stream, info, worker, drain).await,
            Terminal::Http(http) => {
                Box::pin(Arc::clone(http).serve(stream, info, worker, drain)).await;
            }
        }
        // The listener's own logs run at the end of each of its connections.
        if let Some(info) = start {
            runtime.logs.log_connection(&stream_info(&info));
        }
    }

    /// `Err(None)` = the deadline passed.
    async fn handshake(
        &mut self,
        context: &DownstreamContext,
        chain: &ChainRuntime,
        stream: Rewound,
    ) -> Result<(Stream, Arc<TlsInfo>), Option<TlsFailure>> {
        let stats = &self.runtime.stats;
        let result = match chain.config.transport_socket_connect_timeout {
            None => context.accept(stream).await,
            Some(limit) => match tokio::time::timeout(limit, context.accept(stream)).await {
                Ok(result) => result,
                Err(_) => {
                    stats.transport_socket_connect_timeout.inc();
                    return Err(None);
                }
            },
        };
        match result {
            Ok((stream, info)) => {
                let connection = stream.get_ref().1;
                stats.ssl.succeeded(&info, connection);
                if self.seen.server_name.is_none() {
                    self.seen.server_name = connection.server_name().map(Into::into);
                }
                Ok((Stream::ServerTls(stream), info))
            }
            Err(failure) => {
                stats.ssl.failed(&failure);
                if failure.secret_missing {
                    stats.secrets_not_ready.inc();
                }
                tracing::debug!(connection = self.accepted.id, %failure, "TLS handshake failed");
                Err(Some(failure))
            }
        }
    }
}

fn stream_info(connection: &Rc<ConnectionInfo>) -> StreamInfo {
    let mut info = StreamInfo::new(
        Rc::clone(connection),
        connection.start,
        connection.start_time,
    );
    info.end = Some(Instant::now());
    info
}
