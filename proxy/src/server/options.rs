//! Envoy's command line. Every flag of Envoy parses; those without a meaning here are kept for
//! `/server_info` only.

use std::path::PathBuf;
use std::time::Duration;

/// Why the command line was refused; printed before exit 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// No such flag.
    #[error("Couldn't find match for argument: {0}")]
    Unknown(String),
    /// A flag without its value.
    #[error("Missing a value for this argument! -- {0}")]
    MissingValue(String),
    /// A value of the wrong form.
    #[error("error: {flag} '{value}' {reason}")]
    Value {
        /// The flag.
        flag: String,
        /// What was given.
        value: String,
        /// What is expected.
        reason: &'static str,
    },
}

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Run.
    #[default]
    Serve,
    /// Check the configuration and exit.
    Validate,
    /// As validate, without touching the network.
    InitOnly,
}

/// What the process was asked to do besides serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// Serve or validate.
    #[default]
    Run,
    /// `--version`.
    Version,
    /// `--hot-restart-version`.
    HotRestartVersion,
    /// `--help`.
    Help,
}

/// The parsed command line.
#[derive(Debug, Clone)]
pub struct CommandLine {
    /// Program name, for `--version`.
    pub program: String,
    /// What to do.
    pub action: Action,
    /// `-c`, `--config-path`.
    pub config_path: Option<PathBuf>,
    /// `--config-yaml`, merged over the file.
    pub config_yaml: Option<String>,
    /// `--concurrency`; `None` = CPUs of the cgroup.
    pub concurrency: Option<u32>,
    /// `-l`, `--log-level`, default info.
    pub log_level: String,
    /// `--component-log-level`: logger and level.
    pub component_log_level: Vec<(String, String)>,
    /// `--log-format`.
    pub log_format: Option<String>,
    /// `--log-path`.
    pub log_path: Option<PathBuf>,
    /// `--drain-time-s`, default 600 s.
    pub drain_time: Duration,
    /// `--drain-strategy immediate`.
    pub drain_immediate: bool,
    /// `--file-flush-interval-msec`, default 10 s.
    pub file_flush_interval: Duration,
    /// `--file-flush-min-size-kb` in KiB, default 64.
    pub file_flush_min_size_kb: u64,
    /// `--local-address-ip-version v6`.
    pub local_address_v6: bool,
    /// `--mode`.
    pub mode: Mode,
    /// `--enable-core-dump`.
    pub enable_core_dump: bool,
    /// `--allow-unknown-static-fields` or `--allow-unknown-fields`.
    pub allow_unknown_static_fields: bool,
    /// `--reject-unknown-dynamic-fields`.
    pub reject_unknown_dynamic_fields: bool,
    /// `--admin-address-path`: where the bound admin address is written.
    pub admin_address_path: Option<PathBuf>,
    /// `--service-node`, over the bootstrap's `node.id` when that is empty.
    pub service_node: String,
    /// `--service-cluster`.
    pub service_cluster: String,
    /// `--service-zone`.
    pub service_zone: String,
    /// Flags and switches seen, without dashes, with their last value.
    pub seen: Vec<(&'static str, String)>,
}

impl Default for CommandLine {
    fn default() -> Self {
        Self {
            program: "envoy".to_owned(),
            action: Action::Run,
            config_path: None,
            config_yaml: None,
            concurrency: None,
            log_level: "info".to_owned(),
            component_log_level: Vec::new(),
            log_format: None,
            log_path: None,
            drain_time: Duration::from_secs(600),
            drain_immediate: false,
            file_flush_interval: Duration::from_secs(10),
            file_flush_min_size_kb: 64,
            local_address_v6: false,
            mode: Mode::Serve,
            enable_core_dump: false,
            allow_unknown_static_fields: false,
            reject_unknown_dynamic_fields: false,
            admin_address_path: None,
            service_node: String::new(),
            service_cluster: String::new(),
            service_zone: String::new(),
            seen: Vec::new(),
        }
    }
}

/// Flags with a value.
const VALUED: [&str; 28] = [
    "admin-address-path",
    "base-id",
    "base-id-path",
    "component-log-level",
    "concurrency",
    "config-path",
    "config-yaml",
    "disable-extensions",
    "drain-strategy",
    "drain-time-s",
    "file-flush-interval-msec",
    "file-flush-min-size-kb",
    "local-address-ip-version",
    "log-format",
    "log-level",
    "log-path",
    "mode",
    "parent-shutdown-time-s",
    "restart-epoch",
    "service-cluster",
    "service-node",
    "service-zone",
    "socket-mode",
    "socket-path",
    "stats-tag",
    "hot-restart-version-path",
    "max-stats",
    "max-obj-name-len",
];

/// Flags without a value.
const SWITCHES: [&str; 20] = [
    "allow-unknown-fields",
    "allow-unknown-static-fields",
    "bootstrap-version",
    "cpuset-threads",
    "disable-hot-restart",
    "enable-core-dump",
    "enable-fine-grain-logging",
    "enable-mutex-tracing",
    "help",
    "hot-restart-version",
    "ignore-unknown-dynamic-fields",
    "log-format-escaped",
    "log-stacktrace-single-entry",
    "reject-unknown-dynamic-fields",
    "skip-deprecated-logs",
    "skip-hot-restart-on-no-parent",
    "skip-hot-restart-parent-stats",
    "use-dynamic-base-id",
    "version",
    "use-fine-grain-logger",
];

/// Levels of `--log-level`; `warn` is another name of `warning`.
pub const LEVELS: [&str; 8] = [
    "trace", "debug", "info", "warning", "warn", "error", "critical", "off",
];

/// Loggers that `--component-log-level` and `/logging` know.
pub const LOGGERS: [&str; 75] = [
    "admin",
    "alternate_protocols_cache",
    "assert",
    "aws",
    "backtrace",
    "basic_auth",
    "cache_filter",
    "client",
    "compression",
    "config",
    "conn_handler",
    "connection",
    "credential_injector",
    "decompression",
    "dns",
    "dynamic_forward_proxy",
    "dynamic_modules",
    "ecds",
    "envoy_bug",
    "ext_authz",
    "ext_proc",
    "file",
    "file_system",
    "filter",
    "forward_proxy",
    "geolocation",
    "golang",
    "grpc",
    "happy_eyeballs",
    "hc",
    "health_checker",
    "http",
    "http1",
    "http2",
    "hystrix",
    "init",
    "io",
    "json_to_metadata",
    "jwt",
    "kafka",
    "key_value_store",
    "lb",
    "lua",
    "main",
    "matcher",
    "misc",
    "mongo",
    "multi_response",
    "oauth2",
    "overload",
    "pool",
    "quic",
    "quic_stream",
    "rate_limit_quota",
    "rbac",
    "rds",
    "redis",
    "reverse_tunnel",
    "rocketmq",
    "router",
    "runtime",
    "secret",
    "stateful_session",
    "stats",
    "stats_sinks",
    "tap",
    "testing",
    "tcp",
    "thrift",
    "tls",
    "tracing",
    "udp",
    "upstream",
    "wasm",
    "websocket",
];

impl CommandLine {
    /// Parses arguments, the program name first.
    ///
    /// # Errors
    /// [`OptionsError`].
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, OptionsError> {
        let mut arguments = arguments.into_iter();
        let mut options = Self::default();
        if let Some(program) = arguments.next() {
            options.program = program;
        }
        while let Some(argument) = arguments.next() {
            let (flag, inline) = split(&argument)?;
            if let Some(name) = SWITCHES.iter().find(|s| **s == flag && inline.is_none()) {
                options.switch(name);
                options.seen.push((name, String::new()));
                continue;
            }
            let Some(name) = VALUED.iter().find(|v| **v == flag) else {
                return Err(OptionsError::Unknown(argument));
            };
            let value = inline
                .or_else(|| arguments.next())
                .ok_or_else(|| OptionsError::MissingValue(argument.clone()))?;
            options.value(name, &value)?;
            options.seen.push((name, value));
        }
        Ok(options)
    }

