//! `outrigger-lab startup`: how long an injected sidecar takes from exec to ready with a near control
//! plane, and what the agent's memory is then and after many pushes.
//!
//! Both pods are run as a kubelet would, in namespaces of their own. Prints figures, judges nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::fixtures::{self, Missing, Product};
use crate::istiod::builder::replace_endpoints;
use crate::istiod::{AdsEvent, EventKind, Snapshot, SnapshotError};
use crate::oracle;
use crate::pod::interception::Interception;
use crate::pod::{Lab, Pod, PodError, PodSpec, Sidecar};

/// The recorded client.
const NODE: (&str, &str) = ("10.244.1.10", "sleep");
/// Longest wait for anything. Where name servers are silent a real Envoy holds back its readiness for most of it.
const DEADLINE: Duration = Duration::from_secs(90);
/// The drain time of the recorded bootstrap, 45 s, and a little.
const DRAINED: Duration = Duration::from_secs(50);
/// What the agent exports about its own start.
const METRIC: &str = "istio_agent_startup_duration_seconds ";

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Starts to measure, for each kind of DNS.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// What name servers do. Default: one after the other.
    #[arg(long)]
    dns: Option<Dns>,
    /// Pushes before memory is looked at again.
    #[arg(long, default_value_t = 1000)]
    pushes: usize,
    /// The proxy: a path, or `envoy` for a real one. Default: outrigger.
    #[arg(long)]
    proxy: Option<String>,
    /// The agent. Default: pilot-agent.
    #[arg(long)]
    agent: Option<PathBuf>,
}

/// What the name servers of a pod do.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Dns {
    /// They answer at once.
    Answering,
    /// They never answer.
    Silent,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// Pods could not be run.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// Recorded material.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A binary is missing.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// No real Envoy was found.
    #[error("no Envoy: set ENVOY_BIN or run `make setup`")]
    NoEnvoy,
    /// The agent's status port.
    #[error("status port: {0}")]
    Status(std::io::Error),
    /// Not what a sidecar does.
    #[error("{0}")]
    Unexpected(String),
}

/// Runs the command.
///
/// # Errors
/// If a pod does not start.
pub async fn run(options: Options) -> Result<(), StartupError> {
    let (proxy, scenario) = match options.proxy.as_deref() {
        Some("envoy") => {
            let envoy = oracle::find_envoy().ok_or(StartupError::NoEnvoy)?;
            (envoy, "02-helloworld-stripped")
        }
        Some(path) => (path.into(), "02-helloworld"),
        None => (Product::Outrigger.path()?, "02-helloworld"),
    };
    let agent = match &options.agent {
        Some(path) => path.clone(),
        None => Product::PilotAgent.path()?,
    };
    let sidecar = Sidecar::Injected {
        init: Some(Product::IstioIptables.path()?),
        agent,
        proxy,
    };
    let folder = fixtures::root()?.join("xds").join(scenario).join(NODE.1);
    let snapshot = Snapshot::load(&folder)?;
    let kinds: &[bool] = match options.dns {
        Some(Dns::Answering) => &[false],
        Some(Dns::Silent) => &[true],
        None => &[false, true],
    };
    for &silent in kinds {
        let mut seconds = Vec::new();
        for _ in 0..options.runs.max(1) {
            let (lab, mut pod) = start(&sidecar, &snapshot, silent)?;
            seconds.push(startup(&mut pod).await?);
            drop((pod, lab));
        }
        seconds.sort_by(f64::total_cmp);
        let (least, most) = (seconds[0], seconds[seconds.len() - 1]);
        let median = seconds[seconds.len() / 2];
        let dns = if silent { "silent" } else { "answering" };
        println!("exec to ready, DNS {dns}: {median:.3} s ({least:.3}–{most:.3})");
    }
    let (lab, mut pod) = start(&sidecar, &snapshot, false)?;
    startup(&mut pod).await?;
    memory(&pod, "at rest");
    push(&lab, snapshot, options.pushes).await?;
    memory(&pod, &format!("after {} pushes", options.pushes));
    // Listeners that were replaced serve their connections for the drain time.
    tokio::time::sleep(DRAINED).await;
    memory(&pod, "after the drain time");
    Ok(())
}

fn start(
    sidecar: &Sidecar,
    snapshot: &Snapshot,
    silent: bool,
) -> Result<(Arc<Lab>, Pod), StartupError> {
    let lab = Lab::new()?;
    lab.dns.mute(silent);
    lab.istiod.ads.set_node(NODE.0, snapshot.clone());
    let pod = lab.start(PodSpec {
        name: NODE.1.to_owned(),
        kind: NODE.1.to_owned(),
        ip: NODE.0.to_owned(),
        labels: Vec::new(),
        env: Vec::new(),
        hosts: Vec::new(),
        app: Vec::new(),
        sidecar: sidecar.clone(),
        interception: Interception::default(),
    })?;
    Ok((lab, pod))
}

/// Seconds from the start of the agent's process until it first saw itself ready.
async fn startup(pod: &mut Pod) -> Result<f64, StartupError> {
    pod.ready(DEADLINE).await?;
    let status = format!("{}:15020", pod.spec.ip);
    let page = pod.fetch(&status, "GET", "/stats/prometheus").await;
    let page = page.map_err(StartupError::Status)?.text();
    let value = page.lines().find_map(|line| line.strip_prefix(METRIC));
    value
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| StartupError::Unexpected(format!("no {METRIC}on the metrics page")))
}

fn memory(pod: &Pod, when: &str) {
    let processes = pod.proxy.as_ref().map(|p| p.memory()).unwrap_or_default();
    for process in processes {
        let mib = |kib: u64| kib as f64 / 1024.0;
        println!(
            "{} {when}: {:.1} MiB of its own, {:.1} MiB of files",
            process.name,
            mib(process.private),
            mib(process.file)
        );
    }
}

/// Pushes the endpoints of one service and every tenth time everything, each acknowledged.
async fn push(lab: &Lab, mut snapshot: Snapshot, pushes: usize) -> Result<(), StartupError> {
    let ads = &lab.istiod.ads;
    let full = snapshot.clone();
    for round in 0..pushes {
        let before = ads.events().len();
        if round % 10 == 9 {
            // All gone, all back.
            ads.set_node(NODE.0, Snapshot::default());
            snapshot = full.clone();
            settled(lab, before, round).await?;
        }
        let before = ads.events().len();
        let host = ([10, 244, 1, (round % 200) as u8], 5000).into();
        replace_endpoints(&mut snapshot, "helloworld.sample", &[host]);
        ads.set_node(NODE.0, snapshot.clone());
        settled(lab, before, round).await?;
    }
    Ok(())
}

/// Waits until something was sent since `before`, and all of it acknowledged.
async fn settled(lab: &Lab, before: usize, round: usize) -> Result<(), StartupError> {
    let count = |events: &[AdsEvent]| {
        let sent = events
            .iter()
            .filter(|e| matches!(e.kind, EventKind::Sent { .. }));
        let acked = events
            .iter()
            .filter(|e| matches!(e.kind, EventKind::Ack { .. }));
        (sent.count(), acked.count())
    };
    let done = |events: &[AdsEvent]| {
        let (sent, acked) = count(&events[before..]);
        sent > 0 && acked >= sent
    };
    let ads = &lab.istiod.ads;
    if ads.wait_for(DEADLINE, done).await {
        return Ok(());
    }
    let events = ads.events();
    Err(StartupError::Unexpected(format!(
        "push {round} was not acknowledged; since then: {:?}",
        &events[before..]
    )))
}
