//! Help, made from the same flag tables that the parser uses.

use std::fmt::Write as _;

use super::flags::Flag;
use super::{COMMANDS, LOG_FLAGS};

const EXIT_CODES: &str = "\
Exit codes: 0 success, 255 reported error, 1 the proxy died, the redirect rules or a check failed,
126 the redirect rules do not work.";

/// Help of one command, or of all for a name that is none.
pub(super) fn text(command: Option<&str>) -> String {
    let found = COMMANDS.iter().find(|(name, ..)| Some(*name) == command);
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = match found {
        Some((name, about, flags)) => {
            let arguments = arguments(name);
            writeln!(
                out,
                "{about}.\n\nUsage: pilot-agent {name}{arguments} [flags]"
            )
            .map(|()| list(&mut out, "Flags", flags))
        }
        None => writeln!(
            out,
            "Supervises the proxy of an Istio sidecar, gateway or waypoint.\n\n\
             Usage: pilot-agent <command> [flags]\n\nCommands:"
        )
        .map(|()| {
            for (name, about, _) in COMMANDS {
                let _ = writeln!(out, "  {name:<16} {about}");
            }
        }),
    };
    list(&mut out, "Flags of all commands", LOG_FLAGS);
    if found.is_none() {
        let _ = write!(out, "\n{EXIT_CODES}\n");
    }
    out.trim_end().to_owned()
}

fn arguments(command: &str) -> &'static str {
    match command {
        "proxy" => " [sidecar|router|waypoint|ztunnel|agentgateway]",
        "request" => " <method> <path> [<body>]",
        "completion" => " bash|fish|powershell|zsh",
        "help" => " [command]",
        _ => "",
    }
}

fn list(out: &mut String, title: &str, flags: &[Flag]) {
    if flags.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}:");
    for flag in flags.iter().filter(|flag| !flag.help.is_empty()) {
        let letter = flag.letter.map_or(String::new(), |l| format!("-{l}, "));
        let name = format!("{letter}--{}", flag.name);
        let default = flag.default_text();
        let default = match default.as_str() {
            "" | "false" => String::new(),
            text => format!(" (default {text})"),
        };
        let _ = writeln!(out, "  {name:<26} {}{default}", flag.help);
    }
}
