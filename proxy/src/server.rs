//! Starts everything: log, bootstrap, stats, workers, static resources, admin, ADS, signals. The control
//! runtime is the main thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_base::memory::release_start_up_pages;
use outrigger_config::bootstrap::Bootstrap;
use outrigger_xds::Event;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::access_log::{LogSinks, SinkOptions};
use crate::admin;
use crate::control::dns::Resolver;
use crate::control::engine::Engine;
use crate::control::store::{Options, Store, Table};
use crate::listener::manager::ListenerManager;
use crate::memory;
use crate::stats::Stats;
use crate::tls::secret::SecretStore;
use crate::worker::{Worker, WorkerHandle};

pub mod bootstrap;
pub mod log;
pub mod options;
pub mod process;
pub mod runtime;
pub mod streams;

use options::{Action, CommandLine, Mode};

/// Version printed by `--version` and `/server_info`: `<revision>/<version>/<status>/<build>/<tls library>`.
/// The number is the Envoy release whose behaviour this proxy follows; tools compare it.
pub const VERSION: &str = concat!(
    "outrigger-",
    env!("CARGO_PKG_VERSION"),
    "/1.40.0/Clean/RELEASE/AWS-LC"
);

/// Why the process did not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The command line.
    #[error("{0}")]
    Options(#[from] options::OptionsError),
    /// The bootstrap, with the path of the file.
    #[error("error initializing config '{config}': {reason}")]
    Config {
        /// `<config-yaml> <config-path>`.
        config: String,
        /// Why, with the field path.
        reason: String,
    },
    /// Something of the system.
    #[error("{what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's words.
        cause: std::io::Error,
    },
}

/// Everything the control thread shares with the admin pages.
pub struct Process {
    /// The command line.
    pub options: CommandLine,
    /// The bootstrap.
    pub bootstrap: Bootstrap,
    /// Tables and services.
    pub store: Arc<Store>,
    /// Applies xDS.
    pub engine: RefCell<Engine>,
    /// Listeners.
    pub listeners: Rc<RefCell<ListenerManager>>,
    /// Log levels.
    pub levels: log::Levels,
    /// Runtime layers.
    pub runtime: RefCell<runtime::Layers>,
    /// Workers.
    pub concurrency: u32,
    /// Start of the process.
    pub started: Instant,
    /// Ends the process with code 0.
    pub quit: Rc<Notify>,
    /// The engine's deadlines may have changed.
    pub wake: Rc<Notify>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process")
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}

/// Runs the process with these arguments; the exit code is 0 when it was asked to end.
///
/// # Errors
/// [`ServerError`], to be printed before exit 1.
pub fn run(arguments: impl IntoIterator<Item = String>) -> Result<(), ServerError> {
    let started = Instant::now();
    let options = CommandLine::parse(arguments)?;
    match options.action {
        Action::Version => {
            println!("\n{}  version: {VERSION}\n", options.program);
            return Ok(());
        }
        Action::HotRestartVersion => {
            println!("disabled");
            return Ok(());
        }
        Action::Help => {
            println!("{}", options.usage());
            return Ok(());
        }
        Action::Run => {}
    }
    let loaded = bootstrap::load(&options).map_err(|reason| config_error(&options, reason))?;
    if options.mode != Mode::Serve {
        println!("configuration '{}' OK", bootstrap::file_name(&options));
        return Ok(());
    }
    let levels = log::init(&options, loaded.value.log_format.as_ref())
        .map_err(|reason| config_error(&options, reason))?;
    for ignored in &loaded.ignored {
        tracing::info!(target: "config", "{} ({}) is accepted and not acted upon: {}",
            ignored.path, ignored.name, ignored.reason);
    }
    process::prepare(&options);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|cause| ServerError::System {
            what: "control runtime",
            cause,
        })?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(options, loaded, levels, started))
}

fn config_error(options: &CommandLine, reason: String) -> ServerError {
    let yaml = options.config_yaml.as_deref().unwrap_or("");
    ServerError::Config {
        config: format!("{yaml} {}", bootstrap::file_name(options)),
        reason,
    }
}

fn build_store(
    options: &CommandLine,
    bootstrap: &Bootstrap,
    runtime: &runtime::Layers,
) -> Result<Arc<Store>, String> {
    let stats = Arc::new(Stats::new(&bootstrap.stats).map_err(|e| e.to_string())?);
    let sinks = SinkOptions {
        flush_interval: options.file_flush_interval,
        min_size: usize::try_from(options.file_flush_min_size_kb.saturating_mul(1024))
            .unwrap_or(usize::MAX)
            .max(1),
    };
    let fragment = runtime.flag(
        "envoy.reloadable_features.http_reject_path_with_fragment",
        true,
    );
    Ok(Arc::new(Store {
        clusters: Table::default(),
        routes: Table::default(),
        secrets: SecretStore::default(),
        logs: Arc::new(LogSinks::new(sinks, &stats)),
        stats,
        options: Options {
            node_id: Arc::clone(&bootstrap.node_id),
            reject_path_with_fragment: fragment,
            zipkin: bootstrap.zipkin,
            local_address: process::local_address(options.local_address_v6),
            drain_time: options.drain_time,
        },
    }))
}

