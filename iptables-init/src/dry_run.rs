//! `--dry-run`: prints what would be written, touches nothing but `DRY_RUN_FILE_PATH`.

use std::fs::OpenOptions;
use std::io::Write as _;

use crate::config::Config;
use crate::host::{OwnerError, OwnerNames};
use crate::iptables::text::{render_restore, render_tables};
use crate::log::Log;
use crate::nft::compile::compile;
use crate::nft::plan::build_plan;
use crate::nft::text::{render_cleanup, render_transaction};
use crate::rules::{Family, Flavor, build_rules};

/// Why a dry run failed.
#[derive(Debug, thiserror::Error)]
pub enum DryRunError {
    /// A user or group is unknown.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// The text could not be written.
    #[error("failed to write DRY_RUN_FILE_PATH {0}: {1}")]
    File(String, #[source] std::io::Error),
}

/// Prints the rules, or the clean-up.
///
/// # Errors
/// See [`DryRunError`].
pub fn run(config: &Config, log: &Log) -> Result<(), DryRunError> {
    if config.settings.cleanup_only {
        log.info(&format!(
            "dry run, would remove all ISTIO_* chains and run:\n{}",
            render_cleanup()
        ));
        return Ok(());
    }
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
        iptables(config, log)
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
        .map_err(|error| DryRunError::File(path.clone(), error))
}

fn iptables(config: &Config, log: &Log) -> String {
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
