//! What a run of events prints under given options.

use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Level, LogError, LogHandle, LogOptions, SCOPES, subscriber};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Lines that `events` prints, without the time of text lines.
fn lines(options: &LogOptions, events: impl FnOnce(&LogHandle)) -> Vec<String> {
    let sink = Sink::default();
    let (subscriber, handle) = subscriber(options, Box::new(sink.clone())).expect("valid options");
    tracing::subscriber::with_default(subscriber, || events(&handle));
    let text = String::from_utf8(sink.0.lock().clone()).expect("UTF-8 lines");
    text.lines().map(str::to_owned).collect()
}

fn without_time(line: &str) -> &str {
    let (time, rest) = line.split_once('\t').expect("a time column");
    assert_eq!(
        (time.len(), time.ends_with('Z')),
        ("2026-11-21T04:20:28.036238Z".len(), true),
        "{line}"
    );
    rest
}

#[test]
fn text_lines_have_the_columns_of_the_reference() {
    let lines = lines(&LogOptions::default(), |_| {
        tracing::info!("plain");
        tracing::warn!(target: "xdsproxy", "broken");
        tracing::error!(target: "sds", resource = "default", attempt = 2, ok = false, "no {}", "luck");
    });
    let lines: Vec<_> = lines.iter().map(|l| without_time(l)).collect();
    assert_eq!(
        lines,
        [
            "info\tplain",
            "warn\txdsproxy\tbroken",
            "error\tsds\tno luck\tresource=default attempt=2 ok=false"
        ]
    );
}

#[test]
fn json_lines_have_the_keys_of_the_reference_in_their_order() {
    let options = LogOptions {
        as_json: true,
        ..LogOptions::default()
    };
    let lines = lines(&options, |_| {
        tracing::info!("a \"quoted\"\nline");
        tracing::error!(target: "dns", host = "a.b", count = 3_u64, "failed");
    });
    let (head, tail) = lines[0].split_once(",\"msg\"").expect("a message");
    assert!(
        head.starts_with("{\"level\":\"info\",\"time\":\"") && head.ends_with("Z\""),
        "{head}"
    );
    assert_eq!(tail, ":\"a \\\"quoted\\\"\\nline\"}");
    let tail = lines[1].split_once("Z\",").expect("a time").1;
    assert_eq!(
        tail,
        "\"scope\":\"dns\",\"msg\":\"failed\",\"host\":\"a.b\",\"count\":3}"
    );
}

#[test]
fn levels_filter_per_scope_and_change_at_run_time() {
    let options = LogOptions {
        output_level: "warn,dns:debug,nosuch:debug".into(),
        ..LogOptions::default()
    };
    let lines = lines(&options, |handle| {
        let all = || {
            tracing::info!("default info");
            tracing::debug!(target: "dns", "dns debug");
            tracing::trace!(target: "dns", "never");
            tracing::info!(target: "sds", "sds info");
        };
        all();
        handle
            .set_output_level("dns:none,default:info")
            .expect("valid");
        all();
        handle
            .set_output_level("sds:debug,all:fatal,dns:debug")
            .expect("valid");
        all();
        tracing::error!("default error");
    });
    let lines: Vec<_> = lines.iter().map(|l| without_time(l)).collect();
    assert_eq!(
        lines,
        [
            "debug\tdns\tdns debug",
            "info\tsds\tsds info",
            "info\tdefault info",
            "info\tsds\tsds info"
        ]
    );
}

#[test]
fn modules_log_to_their_scope_and_grpc_is_silent_by_default() {
    let options = LogOptions {
        modules: &[("a", "sds"), ("a::b", "dns"), ("h2", "grpc")],
        ..LogOptions::default()
    };
    let lines = lines(&options, |_| {
        tracing::info!(target: "a::c", "1");
        tracing::info!(target: "a::b::c", "2");
        tracing::info!(target: "ab", "3");
        tracing::error!(target: "h2::codec", "4");
    });
    let lines: Vec<_> = lines.iter().map(|l| without_time(l)).collect();
    assert_eq!(lines, ["info\tsds\t1", "info\tdns\t2", "info\t3"]);
}

#[test]
fn caller_and_stack_are_printed_for_the_scopes_that_ask() {
    let options = LogOptions {
        caller: "sds,nosuch".into(),
        stacktrace_level: "dns:error".into(),
        ..LogOptions::default()
    };
    let lines = lines(&options, |_| {
        tracing::info!(target: "sds", "here");
        tracing::info!(target: "dns", "no stack");
        tracing::error!(target: "dns", "stack");
    });
    let first = without_time(&lines[0]);
    assert!(
        first.starts_with("info\tsds\tlog/tests.rs:") && first.ends_with("\there"),
        "{first}"
    );
    assert_eq!(without_time(&lines[1]), "info\tdns\tno stack");
    assert_eq!(without_time(&lines[2]), "error\tdns\tstack");
    assert!(lines.len() > 4, "the stack follows");
}

#[test]
fn wrong_levels_are_refused_and_change_nothing() {
    let (_subscriber, handle) =
        subscriber(&LogOptions::default(), Box::new(Sink::default())).expect("valid options");
    assert!(
        matches!(handle.set_output_level("dns:debug,loud"), Err(LogError::Level(l)) if l == "loud")
    );
    assert!(matches!(
        handle.set_output_level("a:b:c"),
        Err(LogError::Format(_))
    ));
    assert!(matches!(
        handle.set_output_level(""),
        Err(LogError::Level(_))
    ));
    let levels: Vec<_> = handle.levels().collect();
    assert_eq!(levels.len(), SCOPES.len());
    assert!(levels.contains(&("dns", Level::Info)) && levels.contains(&("grpc", Level::None)));
}

#[test]
fn a_target_file_is_appended_to() {
    let path = std::env::temp_dir().join(format!("outrigger-base-log-{}", std::process::id()));
    std::fs::write(&path, "before\n").expect("a writable folder");
    let output = super::Output::open(path.to_str().expect("UTF-8")).expect("opens");
    output.write(b"line\n");
    assert_eq!(
        std::fs::read_to_string(&path).expect("readable"),
        "before\nline\n"
    );
    std::fs::remove_file(&path).expect("removable");
    let missing = path.join("nosuch");
    let error = super::Output::open(missing.to_str().expect("UTF-8"))
        .err()
        .expect("no such folder");
    assert!(
        error.to_string().starts_with("cannot open log target "),
        "{error}"
    );
}
