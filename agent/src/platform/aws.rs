//! AWS: region, zone and instance from the instance metadata service, version 2 with a fallback to
//! version 1.

use std::collections::BTreeMap;

use bootstrap_templates::{Locality, Platform};
use http::Method;
use tokio::time::Instant;

use super::server::MetadataServer;

const TOKEN: &str = "/latest/api/token";
const TOKEN_TTL: (&str, &str) = ("x-aws-ec2-metadata-token-ttl-seconds", "60");
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const DATA: &str = "/latest/meta-data";

/// `named` skips the check that this is AWS at all.
pub(super) async fn ask(server: &MetadataServer, named: bool, until: Instant) -> Option<Platform> {
    let token = server
        .ask(Method::PUT, TOKEN, Some(TOKEN_TTL), None, until)
        .await;
    let header = token.as_deref().map(|token| (TOKEN_HEADER, token));
    let get = |path: &'static str| async move {
        server.get(&format!("{DATA}/{path}"), header, until).await
    };
    if !named && !get("iam/info").await?.contains("arn:aws:iam") {
        return None;
    }
    let (region, zone, instance) = tokio::join!(
        get("placement/region"),
        get("placement/availability-zone"),
        get("instance-id"),
    );
    let entries = [
        ("aws_region", &region),
        ("aws_availability_zone", &zone),
        ("aws_instance_id", &instance),
    ];
    let metadata: BTreeMap<String, String> = entries
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)))
        .collect();
    (!metadata.is_empty()).then(|| Platform {
        metadata,
        locality: Locality {
            region: region.unwrap_or_default(),
            zone: zone.unwrap_or_default(),
            sub_zone: String::new(),
        },
        ..Platform::default()
    })
}
