//! One run: flags to exit code. Builds the configuration, applies or cleans up, then validates.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;

use clap::Parser as _;

use crate::cli::{Cli, Environment, ProcessEnvironment, Settings};
use crate::config::{Config, ConfigError};
use crate::dry_run::{self, DryRunError};
use crate::engine::{self, EngineError, Step};
use crate::explain::{self, ExplainError, Pod, PodFacts};
use crate::host::{Machine, OwnerNames, interface_addresses};
use crate::iptables::detect;
use crate::log::Log;
use crate::namespace::{self, NamespaceError};
use crate::report;
use crate::routes::loopback_ipv6_disabled;
use crate::rules::{Family, Flavor, dns_effective};
use crate::validate::{self, Probe, ValidationError};

/// Done, or nothing to do.
pub const EXIT_OK: i32 = 0;
/// Bad value, environment, rule or route failure.
pub const EXIT_FAILURE: i32 = 1;
/// The validation failed; the CNI repair controller looks for this number.
pub const EXIT_VALIDATION: i32 = 126;
/// Flag error.
pub const EXIT_FLAGS: i32 = 255;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    DryRun(#[from] DryRunError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Explain(#[from] ExplainError),
    #[error("failed to write the explanation: {0}")]
    Stdout(#[source] std::io::Error),
    #[error(
        "iptables validation failed; workload is not ready for Istio.\n\
         When using Istio CNI, this can occur if a pod is scheduled before the node is ready.\n\
         If installed with 'cni.repair.deletePods=true', this pod should automatically be deleted and retry.\n\
         Otherwise, this pod will need to be manually removed so that it is scheduled on a node with istio-cni running.\n\
         Reason: {0}"
    )]
    Validation(#[from] ValidationError),
}

/// Entry point of the binary and of the agent's sub-command. `args` includes the program name.
/// Returns the exit code.
pub fn main_with_args<I, T>(args: I) -> i32
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            // Help goes to stdout; a closed pipe is no failure.
            let _ = error.print();
            return EXIT_OK;
        }
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.strip_prefix("error: ").unwrap_or(line);
            let _ = writeln!(std::io::stderr(), "Error: {line}");
            Log::new("", false, Vec::new()).error(line);
            return EXIT_FLAGS;
        }
    };
    let question = cli.explain.clone();
    let log = Log::new(
        cli.log_output_level.as_deref().unwrap_or_default(),
        cli.log_as_json.unwrap_or(false),
        cli.log_target.clone(),
    );
    let settings = Settings::resolve(cli, &ProcessEnvironment);
    let result = match question {
        Some(question) => in_namespace(settings, &log, |s| explain(&question, s)),
        None => run(settings, &log),
    };
    match result {
        Ok(()) => EXIT_OK,
        Err(error) => {
            let code = match &error {
                RunError::Validation(_) => EXIT_VALIDATION,
                _ => EXIT_FAILURE,
            };
            log.error(&error.to_string());
            let _ = writeln!(std::io::stderr(), "Error: {error}");
            code
        }
    }
}

/// Prints the answer alone, so that it can be read or compared; touches nothing.
fn explain(question: &str, settings: Settings) -> Result<(), RunError> {
    // As a run would: without the programs it takes native nftables.
    let flavor = if settings.native_nftables || !detect::installed(Family::V4) {
        Flavor::Nft
    } else {
        Flavor::Iptables
    };
    let config = Config::build(settings, &Machine)?;
    let pod = Pod {
        addresses: interface_addresses().map_err(ConfigError::Interfaces)?,
        loopback_ipv6_disabled: loopback_ipv6_disabled(),
    };
    let facts = PodFacts {
        config: &config.rules,
        route_table: config.route_table,
        pod: &pod,
        names: &OwnerNames::read(),
    };
    let answer = explain::explain(question, &facts, flavor)?;
    match std::io::stdout().write_all(answer.as_bytes()) {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(RunError::Stdout),
    }
}

/// Runs with these settings, in their network namespace if they name one. This is what a CNI
/// plugin calls; no other thread of the process is affected.
///
/// # Errors
/// See [`RunError`].
pub fn run(settings: Settings, log: &Log) -> Result<(), RunError> {
    in_namespace(settings, log, |settings| run_here(settings, log))
}

fn in_namespace(
    settings: Settings,
    log: &Log,
    work: impl FnOnce(Settings) -> Result<(), RunError> + Send,
) -> Result<(), RunError> {
    if settings.network_namespace.is_empty() {
        return work(settings);
    }
    let path = settings.network_namespace.clone();
    let sandbox = settings.cni_mode;
    namespace::inside(Path::new(&path), sandbox, log, || work(settings))?
}

fn run_here(settings: Settings, log: &Log) -> Result<(), RunError> {
    let native = settings.native_nftables;
    if native {
        log.info("native nftables enabled, using nft rules for traffic redirection.");
    }
    log.info(&report::environment(native, &|name| {
        ProcessEnvironment.var(name)
    }));
    let config = Config::build(settings, &Machine)?;
    log.info(&report::config(&config));
    let flavor = if native {
        Flavor::Nft
    } else {
        Flavor::Iptables
    };
    if config.rules.redirect_dns && !dns_effective(&config.rules, flavor) {
        log.warn("REDIRECT_DNS is set, but no usable nameserver was found; DNS is not captured");
    }
    let s = &config.settings;
    let mut observer = |step: Step| {
        log.debug(&format!("step done: {step:?}"));
        Ok(())
    };
    if s.dry_run && (s.cleanup_only || !s.skip_rule_apply) {
        dry_run::run(&config, log)?;
    } else if s.cleanup_only {
        engine::cleanup(&config, log, &mut observer)?;
    } else if !s.skip_rule_apply {
        engine::apply(&config, log, &mut observer)?;
    }
    if s.run_validation {
        validate::run(&Probe::new(&config), log)?;
    }
    Ok(())
}
