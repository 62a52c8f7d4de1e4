//! `outrigger-lab demo`: pods with sidecars in namespaces of their own, an embedded control plane,
//! real traffic, and what can be seen of it.

mod mesh;
mod show;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::fixtures::{Missing, Product};
use crate::istiod::SnapshotError;
use crate::oracle;
use crate::pod::interception::{Interception, Mode};
use crate::pod::{PodError, Sidecar};
use mesh::Mesh;

/// What the demo runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// End after the last step instead of staying up; fail if any step failed.
    #[arg(long, env = "ONCE", num_args = 0..=1, default_missing_value = "true",
          value_parser = clap::builder::FalseyValueParser::new(), default_value = "false")]
    once: bool,
    /// The proxy: a path, or `envoy` for a real one. Default: outrigger.
    #[arg(long, env = "DEMO_PROXY")]
    proxy: Option<String>,
    /// Run proxies without an agent; the demo serves their sockets and makes the rules itself.
    #[arg(long, env = "DEMO_BARE", num_args = 0..=1, default_missing_value = "true",
          value_parser = clap::builder::FalseyValueParser::new(), default_value = "false")]
    bare: bool,
    /// How the pods' traffic is intercepted. Default: as the injected specification says.
    #[arg(long, env = "INTERCEPTION", value_enum)]
    interception: Option<Mode>,
    /// Pods with IPv6 addresses too; the mesh's own connections go over IPv6.
    #[arg(long, env = "IPV6", num_args = 0..=1, default_missing_value = "true",
          value_parser = clap::builder::FalseyValueParser::new(), default_value = "false")]
    ipv6: bool,
    /// Address of a real istiod (port 15012) to use instead of the embedded control plane.
    #[arg(long, requires = "istiod_root")]
    discovery_address: Option<SocketAddr>,
    /// Root certificate of the real istiod, PEM.
    #[arg(long, requires = "discovery_address")]
    istiod_root: Option<PathBuf>,
    /// Folder with `<namespace>.<serviceaccount>.token` files that the real istiod accepts.
    #[arg(long, requires = "discovery_address")]
    tokens: Option<PathBuf>,
    /// Requests sent for the traffic split.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..=10_000))]
    requests: u32,
}

impl Options {
    fn interception(&self) -> Interception {
        Interception {
            mode: self.interception,
            ipv6: self.ipv6,
        }
    }
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Pods could not be run.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// Recorded material.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Recorded material that does not decode.
    #[error("recorded configuration: {0}")]
    Decode(#[from] prost::DecodeError),
    /// A binary is missing.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A file given on the command line.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// Options that exclude each other.
    #[error("INTERCEPTION and IPV6 need injected pods and the embedded control plane")]
    Interception,
    /// No real Envoy was found.
    #[error("no Envoy: set ENVOY_BIN or run `make setup`")]
    NoEnvoy,
    /// Something looked at was not as it should be.
    #[error("{0}")]
    Unexpected(String),
    /// Steps failed; they have been printed.
    #[error("{0} step(s) failed")]
    Steps(usize),
}

/// Prints progress and remembers failures.
#[derive(Debug, Default)]
struct Report {
    failed: usize,
}

impl Report {
    fn title(&self, text: &str) {
        println!("\n\x1b[1m== {text}\x1b[0m");
    }

    fn check<T>(&mut self, what: &str, result: Result<T, DemoError>) -> Option<T> {
        match result {
            Ok(value) => {
                println!("   ok      {what}");
                Some(value)
            }
            Err(e) => {
                self.failed += 1;
                println!("   FAILED  {what}: {e}");
                None
            }
        }
    }
}

fn sidecar(options: &Options) -> Result<(Sidecar, bool), DemoError> {
    let (proxy, stock) = match options.proxy.as_deref() {
        Some("envoy") => (oracle::find_envoy().ok_or(DemoError::NoEnvoy)?, true),
        Some(path) => (PathBuf::from(path), false),
        None => (Product::Outrigger.path()?, false),
    };
    if options.bare {
        return Ok((Sidecar::Bare { proxy }, stock));
    }
    let (init, agent) = (
        Some(Product::IstioIptables.path()?),
        Product::PilotAgent.path()?,
    );
    Ok((Sidecar::Injected { init, agent, proxy }, stock))
}

/// Ctrl-C or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

/// Runs the demo; see the module.
pub async fn run(options: Options) -> Result<(), DemoError> {
    let interrupt = interrupted();
    tokio::pin!(interrupt);
    let mut report = Report::default();
    let plain = options.interception() == Interception::default();
    if !plain && (options.bare || options.discovery_address.is_some()) {
        return Err(DemoError::Interception);
    }
    let (sidecar, stock) = sidecar(&options)?;
    // Everything that must be cleaned up lives in `mesh`: leaving this function cleans up.
    let mut mesh = tokio::select! {
        mesh = Mesh::start(&options, sidecar, stock, &mut report) => mesh?,
        () = &mut interrupt => return Ok(()),
    };
    tokio::select! {
        () = tour(&mut mesh, &options, &mut report) => {}
        () = &mut interrupt => return Ok(()),
    }
    if options.once {
        return if report.failed == 0 {
            Ok(())
        } else {
            Err(DemoError::Steps(report.failed))
        };
    }
    println!("\nThe pods stay up. Ctrl-C ends them.");
    interrupt.await;
    println!("Cleaning up.");
    Ok(())
}

async fn tour(mesh: &mut Mesh, options: &Options, report: &mut Report) {
    report.title("Traffic: sleep -> helloworld, weights 80/20");
    let split = show::split(mesh, options.requests).await;
    report.check("the split follows the weights", split);
    report.title("One request, seen from both sides");
    report.check(
        "access log of client and server",
        show::one_request(mesh).await,
    );
    report.title("Identities of the mTLS connection");
    report.check(
        "peers authenticated each other",
        show::identities(mesh).await,
    );
    report.title("What the application sees as its peer");
    report.check("the peer is the one to expect", show::peer(mesh).await);
    report.title("Redirect rules in the client pod");
    report.check("rules are in place", show::rules(mesh));
    if mesh.recorded {
        report.title("Second network: helloworld-v3 behind an east-west gateway");
        let over = show::failover(mesh, Duration::from_secs(60)).await;
        report.check("requests fail over to the other network", over);
    }
    report.title("Memory");
    report.check("every process found", show::memory(mesh));
    report.title("Where to look next");
    report.check("admin page answers", show::next(mesh).await);
}
