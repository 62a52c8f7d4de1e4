//! tcp_proxy: relays bytes between a downstream connection and a cluster. Failures to reach the cluster are
//! told to the client by RST, as the reference does; one log line at the end.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use outrigger_config::listener::TcpProxy as Config;

use crate::access_log::AccessLogs;
use crate::control::store::{Slot, Store};
use crate::error::Flag;
use crate::io::copy::{Meter, Relay, Side};
use crate::io::socket::reset_on_close;
use crate::io::stream::Stream;
use crate::listener::drain::Drain;
use crate::stats::{Counter, Gauge};
use crate::stream_info::{ConnectionInfo, StreamInfo};
use crate::upstream::cluster::Cluster;
use crate::upstream::connect::{ConnectError, TcpUpstream, connect_tcp};
use crate::worker::Worker;

/// Counters under `tcp.<stat_prefix>.`.
#[derive(Debug)]
struct TcpStats {
    cx_total: Counter,
    cx_active: Gauge,
    rx_bytes: Counter,
    tx_bytes: Counter,
    no_route: Counter,
    idle_timeout: Counter,
    max_duration: Counter,
}

impl TcpStats {
    fn new(store: &Store, prefix: &str) -> Self {
        let counter = |name: &str| store.stats.counter(&format!("tcp.{prefix}.{name}"));
        Self {
            cx_total: counter("downstream_cx_total"),
            cx_active: store
                .stats
                .gauge(&format!("tcp.{prefix}.downstream_cx_active")),
            rx_bytes: counter("downstream_cx_rx_bytes_total"),
            tx_bytes: counter("downstream_cx_tx_bytes_total"),
            no_route: counter("downstream_cx_no_route"),
            idle_timeout: counter("idle_timeout"),
            max_duration: counter("max_downstream_connection_duration"),
        }
    }
}

/// Runtime form of a TcpProxy.
#[derive(Debug)]
pub struct TcpProxy {
    config: Arc<Config>,
    /// Slots with the sum of weights up to and including each.
    clusters: Vec<(Arc<Slot<Cluster>>, u64)>,
    /// The SNI names the cluster (sni_cluster filter).
    sni_cluster: bool,
    logs: AccessLogs,
    stats: TcpStats,
}

/// Why a connection ended, where it was not its peers' own doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    Broken(Side),
    Idle,
    Duration,
    Drained,
}

/// Byte counts of one connection. Counters are shared; the sums are its own.
struct Count<'a> {
    stats: &'a TcpStats,
    upstream_rx: Counter,
    upstream_tx: Counter,
    received: u64,
    sent: u64,
    last: Instant,
}

impl Meter for Count<'_> {
    fn upstream_bound(&mut self, bytes: usize) {
        self.received += bytes as u64;
        self.stats.rx_bytes.add(bytes as u64);
        self.upstream_tx.add(bytes as u64);
        self.last = Instant::now();
    }

    fn downstream_bound(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.stats.tx_bytes.add(bytes as u64);
        self.upstream_rx.add(bytes as u64);
        self.last = Instant::now();
    }
}

struct Active<'a>(&'a Gauge);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

impl TcpProxy {
    /// Compiles a configuration; unknown clusters get empty slots.
    ///
    /// # Errors
    /// When an access log cannot be opened.
    pub fn build(config: Arc<Config>, sni_cluster: bool, store: &Store) -> io::Result<Arc<Self>> {
        let mut sum = 0;
        let clusters = config.clusters.iter().map(|c| {
            sum += u64::from(c.weight);
            (store.clusters.slot(&c.name), sum)
        });
        Ok(Arc::new(Self {
            clusters: clusters.collect(),
            sni_cluster,
            logs: AccessLogs::build(&config.access_log, &store.logs)?,
            stats: TcpStats::new(store, &config.stat_prefix),
            config,
        }))
    }

    /// Serves one connection to its end.
    pub async fn serve(
        self: Arc<Self>,
        mut stream: Stream,
        connection: Rc<ConnectionInfo>,
        worker: Rc<Worker>,
        mut drain: Drain,
    ) {
        self.stats.cx_total.inc();
        self.stats.cx_active.add(1);
        let _active = Active(&self.stats.cx_active);
        let mut info = StreamInfo::new(
            Rc::clone(&connection),
            connection.start,
            connection.start_time,
        );
        let connected = tokio::select! {
            biased;
            () = drain.closing() => None,
            connected = self.connect(&worker, &connection, &mut info) => connected,
        };
        // Where there is no upstream the close is a plain one, as Envoy's: the kernel makes it a reset if the client
        // sent something that was not read.
        if let Some((cluster, upstream)) = connected {
            self.relay(&mut stream, &cluster, upstream, &mut info, drain)
                .await;
        }
        drop(stream);
        info.end = Some(Instant::now());
        self.logs.log_connection(&info);
    }

    /// The cluster of a connection. Names from the network are looked up, never created.
    fn cluster(&self, worker: &Worker, connection: &ConnectionInfo) -> Option<Arc<Cluster>> {
        if self.sni_cluster {
            let name = connection.server_name.as_deref()?;
            return worker.store.clusters.lookup(name)?.load();
        }
        let (last, total) = self.clusters.last()?;
        if self.clusters.len() == 1 || *total == 0 {
            return last.load();
        }
        let pick = worker.random() % total;
        self.clusters.iter().find(|(_, sum)| pick < *sum)?.0.load()
    }

