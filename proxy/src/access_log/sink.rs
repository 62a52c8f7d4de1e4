//! Log files of the process: one open file per path, lines appended whole. Workers append to a bounded
//! buffer; one writer thread per file does the blocking writes, so that a blocked reader of stdout costs log
//! lines (counted) and never a worker.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::access_log::Sink as Target;
use parking_lot::{Condvar, Mutex};

use crate::stats::{Counter, Gauge, Stats};

/// Bytes a file may have waiting; lines beyond are dropped and counted in `filesystem.write_failed`.
pub const MAX_BUFFERED: usize = 4 * 1024 * 1024;

/// When buffers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkOptions {
    /// `--file-flush-interval-msec`, default 10 s.
    pub flush_interval: Duration,
    /// `--file-flush-min-size-kb` in bytes, default 64 KiB.
    pub min_size: usize,
}

impl Default for SinkOptions {
    fn default() -> Self {
        Self {
            flush_interval: Duration::from_secs(10),
            min_size: 64 * 1024,
        }
    }
}

/// `filesystem.*` counters.
#[derive(Debug, Default, Clone)]
struct Counters {
    buffered: Counter,
    completed: Counter,
    total_buffered: Gauge,
    by_timer: Counter,
    reopen_failed: Counter,
    failed: Counter,
}

/// Open log files of the process.
#[derive(Debug, Default)]
pub struct LogSinks {
    options: SinkOptions,
    counters: Counters,
    open: Mutex<HashMap<Target, Arc<Sink>>>,
}

impl LogSinks {
    /// Sinks with the process's flush options.
    #[must_use]
    pub fn new(options: SinkOptions, stats: &Stats) -> Self {
        let counters = Counters {
            buffered: stats.counter("filesystem.write_buffered"),
            completed: stats.counter("filesystem.write_completed"),
            total_buffered: stats.gauge("filesystem.write_total_buffered"),
            by_timer: stats.counter("filesystem.flushed_by_timer"),
            reopen_failed: stats.counter("filesystem.reopen_failed"),
            failed: stats.counter("filesystem.write_failed"),
        };
        Self {
            options,
            counters,
            open: Mutex::default(),
        }
    }

    /// The sink of a target, opened on first mention and shared by everything that names it.
    ///
    /// # Errors
    /// When the file cannot be opened or its writer thread cannot start.
    pub fn open(&self, target: &Target) -> io::Result<Arc<Sink>> {
        let mut open = self.open.lock();
        if let Some(sink) = open.get(target) {
            return Ok(Arc::clone(sink));
        }
        let file = open_target(target)?;
        let sink = Arc::new(Sink {
            null: matches!(target, Target::File(path) if &**path == "/dev/null"),
            shared: Arc::new(Shared {
                target: target.clone(),
                options: self.options,
                counters: self.counters.clone(),
                state: Mutex::new(State::default()),
                wake: Condvar::new(),
                idle: Condvar::new(),
            }),
        });
        if !sink.null {
            let shared = Arc::clone(&sink.shared);
            std::thread::Builder::new()
                .name("access_log".to_owned())
                .stack_size(64 * 1024)
                .spawn(move || shared.run(file))?;
        }
        open.insert(target.clone(), Arc::clone(&sink));
        Ok(sink)
    }

    /// SIGUSR1 and `/reopen_logs`: every file is opened anew before the next write; a file that cannot be
    /// opened keeps its old descriptor and is counted.
    pub fn reopen(&self) {
        for sink in self.open.lock().values() {
            sink.shared.state.lock().reopen = true;
            sink.shared.wake.notify_one();
        }
    }

    /// Writes out what is buffered, waiting at most `limit` in total. For the end of the process.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let sinks: Vec<_> = self.open.lock().values().cloned().collect();
        for sink in sinks {
            sink.flush(deadline);
        }
    }
}

impl Drop for LogSinks {
    fn drop(&mut self) {
        for sink in self.open.get_mut().values() {
            sink.shared.state.lock().ended = true;
            sink.shared.wake.notify_one();
        }
    }
}