    fn switch(&mut self, name: &str) {
        match name {
            "version" => self.action = Action::Version,
            "hot-restart-version" => self.action = Action::HotRestartVersion,
            "help" => self.action = Action::Help,
            "enable-core-dump" => self.enable_core_dump = true,
            "allow-unknown-static-fields" | "allow-unknown-fields" => {
                self.allow_unknown_static_fields = true;
            }
            "reject-unknown-dynamic-fields" => self.reject_unknown_dynamic_fields = true,
            _ => {}
        }
    }

    fn value(&mut self, name: &'static str, value: &str) -> Result<(), OptionsError> {
        let wrong = |reason| OptionsError::Value {
            flag: format!("--{name}"),
            value: value.to_owned(),
            reason,
        };
        let number = || value.parse::<u64>().map_err(|_| wrong("is not a number"));
        match name {
            "config-path" => self.config_path = Some(value.into()),
            "config-yaml" => self.config_yaml = Some(value.to_owned()),
            "concurrency" => {
                let n = value.parse().map_err(|_| wrong("is not a number"))?;
                self.concurrency = Some(n);
            }
            "log-level" => value_of(&LEVELS, value, "is not a log level")
                .map_err(wrong)
                .map(|l| {
                    self.log_level = l;
                })?,
            "component-log-level" => self.component_log_level = components(value).map_err(wrong)?,
            "log-format" => self.log_format = Some(value.to_owned()),
            "log-path" => self.log_path = Some(value.into()),
            "drain-time-s" => self.drain_time = Duration::from_secs(number()?),
            "drain-strategy" => {
                let known = value_of(&["gradual", "immediate"], value, "is not a drain strategy");
                self.drain_immediate = known.map_err(wrong)? == "immediate";
            }
            "file-flush-interval-msec" => {
                self.file_flush_interval = Duration::from_millis(number()?);
            }
            "file-flush-min-size-kb" => self.file_flush_min_size_kb = number()?,
            "local-address-ip-version" => {
                let known = value_of(&["v4", "v6"], value, "is not v4 or v6").map_err(wrong)?;
                self.local_address_v6 = known == "v6";
            }
            "mode" => {
                self.mode = match value {
                    "serve" => Mode::Serve,
                    "validate" => Mode::Validate,
                    "init_only" => Mode::InitOnly,
                    _ => return Err(wrong("is not a mode")),
                };
            }
            "admin-address-path" => self.admin_address_path = Some(value.into()),
            "service-node" => value.clone_into(&mut self.service_node),
            "service-cluster" => value.clone_into(&mut self.service_cluster),
            "service-zone" => value.clone_into(&mut self.service_zone),
            "base-id" | "restart-epoch" | "parent-shutdown-time-s" => {
                number()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Text of `--help`.
    #[must_use]
    pub fn usage(&self) -> String {
        let mut text = format!("USAGE:\n\n   {} [flags]\n\nWhere:\n\n", self.program);
        for flag in VALUED {
            text.push_str(&format!("   --{flag} <value>\n"));
        }
        for flag in SWITCHES {
            text.push_str(&format!("   --{flag}\n"));
        }
        text
    }

    /// Whether a switch was given.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.seen.iter().any(|(n, _)| *n == name)
    }

    /// Last value of a flag, or what it means when it is absent.
    #[must_use]
    pub fn last<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.seen
            .iter()
            .rev()
            .find(|(n, _)| *n == name)
            .map_or(default, |(_, v)| v)
    }
}

/// Flag name without dashes and its `=value`.
fn split(argument: &str) -> Result<(&str, Option<String>), OptionsError> {
    if let Some(long) = argument.strip_prefix("--") {
        return Ok(long
            .split_once('=')
            .map_or((long, None), |(f, v)| (f, Some(v.to_owned()))));
    }
    match argument {
        "-c" => Ok(("config-path", None)),
        "-l" => Ok(("log-level", None)),
        "-h" => Ok(("help", None)),
        _ => Err(OptionsError::Unknown(argument.to_owned())),
    }
}

fn value_of(known: &[&str], value: &str, reason: &'static str) -> Result<String, &'static str> {
    if known.contains(&value) {
        Ok(value.to_owned())
    } else {
        Err(reason)
    }
}

fn components(value: &str) -> Result<Vec<(String, String)>, &'static str> {
    value
        .split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (logger, level) = part.split_once(':').ok_or("is not logger:level")?;
            value_of(&LOGGERS, logger, "names an unknown logger")?;
            value_of(&LEVELS, level, "names an unknown level")?;
            Ok((logger.to_owned(), level.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<CommandLine, OptionsError> {
        CommandLine::parse(
            std::iter::once("envoy")
                .chain(arguments.iter().copied())
                .map(String::from),
        )
    }

    #[test]
    fn the_command_line_of_pilot_agent_parses() {
        let options = parse(&[
            "-c",
            "etc/istio/proxy/envoy-rev.json",
            "--drain-time-s",
            "45",
            "--drain-strategy",
            "immediate",
            "--local-address-ip-version",
            "v4",
            "--file-flush-interval-msec",
            "1000",
            "--disable-hot-restart",
            "--allow-unknown-static-fields",
            "-l",
            "warning",
            "--component-log-level",
            "misc:error",
            "--skip-deprecated-logs",
            "--concurrency",
            "2",
        ])
        .expect("these are Envoy's flags");
        assert_eq!(options.drain_time, Duration::from_secs(45));
        assert!(options.drain_immediate && options.allow_unknown_static_fields);
        assert_eq!(options.file_flush_interval, Duration::from_secs(1));
        assert_eq!(options.concurrency, Some(2));
        assert_eq!(
            options.component_log_level,
            [("misc".to_owned(), "error".to_owned())]
        );
        assert_eq!(options.log_level, "warning");
        assert!(options.has("disable-hot-restart"));
    }

    #[test]
    fn long_and_short_forms_and_equals_signs_mean_the_same() {
        for form in [
            &["-c", "x"][..],
            &["--config-path", "x"],
            &["--config-path=x"],
        ] {
            assert_eq!(parse(form).expect("known").config_path, Some("x".into()));
        }
    }

    #[test]
    fn every_flag_of_envoy_parses() {
        for flag in VALUED {
            let value = match flag {
                "drain-strategy" => "gradual",
                "local-address-ip-version" => "v6",
                "log-level" => "off",
                "component-log-level" => "upstream:debug,connection:trace",
                "mode" => "validate",
                _ => "1",
            };
            parse(&[&format!("--{flag}"), value]).expect(flag);
        }
        for flag in SWITCHES {
            parse(&[&format!("--{flag}")]).expect(flag);
        }
    }

    #[test]
    fn wrong_values_are_refused_with_the_flag() {
        for wrong in [
            &["--component-log-level", "nosuch:debug"][..],
            &["--component-log-level", "upstream:loud"],
            &["--concurrency", "many"],
            &["--mode", "dance"],
            &["--drain-time-s", "-1"],
            &["--no-such-flag"],
            &["-c"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
