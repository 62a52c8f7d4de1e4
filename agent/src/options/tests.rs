//! Options from argument, variable and file tables.

use super::*;
use crate::cli::{Command, parse};

fn args(line: &str) -> ProxyArgs {
    let words = line.split_whitespace().map(Into::into);
    match parse(words).expect("command line").command {
        Command::Proxy(args) => args,
        other => panic!("{other:?}"),
    }
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

async fn merged(
    line: &str,
    variables: &[(&str, &str)],
    annotations: &[(&str, &str)],
) -> Result<(ProxyConfig, ProxySettings), ProxyConfigError> {
    let environment = environment(variables);
    let annotations: BTreeMap<String, String> = annotations
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let args = args(line);
    let layers = proxy_config::Layers::read(&args, &environment, Some(&annotations))?;
    layers.merge(&args, &environment).await
}

#[tokio::test]
async fn layers_beat_each_other_in_order() {
    let folder = tempfile::tempdir().expect("folder");
    let mesh = folder.path().join("mesh");
    let text = "defaultConfig:\n  discoveryAddress: mesh:1\n  drainDuration: 10s\n  \
                proxyMetadata: {A: mesh, B: mesh}\ntrustDomain: td\n";
    std::fs::write(&mesh, text).expect("written");
    let line = format!("proxy --meshConfig {}", mesh.display());
    let (config, settings) = merged(
        &line,
        &[(
            "PROXY_CONFIG",
            "discoveryAddress: env:1\nproxyMetadata: {B: env, C: env}",
        )],
        &[(
            "proxy.istio.io/config",
            r#"{"proxyMetadata":{"C":"annotation"}}"#,
        )],
    )
    .await
    .expect("merged");
    assert_eq!(settings.discovery_address, "env:1");
    assert_eq!(settings.drain_duration, Some(Duration::from_secs(10)));
    let metadata: Vec<_> = settings
        .proxy_metadata
        .values()
        .map(String::as_str)
        .collect();
    assert_eq!(metadata, ["mesh", "env", "annotation"]);
    assert_eq!(config.to_json()["drainDuration"], "10s");
}

#[tokio::test]
async fn concurrency_is_flag_then_config_then_cpu_limit() {
    for (line, config, limit, want) in [
        ("proxy", "", "", None),
        ("proxy", "", "3", Some(3)),
        ("proxy", "concurrency: 0", "3", Some(0)),
        ("proxy", "concurrency: 2", "3", Some(2)),
        ("proxy --concurrency=5", "concurrency: 2", "3", Some(5)),
        ("proxy", "", "many", None),
    ] {
        let variables = [("PROXY_CONFIG", config), ("ISTIO_CPU_LIMIT", limit)];
        let (_, settings) = merged(line, &variables, &[]).await.expect("merged");
        assert_eq!(settings.concurrency, want, "{line} {config} {limit}");
    }
}

#[tokio::test]
async fn annotations_override_after_validation() {
    let (config, settings) = merged(
        "proxy",
        &[],
        &[
            ("sidecar.istio.io/discoveryAddress", "x:9"),
            ("status.sidecar.istio.io/port", "0"),
        ],
    )
    .await
    .expect("merged");
    assert_eq!(
        (settings.discovery_address.as_str(), settings.status_port),
        ("x:9", 0)
    );
    assert_eq!(config.to_json().get("statusPort"), None);
}

#[tokio::test]
async fn empty_service_cluster_takes_the_flag() {
    let variables = [("PROXY_CONFIG", "serviceCluster: ''")];
    let (_, settings) = merged("proxy --serviceCluster mine", &variables, &[])
        .await
        .expect("ok");
    assert_eq!(settings.service_cluster.as_deref(), Some("mine"));
}

#[tokio::test]
async fn bad_layers_say_which_and_why() {
    for (config, want) in [
        (
            "statusPort: 0",
            "ProxyConfig: statusPort: 0 is out of range",
        ),
        ("- a", "could not parse PROXY_CONFIG: not a mapping"),
        (
            "drainDuration: 5",
            "PROXY_CONFIG: drainDuration: expected a duration string, got a number",
        ),
    ] {
        let error = merged("proxy", &[("PROXY_CONFIG", config)], &[])
            .await
            .expect_err(config);
        assert_eq!(error.to_string(), want);
    }
    let error = merged("proxy", &[("PROXY_CONFIG", "{a: [")], &[])
        .await
        .expect_err("syntax");
    assert!(
        error
            .to_string()
            .starts_with("could not parse PROXY_CONFIG: "),
        "{error}"
    );
}

#[test]
fn variables_that_cannot_be_honoured_are_refused_by_name() {
    for (variables, want) in [
        (
            &[("CA_PROVIDER", "GoogleCA")][..],
            "CA_PROVIDER=GoogleCA: only Citadel and GkeWorkloadCertificate are supported",
        ),
        (
            &[("CA_ADDR", "meshca.googleapis.com:443")],
            "CA_ADDR=meshca.googleapis.com:443: Google's CA is not supported",
        ),
        (
            &[("COMPLIANCE_POLICY", "fips")],
            "COMPLIANCE_POLICY=fips: is not one of fips-140-2, fips-140-3, pqc",
        ),
        (
            &[("WORKLOAD_IDENTITY_SOCKET_FILE", "a/b")],
            "WORKLOAD_IDENTITY_SOCKET_FILE=a/b: must be a file name, not a path",
        ),
        (
            &[("FILE_MOUNTED_CERTS", "true"), ("PROV_CERT", "/certs")],
            "PROV_CERT=/certs: cannot be combined with FILE_MOUNTED_CERTS",
        ),
    ] {
        let error = refuse_unsupported(&environment(variables)).expect_err("refused");
        assert_eq!(error.to_string(), want);
    }
    refuse_unsupported(&environment(&[("CA_PROVIDER", "Citadel")])).expect("accepted");
}

#[test]
fn the_bootstrap_comes_from_the_first_source_that_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let stock = folder.path().join("stock.json");
    let other = folder.path().join("other.yaml.tmpl");
    std::fs::write(&stock, bootstrap_templates::STOCK_TEMPLATE).expect("written");
    std::fs::write(&other, "node: {{ .nodeID }}").expect("written");
    let source = |variables: &[(&str, &str)], settings: &ProxySettings| {
        bootstrap_source(&environment(variables), settings)
    };
    let path = |p: &Path| p.display().to_string();
    let named_stock = path(&stock);
    let by_stock = [("ISTIO_BOOTSTRAP", named_stock.as_str())];
    let mut settings = ProxySettings::default();
    assert_eq!(source(&by_stock, &settings), BootstrapSource::Generated);
    settings.proxy_bootstrap_template_path = path(&other);
    assert_eq!(source(&[], &settings), BootstrapSource::Template(other));
    assert_eq!(
        source(&by_stock, &settings),
        BootstrapSource::Generated,
        "the variable wins"
    );
    let missing = source(&[("ISTIO_BOOTSTRAP", "/not/there")], &settings);
    assert_eq!(
        missing,
        BootstrapSource::Template(PathBuf::from("/not/there"))
    );
    settings.custom_config_file = "/mine.json".to_owned();
    let found = source(&[("ISTIO_BOOTSTRAP", "/not/there")], &settings);
    assert_eq!(found, BootstrapSource::File(PathBuf::from("/mine.json")));
}

