//! The command line, parsed as pilot-agent's: `--flag value`, `--flag=value`, flags between
//! arguments, and unknown flags accepted by the root command and `proxy` only. Starts nothing.

mod completion;
mod flags;
mod help;

use std::ffi::OsString;

pub use clap_complete::Shell;
pub use completion::script as completion_script;
use flags::{Flag, FlagError, ParsedFlags};

/// Exit code of every reported error.
pub const EXIT_ERROR: u8 = 255;

/// A command line that cannot be run. The text is what users see after `Error: `.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CliError {
    /// No such command.
    #[error("unknown command {0:?} for \"pilot-agent\"")]
    UnknownCommand(String),
    /// A flag problem.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// `proxy` was given a type that does not exist.
    #[error("invalid proxy Type: {0}")]
    InvalidProxyType(String),
    /// Too few or too many arguments.
    #[error("{0}")]
    Arguments(&'static str),
    /// A port that `request` does not talk to.
    #[error("debug port {0} is not in allowed list [15000 15004 15020 15021]")]
    DebugPort(i64),
    /// `version -o` with another format.
    #[error("--output must be 'yaml' or 'json'")]
    OutputFormat,
    /// `doctor -o` with another format.
    #[error("--output must be 'text' or 'json'")]
    DoctorFormat,
    /// An argument that is not UTF-8.
    #[error("argument {0:?} is not valid UTF-8")]
    NotUtf8(OsString),
    /// `completion` for another shell than the four.
    #[error("completion needs one of bash, fish, powershell, zsh")]
    Shell,
    /// The hidden command that no release build of pilot-agent has either.
    #[error("this build is not compiled with collateral support")]
    Collateral,
}

/// Logging flags, common to all commands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogArgs {
    /// `--log_output_level`; empty means `default:info,grpc:none`.
    pub output_level: String,
    /// `--log_as_json`.
    pub as_json: bool,
    /// `--log_target`; empty means standard output.
    pub targets: Vec<String>,
    /// `--log_caller`.
    pub caller: String,
    /// `--log_stacktrace_level`.
    pub stacktrace_level: String,
}

/// Arguments of `proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyArgs {
    /// Kind of proxy, a word [`bootstrap_templates::NodeType`] knows.
    pub kind: String,
    /// `--domain`.
    pub domain: String,
    /// `--meshConfig`.
    pub mesh_config: String,
    /// `--proxyLogLevel`.
    pub proxy_log_level: String,
    /// `--proxyComponentLogLevel`.
    pub proxy_component_log_level: String,
    /// `--concurrency`; 0 means not set.
    pub concurrency: i32,
    /// `--serviceCluster`.
    pub service_cluster: String,
    /// `--templateFile`.
    pub template_file: String,
    /// `--outlierLogPath`.
    pub outlier_log_path: String,
    /// `--stsPort`; 0 means off.
    pub sts_port: u32,
    /// `--profiling`: `/debug/pprof/` on the status port.
    pub profiling: bool,
}

/// Arguments of `request`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestArgs {
    /// Local port.
    pub port: u16,
    /// HTTP method.
    pub method: String,
    /// Path; one leading slash is optional.
    pub path: String,
    /// Body, maybe empty.
    pub body: String,
}

/// Arguments of `wait`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitArgs {
    /// What to ask.
    pub url: String,
    /// Overall limit in seconds; 0 means none.
    pub timeout_seconds: u64,
    /// Pause between attempts, milliseconds.
    pub period_millis: u64,
    /// Limit of one attempt, milliseconds.
    pub request_timeout_millis: u64,
}

/// Arguments of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoctorArgs {
    /// `-o json` instead of text.
    pub json: bool,
    /// Limit of each check in seconds.
    pub timeout_seconds: u64,
    /// Internal: only set the rules of this mode in a namespace of its own.
    pub probe_rules: Option<String>,
}

