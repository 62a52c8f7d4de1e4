//! `/help` and the home page: the table of commands.

use super::server::{HTML, Response};

/// One admin command.
#[derive(Debug)]
pub struct Command {
    /// Path.
    pub path: &'static str,
    /// Needs POST.
    pub mutates: bool,
    /// What it does.
    pub help: &'static str,
    /// Query parameters and what they mean.
    pub parameters: &'static [(&'static str, &'static str)],
}

/// Every command, sorted by path.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "/",
        mutates: false,
        help: "Admin home page",
        parameters: &[],
    },
    Command {
        path: "/allocprofiler",
        mutates: true,
        help: "enable/disable the allocation profiler (if supported)",
        parameters: &[(
            "enable",
            "enable/disable the allocation profiler; One of (y, n)",
        )],
    },
    Command {
        path: "/certs",
        mutates: false,
        help: "print certs on machine",
        parameters: &[],
    },
    Command {
        path: "/clusters",
        mutates: false,
        help: "upstream cluster status",
        parameters: &[("filter", "RE2 regular expression for names")],
    },
    Command {
        path: "/config_dump",
        mutates: false,
        help: "dump current Envoy configs",
        parameters: &[
            ("resource", "repeated field to dump"),
            (
                "mask",
                "field mask, applied to each section or, with resource, to each element",
            ),
            ("name_regex", "only configurations whose name matches"),
            ("include_eds", "with endpoints"),
        ],
    },
    Command {
        path: "/contention",
        mutates: false,
        help: "dump current Envoy mutex contention stats (if enabled)",
        parameters: &[],
    },
    Command {
        path: "/cpuprofiler",
        mutates: true,
        help: "enable/disable the CPU profiler",
        parameters: &[("enable", "enables the CPU profiler; One of (y, n)")],
    },
    Command {
        path: "/drain_listeners",
        mutates: true,
        help: "drain listeners",
        parameters: &[
            ("graceful", "keep accepting for the drain time, then stop"),
            ("skip_exit", "drain connections, never stop the listeners"),
            (
                "inboundonly",
                "only listeners with traffic_direction INBOUND",
            ),
        ],
    },
    Command {
        path: "/healthcheck/fail",
        mutates: true,
        help: "cause the server to fail health checks",
        parameters: &[],
    },
    Command {
        path: "/healthcheck/ok",
        mutates: true,
        help: "cause the server to pass health checks",
        parameters: &[],
    },
    Command {
        path: "/heap_dump",
        mutates: false,
        help: "dump current Envoy heap (if supported)",
        parameters: &[],
    },
    Command {
        path: "/heapprofiler",
        mutates: true,
        help: "enable/disable the heap profiler",
        parameters: &[("enable", "enable/disable the heap profiler; One of (y, n)")],
    },
    Command {
        path: "/help",
        mutates: false,
        help: "print out list of admin commands",
        parameters: &[],
    },
    Command {
        path: "/hot_restart_version",
        mutates: false,
        help: "print the hot restart compatibility version",
        parameters: &[],
    },
    Command {
        path: "/init_dump",
        mutates: false,
        help: "dump current Envoy init manager information (experimental)",
        parameters: &[(
            "mask",
            "field mask, applied to each section or, with resource, to each element",
        )],
    },
    Command {
        path: "/listeners",
        mutates: false,
        help: "print listener info",
        parameters: &[("format", "File format to use; One of (text, json)")],
    },
    Command {
        path: "/logging",
        mutates: true,
        help: "query/change logging levels",
        parameters: &[
            ("paths", "<logger>:<level>,<logger>:<level>"),
            ("group", "<logger>:<level>"),
            (
                "level",
                "level of every logger; One of (, trace, debug, info, warning, error, critical, off)",
            ),
        ],
    },
    Command {
        path: "/memory",
        mutates: false,
        help: "print current allocation/heap usage",
        parameters: &[],
    },
    Command {
        path: "/memory/tcmalloc",
        mutates: false,
        help: "print TCMalloc stats",
        parameters: &[],
    },
    Command {
        path: "/outrigger/ignored",
        mutates: false,
        help: "configuration that was accepted and is not acted upon, with the reason",
        parameters: &[],
    },
    Command {
        path: "/peak_heap_dump",
        mutates: false,
        help: "dump peak Envoy heap (if supported)",
        parameters: &[],
    },
    Command {
        path: "/quitquitquit",
        mutates: true,
        help: "exit the server",
        parameters: &[],
    },
    Command {
        path: "/ready",
        mutates: false,
        help: "print server state, return 200 if LIVE, otherwise return 503",
        parameters: &[],
    },
    Command {
        path: "/reopen_logs",
        mutates: true,
        help: "reopen access logs",
        parameters: &[],
    },
    Command {
        path: "/reset_counters",
        mutates: true,
        help: "reset all counters to zero",
        parameters: &[],
    },
    Command {
        path: "/runtime",
        mutates: false,
        help: "print runtime values",
        parameters: &[],
    },
    Command {
        path: "/runtime_modify",
        mutates: true,
        help: "add or change runtime values given as query parameters; an empty value removes the override",
        parameters: &[],
    },
    Command {
        path: "/server_info",
        mutates: false,
        help: "print server version/status information",
        parameters: &[],
    },
    Command {
        path: "/stats",
        mutates: false,
        help: "print server stats",
        parameters: &[
            (
                "usedonly",
                "Only include stats that have been written by system since restart",
            ),
            ("filter", "RE2 regular expression for names"),
            ("invert_filter", "Invert the filter regex"),
            (
                "format",
                "Format to use; One of (html, active-html, text, json)",
            ),
            (
                "type",
                "Stat types to include.; One of (All, Counters, Histograms, Gauges, TextReadouts)",
            ),
            (
                "histogram_buckets",
                "Histogram bucket display mode; One of (cumulative, disjoint, detailed, summary)",
            ),
        ],
    },
    Command {
        path: "/stats/prometheus",
        mutates: false,
        help: "print server stats in prometheus format",
        parameters: &[
            (
                "usedonly",
                "Only include stats that have been written by system since restart",
            ),
            ("text_readouts", "print text readouts as gauges"),
            ("filter", "RE2 regular expression for names"),
            ("invert_filter", "Invert the filter regex"),
            (
                "histogram_buckets",
                "Histogram bucket display mode; One of (cumulative, summary)",
            ),
        ],
    },
    Command {
        path: "/stats/recentlookups",
        mutates: false,
        help: "Show recent stat-name lookups",
        parameters: &[],
    },
    Command {
        path: "/stats/recentlookups/clear",
        mutates: true,
        help: "clear list of stat-name lookups and counter",
        parameters: &[],
    },
    Command {
        path: "/stats/recentlookups/disable",
        mutates: true,
        help: "disable recording of reset stat-name lookup names",
        parameters: &[],
    },
    Command {
        path: "/stats/recentlookups/enable",
        mutates: true,
        help: "enable recording of reset stat-name lookup names",
        parameters: &[],
    },
];

/// The help page.
#[must_use]
pub fn text() -> String {
    let mut out = "admin commands are:\n".to_owned();
    for command in COMMANDS {
        let post = if command.mutates { " (POST)" } else { "" };
        out.push_str(&format!("  {}{post}: {}\n", command.path, command.help));
        for (name, help) in command.parameters {
            out.push_str(&format!("      {name}: {help}\n"));
        }
    }
    out
}

/// The home page: links for what reads, buttons for what changes.
#[must_use]
pub fn home() -> Response {
    let mut rows = String::new();
    for command in COMMANDS {
        let path = command.path;
        let action = if command.mutates {
            format!("<form action=\"{path}\" method=\"post\"><button>{path}</button></form>")
        } else {
            format!("<a href=\"{path}\">{path}</a>")
        };
        let help = command.help.replace('<', "&lt;");
        rows.push_str(&format!("<tr><td>{action}</td><td>{help}</td></tr>\n"));
    }
    let body = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><title>Envoy Admin</title></head><body>\n\
         <table><thead><tr><th>Command</th><th>Description</th></tr></thead><tbody>\n{rows}</tbody></table>\n</body></html>\n"
    );
    Response {
        content_type: HTML,
        ..Response::text(body)
    }
}
