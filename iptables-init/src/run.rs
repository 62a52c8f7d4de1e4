//! One run: flags to exit code. Chooses the backend, applies rules, then routes, undoes the rules
//! if the routes fail, then validates.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;

use clap::Parser as _;

use crate::cli::{Cli, Environment, ProcessEnvironment, Settings};
use crate::config::{Config, ConfigError, Variant};
use crate::explain::{self, ExplainError, Pod, PodFacts};
use crate::host::{Machine, OwnerError, OwnerNames, interface_addresses};
use crate::iptables::apply::{self as iptables, FamilyPlan};
use crate::iptables::detect::{self, Choice, ToolError};
use crate::iptables::text::{render_restore, render_tables};
use crate::log::Log;
use crate::nft::apply as nft;
use crate::nft::compile::compile;
use crate::nft::plan::build_plan;
use crate::nft::socket::{NetlinkError, NftSocket};
use crate::nft::text::{render_cleanup, render_transaction};
use crate::report;
use crate::routes::{self, RouteError, RoutePlan};
use crate::rules::{Family, Flavor, build_rules, dns_effective};
use crate::validate::{self, Probe, ValidationError};

/// Done, or nothing to do.
pub const EXIT_OK: i32 = 0;
/// Bad value, environment, rule or route failure.
pub const EXIT_FAILURE: i32 = 1;
/// The validation failed; the CNI repair controller looks for this number.
pub const EXIT_VALIDATION: i32 = 126;
/// Flag error.
pub const EXIT_FLAGS: i32 = 255;

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Owner(#[from] OwnerError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("failed to open the netfilter socket: {0}")]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Nft(#[from] nft::ApplyError),
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error("IPv6 rules are wanted but no ip6tables program works; IPv4 rules were not written")]
    NoIpv6Tool,
    #[error("FORCE_IPTABLES_BINARY is set but no iptables program works")]
    NoForcedTool,
    #[error("CNI mode is not supported: enter the pod's network namespace and run without it")]
    CniMode,
    #[error(transparent)]
    Explain(#[from] ExplainError),
    #[error("failed to write the explanation: {0}")]
    Stdout(#[source] std::io::Error),
    #[error("failed to write DRY_RUN_FILE_PATH {0}: {1}")]
    DryRunFile(String, #[source] std::io::Error),
    #[error(
        "iptables validation failed; workload is not ready for Istio.\n\
         When using Istio CNI, this can occur if a pod is scheduled before the node is ready.\n\
         If installed with 'cni.repair.deletePods=true', this pod should automatically be deleted and retry.\n\
         Otherwise, this pod will need to be manually removed so that it is scheduled on a node with istio-cni running.\n\
         Reason: {0} (the process must run as a proxy UID or GID and the ISTIO chains must exist)"
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
        Some(question) => explain(&question, settings),
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
    let flavor = if settings.native_nftables {
        Flavor::Nft
    } else {
        Flavor::Iptables
    };
    let config = Config::build(settings, &Machine)?;
    let pod = Pod {
        addresses: interface_addresses().map_err(ConfigError::Interfaces)?,
    };
    let facts = PodFacts {
        config: &config.rules,
        route_table: config.route_table,
        pod: &pod,
        names: &OwnerNames::read(),
    };
    let answer = explain::explain(question, &facts, flavor)?;
    std::io::stdout()
        .write_all(answer.as_bytes())
        .map_err(RunError::Stdout)
}

fn run(settings: Settings, log: &Log) -> Result<(), RunError> {
    let native = settings.native_nftables;
    if native {
        log.info("native nftables enabled, using nft rules for traffic redirection.");
    }
    log.info(&report::environment(native, &|name| {
        ProcessEnvironment.var(name)
    }));
    if settings.cni_mode {
        return Err(RunError::CniMode);
    }
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
    if s.cleanup_only {
        cleanup(&config, log)?;
    } else if !s.skip_rule_apply {
        apply(&config, log)?;
    }
    if s.run_validation {
        let probe = Probe {
            host_ip: config.host_ip,
            listeners: [config.rules.proxy_port, config.rules.inbound_capture_port],
            port: s.probe_port,
            timeout: s.probe_timeout,
        };
        validate::run(&probe, log)?;
    }
    Ok(())
}

fn apply(config: &Config, log: &Log) -> Result<(), RunError> {
    let s = &config.settings;
    if s.dry_run {
        return dry_run(config, log);
    }
    if s.native_nftables {
        return apply_nft(config, log);
    }
    match choose_tools(config)? {
        Some(tools) => apply_iptables(config, tools, log),
        None => {
            log.warn("no iptables program works in this image, using native nftables through netlink instead");
            apply_nft(config, log)
        }
    }
}

/// The programs of each wanted family; `None` when no program exists at all.
fn choose_tools(config: &Config) -> Result<Option<Vec<Choice>>, RunError> {
    let Some(v4) = detect::choose(Family::V4, config.forced)? else {
        return match config.forced {
            Some(Variant::Legacy | Variant::Nft) => Err(RunError::NoForcedTool),
            None => Ok(None),
        };
    };
    let mut tools = vec![v4];
    if config.rules.ipv6 {
        let v6 = detect::choose(Family::V6, config.forced)?;
        tools.push(v6.ok_or(RunError::NoIpv6Tool)?);
    } else if stale_ipv6() {
        // An earlier run had IPv6 on; its rules must go. A clean ip6 side is never touched.
        tools.extend(detect::choose(Family::V6, config.forced)?);
    }
    Ok(Some(tools))
}

/// Whether ip6 tables may hold rules of an earlier run; reads only.
fn stale_ipv6() -> bool {
    let in_nft = NftSocket::open()
        .and_then(|mut socket| nft::iptables_chains_exist(&mut socket, Family::V6));
    in_nft.unwrap_or(false) || detect::legacy_tables_exist(Family::V6)
}

fn apply_iptables(config: &Config, tools: Vec<Choice>, log: &Log) -> Result<(), RunError> {
    let rules = build_rules(&config.rules, Flavor::Iptables);
    let mut plans = Vec::new();
    for choice in tools {
        if let Some(stale) = &choice.stale {
            log.warn(&format!(
                "removing a second copy of the rules found in {}",
                stale.name
            ));
            iptables::cleanup(stale)?;
        }
        plans.push(FamilyPlan {
            tables: if choice.tool.family == Family::V4 || config.rules.ipv6 {
                render_tables(&rules, &config.rules, choice.tool.family)
            } else {
                Vec::new()
            },
            tool: choice.tool,
        });
    }
    let before: Vec<_> = plans.iter().map(|plan| plan.tool.save()).collect();
    let result = iptables::apply(&plans, config.settings.force_apply, log);
    log_final_state(&plans, log);
    let written = result?;
    if let Err(error) = configure_routes(config, log) {
        if written {
            for (plan, before) in plans.iter().zip(before) {
                iptables::put_back(&plan.tool, &before?)?;
            }
        }
        return Err(error);
    }
    // Rules of the native backend would act besides the new ones.
    if let Ok(mut socket) = NftSocket::open()
        && nft::remove(&mut socket)? == nft::Outcome::Replaced
    {
        log.info("removed the istio-proxy nftables tables of an earlier run");
    }
    Ok(())
}

fn log_final_state(plans: &[FamilyPlan], log: &Log) {
    for plan in plans {
        let family = match plan.tool.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        match plan.tool.save() {
            Ok(text) => log.info(&format!(
                "Final iptables state ({family}):\n{}",
                text.trim_end()
            )),
            Err(error) => log.error(&format!("failed to read the {family} rules: {error}")),
        }
    }
}

fn apply_nft(config: &Config, log: &Log) -> Result<(), RunError> {
    let plan = build_plan(&config.rules);
    let wanted = compile(&plan, &OwnerNames::read())?;
    let mut socket = NftSocket::open()?;
    let (outcome, previous) = nft::apply(&mut socket, &wanted, config.settings.force_apply)?;
    if let Err(error) = configure_routes(config, log) {
        if outcome == nft::Outcome::Replaced {
            nft::restore(&socket, &previous)?;
        }
        return Err(error);
    }
    remove_foreign(&mut socket, log)?;
    let text = render_transaction(&plan);
    let what = match outcome {
        nft::Outcome::Replaced => "nftables rules programmed:",
        nft::Outcome::Unchanged => "nftables rules are already in place, nothing written:",
    };
    log.info(&format!("{what}\n{}", text.trim_end()));
    Ok(())
}

/// Removes what the iptables backend left. Programs are started only if a read through netlink or
/// proc shows something of that kind.
fn remove_foreign(socket: &mut NftSocket, log: &Log) -> Result<(), RunError> {
    for family in [Family::V4, Family::V6] {
        let in_nft = nft::iptables_chains_exist(socket, family)?;
        if !in_nft && !detect::legacy_tables_exist(family) {
            continue;
        }
        let Some(choice) = detect::choose(family, None)? else {
            if in_nft {
                log.warn("rules of the iptables backend exist, but no iptables program works to remove them");
            }
            continue;
        };
        for tool in [Some(choice.tool), choice.stale].into_iter().flatten() {
            if iptables::cleanup(&tool)? {
                log.info(&format!(
                    "removed the rules of the iptables backend ({})",
                    tool.name
                ));
            }
        }
    }
    Ok(())
}

fn route_plan(config: &Config) -> RoutePlan {
    let inbound = config.rules.tproxy && !config.rules.inbound_ports.is_none();
    RoutePlan {
        ipv6: config.rules.ipv6,
        address: config.rules.ipv6,
        tproxy: inbound.then_some((config.rules.mark, config.route_table)),
    }
}

fn configure_routes(config: &Config, log: &Log) -> Result<(), RunError> {
    let mut plan = route_plan(config);
    if plan.address && routes::loopback_ipv6_disabled() {
        log.warn("IPv6 is disabled on the loopback interface, the ::6 address is not added");
        plan.address = false;
    }
    let added = routes::apply(plan)?;
    if plan.tproxy.is_none() {
        // Of an earlier run in TPROXY mode; looking for what is not there changes nothing.
        routes::cleanup(RoutePlan {
            ipv6: true,
            address: false,
            tproxy: Some((config.rules.mark, config.route_table)),
        })?;
    }
    if added.address() {
        log.info("Added ::6 address on the loopback iface");
    }
    Ok(())
}

fn cleanup(config: &Config, log: &Log) -> Result<(), RunError> {
    if config.settings.dry_run {
        log.info(&format!(
            "dry run, would remove all ISTIO_* chains and run:\n{}",
            render_cleanup()
        ));
        return Ok(());
    }
    for family in [Family::V4, Family::V6] {
        if let Some(choice) = detect::choose(family, config.forced)? {
            for tool in [Some(choice.tool), choice.stale].into_iter().flatten() {
                if iptables::cleanup(&tool)? {
                    log.info(&format!(
                        "removed all rules and chains of Istio ({})",
                        tool.name
                    ));
                }
            }
        }
    }
    match NftSocket::open() {
        Ok(mut socket) => {
            nft::remove(&mut socket)?;
        }
        Err(error) if config.settings.native_nftables => return Err(error.into()),
        // A kernel without nf_tables cannot hold rules of it.
        Err(_) => {}
    }
    routes::cleanup(RoutePlan {
        ipv6: true,
        address: true,
        tproxy: Some((config.rules.mark, config.route_table)),
    })?;
    Ok(())
}

fn dry_run(config: &Config, log: &Log) -> Result<(), RunError> {
    let text = if config.settings.native_nftables {
        let plan = build_plan(&config.rules);
        compile(&plan, &OwnerNames::read())?;
        let text = render_transaction(&plan);
        log.info(&format!(
            "nftables rules (dry run, nothing written):\n{}",
            text.trim_end()
        ));
        text
    } else {
        log.info("running iptables in dry-run mode, no rule changes will be made");
        dry_run_iptables(config, log)
    };
    log.info("skipping configuring routes due to dry run mode");
    let path = &config.settings.dry_run_file;
    if path.is_empty() {
        return Ok(());
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| RunError::DryRunFile(path.clone(), error))
}

fn dry_run_iptables(config: &Config, log: &Log) -> String {
    let rules = build_rules(&config.rules, Flavor::Iptables);
    let mut families = vec![(Family::V4, "iptables")];
    if config.rules.ipv6 {
        families.push((Family::V6, "ip6tables"));
    }
    let mut calls = String::from("iptables-save\nip6tables-save\n");
    for (family, name) in &families {
        let text = render_restore(&render_tables(&rules, &config.rules, *family));
        log.info(&format!(
            "Running iptables restore with: {name}-restore and the following input:\n{}",
            text.trim_end()
        ));
        calls += &text;
    }
    for (_, name) in &families {
        calls += &format!("{name}-save\n");
    }
    calls
}
