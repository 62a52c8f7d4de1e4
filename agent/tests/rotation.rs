//! Rotation under load, with a CA that fails, restarts and changes its root, and a clock that
//! jumps. Time is virtual; sockets, SDS and TLS are real.

#[path = "support/authority.rs"]
mod authority;
#[path = "support/clock.rs"]
mod clock;
#[path = "support/control_plane.rs"]
mod control_plane;
#[path = "support/peer.rs"]
mod peer;
#[path = "support/pki.rs"]
mod pki;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use authority::{answer, ca_client_with, read_request};
use clock::{Sleepers, TestClock};
use control_plane::{Call, ControlPlane, within};
use outrigger_xds::grpc::ServerOptions;
use peer::{Now, Peer, TlsPair};
use pilot_agent::sds::{SdsConfig, SdsServer};
use pilot_agent::secret_manager::{
    KeyAlgorithm, KeyConfig, SecretManager, SecretManagerConfig, WorkloadSource, generate,
    spiffe_id,
};
use pki::{Authority, assert_no_key_in};
use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tonic::Status;

const ROTATIONS: u64 = 200;
/// Whatever happens, no more requests than this for each certificate: no request loop.
const CALLS_PER_ROTATION: u64 = 6;

fn identity() -> String {
    spiffe_id("cluster.local", "ns1", "sa1")
}

/// Manager, SDS server and clock of a pod.
struct Agent {
    manager: SecretManager,
    clock: Arc<TestClock>,
    sleepers: Sleepers,
    dir: tempfile::TempDir,
    server: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Agent {
    fn start(ca: std::net::SocketAddr, ttl: Duration) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (clock, sleepers) = TestClock::new();
        let client = ca_client_with(ca, None, &dir.path().join("token"), ttl, clock.clone());
        let mut config = SecretManagerConfig::new(identity(), WorkloadSource::Ca(client));
        config.key.algorithm = KeyAlgorithm::EcdsaP256;
        config.clock = clock.clone();
        let manager = SecretManager::spawn(config);
        let sds = SdsConfig {
            socket: dir.path().join("socket"),
            crl: None,
            key_provider: None,
            server: ServerOptions::default(),
        };
        let server = SdsServer::bind(sds, manager.clone()).expect("bind");
        Self {
            manager,
            clock,
            sleepers,
            dir,
            server: tokio::spawn(server.run()),
        }
    }

    async fn peer(&self) -> Peer {
        Peer::subscribe(&self.dir.path().join("socket")).await
    }

    fn issued(&self) -> u64 {
        self.manager.status().borrow().issued
    }
}

/// Half of the answers, in an order that is random and always the same.
struct Failures {
    state: u64,
    kind: usize,
}

impl Failures {
    fn new() -> Self {
        Self {
            state: 0x9e37_79b9_7f4a_7c15,
            kind: 0,
        }
    }

    fn next(&mut self) -> Option<usize> {
        // xorshift64.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        if self.state.count_ones().is_multiple_of(2) {
            return None;
        }
        self.kind += 1;
        Some(self.kind)
    }
}

/// Every way in which an answer can be no good.
async fn fail(mut call: Call, kind: usize, authority: &Authority, now: SystemTime) {
    let request = read_request(&mut call).await;
    let root = authority.root_pem.clone();
    let later = now + Duration::from_secs(60);
    match kind % 9 {
        0 => call.end(Status::unavailable("restarting")),
        1 => call.end(Status::permission_denied("not now")),
        2 => call.end(Status::resource_exhausted("too many")),
        3 => drop(call),
        4 => answer(call, Vec::new()).await,
        5 => answer(call, vec!["garbage".to_owned(), root]).await,
        6 => {
            // Expired also for a clock that is an hour behind.
            let hours = |count: u64| now - Duration::from_secs(count * 3600);
            let leaf = authority.sign_between(&request.csr, hours(3), hours(2));
            answer(call, vec![leaf, root]).await;
        }
        7 => {
            let config = KeyConfig {
                algorithm: KeyAlgorithm::EcdsaP256,
                pkcs8: false,
            };
            let other = generate(config, &identity()).expect("key");
            let leaf = authority.sign_between(&other.csr_pem, now, later);
            answer(call, vec![leaf, root]).await;
        }
        _ => {
            let other = spiffe_id("cluster.local", "ns1", "somebody-else");
            let leaf = authority.sign_as(&other, &request.csr, now, later);
            answer(call, vec![leaf, root]).await;
        }
    }
}