/// `version -o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionFormat {
    /// One line of text.
    Text,
    /// The version alone.
    Short,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Supervise a proxy.
    Proxy(ProxyArgs),
    /// One request to a local port.
    Request(RequestArgs),
    /// Wait for readiness.
    Wait(WaitArgs),
    /// Look for what keeps the pod from working.
    Doctor(DoctorArgs),
    /// Print the version.
    Version(VersionFormat),
    /// Redirect rules; the arguments, program name first, are that command's own.
    IstioIptables(Vec<OsString>),
    /// Print the completion script of a shell.
    Completion(Shell),
    /// Print help.
    Help(String),
}

/// A parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// What to run.
    pub command: Command,
    /// How to log.
    pub log: LogArgs,
    /// Every flag with its value, for the log.
    pub flags: Vec<(String, String)>,
}

const LOG_FLAGS: &[Flag] = &[
    Flag::text("log_output_level", "")
        .help("<scope>:<level>,...; debug, info, warn, error, fatal or none; scope all"),
    Flag::text("log_stacktrace_level", "default:none")
        .help("<scope>:<level>,... from which lines carry a stack"),
    Flag::text("log_caller", "").help("<scope>,... whose lines name file and line of the code"),
    Flag::list("log_target").help("stdout, stderr or a file to append to; repeatable"),
    Flag::boolean("log_as_json", false).help("log JSON lines, the proxy too"),
    Flag::number("vklog", 0).help("accepted, without effect"),
];
const PROXY_FLAGS: &[Flag] = &[
    Flag::text("domain", "").help("DNS domain (default $POD_NAMESPACE.svc.cluster.local)"),
    Flag::text("meshConfig", "./etc/istio/config/mesh").help("mesh configuration file"),
    Flag::text("proxyLogLevel", "warning").help("level of the proxy, maybe with ,component:level"),
    Flag::text("proxyComponentLogLevel", "").help("levels of the proxy's components"),
    Flag::number("concurrency", 0).help("worker threads, over ProxyConfig"),
    Flag::text("serviceCluster", "istio-proxy").help("for an empty serviceCluster in ProxyConfig"),
    Flag::text("templateFile", "").help("bootstrap template, over ProxyConfig"),
    Flag::text("outlierLogPath", "").help("file of outlier events"),
    Flag::boolean("profiling", true).help("profiles on the status port"),
    Flag::number("stsPort", 0).help("node metadata STS_PORT"),
    Flag::text("tokenManagerPlugin", "").help("accepted, without effect"),
];
const WAIT_FLAGS: &[Flag] = &[
    Flag::text("url", "http://localhost:15021/healthz/ready").help("what must answer 200"),
    Flag::number("timeoutSeconds", 60).help("how long to wait; 0 is for ever"),
    Flag::number("periodMillis", 500).help("pause between attempts"),
    Flag::number("requestTimeoutMillis", 500).help("limit of one attempt"),
];
const REQUEST_FLAGS: &[Flag] =
    &[Flag::number("debug-port", 15000).help("15000, 15004, 15020 or 15021")];
const DOCTOR_FLAGS: &[Flag] = &[
    Flag::text("output", "").short('o').help("text or json"),
    Flag::number("timeoutSeconds", 5).help("limit of one check"),
    Flag::text("probe-rules", ""),
];
const VERSION_FLAGS: &[Flag] = &[
    Flag::text("output", "").short('o').help("yaml or json"),
    Flag::boolean("short", false)
        .short('s')
        .help("the version alone"),
];

/// What help and completion list: command, purpose, flags of its own.
const COMMANDS: &[(&str, &str, &[Flag])] = &[
    ("proxy", "Run and supervise the proxy", PROXY_FLAGS),
    ("request", "One HTTP request to a local port", REQUEST_FLAGS),
    ("wait", "Wait until the proxy is ready", WAIT_FLAGS),
    (
        "doctor",
        "Find what keeps the pod from working, with one fix per failure",
        DOCTOR_FLAGS,
    ),
    ("istio-iptables", "Write or check the redirect rules", &[]),
    ("version", "Print the version", VERSION_FLAGS),
    ("completion", "Print the completion script of a shell", &[]),
    ("help", "Print help", &[]),
];

