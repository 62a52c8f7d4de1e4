//! Metadata servers on loopback, one per cloud, and the limits of the search.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// Answers `METHOD path` with a body; anything else is 404. Requests without `header` are refused.
async fn serve(header: &'static str, answers: &[(&str, &str)]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let answers: Arc<BTreeMap<String, String>> = Arc::new(answers.iter().map(owned).collect());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answers = answers.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let line = head.lines().next().unwrap_or_default().to_owned();
                let key = line.rsplit_once(' ').map_or("", |(key, _)| key);
                let body = answers.get(key).filter(|_| head.contains(header));
                let (status, body) = body.map_or((404, ""), |body| (200, body.as_str()));
                let answer = format!(
                    "HTTP/1.1 {status} X\r\nmetadata-flavor: Google\r\ncontent-length: {}\r\n\r\n\
                     {body}",
                    body.len()
                );
                // The asker may have gone.
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    variables.iter().map(owned).collect()
}

fn config(variables: &[(&str, &str)], server: SocketAddr) -> PlatformConfig {
    let nothing = Path::new("/nonexistent");
    PlatformConfig {
        amazon: MetadataServer::at(server),
        microsoft: MetadataServer::at(server),
        google: MetadataServer::at(server),
        resolv_conf: nothing.to_owned(),
        ..PlatformConfig::with_firmware(&environment(variables), false, nothing)
    }
}

async fn found(config: PlatformConfig) -> Option<Platform> {
    let search = Detection::start(config).finish();
    tokio::time::timeout(DEADLINE, search)
        .await
        .expect("bounded")
}

fn texts(map: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    map.iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect()
}

#[tokio::test]
async fn aws_is_asked_with_a_token() {
    let answers = [
        ("put /latest/api/token", "secret"),
        (
            "get /latest/meta-data/iam/info",
            "{\"arn\":\"arn:aws:iam::1:x\"}",
        ),
        ("get /latest/meta-data/placement/region", "eu-west-1\n"),
        (
            "get /latest/meta-data/placement/availability-zone",
            "eu-west-1a",
        ),
        ("get /latest/meta-data/instance-id", "i-1"),
    ];
    let server = serve("x-aws-ec2-metadata-token", &answers).await;
    let platform = found(config(&[], server)).await.expect("found");
    let want = [
        ("aws_availability_zone", "eu-west-1a"),
        ("aws_instance_id", "i-1"),
        ("aws_region", "eu-west-1"),
    ];
    assert_eq!(texts(&platform.metadata), want);
    assert_eq!(platform.locality.region, "eu-west-1");
    assert_eq!(platform.locality.zone, "eu-west-1a");
}

#[tokio::test]
async fn a_named_cloud_needs_no_proof_and_an_old_server_no_token() {
    let answers = [("get /latest/meta-data/instance-id", "i-2")];
    let server = serve("host:", &answers).await;
    let platform = found(config(&[("CLOUD_PLATFORM", "AWS")], server))
        .await
        .expect("found");
    assert_eq!(texts(&platform.metadata), [("aws_instance_id", "i-2")]);
    assert!(found(config(&[], server)).await.is_none(), "not proven");
}

#[tokio::test]
async fn azure_is_asked_in_its_newest_version() {
    let instance = r#"{"compute":{"name":"vm","location":"westeurope","zone":"2","vmId":"id",
        "tagsList":[{"name":"env","value":"prod"}]}}"#;
    let answers = [
        (
            "get /metadata/instance",
            r#"{"newest-versions":["2021-02-01"]}"#,
        ),
        ("get /metadata/instance?api-version=2021-02-01", instance),
    ];
    let server = serve("metadata: true", &answers).await;
    let platform = found(config(&[("CLOUD_PLATFORM", "azure")], server))
        .await
        .expect("found");
    let want = [
        ("azure_env", "prod"),
        ("azure_location", "westeurope"),
        ("azure_name", "vm"),
        ("azure_vmId", "id"),
    ];
    assert_eq!(texts(&platform.metadata), want);
    assert_eq!(platform.locality.zone, "2");
}