    /// Connects, with attempts. `None` = the flags in `info` say why.
    async fn connect(
        &self,
        worker: &Rc<Worker>,
        connection: &ConnectionInfo,
        info: &mut StreamInfo,
    ) -> Option<(Arc<Cluster>, TcpUpstream)> {
        let Some(cluster) = self.cluster(worker, connection) else {
            self.stats.no_route.inc();
            info.flags.set(Flag::NoClusterFound);
            return None;
        };
        info.upstream.cluster = Some(Arc::clone(&cluster.config.name));
        info.upstream.observability_name = Some(Arc::clone(&cluster.config.observability_name));
        let hash = self.config.hash_source_ip.then(|| source_hash(connection));
        for attempt in 1..=self.config.max_connect_attempts.max(1) {
            let error =
                match connect_tcp(worker, &cluster, connection, hash, &mut info.upstream).await {
                    Ok(upstream) => {
                        info.upstream.host = Some(Arc::clone(&upstream.host));
                        return Some((cluster, upstream));
                    }
                    Err(error) => error,
                };
            info.flags.set(error.flag());
            let again = matches!(error, ConnectError::Failed(_) | ConnectError::Timeout);
            if !again {
                return None;
            }
            if attempt == self.config.max_connect_attempts.max(1) {
                info.flags.set(Flag::UpstreamRetryLimitExceeded);
                cluster_counter(worker, &cluster, "upstream_cx_connect_attempts_exceeded").inc();
            }
        }
        None
    }

    async fn relay(
        &self,
        downstream: &mut Stream,
        cluster: &Cluster,
        mut upstream: TcpUpstream,
        info: &mut StreamInfo,
        drain: Drain,
    ) {
        let mut count = Count {
            stats: &self.stats,
            upstream_rx: cluster.stats().cx_rx_bytes_total.clone(),
            upstream_tx: cluster.stats().cx_tx_bytes_total.clone(),
            received: 0,
            sent: 0,
            last: Instant::now(),
        };
        let end = self
            .run(downstream, &mut upstream.stream, &mut count, info, drain)
            .await;
        (info.bytes_received, info.bytes_sent) = (count.received, count.sent);
        match end {
            // A reset on one side is passed on to the other.
            End::Broken(side) => {
                let other = match side {
                    Side::Downstream => upstream.stream.tcp(),
                    Side::Upstream => downstream.tcp(),
                };
                if let Some(tcp) = other {
                    reset_on_close(tcp);
                }
            }
            End::Idle => self.stats.idle_timeout.inc(),
            End::Duration => {
                self.stats.max_duration.inc();
                info.flags.set(Flag::DurationTimeout);
            }
            End::Done | End::Drained => {}
        }
    }

    /// Relays until an end. Timers and drain are looked at only when a poll moved nothing or their moment
    /// has come, so that bulk traffic pays one comparison for them.
    async fn run(
        &self,
        downstream: &mut Stream,
        upstream: &mut Stream,
        count: &mut Count<'_>,
        info: &StreamInfo,
        drain: Drain,
    ) -> End {
        let mut relay = Relay::default();
        let mut watched = drain.clone();
        let mut closing = pin!(watched.closing());
        let idle = self.config.idle_timeout;
        let limit = self
            .config
            .max_downstream_connection_duration
            .map(|d| info.start + d);
        let mut wake = deadline(count.last, idle, limit);
        let far = Instant::now() + Duration::from_secs(30 * 24 * 3600);
        let mut registered = false;
        let mut timer = pin!(tokio::time::sleep_until(wake.unwrap_or(far).into()));
        poll_fn(|cx| {
            let before = (count.received, count.sent);
            match relay.poll(cx, downstream, upstream, count) {
                Poll::Ready(Ok(())) => return Poll::Ready(End::Done),
                Poll::Ready(Err(side)) => return Poll::Ready(End::Broken(side)),
                Poll::Pending => {}
            }
            // The first poll registers timer and drain. After that, a wake-up of theirs that coincides with
            // bytes shows in these conditions.
            let moved = before != (count.received, count.sent);
            let due = drain.is_draining() || wake.is_some_and(|w| count.last >= w);
            if moved && registered && !due {
                return Poll::Pending;
            }
            registered = true;
            if closing.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Drained);
            }
            while timer.as_mut().poll(cx).is_ready() {
                let now = Instant::now();
                if limit.is_some_and(|l| now >= l) {
                    return Poll::Ready(End::Duration);
                }
                if idle.is_some_and(|i| now >= count.last + i) {
                    return Poll::Ready(End::Idle);
                }
                wake = deadline(count.last, idle, limit);
                timer
                    .as_mut()
                    .reset(wake.unwrap_or(now + Duration::from_secs(3600)).into());
            }
            Poll::Pending
        })
        .await
    }
}

fn deadline(last: Instant, idle: Option<Duration>, limit: Option<Instant>) -> Option<Instant> {
    [idle.map(|i| last + i), limit].into_iter().flatten().min()
}

fn cluster_counter(worker: &Worker, cluster: &Cluster, name: &str) -> Counter {
    let prefix = &cluster.config.observability_name;
    worker
        .store
        .stats
        .counter(&format!("cluster.{prefix}.{name}"))
}

/// Hash of the client's address, for `hash_policy.source_ip`.
fn source_hash(connection: &ConnectionInfo) -> u64 {
    xxhash_rust::xxh64::xxh64(connection.remote.ip().to_string().as_bytes(), 0)
}