/// Ports `request` may talk to: the proxy's admin, a former debug port, status and health.
const DEBUG_PORTS: [i64; 4] = [15000, 15004, 15020, 15021];

/// Parses the arguments after the program name.
///
/// # Errors
/// What pilot-agent refuses, with its words where users know them.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, CliError> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(index) = arguments
        .iter()
        .position(|a| a == "istio-iptables" || a == LEGACY_CLEAN)
        && arguments[..index]
            .iter()
            .all(|a| a.to_string_lossy().starts_with('-'))
    {
        return Ok(iptables(arguments.split_off(index)));
    }
    let utf8 = |a: OsString| a.into_string().map_err(CliError::NotUtf8);
    let arguments = arguments
        .into_iter()
        .map(utf8)
        .collect::<Result<Vec<_>, _>>()?;
    let (command, rest) = split_command(&arguments);
    match command {
        None => help_only(&rest),
        Some("proxy") => proxy(&rest),
        Some("wait") => wait(&rest),
        Some("request") => request(&rest),
        Some("doctor") => doctor(&rest),
        Some("version") => version(&rest),
        Some("help") => Ok(plain_help(rest.first().map(String::as_str))),
        Some("completion") => completion(&rest),
        Some("collateral") => Err(CliError::Collateral),
        Some(other) => Err(CliError::UnknownCommand(other.to_owned())),
    }
}

const LEGACY_CLEAN: &str = "istio-clean-iptables";

/// The first argument that is no flag (nor a root flag's value) names the command.
fn split_command(arguments: &[String]) -> (Option<&str>, Vec<String>) {
    let mut index = 0;
    while let Some(argument) = arguments.get(index) {
        if !argument.starts_with('-') {
            let mut rest = arguments.to_vec();
            rest.remove(index);
            return (Some(argument), rest);
        }
        let bare = argument.trim_start_matches('-');
        let takes_value = LOG_FLAGS.iter().any(|f| f.name == bare && !f.is_boolean());
        index += if takes_value { 2 } else { 1 };
    }
    (None, arguments.to_vec())
}

fn plain(command: Command) -> Invocation {
    Invocation {
        command,
        log: LogArgs::default(),
        flags: Vec::new(),
    }
}

fn plain_help(command: Option<&str>) -> Invocation {
    plain(Command::Help(help::text(command)))
}

fn completion(rest: &[String]) -> Result<Invocation, CliError> {
    let parsed = flags::parse(rest, &[LOG_FLAGS], false)?;
    if parsed.help {
        return Ok(plain_help(Some("completion")));
    }
    let [shell] = parsed.arguments.as_slice() else {
        return Err(CliError::Shell);
    };
    let found = completion::SHELLS.iter().find(|(name, _)| name == shell);
    let (_, shell) = found.ok_or(CliError::Shell)?;
    Ok(plain(Command::Completion(*shell)))
}

fn help_only(rest: &[String]) -> Result<Invocation, CliError> {
    flags::parse(rest, &[LOG_FLAGS], true)?;
    Ok(plain_help(None))
}

/// Everything is that command's own, log flags included. The old name still cleans up.
fn iptables(mut arguments: Vec<OsString>) -> Invocation {
    if arguments[0] == LEGACY_CLEAN {
        arguments[0] = "istio-iptables".into();
        arguments.push("--cleanup-only".into());
    }
    plain(Command::IstioIptables(arguments))
}

fn log_args(parsed: &ParsedFlags) -> LogArgs {
    LogArgs {
        output_level: parsed.text("log_output_level"),
        as_json: parsed.boolean("log_as_json"),
        targets: parsed.list("log_target"),
        caller: parsed.text("log_caller"),
        stacktrace_level: parsed.text("log_stacktrace_level"),
    }
}

fn finish(name: &str, command: Command, parsed: &ParsedFlags) -> Invocation {
    let command = if parsed.help {
        Command::Help(help::text(Some(name)))
    } else {
        command
    };
    Invocation {
        command,
        log: log_args(parsed),
        flags: parsed.all(),
    }
}