async fn succeed(mut call: Call, authority: &Authority, now: SystemTime, ttl: Duration) {
    let request = read_request(&mut call).await;
    let leaf = authority.sign_between(&request.csr, now - Duration::from_secs(120), now + ttl);
    answer(call, vec![leaf, authority.root_pem.clone()]).await;
}

/// Handshakes in both directions at every change of secrets or time. Time passes between
/// handshakes, not in them.
struct Load {
    done: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(peers: [Arc<Peer>; 2], now: Arc<dyn Now>, time: Arc<RwLock<()>>) -> Self {
        let done = Arc::new(AtomicU64::new(0));
        let tasks = [[0, 1], [1, 0]].map(|ends| {
            let ends = ends.map(|end| Arc::clone(&peers[end]));
            let (now, time, done) = (Arc::clone(&now), Arc::clone(&time), Arc::clone(&done));
            tokio::spawn(async move {
                let [client, server] = &ends;
                let (mut one, mut other) = (client.changes(), server.changes());
                loop {
                    let held = time.read().await;
                    let (client, server) = (client.identity(), server.identity());
                    let pair = TlsPair::connect(&client, &server, &now).await;
                    pair.expect("a handshake under load");
                    done.fetch_add(1, Ordering::Relaxed);
                    drop(held);
                    let changed = tokio::select! {
                        changed = one.changed() => changed,
                        changed = other.changed() => changed,
                    };
                    changed.expect("streams are open");
                }
            })
        });
        Self {
            tasks: tasks.into(),
            done,
        }
    }

    /// Ends the load; the number of handshakes, none of which failed.
    async fn stop(self) -> u64 {
        for task in self.tasks {
            task.abort();
            if let Err(error) = task.await
                && let Ok(panic) = error.try_into_panic()
            {
                std::panic::resume_unwind(panic);
            }
        }
        self.done.load(Ordering::Relaxed)
    }
}

/// 200 certificates of one to two seconds (dates have whole seconds). The clock moves only when
/// the manager sleeps, by what it sleeps, and only after both workloads have what was issued: at
/// every moment their certificates must be good by true time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_rotations_with_a_failing_ca_restarts_and_clock_steps_lose_nothing() {
    let ttl = Duration::from_secs(1);
    let authority = Authority::new("ca");
    let mut plane = Some(ControlPlane::start(None).await);
    let address = plane.as_ref().expect("started").address;
    let mut agent = Agent::start(address, ttl);
    let peers = [Arc::new(agent.peer().await), Arc::new(agent.peer().await)];
    let clock = agent.clock.clone();
    let now: Arc<dyn Now> = Arc::new(move || clock.true_now());
    let clock = agent.clock.clone();
    let time = Arc::new(RwLock::new(()));
    let (mut failures, mut calls, mut failed) = (Failures::new(), 0, 0);
    let mut seen = 0;
    let mut down_for = 0;
    let mut load = None;
    let mut long_lived = None;
    while seen < ROTATIONS {
        let call = async {
            match &mut plane {
                Some(plane) => plane.next_call().await,
                None => std::future::pending().await,
            }
        };
        let slept = tokio::select! {
            call = call => {
                calls += 1;
                match failures.next() {
                    Some(kind) => {
                        failed += 1;
                        fail(call, kind, &authority, clock.true_now()).await;
                    }
                    None => succeed(call, &authority, clock.true_now(), ttl).await,
                }
                continue;
            }
            slept = within(agent.sleepers.recv()) => slept.expect("the manager lives"),
        };
        if agent.issued() > seen {
            seen = agent.issued();
            for peer in &peers {
                peer.received(seen).await;
            }
            if load.is_none() {
                let (client, server) = (peers[0].identity(), peers[1].identity());
                let pair = TlsPair::connect(&client, &server, &now).await;
                long_lived = Some(pair.expect("the first handshake"));
                load = Some(Load::start(peers.clone(), now.clone(), time.clone()));
            }
            let pair = long_lived
                .as_mut()
                .expect("open since the first certificate");
            within(pair.exchange())
                .await
                .expect("an open connection stays open");
            match seen % 40 {
                // The CA goes away for three tries.
                10 => (plane, down_for) = (None, 3),
                // The wall clock is set: ahead within what is left, far back, right again.
                20 => clock.set_offset(300),
                30 => clock.set_offset(-3_600_000),
                35 => clock.set_offset(0),
                _ => {}
            }
        } else if plane.is_none() {
            down_for -= 1;
            if down_for == 0 {
                plane = Some(ControlPlane::restart(address, None).await);
            }
        }
        let held = time.write().await;
        clock.advance(slept);
        drop(held);
        if load.is_some() {
            let (client, server) = (peers[0].identity(), peers[1].identity());
            let pair = TlsPair::connect(&client, &server, &now).await;
            pair.expect("certificates are good after the clock moved");
        }
    }
    let handshakes = load.expect("load ran").stop().await;
    assert!(
        handshakes > ROTATIONS,
        "{handshakes} handshakes are no load"
    );
    assert!(
        failed * 3 > calls,
        "{failed} of {calls} requests failed, too few"
    );
    assert!(
        calls < ROTATIONS * CALLS_PER_ROTATION,
        "{calls} requests for {ROTATIONS} certificates"
    );
    assert_no_key_in(agent.dir.path());
}

