//! A CPU profile in pprof's format: SIGPROF samples the instruction that runs, 100 times per second
//! of CPU time. Addresses only, no call stacks and no names: `go tool pprof BINARY profile` names
//! them from an unstripped binary of the same build.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use prost::Message;

/// Of CPU time between samples.
const PERIOD: Duration = Duration::from_millis(10);
/// Five minutes of one core; more is dropped.
const MAX_SAMPLES: usize = 1 << 15;

/// What the signal handler writes to. Pages that no profile has touched cost no memory.
static SAMPLES: [AtomicUsize; MAX_SAMPLES] = [const { AtomicUsize::new(0) }; MAX_SAMPLES];
static TAKEN: AtomicUsize = AtomicUsize::new(0);
static BUSY: AtomicBool = AtomicBool::new(false);

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProfileError {
    /// One timer, one profile.
    #[error("cpu profiling already in use")]
    Busy,
    /// The kernel refused.
    #[error("cannot start the profiling timer: {0}")]
    Timer(std::io::Error),
    /// Compression.
    #[error("cannot write the profile: {0}")]
    Write(std::io::Error),
}

/// Samples for `length`, then gives the gzipped profile. Stops at once when dropped.
pub(super) async fn record(length: Duration) -> Result<Vec<u8>, ProfileError> {
    if BUSY.swap(true, Ordering::SeqCst) {
        return Err(ProfileError::Busy);
    }
    let recording = Recording;
    TAKEN.store(0, Ordering::SeqCst);
    listen()?;
    let started = SystemTime::now();
    set_timer(PERIOD)?;
    tokio::time::sleep(length).await;
    let _ = set_timer(Duration::ZERO);
    let taken = TAKEN.load(Ordering::SeqCst).min(MAX_SAMPLES);
    let samples = SAMPLES[..taken].iter().map(|s| s.load(Ordering::Relaxed));
    let profile = profile(samples, &mappings(), started, length);
    drop(recording);
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(&profile.encode_to_vec())
        .map_err(ProfileError::Write)?;
    out.finish().map_err(ProfileError::Write)
}

/// A running timer; ends with it.
struct Recording;

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = set_timer(Duration::ZERO);
        BUSY.store(false, Ordering::SeqCst);
    }
}

/// Installs the handler for good: a late signal without one would end the process.
#[allow(unsafe_code, reason = "a signal handler can only be installed so")]
fn listen() -> Result<(), ProfileError> {
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_RESTART | SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::SigAction(sample), flags, SigSet::empty());
    // SAFETY: the handler only reads the interrupted context and writes atomics, which is
    // async-signal-safe; nothing else in this process handles SIGPROF.
    unsafe { sigaction(Signal::SIGPROF, &action) }
        .map(|_| ())
        .map_err(|e| ProfileError::Timer(e.into()))
}

/// Starts the CPU timer of the process; zero stops it.
#[allow(unsafe_code, reason = "nix has no setitimer")]
fn set_timer(period: Duration) -> Result<(), ProfileError> {
    let micros = libc::suseconds_t::from(period.subsec_micros());
    let every = libc::timeval {
        tv_sec: 0,
        tv_usec: micros,
    };
    let timer = libc::itimerval {
        it_interval: every,
        it_value: every,
    };
    // SAFETY: `timer` outlives the call, and a null old value is allowed.
    match unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(ProfileError::Timer(std::io::Error::last_os_error())),
    }
}

#[allow(
    unsafe_code,
    reason = "the interrupted address is in the kernel's context"
)]
extern "C" fn sample(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid ucontext_t as the third argument.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    #[cfg(target_arch = "x86_64")]
    let address = context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize;
    #[cfg(target_arch = "aarch64")]
    let address = context.uc_mcontext.pc as usize;
    if let Some(slot) = SAMPLES.get(TAKEN.fetch_add(1, Ordering::Relaxed)) {
        slot.store(address, Ordering::Relaxed);
    }
}

/// Executable ranges of `/proc/self/maps`.
fn mappings() -> Vec<(u64, u64, u64, String)> {
    let text = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    text.lines().filter_map(mapping).collect()
}

