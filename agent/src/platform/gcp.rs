//! Google Cloud: project, cluster and instance from variables or from the metadata server, and the
//! zone as locality.

use std::collections::BTreeMap;
use std::path::Path;

use bootstrap_templates::{Locality, Platform};
use http::Method;
use tokio::time::Instant;

use super::server::MetadataServer;
use crate::options::Environment;

const ROOT: &str = "/computeMetadata/v1/";
const FLAVOR: (&str, &str) = ("metadata-flavor", "Google");

/// Metadata keys and where the server has them. The location falls back to the zone.
const ATTRIBUTES: &[(&str, &str)] = &[
    ("gcp_project", "project/project-id"),
    ("gcp_project_number", "project/numeric-project-id"),
    ("gcp_location", "instance/attributes/cluster-location"),
    ("gcp_gke_cluster_name", "instance/attributes/cluster-name"),
    ("gcp_gce_instance", "instance/name"),
    ("gcp_gce_instance_id", "instance/id"),
    (
        "gcp_gce_instance_template",
        "instance/attributes/instance-template",
    ),
    (
        "gcp_gce_instance_created_by",
        "instance/attributes/created-by",
    ),
];
const ZONE: &str = "instance/zone";

/// What `GCP_METADATA` and its companions say; then the server is only asked for the zone.
#[derive(Debug, Clone, Default)]
pub(super) struct StaticMetadata {
    metadata: BTreeMap<String, String>,
    zone: String,
}

impl StaticMetadata {
    pub(super) fn new(environment: &Environment) -> Self {
        let zone = environment.text("GCP_ZONE");
        let text = environment.text("GCP_METADATA");
        if text.is_empty() {
            return Self {
                metadata: BTreeMap::new(),
                zone,
            };
        }
        let mut metadata = BTreeMap::new();
        let mut set = |key: &str, value: &str| metadata.insert(key.to_owned(), value.to_owned());
        match text.split('|').collect::<Vec<_>>()[..] {
            [project, number, cluster, location] => {
                set("gcp_project", project);
                set("gcp_project_number", number);
                set("gcp_gke_cluster_name", cluster);
                set("gcp_location", location);
            }
            _ => tracing::warn!("GCP_METADATA is not of the form project|number|cluster|location"),
        }
        for (key, value) in [
            ("gcp_quota_project", environment.text("GCP_QUOTA_PROJECT")),
            ("gcp_zone", zone.clone()),
        ] {
            if !value.is_empty() {
                set(key, &value);
            }
        }
        add_cluster_url(&mut metadata);
        Self { metadata, zone }
    }

    pub(super) fn is_set(&self) -> bool {
        !self.metadata.is_empty()
    }
}

fn add_cluster_url(metadata: &mut BTreeMap<String, String>) {
    let part = |key: &str| metadata.get(key);
    let (Some(project), Some(location), Some(cluster)) = (
        part("gcp_project"),
        part("gcp_location"),
        part("gcp_gke_cluster_name"),
    ) else {
        return;
    };
    let url = format!(
        "https://container.googleapis.com/v1/projects/{project}/locations/{location}/clusters/\
         {cluster}"
    );
    metadata.insert("gcp_gke_cluster_url".to_owned(), url);
}

pub(super) async fn ask(
    server: &MetadataServer,
    known: &StaticMetadata,
    resolv_conf: &Path,
    until: Instant,
) -> Option<Platform> {
    let get = |path: &'static str| async move {
        let path = format!("{ROOT}{path}");
        server
            .ask(Method::GET, &path, Some(FLAVOR), Some(FLAVOR), until)
            .await
    };
    let attributes = async {
        if known.is_set() {
            return known.metadata.clone();
        }
        let ask = |(key, path): &(&'static str, &'static str)| {
            let (key, path) = (*key, *path);
            async move { Some((key.to_owned(), get(path).await?)) }
        };
        let answers = futures_util::future::join_all(ATTRIBUTES.iter().map(ask)).await;
        answers.into_iter().flatten().collect()
    };
    let named_zone = match known.zone.as_str() {
        "" => zone_of_search_domain(&std::fs::read_to_string(resolv_conf).unwrap_or_default()),
        zone => Some(zone.to_owned()),
    };
    let zone = async {
        match named_zone {
            Some(zone) => Some(zone),
            None => get(ZONE).await.map(last_part),
        }
    };
    let (mut metadata, zone) = tokio::join!(attributes, zone);
    if metadata.is_empty() {
        return None;
    }
    let zone = zone.unwrap_or_default();
    if !known.is_set() {
        if !metadata.contains_key("gcp_location") && !zone.is_empty() {
            metadata.insert("gcp_location".to_owned(), zone.clone());
        }
        add_cluster_url(&mut metadata);
    }
    let locality = region(&zone).map(|region| Locality {
        region,
        zone: zone.clone(),
        sub_zone: String::new(),
    });
    Some(Platform {
        metadata,
        locality: locality.unwrap_or_default(),
        ..Platform::default()
    })
}

/// `projects/1/zones/europe-west1-b` is named by its last part.
fn last_part(path: String) -> String {
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

/// `europe-west1-b` lies in `europe-west1`; a name of another shape has no region.
fn region(zone: &str) -> Option<String> {
    let parts: Vec<&str> = zone.split('-').collect();
    match parts[..] {
        [a, b, c] if ![a, b, c].contains(&"") => Some(format!("{a}-{b}")),
        _ => None,
    }
}

/// GKE's resolver searches `<zone>.c.<project>.internal`.
fn zone_of_search_domain(resolv_conf: &str) -> Option<String> {
    let lines = resolv_conf
        .lines()
        .filter_map(|line| line.strip_prefix("search"));
    lines.flat_map(str::split_whitespace).find_map(|domain| {
        let (zone, rest) = domain.split_once(".c.")?;
        rest.ends_with(".internal").then_some(())?;
        region(zone).map(|_| zone.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_found_and_split() {
        let text = "nameserver 10.0.0.10\nsearch ns.svc.cluster.local us-east1-c.c.proj.internal \
                    google.internal\n";
        assert_eq!(zone_of_search_domain(text).as_deref(), Some("us-east1-c"));
        assert_eq!(
            zone_of_search_domain("search a.c.b.internal c.proj.internal\n"),
            None
        );
        assert_eq!(region("us-east1-c").as_deref(), Some("us-east1"));
        assert_eq!(region("us-east1"), None);
        assert_eq!(
            last_part("projects/1/zones/us-east1-c".to_owned()),
            "us-east1-c"
        );
    }

    #[test]
    fn variables_replace_the_server() {
        let variables = [
            ("GCP_METADATA", "p|1|c|l"),
            ("GCP_QUOTA_PROJECT", "q"),
            ("GCP_ZONE", "us-east1-c"),
        ];
        let environment = variables
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into_iter()
            .collect();
        let known = StaticMetadata::new(&environment);
        let url = "https://container.googleapis.com/v1/projects/p/locations/l/clusters/c";
        assert_eq!(known.metadata["gcp_gke_cluster_url"], url);
        assert_eq!(known.metadata["gcp_quota_project"], "q");
        assert_eq!(known.metadata["gcp_zone"], "us-east1-c");
    }
}