#[tokio::test]
async fn the_template_flag_is_part_of_the_configuration() {
    let line = "proxy --templateFile /flag.json";
    let (config, settings) = merged(line, &[], &[]).await.expect("merged");
    assert_eq!(settings.proxy_bootstrap_template_path, "/flag.json");
    assert_eq!(config.to_json()["proxyBootstrapTemplatePath"], "/flag.json");
    let custom = [("PROXY_CONFIG", r#"{"customConfigFile":"/mine.json"}"#)];
    let (_, settings) = merged(line, &custom, &[]).await.expect("merged");
    assert_eq!(settings.proxy_bootstrap_template_path, "");
}

#[test]
fn unparseable_values_fall_back_to_their_default() {
    let environment = environment(&[
        ("N", "x"),
        ("E", ""),
        ("B", "T"),
        ("D", "1m30s"),
        ("BAD", "maybe"),
    ]);
    assert_eq!(environment.number("N", 7_u16), 7);
    assert_eq!(environment.number("E", 7_u16), 7);
    assert!(environment.boolean("B", false));
    assert!(environment.boolean("BAD", true));
    assert_eq!(
        environment.duration("D", Duration::ZERO),
        Duration::from_secs(90)
    );
    assert_eq!(environment.text_or("E", "default"), "");
}