/// Start, end, file offset, file.
fn mapping(line: &str) -> Option<(u64, u64, u64, String)> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let executable = fields.next()?.contains('x');
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let offset = hex(fields.next()?)?;
    let file = fields.nth(2).unwrap_or_default().to_owned();
    executable.then_some((hex(start)?, hex(end)?, offset, file))
}

fn profile(
    samples: impl Iterator<Item = usize>,
    mappings: &[(u64, u64, u64, String)],
    started: SystemTime,
    length: Duration,
) -> Profile {
    let mut counts: BTreeMap<u64, i64> = BTreeMap::new();
    for address in samples {
        *counts.entry(address as u64).or_default() += 1;
    }
    // The first string must be empty.
    let mut strings: Vec<String> = ["", "samples", "count", "cpu", "nanoseconds"]
        .map(str::to_owned)
        .into();
    let period = i64::try_from(PERIOD.as_nanos()).unwrap_or(i64::MAX);
    let mut out = Profile {
        sample_type: vec![
            ValueType { kind: 1, unit: 2 },
            ValueType { kind: 3, unit: 4 },
        ],
        period_type: Some(ValueType { kind: 3, unit: 4 }),
        period,
        time_nanos: started
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|d| i64::try_from(d.as_nanos()).ok())
            .unwrap_or_default(),
        duration_nanos: i64::try_from(length.as_nanos()).unwrap_or(i64::MAX),
        ..Profile::default()
    };
    for (id, (start, limit, offset, file)) in (1..).zip(mappings) {
        out.mapping.push(Mapping {
            id,
            start: *start,
            limit: *limit,
            offset: *offset,
            filename: i64::try_from(strings.len()).unwrap_or_default(),
        });
        strings.push(file.clone());
    }
    for (id, (address, count)) in (1..).zip(counts) {
        let within = |m: &&Mapping| (m.start..m.limit).contains(&address);
        out.location.push(Location {
            id,
            mapping_id: out.mapping.iter().find(within).map_or(0, |m| m.id),
            address,
        });
        out.sample.push(Sample {
            location_id: vec![id],
            value: vec![count, count.saturating_mul(period)],
        });
    }
    out.string_table = strings;
    out
}

/// `perftools.profiles.Profile`, as far as it is filled in.
#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

/// Both are indexes of the string table.
#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    start: u64,
    #[prost(uint64, tag = "3")]
    limit: u64,
    #[prost(uint64, tag = "4")]
    offset: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use flate2::read::GzDecoder;

    use super::*;

    #[tokio::test]
    async fn a_busy_thread_is_seen_and_a_second_profile_refused() {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let busy = std::thread::spawn(move || {
            let mut n = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                n = std::hint::black_box(n.wrapping_mul(3) + 1);
            }
        });
        let first = record(Duration::from_millis(500));
        let second = async {
            tokio::task::yield_now().await;
            record(Duration::from_millis(1)).await
        };
        let (first, second) = tokio::join!(first, second);
        stop.store(true, Ordering::Relaxed);
        busy.join().expect("thread");
        assert!(matches!(second, Err(ProfileError::Busy)), "{second:?}");
        let mut bytes = Vec::new();
        let first = first.expect("profile");
        GzDecoder::new(&*first)
            .read_to_end(&mut bytes)
            .expect("gzip");
        let profile = Profile::decode(&*bytes).expect("profile");
        let total: i64 = profile.sample.iter().filter_map(|s| s.value.first()).sum();
        assert!(total > 0, "no sample");
        assert!(profile.location.iter().any(|l| l.mapping_id != 0));
        assert_eq!(profile.string_table[0], "");
        // The next one may start.
        record(Duration::from_millis(1)).await.expect("profile");
    }

    #[test]
    fn only_executable_ranges_count() {
        let line = "55d0-55e0 r-xp 00001000 08:01 42 /usr/local/bin/pilot-agent";
        let want = (
            0x55d0,
            0x55e0,
            0x1000,
            "/usr/local/bin/pilot-agent".to_owned(),
        );
        assert_eq!(mapping(line), Some(want));
        for line in ["", "x", "55d0-55e0 r--p 0 08:01 42 /x", "zz-1 r-xp 0 0 0"] {
            assert_eq!(mapping(line), None, "{line}");
        }
    }
}
