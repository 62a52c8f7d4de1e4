//! Lines and levels as tools and flags see them.

use std::time::{Duration, UNIX_EPOCH};

use tracing::subscriber::with_default;

use super::*;

fn show(format: &Format, scope: &str) -> String {
    show_with(format, scope, false, None)
}

fn show_with(format: &Format, scope: &str, with_caller: bool, stack: Option<&str>) -> String {
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
    let text = |scope| show(&Format::IstioText, scope);
    assert_eq!(
        text("default"),
        format!("{time}\twarn\thello \"x\"\ta=1 n=2 ok=true\n")
    );
    assert_eq!(
        text("sds"),
        format!("{time}\twarn\tsds\thello \"x\"\ta=1 n=2 ok=true\n")
    );
    let json = |scope| show(&Format::IstioJson, scope);
    let tail = r#""msg":"hello \"x\"","a":"1","n":2,"ok":true}"#;
    assert_eq!(
        json("default"),
        format!("{{\"level\":\"warn\",\"time\":\"{time}\",{tail}\n")
    );
    let head = format!("{{\"level\":\"warn\",\"time\":\"{time}\",\"scope\":\"sds\",");
    assert_eq!(json("sds"), format!("{head}{tail}\n"));
    let pattern = "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v".to_owned();
    assert_eq!(
        show(&Format::EnvoyText(pattern), "main"),
        format!("{time}\twarning\tenvoy main a/src/x.rs:7\thello \"x\" a=1 n=2 ok=true\n")
    );
    let keys = vec![
        ("scope".into(), "envoy %n".into()),
        ("msg".into(), "%j".into()),
    ];
    assert_eq!(
        show(&Format::EnvoyJson(keys), "main"),
        "{\"scope\":\"envoy main\",\"msg\":\"hello \\\"x\\\" a=1 n=2 ok=true\"}\n"
    );
}

#[test]
fn callers_and_stacks_stand_where_istio_puts_them() {
    let time = "2026-11-21T03:47:00.233308Z";
    let text = show_with(&Format::IstioText, "sds", true, Some("0: a\n1: b\n"));
    let want = "warn\tsds\tsrc/x.rs:7\thello \"x\"\ta=1 n=2 ok=true\n0: a\n1: b\n";
    assert_eq!(text, format!("{time}\t{want}"));
    let json = show_with(&Format::IstioJson, "default", true, Some("0: a"));
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
    let stacks = Levels::new(Verbosity::Off, AGENT_SCOPES);
    stacks.apply_istio("dns:warn").expect("levels");
    let layer = LineLayer {
        levels: Levels::new(Verbosity::Info, AGENT_SCOPES),
        format: Arc::new(RwLock::new(Format::IstioText)),
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
    assert!(lines[0].contains("\tinfo\tdns\tlog/tests.rs:"), "{text}");
    assert!(
        lines[1].ends_with("\tloud") && lines[2].contains("0: "),
        "{text}"
    );
    assert!(text.ends_with("\twarn\tplain\n"), "{text}");
}

#[test]
fn levels_follow_the_flag() {
    let levels = Levels::new(Verbosity::Info, AGENT_SCOPES);
    levels
        .apply_istio("debug,sds:none,ca:fatal,nobody:info")
        .expect("valid");
    assert_eq!(levels.of("default"), Verbosity::Debug);
    assert_eq!(
        (levels.of("sds"), levels.of("ca")),
        (Verbosity::Off, Verbosity::Off)
    );
    assert_eq!(levels.of("ads"), Verbosity::Info);
    levels.apply_istio("all:error,dns:debug").expect("valid");
    assert_eq!(
        (levels.of("default"), levels.of("dns")),
        (Verbosity::Error, Verbosity::Debug)
    );
    let wrong = levels.apply_istio("dns:none,sds:loud");
    assert_eq!(wrong, Err(LevelError::UnknownLevel("loud".into())));
    assert_eq!(
        levels.of("dns"),
        Verbosity::Debug,
        "nothing changes on error"
    );
    assert!(levels.set("nobody", Verbosity::Info).is_err());
}

/// Scopes of the events that pass, with their messages.
struct Seen(Levels, Arc<parking_lot::Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Seen {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        enabled(&self.0, metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let scope = scope(event.metadata(), &self.0);
        self.1.lock().push(format!("{scope} {}", fields.message));
    }
}

#[test]
fn events_pass_by_the_level_of_their_scope_also_after_a_change() {
    let levels = Levels::new(Verbosity::Info, AGENT_SCOPES);
    levels.set("grpc", Verbosity::Off).expect("known");
    let seen = Arc::default();
    let layer = Seen(levels.clone(), Arc::clone(&seen));
    with_default(tracing_subscriber::registry().with(layer), || {
        let events = || {
            tracing::info!("1");
            tracing::debug!(target: "dns", "2");
            tracing::error!(target: "h2::codec", "3");
        };
        events();
        levels
            .apply_istio("none,dns:debug,grpc:error")
            .expect("valid");
        events();
    });
    assert_eq!(*seen.lock(), ["default 1", "dns 2", "grpc 3"]);
}