#[tokio::test]
async fn google_is_asked_for_everything_it_has() {
    let answers = [
        ("get /computemetadata/v1/project/project-id", "proj"),
        (
            "get /computemetadata/v1/instance/attributes/cluster-name",
            "c1",
        ),
        (
            "get /computemetadata/v1/instance/zone",
            "projects/7/zones/us-east1-c",
        ),
    ];
    let server = serve("metadata-flavor: google", &answers).await;
    let platform = found(config(&[], server)).await.expect("found");
    let url = "https://container.googleapis.com/v1/projects/proj/locations/us-east1-c/clusters/c1";
    let want = [
        ("gcp_gke_cluster_name", "c1"),
        ("gcp_gke_cluster_url", url),
        ("gcp_location", "us-east1-c"),
        ("gcp_project", "proj"),
    ];
    assert_eq!(texts(&platform.metadata), want);
    assert_eq!(platform.locality.region, "us-east1");
    let fixed = [("GCP_METADATA", "p|1|c|l"), ("GCP_ZONE", "us-west1-a")];
    let platform = found(config(&fixed, server)).await.expect("from variables");
    assert_eq!(platform.metadata["gcp_project"], "p");
    assert_eq!(platform.locality.zone, "us-west1-a");
}

#[tokio::test]
async fn a_silent_server_ends_the_search_at_its_limit() {
    // Connections wait in the backlog and are never answered.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = silent.local_addr().expect("address");
    for variables in [&[][..], &[("CLOUD_PLATFORM", "gcp")]] {
        assert!(found(config(variables, address)).await.is_none());
    }
}

#[tokio::test]
async fn nobody_is_asked_without_a_reason() {
    let folder = tempfile::tempdir().expect("folder");
    let firmware = |vendor: &str, product: &str| {
        std::fs::write(folder.path().join("sys_vendor"), vendor).expect("written");
        std::fs::write(folder.path().join("product_name"), product).expect("written");
        suspects(folder.path(), true)
    };
    assert_eq!(firmware("QEMU\n", "Standard PC"), []);
    assert_eq!(firmware("Google\n", "Google Compute Engine"), [Cloud::Gcp]);
    assert_eq!(
        firmware("Microsoft Corporation\n", "Virtual Machine"),
        [Cloud::Azure]
    );
    assert_eq!(firmware("Amazon EC2\n", "m5.large"), [Cloud::Aws]);
    let nothing = Path::new("/nonexistent");
    assert_eq!(suspects(nothing, true), []);
    assert_eq!(suspects(nothing, false), [Cloud::Aws, Cloud::Gcp]);
    let off = environment(&[("CLOUD_PLATFORM", "none")]);
    let config = PlatformConfig::with_firmware(&off, false, Path::new("/nonexistent"));
    assert!(Detection::start(config).task.is_none());
}

#[test]
fn a_pod_waits_only_for_what_istiod_reads() {
    let folder = tempfile::tempdir().expect("folder");
    let limit = |vendor: &str, variables: &[(&str, &str)]| {
        std::fs::write(folder.path().join("sys_vendor"), vendor).expect("written");
        PlatformConfig::with_firmware(&environment(variables), false, folder.path()).limit()
    };
    let pod = ("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    assert_eq!(limit("Amazon EC2", &[pod]), POD_LIMIT);
    assert_eq!(limit("Microsoft Corporation", &[pod]), POD_LIMIT);
    assert_eq!(limit("Google", &[pod]), DETECTION_LIMIT);
    assert_eq!(limit("Amazon EC2", &[]), DETECTION_LIMIT);
    let named = ("CLOUD_PLATFORM", "aws");
    assert_eq!(limit("Amazon EC2", &[pod, named]), NAMED_LIMIT);
}

#[test]
fn googles_server_can_only_be_moved_to_an_address() {
    for (host, want) in [
        ("", "169.254.169.254:80"),
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("10.0.0.1", "10.0.0.1:80"),
        ("metadata.example.com", "169.254.169.254:80"),
    ] {
        let server = format!("{:?}", MetadataServer::google(host));
        assert!(server.contains(want), "{host}: {server}");
    }
    assert!(format!("{:?}", MetadataServer::link_local(true)).contains("[fd00:ec2::254]:80"));
}
