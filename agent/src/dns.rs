//! The DNS server of the mesh: answers for the names istiod knows, passes the rest to the name
//! servers of resolv.conf. Runs on a thread of its own, so that nothing else the agent does can
//! delay an application's look-up. Bound before the proxy starts, gone after it has ended.

mod answer;
mod listen;
mod metrics;
mod serve;
mod table;
mod upstream;
pub mod wire;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::oneshot;

pub use answer::{Transport, Verdict, answer};
pub use listen::{DEFAULT_ADDRESS, ListenError, addresses};
pub use metrics::DnsMetrics;
pub use table::{Alias, Found, Scope, Table, TooLarge, WILDCARD};
pub use upstream::UpstreamConfig;

use listen::Bound;
use serve::{Server, serve_tcp, serve_udp};
use upstream::Upstream;

/// Name of the server's thread.
pub const THREAD: &str = "dns";
/// Pause before a loop that ended by itself is started again.
const RESTART: Duration = Duration::from_millis(100);

/// Settings of a [`DnsServer`].
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// Where to listen, UDP and TCP on each.
    pub addresses: Vec<SocketAddr>,
    /// Name servers.
    pub upstream: UpstreamConfig,
    /// Before the first table, ask the name servers instead of answering SERVFAIL.
    pub forward_before_sync: bool,
}

/// A running server. Dropping it ends it and frees its ports.
#[derive(Debug)]
pub struct DnsServer {
    server: Arc<Server>,
    addresses: Vec<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DnsServer {
    /// Binds and starts serving.
    ///
    /// # Errors
    /// An address that cannot be bound, or no thread.
    pub fn start(config: DnsConfig) -> Result<Self, ListenError> {
        let bound = listen::bind(&config.addresses)?;
        let addresses: Vec<_> = bound.iter().map(|b| b.address).collect();
        let mut upstream = config.upstream;
        upstream.servers.retain(|server| {
            let own = addresses.iter().any(|own| is_same(*own, *server));
            if own {
                tracing::warn!(target: "dns", "name server {server} is this agent; not asked");
            }
            !own
        });
        tracing::info!(
            target: "dns",
            "listening on {addresses:?}, name servers {:?}",
            upstream.servers
        );
        let metrics = Arc::new(DnsMetrics::default());
        let server = Arc::new(Server::new(
            Upstream::new(upstream, Arc::clone(&metrics)),
            metrics,
            config.forward_before_sync,
        ));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ListenError::Thread)?;
        let inside = runtime.enter();
        let sockets = bound.into_iter().map(Bound::watched);
        let sockets = sockets
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(ListenError::Thread)?;
        drop(inside);
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&server);
        let thread = std::thread::Builder::new()
            .name(THREAD.to_owned())
            .spawn(move || runtime.block_on(run(shared, sockets, stopped)))
            .map_err(ListenError::Thread)?;
        Ok(Self {
            server,
            addresses,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens, with the real ports.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<DnsMetrics> {
        Arc::clone(&self.server.metrics)
    }

    /// Answers from `table` from the next packet on.
    pub fn publish(&self, table: Table) {
        *self.server.table.write() = Some(Arc::new(table));
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(target: "dns", "the DNS thread panicked");
        }
    }
}

/// Whether a query to `server` would arrive at `own`.
fn is_same(own: SocketAddr, server: SocketAddr) -> bool {
    let (here, there) = (own.ip(), server.ip().to_canonical());
    let everywhere = here.is_unspecified() && there.is_loopback();
    own.port() == server.port() && (here == there || everywhere)
}

async fn run(
    server: Arc<Server>,
    sockets: Vec<(Arc<UdpSocket>, Arc<TcpListener>)>,
    stopped: oneshot::Receiver<()>,
) {
    for (udp, tcp) in sockets {
        let (shared, again) = (Arc::clone(&server), Arc::clone(&server));
        tokio::spawn(keep(move || {
            serve_udp(Arc::clone(&shared), Arc::clone(&udp))
        }));
        tokio::spawn(keep(move || {
            serve_tcp(Arc::clone(&again), Arc::clone(&tcp))
        }));
    }
    // Closed when the handle is dropped.
    let _ = stopped.await;
}

/// Runs a loop that never ends by itself; one that does (a defect) is said and started again,
/// because without DNS the application is lost.
async fn keep<F>(start: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let ended = tokio::spawn(start()).await;
        tracing::error!(target: "dns", "a DNS loop ended and is started again: {ended:?}");
        tokio::time::sleep(RESTART).await;
    }
}
