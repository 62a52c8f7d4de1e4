//! Lines and levels as tools and flags see them.

use std::time::{Duration, UNIX_EPOCH};

use tracing::subscriber::with_default;
use tracing_subscriber::layer::SubscriberExt as _;

use super::super::levels::{LevelError, Verbosity};
use super::*;

fn show(format: Format, scope: &str) -> String {
    show_with(format, scope, false, None)
}

fn show_with(format: Format, scope: &str, with_caller: bool, stack: Option<&str>) -> String {
    let others = vec![("a", "1".into()), ("n", 2.into()), ("ok", true.into())];
    let fields = Fields {
        message: "hello \"x\"".into(),
        others,
    };
    render(
        format,
        &Line {
            time: UNIX_EPOCH + Duration::new(1_795_232_820, 233_308_000),
            level: Level::WARN,
            scope,
            with_caller,
            stack: stack.map(str::to_owned),
            file: "a/src/x.rs",
            line: 7,
            fields: &fields,
        },
    )
}

#[test]
fn lines_have_the_forms_tools_parse() {
    let time = "2026-11-21T03:47:00.233308Z";
    let text = |scope| show(Format::Text, scope);
    assert_eq!(
        text("default"),
        format!("{time}\twarn\thello \"x\"\ta=1 n=2 ok=true\n")
    );
    assert_eq!(
        text("sds"),
        format!("{time}\twarn\tsds\thello \"x\"\ta=1 n=2 ok=true\n")
    );
    let json = |scope| show(Format::Json, scope);
    let tail = r#""msg":"hello \"x\"","a":"1","n":2,"ok":true}"#;
    assert_eq!(
        json("default"),
        format!("{{\"level\":\"warn\",\"time\":\"{time}\",{tail}\n")
    );
    let head = format!("{{\"level\":\"warn\",\"time\":\"{time}\",\"scope\":\"sds\",");
    assert_eq!(json("sds"), format!("{head}{tail}\n"));
}

#[test]
fn callers_and_stacks_stand_where_istio_puts_them() {
    let time = "2026-11-21T03:47:00.233308Z";
    let text = show_with(Format::Text, "sds", true, Some("0: a\n1: b\n"));
    let want = "warn\tsds\tsrc/x.rs:7\thello \"x\"\ta=1 n=2 ok=true\n0: a\n1: b\n";
    assert_eq!(text, format!("{time}\t{want}"));
    let json = show_with(Format::Json, "default", true, Some("0: a"));
    let want =
        r#""caller":"src/x.rs:7","msg":"hello \"x\"","stack":"0: a","a":"1","n":2,"ok":true}"#;
    assert_eq!(
        json,
        format!("{{\"level\":\"warn\",\"time\":\"{time}\",{want}\n")
    );
}

#[test]
fn every_target_gets_every_line_and_stacks_follow_their_level() {
    let folder = tempfile::tempdir().expect("folder");
    let open = |name: &str| {
        let mut options = File::options();
        options
            .append(true)
            .create(true)
            .open(folder.path().join(name))
            .expect("file")
    };
    let mut stacks = Levels::new(Verbosity::Off);
    stacks.apply("dns:warn").expect("levels");
    let layer = Lines {
        levels: Levels::new(Verbosity::Info),
        format: Format::Text,
        targets: vec![Target::File(open("a")), Target::File(open("b"))],
        details: Details {
            callers: ["dns".to_owned()].into(),
            stacks: Some(stacks),
        },
    };
    with_default(tracing_subscriber::registry().with(layer), || {
        tracing::info!(target: "dns", "quiet");
        tracing::warn!(target: "dns", "loud");
        tracing::warn!("plain");
    });
    let text = std::fs::read_to_string(folder.path().join("a")).expect("text");
    assert_eq!(
        text,
        std::fs::read_to_string(folder.path().join("b")).expect("text")
    );
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains("\tinfo\tdns\tlines/tests.rs:"), "{text}");
    assert!(
        lines[1].ends_with("\tloud") && lines[2].contains("0: "),
        "{text}"
    );
    assert!(text.ends_with("\twarn\tplain\n"), "{text}");
}

#[test]
fn levels_follow_the_flag() {
    let mut levels = Levels::new(Verbosity::Info);
    levels
        .apply("debug,sds:none,ca:fatal,nobody:info")
        .expect("valid");
    assert_eq!(levels.of("default"), Verbosity::Debug);
    assert_eq!(
        (levels.of("sds"), levels.of("ca")),
        (Verbosity::Off, Verbosity::Off)
    );
    assert_eq!(levels.of("ads"), Verbosity::Info);
    levels.apply("all:error,dns:debug").expect("valid");
    assert_eq!(
        (levels.of("default"), levels.of("dns")),
        (Verbosity::Error, Verbosity::Debug)
    );
    let wrong = levels.apply("dns:none,sds:loud");
    assert_eq!(wrong, Err(LevelError("loud".into())));
    assert_eq!(
        levels.of("dns"),
        Verbosity::Debug,
        "nothing changes on error"
    );
    levels.set("nobody", Verbosity::Off);
    assert_eq!(levels.of("nobody"), Verbosity::Error);
}

#[test]
fn events_pass_by_the_level_of_their_scope_and_libraries_below_grpc_have_its_own() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("log");
    let mut levels = Levels::new(Verbosity::Info);
    levels.apply("dns:debug,grpc:error").expect("valid");
    let layer = Lines {
        levels,
        format: Format::Text,
        targets: vec![Target::File(File::create(&path).expect("file"))],
        details: Details::default(),
    };
    with_default(tracing_subscriber::registry().with(layer), || {
        tracing::info!("1");
        tracing::debug!("2");
        tracing::debug!(target: "dns", "3");
        tracing::warn!(target: "h2::codec", "4");
        tracing::error!(target: "h2::codec", "5");
    });
    let text = std::fs::read_to_string(&path).expect("text");
    let lines: Vec<_> = text.lines().filter_map(|l| l.split_once('\t')).collect();
    let lines: Vec<_> = lines.iter().map(|(_, rest)| *rest).collect();
    assert_eq!(lines, ["info\t1", "debug\tdns\t3", "error\tgrpc\t5"]);
}