async fn serve(
    options: CommandLine,
    loaded: outrigger_config::Parsed<Bootstrap>,
    levels: log::Levels,
    started: Instant,
) -> Result<(), ServerError> {
    let bootstrap = loaded.value;
    let layers = runtime::Layers::new(&bootstrap);
    let store = build_store(&options, &bootstrap, &layers)
        .map_err(|reason| config_error(&options, reason))?;
    let concurrency = options
        .concurrency
        .filter(|n| *n > 0)
        .unwrap_or_else(process::cpus);
    let workers = start_workers(concurrency, &store)?;
    let senders = workers.iter().map(|w| w.commands.clone()).collect();
    let limit = bootstrap.max_active_downstream_connections;
    if limit.is_none() {
        tracing::warn!(target: "main", "There is no configured limit to the number of allowed active downstream connections. Configure a limit in `envoy.resource_monitors.global_downstream_max_connections` resource monitor.");
    }
    let listeners = Rc::new(RefCell::new(ListenerManager::new(
        Arc::clone(&store),
        senders,
        limit,
    )));
    let (sds_events, mut sds) = tokio::sync::mpsc::channel(16);
    let engine = Engine::new(
        Arc::clone(&store),
        &bootstrap,
        Box::new(Rc::clone(&listeners)),
        Box::new(Resolver::default()),
        streams::open_sds(&bootstrap, sds_events),
    );
    let process = Rc::new(Process {
        levels,
        runtime: RefCell::new(layers),
        concurrency,
        started,
        quit: Rc::new(Notify::new()),
        wake: Rc::new(Notify::new()),
        engine: RefCell::new(engine),
        listeners,
        store,
        options,
        bootstrap,
    });
    process
        .engine
        .borrow_mut()
        .registry
        .ignore("bootstrap", "", loaded.ignored);
    admin::start(&process)
        .await
        .map_err(|reason| config_error(&process.options, reason))?;
    process.engine.borrow_mut().on_live(|| {
        if let Err(error) = release_start_up_pages() {
            tracing::debug!(target: "main", "pages of the start stay mapped: {error}");
        }
    });
    process
        .engine
        .borrow_mut()
        .start_static(&process.bootstrap)
        .map_err(|reason| config_error(&process.options, reason))?;
    process::ServerStats::start(&process);
    memory::after_reading(process.bootstrap.raw.len());
    let mut ads = start_ads(&process)?;
    let mut signals = Signals::new()?;
    let ended = control(&process, &mut ads, &mut sds, &mut signals).await;
    shut_down(&process, workers);
    ended
}

fn start_workers(count: u32, store: &Arc<Store>) -> Result<Vec<WorkerHandle>, ServerError> {
    (0..count)
        .map(|index| {
            Worker::start(index, count, Arc::clone(store), rand::random()).map_err(|cause| {
                ServerError::System {
                    what: "worker thread",
                    cause,
                }
            })
        })
        .collect()
}

type Events = Option<tokio::sync::mpsc::Receiver<Event>>;

fn start_ads(process: &Rc<Process>) -> Result<Events, ServerError> {
    let Some(config) = &process.bootstrap.ads else {
        return Ok(None);
    };
    let opened = streams::open_ads(&process.bootstrap, config)
        .map_err(|reason| config_error(&process.options, reason))?;
    process.engine.borrow_mut().start_ads(Box::new(opened.0));
    Ok(Some(opened.1))
}

async fn next(events: &mut Events) -> Option<Event> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// The control loop: one event at a time, nothing blocks between them.
async fn control(
    process: &Rc<Process>,
    ads: &mut Events,
    sds: &mut streams::SdsEvents,
    signals: &mut Signals,
) -> Result<(), ServerError> {
    let connected = process.store.stats.gauge("control_plane.connected_state");
    connected.set(0);
    loop {
        let deadline = process.engine.borrow().next_deadline();
        tokio::select! {
            event = next(ads) => match event {
                Some(Event::Connected) => connected.set(1),
                Some(Event::Update(update)) => {
                    let size = update.added.iter().map(|r| r.body.len()).sum();
                    process.engine.borrow_mut().ads_update(update);
                    memory::after_reading(size);
                }
                Some(Event::Disconnected(reason)) => {
                    connected.set(0);
                    tracing::warn!(target: "config", "ADS stream: {reason}");
                    process.engine.borrow_mut().ads_disconnected();
                }
                None => *ads = None,
            },
            Some((cluster, event)) = sds.recv() => match event {
                Event::Update(update) => process.engine.borrow_mut().sds_update(&cluster, &update),
                Event::Disconnected(reason) => {
                    tracing::warn!(target: "config", "SDS stream to {cluster}: {reason}");
                }
                Event::Connected => {}
            },
            () = sleep_until(deadline) => {
                process.engine.borrow_mut().on_time(tokio::time::Instant::now());
            }
            () = process.wake.notified() => {}
            () = process.quit.notified() => return Ok(()),
            name = signals.next(process) => {
                tracing::warn!(target: "main", "caught {name}");
                return Ok(());
            }
        }
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn shut_down(process: &Process, workers: Vec<WorkerHandle>) {
    process.listeners.borrow().close_all();
    for worker in workers {
        worker.stop();
    }
    process.store.logs.flush(Duration::from_secs(1));
}

struct Signals {
    term: Signal,
    interrupt: Signal,
    user1: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, ServerError> {
        let open = |kind| {
            signal(kind).map_err(|cause| ServerError::System {
                what: "signal handler",
                cause,
            })
        };
        Ok(Self {
            term: open(SignalKind::terminate())?,
            interrupt: open(SignalKind::interrupt())?,
            user1: open(SignalKind::user_defined1())?,
            hangup: open(SignalKind::hangup())?,
        })
    }

    /// Completes with the name of the signal that ends the process.
    async fn next(&mut self, process: &Process) -> &'static str {
        loop {
            tokio::select! {
                _ = self.term.recv() => return "ENVOY_SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.user1.recv() => {
                    tracing::info!(target: "main", "caught SIGUSR1");
                    process.store.logs.reopen();
                }
                _ = self.hangup.recv() => tracing::warn!(target: "main", "caught and eating SIGHUP"),
            }
        }
    }
}
