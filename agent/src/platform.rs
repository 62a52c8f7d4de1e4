//! What the cloud says about the machine: metadata for istiod and, without a label, the locality.
//! Asked in the background while the agent starts. The start waits for an answer at most until a
//! fixed moment; where nothing points to a cloud nobody is asked.

mod aws;
mod azure;
mod gcp;
mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bootstrap_templates::Platform;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::options::Environment;
use gcp::StaticMetadata;
use server::MetadataServer;

/// From the agent's start to the end of an unasked-for search.
const DETECTION_LIMIT: Duration = Duration::from_millis(250);
/// The same on Kubernetes, but for Google: istiod takes a pod's locality from its node, and reads nothing of what
/// Amazon's and Microsoft's servers say. Many clusters block those two for pods, without an answer.
const POD_LIMIT: Duration = Duration::from_millis(30);
/// The same for a cloud the user named.
const NAMED_LIMIT: Duration = Duration::from_secs(1);
/// Answers that have arrived are used; the rest is given up so much before the limit.
const MARGIN: Duration = Duration::from_millis(10);
/// What the firmware says about the machine.
const DMI: &str = "/sys/class/dmi/id";

/// A cloud that has a metadata server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cloud {
    Aws,
    Azure,
    Gcp,
}

/// Where to look, and how long.
#[derive(Debug, Clone)]
pub struct PlatformConfig {
    clouds: Vec<Cloud>,
    /// The agent is in a pod.
    kubernetes: bool,
    /// A named cloud is believed; others are checked first.
    named: bool,
    gcp: StaticMetadata,
    /// Amazon's server has an address of its own in IPv6.
    amazon: MetadataServer,
    microsoft: MetadataServer,
    /// Google's server, which `GCE_METADATA_HOST` can move.
    google: MetadataServer,
    resolv_conf: PathBuf,
}

impl PlatformConfig {
    /// Reads `CLOUD_PLATFORM`, `GCP_METADATA`, `GCP_ZONE`, `GCP_QUOTA_PROJECT` and
    /// `GCE_METADATA_HOST`, and the firmware's names.
    pub fn new(environment: &Environment, ipv6: bool) -> Self {
        Self::with_firmware(environment, ipv6, Path::new(DMI))
    }

    fn with_firmware(environment: &Environment, ipv6: bool, dmi: &Path) -> Self {
        let gcp = StaticMetadata::new(environment);
        let kubernetes = environment.is_set("KUBERNETES_SERVICE_HOST");
        let word = environment.text("CLOUD_PLATFORM").to_lowercase();
        let (clouds, named) = match word.as_str() {
            "none" => (Vec::new(), true),
            "aws" => (vec![Cloud::Aws], true),
            "azure" => (vec![Cloud::Azure], true),
            "gcp" => (vec![Cloud::Gcp], true),
            other => {
                if !other.is_empty() {
                    tracing::warn!("CLOUD_PLATFORM={other} is not one of aws, azure, gcp, none");
                }
                match gcp.is_set() {
                    true => (vec![Cloud::Gcp], false),
                    false => (suspects(dmi, kubernetes), false),
                }
            }
        };
        Self {
            clouds,
            kubernetes,
            named,
            gcp,
            amazon: MetadataServer::link_local(ipv6),
            microsoft: MetadataServer::link_local(false),
            google: MetadataServer::google(&environment.text("GCE_METADATA_HOST")),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
        }
    }

    /// From the agent's start to the end of the search.
    fn limit(&self) -> Duration {
        match self.named {
            true => NAMED_LIMIT,
            false if self.kubernetes && !self.clouds.contains(&Cloud::Gcp) => POD_LIMIT,
            false => DETECTION_LIMIT,
        }
    }

    async fn ask(&self, cloud: Cloud, until: Instant) -> Option<Platform> {
        match cloud {
            Cloud::Aws => aws::ask(&self.amazon, self.named, until).await,
            Cloud::Azure => azure::ask(&self.microsoft, until).await,
            Cloud::Gcp => gcp::ask(&self.google, &self.gcp, &self.resolv_conf, until).await,
        }
    }
}

/// Clouds that the firmware's names point to. A machine without such names may be in either cloud
/// that can be recognised by its server alone; a pod without them is in a sandbox, and its locality
/// comes from istiod.
fn suspects(dmi: &Path, kubernetes: bool) -> Vec<Cloud> {
    let name = |file: &str| std::fs::read_to_string(dmi.join(file)).unwrap_or_default();
    let vendor = name("sys_vendor");
    if vendor.is_empty() && !kubernetes {
        return vec![Cloud::Aws, Cloud::Gcp];
    }
    let mut clouds = Vec::new();
    if vendor.contains("Amazon") || name("bios_version").contains("amazon") {
        clouds.push(Cloud::Aws);
    }
    if vendor.contains("Microsoft Corporation") {
        clouds.push(Cloud::Azure);
    }
    if vendor.contains("Google") || name("product_name").contains("Google") {
        clouds.push(Cloud::Gcp);
    }
    clouds
}

/// A search under way.
#[derive(Debug)]
pub struct Detection {
    task: Option<JoinHandle<Option<Platform>>>,
    until: Instant,
    named: bool,
}

impl Detection {
    /// Starts the search, if there is anything to look for.
    pub fn start(config: PlatformConfig) -> Self {
        let until = Instant::now() + config.limit();
        let named = config.named;
        let task = (!config.clouds.is_empty())
            .then(|| tokio::spawn(async move { search(&config, until - MARGIN).await }));
        Self { task, until, named }
    }

    /// The result, waited for until the limit only. Nothing found is nothing, never an error.
    pub async fn finish(self) -> Option<Platform> {
        let mut task = self.task?;
        let found = tokio::time::timeout_at(self.until, &mut task).await;
        task.abort();
        let found = found.ok().and_then(Result::ok).flatten();
        if found.is_none() && self.named {
            tracing::warn!("the named cloud's metadata server did not answer in time");
        }
        found
    }
}

/// Asks all at once; the first that answers is it.
async fn search(config: &PlatformConfig, until: Instant) -> Option<Platform> {
    use futures_util::stream::{FuturesUnordered, StreamExt};
    let ask = |cloud| async move { (cloud, config.ask(cloud, until).await) };
    let mut answers: FuturesUnordered<_> = config.clouds.iter().copied().map(ask).collect();
    while let Some((cloud, found)) = answers.next().await {
        if found.is_some() {
            tracing::info!("platform detected is {cloud:?}");
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests;