/// stdout and stderr are taken as descriptors: opening their path fails for sockets and for pipes that
/// belong to another user.
fn open_target(target: &Target) -> io::Result<File> {
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    match target {
        Target::Stdout => own(io::stdout().as_fd()),
        Target::Stderr => own(io::stderr().as_fd()),
        Target::File(path) if &**path == "/dev/stdout" => own(io::stdout().as_fd()),
        Target::File(path) if &**path == "/dev/stderr" => own(io::stderr().as_fd()),
        Target::File(path) => {
            use std::os::unix::fs::OpenOptionsExt as _;
            File::options()
                .append(true)
                .create(true)
                .mode(0o644)
                .open(&**path)
        }
    }
}

/// One log file.
#[derive(Debug)]
pub struct Sink {
    null: bool,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    options: SinkOptions,
    counters: Counters,
    state: Mutex<State>,
    /// There is something for the writer.
    wake: Condvar,
    /// The writer has nothing left.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    /// Lines dropped because the buffer was full.
    dropped: u64,
    reopen: bool,
    flush: bool,
    writing: bool,
    ended: bool,
}

impl Sink {
    /// Lines go nowhere: they need not be rendered.
    #[must_use]
    pub const fn is_null(&self) -> bool {
        self.null
    }

    /// Appends a whole line.
    pub fn write(&self, line: &[u8]) {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        if state.pending.len() + line.len() > MAX_BUFFERED {
            state.dropped += 1;
            drop(state);
            shared.counters.failed.inc();
            return;
        }
        let before = state.pending.len();
        state.pending.extend_from_slice(line);
        let full = state.pending.len() >= shared.options.min_size;
        drop(state);
        shared.counters.buffered.inc();
        shared.counters.total_buffered.add(line.len() as i64);
        // The writer sleeps for the interval from the first line on, so it must hear of that one too.
        if before == 0 || full {
            shared.wake.notify_one();
        }
    }

    /// Lines dropped so far because the buffer was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.state.lock().dropped
    }

    /// Asks for a write now and waits for it until `deadline`.
    pub fn flush(&self, deadline: Instant) {
        if self.null {
            return;
        }
        let mut state = self.shared.state.lock();
        state.flush = true;
        self.shared.wake.notify_one();
        while (state.writing || !state.pending.is_empty())
            && !self
                .shared
                .idle
                .wait_until(&mut state, deadline)
                .timed_out()
        {}
    }
}

impl Shared {
    fn run(&self, mut file: File) {
        let mut buffer = Vec::new();
        while self.take(&mut buffer, &mut file) {
            match file.write_all(&buffer) {
                Ok(()) => self.counters.completed.inc(),
                Err(error) => {
                    self.counters.failed.inc();
                    tracing::warn!(target: "file", "access log {:?}: {error}", self.target);
                }
            }
            self.counters.total_buffered.add(-(buffer.len() as i64));
            buffer.clear();
            buffer.shrink_to(self.options.min_size);
        }
    }

    /// Waits until there is something to write; false when the process ends and nothing is left.
    fn take(&self, buffer: &mut Vec<u8>, file: &mut File) -> bool {
        let mut state = self.state.lock();
        state.writing = false;
        if state.pending.is_empty() {
            state.flush = false;
            self.idle.notify_all();
        }
        let mut deadline = None;
        loop {
            if std::mem::take(&mut state.reopen) {
                match open_target(&self.target) {
                    Ok(new) => *file = new,
                    Err(_) => self.counters.reopen_failed.inc(),
                }
            }
            let due = deadline.is_some_and(|d| Instant::now() >= d);
            let full = state.pending.len() >= self.options.min_size;
            if !state.pending.is_empty() && (full || due || state.flush || state.ended) {
                if due {
                    self.counters.by_timer.inc();
                }
                std::mem::swap(buffer, &mut state.pending);
                state.writing = true;
                return true;
            }
            if state.ended {
                return false;
            }
            if state.pending.is_empty() {
                deadline = None;
                self.wake.wait(&mut state);
            } else {
                let at =
                    *deadline.get_or_insert_with(|| Instant::now() + self.options.flush_interval);
                self.wake.wait_until(&mut state, at);
            }
        }
    }
}