/// What the CA gives in a phase of the change: who signs, and the roots it announces.
struct Phase<'a> {
    signer: &'a Authority,
    roots: Vec<&'a Authority>,
}

/// Serves calls until `agent` has another certificate and its peer has it, too.
async fn rotate(agent: &mut Agent, peer: &Peer, plane: &mut ControlPlane, phase: &Phase<'_>) {
    let wanted = agent.issued() + 1;
    while agent.issued() < wanted {
        tokio::select! {
            mut call = plane.next_call() => {
                let request = read_request(&mut call).await;
                // Valid by the machines' clocks and by those of the peers, who stay at the start.
                let start = SystemTime::now() - Duration::from_secs(3600);
                let end = agent.clock.true_now() + Duration::from_secs(86_400);
                let leaf = phase.signer.sign_between(&request.csr, start, end);
                let roots = phase.roots.iter().map(|root| root.root_pem.as_str()).collect();
                answer(call, vec![leaf, roots]).await;
            }
            slept = agent.sleepers.recv() => agent.clock.advance(slept.expect("the manager lives")),
        }
    }
    peer.received(wanted).await;
    peer.roots(|pem| {
        let text = String::from_utf8_lossy(pem);
        text.matches("BEGIN CERTIFICATE").count() == phase.roots.len()
            && phase
                .roots
                .iter()
                .all(|root| text.contains(root.root_pem.trim()))
    })
    .await;
}

/// Two pods that renew at different times, while the CA goes from one root to another by way of
/// both, as an operator does it: a phase begins when all have the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_changes_by_way_of_both_without_a_failed_handshake() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let mut planes = [
        ControlPlane::start(None).await,
        ControlPlane::start(None).await,
    ];
    let day = Duration::from_secs(86_400);
    let mut agents = [
        Agent::start(planes[0].address, day),
        Agent::start(planes[1].address, day),
    ];
    let peers = [
        Arc::new(agents[0].peer().await),
        Arc::new(agents[1].peer().await),
    ];
    let now: Arc<dyn Now> = Arc::new(SystemTime::now);
    let phase = |signer, roots| Phase { signer, roots };
    let phases = [
        phase(&old, vec![&old]),
        phase(&old, vec![&old, &new]),
        phase(&new, vec![&old, &new]),
        phase(&new, vec![&new]),
    ];
    let mut load = None;
    let mut open = Vec::new();
    for (number, phase) in phases.iter().enumerate() {
        // The pods take turns in being first.
        for turn in [number % 2, (number + 1) % 2] {
            let (agent, plane) = (&mut agents[turn], &mut planes[turn]);
            within(rotate(agent, &peers[turn], plane, phase)).await;
            if peers.iter().any(|peer| peer.identity().chain.is_empty()) {
                continue;
            }
            for (client, server) in [(0, 1), (1, 0)] {
                let (client, server) = (peers[client].identity(), peers[server].identity());
                let pair = TlsPair::connect(&client, &server, &now).await;
                open.push(pair.expect("a handshake in every phase"));
            }
            let time = Arc::default();
            load.get_or_insert_with(|| Load::start(peers.clone(), now.clone(), time));
        }
    }
    for pair in &mut open {
        within(pair.exchange())
            .await
            .expect("open connections stay open");
    }
    assert!(load.expect("load ran").stop().await > 0);
    for agent in &agents {
        assert_eq!(agent.manager.status().borrow().failures, 0);
        assert_no_key_in(agent.dir.path());
    }
}
