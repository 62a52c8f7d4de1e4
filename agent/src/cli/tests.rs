//! Command lines as injection templates and users write them.

use super::*;

fn parsed(line: &str) -> Result<Invocation, CliError> {
    parse(line.split_whitespace().map(OsString::from))
}

fn proxy_args(line: &str) -> (ProxyArgs, LogArgs) {
    match parsed(line).expect("accepted") {
        Invocation {
            command: Command::Proxy(args),
            log,
            ..
        } => (args, log),
        other => panic!("{other:?}"),
    }
}

#[test]
fn injected_proxy_arguments_are_understood_in_both_spellings() {
    let joined = "proxy sidecar --domain ns.svc.cluster.local --proxyLogLevel=warning \
                  --proxyComponentLogLevel=misc:error --log_output_level=default:info";
    let spaced = "proxy sidecar --domain=ns.svc.cluster.local --proxyLogLevel warning \
                  --proxyComponentLogLevel misc:error --log_output_level default:info";
    assert_eq!(proxy_args(joined), proxy_args(spaced));
    let (args, log) = proxy_args(joined);
    assert_eq!(args.kind, "sidecar");
    assert_eq!(args.domain, "ns.svc.cluster.local");
    assert_eq!(args.proxy_component_log_level, "misc:error");
    assert_eq!(log.output_level, "default:info");
    assert!(!log.as_json);
}

#[test]
fn proxy_and_root_accept_unknown_flags_and_their_values() {
    let (args, log) = proxy_args("proxy --old thing router --new=x --flag --log_as_json");
    assert_eq!(args.kind, "router");
    assert!(log.as_json);
    assert_eq!(
        parsed("--nothing").expect("root").command,
        Command::Help(help::text(None))
    );
    let (args, log) = proxy_args("--log_output_level debug proxy waypoint");
    assert_eq!(
        (args.kind.as_str(), log.output_level.as_str()),
        ("waypoint", "debug")
    );
    assert_eq!(proxy_args("proxy").0.kind, "sidecar");
}

#[test]
fn wrong_command_lines_are_refused_in_known_words() {
    for (line, message) in [
        ("proxy sidekick", "invalid proxy Type: sidekick"),
        ("nope", "unknown command \"nope\" for \"pilot-agent\""),
        ("wait --bogus", "unknown flag: --bogus"),
        ("request GET stats --bogus=1", "unknown flag: --bogus"),
        ("version --bogus", "unknown flag: --bogus"),
        ("wait --url", "flag needs an argument: --url"),
        (
            "wait --periodMillis x",
            "invalid argument \"x\" for \"--periodMillis\" flag",
        ),
        (
            "proxy --concurrency=-x",
            "invalid argument \"-x\" for \"--concurrency\" flag",
        ),
        (
            "proxy --log_as_json=maybe",
            "invalid argument \"maybe\" for \"--log_as_json\" flag",
        ),
        ("request GET", "request needs <method> <path> [<body>]"),
        (
            "request --debug-port 80 GET x",
            "debug port 80 is not in allowed list [15000 15004 15020 15021]",
        ),
        ("version -o xml", "--output must be 'yaml' or 'json'"),
        (
            "completion tcsh",
            "completion needs one of bash, fish, powershell, zsh",
        ),
        (
            "completion",
            "completion needs one of bash, fish, powershell, zsh",
        ),
        (
            "collateral",
            "this build is not compiled with collateral support",
        ),
    ] {
        assert_eq!(parsed(line).expect_err(line).to_string(), message, "{line}");
    }
}

#[test]
fn request_takes_flags_anywhere() {
    let invocation = parsed("request --debug-port=15020 POST drain").expect("accepted");
    let Command::Request(args) = invocation.command else {
        panic!("not a request")
    };
    assert_eq!(
        (args.port, args.method.as_str(), args.path.as_str()),
        (15020, "POST", "drain")
    );
    let Command::Request(args) = parsed("request POST logging?level=debug")
        .expect("ok")
        .command
    else {
        panic!("not a request")
    };
    assert_eq!((args.port, args.body.as_str()), (15000, ""));
}

#[test]
fn version_formats() {
    for (line, format) in [
        ("version", VersionFormat::Text),
        ("version -s", VersionFormat::Short),
        ("version --short=true", VersionFormat::Short),
        ("version -o json", VersionFormat::Json),
        ("version --output=yaml", VersionFormat::Yaml),
    ] {
        assert_eq!(parsed(line).expect(line).command, Command::Version(format));
    }
}

#[test]
fn iptables_arguments_pass_through() {
    let line = "istio-iptables -p 15001 -i * --log_output_level=default:debug";
    let Command::IstioIptables(args) = parsed(line).expect("accepted").command else {
        panic!("not iptables")
    };
    assert_eq!(
        args,
        line.split_whitespace()
            .map(OsString::from)
            .collect::<Vec<_>>()
    );
    let Command::IstioIptables(args) = parsed(LEGACY_CLEAN).expect("alias").command else {
        panic!("not iptables")
    };
    assert_eq!(
        args,
        [
            OsString::from("istio-iptables"),
            OsString::from("--cleanup-only")
        ]
    );
}

#[test]
fn completion_scripts_know_every_command_and_flag() {
    for (name, shell) in completion::SHELLS {
        let line = format!("completion {name}");
        assert_eq!(
            parsed(&line).expect("accepted").command,
            Command::Completion(shell)
        );
        let script = String::from_utf8(completion_script(shell)).expect("text");
        for word in [
            "pilot-agent",
            "request",
            "istio-iptables",
            "debug-port",
            "log_as_json",
        ] {
            assert!(script.contains(word), "{name}: {word}");
        }
    }
}

#[test]
fn help_names_the_flags_with_their_defaults() {
    for line in ["help proxy", "proxy --help", "proxy -h"] {
        let Command::Help(text) = parsed(line).expect(line).command else {
            panic!("{line}")
        };
        assert!(text.starts_with("Run and supervise the proxy.\n\nUsage: pilot-agent proxy ["));
        let flag = "--proxyLogLevel            level of the proxy, maybe with ,component:level \
                    (default warning)";
        assert!(text.contains(flag), "{text}");
        assert!(text.contains("--log_as_json"), "{text}");
    }
    let Command::Help(text) = parsed("").expect("root").command else {
        panic!("no help")
    };
    for (command, ..) in COMMANDS {
        assert!(text.contains(&format!("\n  {command} ")), "{command}");
    }
    assert!(text.ends_with("126 the redirect rules do not work."));
}
