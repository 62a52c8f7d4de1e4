//! The `pilot-agent` binary: parses the command line, sets up logging and one current-thread
//! runtime, runs the command, turns errors into exit codes.

use std::io::Write;
use std::process::ExitCode;

use pilot_agent::cli::{self, Command, EXIT_ERROR, Invocation, VersionFormat};
use pilot_agent::options::{Environment, ISTIO_VERSION, Options};
use pilot_agent::{doctor, log, request, start, wait};

type AnyError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            tracing::error!("{e}");
            eprintln!("Error: {e}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

fn run() -> Result<u8, AnyError> {
    let Invocation {
        command,
        log: log_args,
        flags,
    } = cli::parse(std::env::args_os().skip(1))?;
    // Standard output of the others belongs to their answer, or they log by themselves.
    if matches!(command, Command::Proxy(_) | Command::Wait(_)) {
        log::init(&log_args)?;
    }
    match command {
        Command::Proxy(args) => {
            for (name, value) in flags {
                tracing::info!("FLAG: --{name}={value:?}");
            }
            tracing::info!(
                "Version {ISTIO_VERSION}-outrigger-{}",
                env!("CARGO_PKG_VERSION")
            );
            let environment = Environment::of_process();
            if !environment.boolean("ISTIO_ENVOY_ENABLE_CORE_DUMP", false) {
                // Keys and tokens are in memory: no core file, no ptrace by the same user.
                nix::sys::prctl::set_dumpable(false)?;
            }
            runtime()?.block_on(async {
                let options = Options::load(args, log_args.as_json, environment).await?;
                Ok(start::run(options).await?)
            })
        }
        Command::Request(args) => {
            let mut out = std::io::stdout().lock();
            runtime()?.block_on(request::run(&args, &mut out))?;
            out.flush()?;
            Ok(0)
        }
        Command::Wait(args) => {
            runtime()?.block_on(wait::run(&args))?;
            tracing::info!("Envoy is ready!");
            Ok(0)
        }
        Command::Doctor(args) => {
            if let Some(mode) = &args.probe_rules {
                return Ok(doctor::probe_rules(mode));
            }
            let (report, code) = runtime()?.block_on(doctor::run(&args));
            std::io::stdout().lock().write_all(report.as_bytes())?;
            Ok(code)
        }
        Command::Version(format) => {
            println!("{}", version(format));
            Ok(0)
        }
        Command::IstioIptables(args) => {
            let code = iptables_init::main_with_args(args);
            Ok(u8::try_from(code).unwrap_or(EXIT_ERROR))
        }
        Command::Completion(shell) => {
            let script = cli::completion_script(shell);
            std::io::stdout().lock().write_all(&script)?;
            Ok(0)
        }
        Command::Help(text) => {
            println!("{text}");
            Ok(0)
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn version(format: VersionFormat) -> String {
    let build = concat!("outrigger-", env!("CARGO_PKG_VERSION"));
    match format {
        VersionFormat::Short => format!("client version: {ISTIO_VERSION}"),
        VersionFormat::Text => format!(
            "client version: version.BuildInfo{{Version:\"{ISTIO_VERSION}\", \
             GitRevision:\"{build}\", GolangVersion:\"\", BuildStatus:\"Clean\", \
             GitTag:\"{ISTIO_VERSION}\"}}"
        ),
        VersionFormat::Json => format!(
            "{{\n  \"clientVersion\": {{\n    \"version\": \"{ISTIO_VERSION}\",\n    \
             \"revision\": \"{build}\",\n    \"golang_version\": \"\",\n    \
             \"status\": \"Clean\",\n    \"tag\": \"{ISTIO_VERSION}\"\n  }}\n}}"
        ),
        VersionFormat::Yaml => format!(
            "clientVersion:\n  golang_version: \"\"\n  revision: {build}\n  status: Clean\n  \
             tag: {ISTIO_VERSION}\n  version: {ISTIO_VERSION}\n"
        ),
    }
}