fn proxy(rest: &[String]) -> Result<Invocation, CliError> {
    let parsed = flags::parse(rest, &[LOG_FLAGS, PROXY_FLAGS], true)?;
    let kind = parsed.arguments.first().map_or("sidecar", String::as_str);
    if bootstrap_templates::NodeType::parse(kind).is_none() {
        return Err(CliError::InvalidProxyType(kind.to_owned()));
    }
    let args = ProxyArgs {
        kind: kind.to_owned(),
        domain: parsed.text("domain"),
        mesh_config: parsed.text("meshConfig"),
        proxy_log_level: parsed.text("proxyLogLevel"),
        proxy_component_log_level: parsed.text("proxyComponentLogLevel"),
        concurrency: parsed.integer("concurrency")?,
        service_cluster: parsed.text("serviceCluster"),
        template_file: parsed.text("templateFile"),
        outlier_log_path: parsed.text("outlierLogPath"),
        sts_port: parsed.integer("stsPort")?,
        profiling: parsed.boolean("profiling"),
    };
    Ok(finish("proxy", Command::Proxy(args), &parsed))
}

fn wait(rest: &[String]) -> Result<Invocation, CliError> {
    let parsed = flags::parse(rest, &[LOG_FLAGS, WAIT_FLAGS], false)?;
    let args = WaitArgs {
        url: parsed.text("url"),
        timeout_seconds: parsed.integer("timeoutSeconds")?,
        period_millis: parsed.integer("periodMillis")?,
        request_timeout_millis: parsed.integer("requestTimeoutMillis")?,
    };
    Ok(finish("wait", Command::Wait(args), &parsed))
}

fn request(rest: &[String]) -> Result<Invocation, CliError> {
    let parsed = flags::parse(rest, &[LOG_FLAGS, REQUEST_FLAGS], false)?;
    if parsed.help {
        return Ok(plain_help(Some("request")));
    }
    let (method, path, body) = match parsed.arguments.as_slice() {
        [method, path] => (method, path, String::new()),
        [method, path, body] => (method, path, body.clone()),
        _ => {
            return Err(CliError::Arguments(
                "request needs <method> <path> [<body>]",
            ));
        }
    };
    let port: i64 = parsed.integer("debug-port")?;
    if !DEBUG_PORTS.contains(&port) {
        return Err(CliError::DebugPort(port));
    }
    let args = RequestArgs {
        port: u16::try_from(port).map_err(|_| CliError::DebugPort(port))?,
        method: method.clone(),
        path: path.clone(),
        body,
    };
    Ok(finish("request", Command::Request(args), &parsed))
}

fn doctor(rest: &[String]) -> Result<Invocation, CliError> {
    let parsed = flags::parse(rest, &[LOG_FLAGS, DOCTOR_FLAGS], false)?;
    if !parsed.arguments.is_empty() {
        return Err(CliError::Arguments("doctor takes no arguments"));
    }
    let json = match parsed.text("output").as_str() {
        "" | "text" => false,
        "json" => true,
        _ => return Err(CliError::DoctorFormat),
    };
    let mode = parsed.text("probe-rules");
    let args = DoctorArgs {
        json,
        timeout_seconds: parsed.integer("timeoutSeconds")?,
        probe_rules: Some(mode).filter(|mode| !mode.is_empty()),
    };
    Ok(finish("doctor", Command::Doctor(args), &parsed))
}

fn version(rest: &[String]) -> Result<Invocation, CliError> {
    let parsed = flags::parse(rest, &[LOG_FLAGS, VERSION_FLAGS], false)?;
    let format = match (parsed.text("output").as_str(), parsed.boolean("short")) {
        ("json", _) => VersionFormat::Json,
        ("yaml", _) => VersionFormat::Yaml,
        ("", true) => VersionFormat::Short,
        ("", false) => VersionFormat::Text,
        _ => return Err(CliError::OutputFormat),
    };
    Ok(finish("version", Command::Version(format), &parsed))
}

#[cfg(test)]
mod tests;
