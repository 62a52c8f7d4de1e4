//! Variables and ProxyConfig to connection settings, row by row.

use std::path::PathBuf;
use std::time::Duration;

use bootstrap_templates::{AuthPolicy, ProxySettings};

use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    let pairs = variables.iter();
    pairs.map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

fn settings() -> ProxySettings {
    ProxySettings {
        discovery_address: "istiod.istio-system.svc:15012".to_owned(),
        control_plane_auth_policy: AuthPolicy::MutualTls,
        ..ProxySettings::default()
    }
}

fn with<T>(
    variables: &[(&str, &str)],
    settings: &ProxySettings,
    ask: impl FnOnce(&Security<'_>) -> T,
) -> T {
    let environment = environment(variables);
    ask(&Security {
        environment: &environment,
        settings,
        compliance: None,
        directory: Path::new("."),
    })
}

fn mounted_root(path: &str) -> Result<RootSource, String> {
    file(&format!("./{path}"))
}

fn file(path: &str) -> Result<RootSource, String> {
    Ok(RootSource::File(PathBuf::from(path)))
}

#[test]
fn roots_of_istiod_follow_their_order() {
    let mut mounted = settings();
    let key = "ISTIO_META_TLS_CLIENT_ROOT_CERT".to_owned();
    mounted.proxy_metadata.insert(key, "/m/root".to_owned());
    for (variables, want) in [
        (&[][..], mounted_root(ISTIOD_ROOT)),
        (
            &[("PILOT_CERT_PROVIDER", "istiod")],
            mounted_root(ISTIOD_ROOT),
        ),
        (
            &[("PILOT_CERT_PROVIDER", "k8s.io/x")],
            mounted_root(ISTIOD_ROOT),
        ),
        (
            &[("PILOT_CERT_PROVIDER", "none")],
            Err("PILOT_CERT_PROVIDER=none: no root to verify XDS with".to_owned()),
        ),
        (&[("FILE_MOUNTED_CERTS", "true")], file("/m/root")),
        (&[("PROV_CERT", "/p")], file("/p/root-cert.pem")),
        (&[("PROV_CERT", "/p"), ("XDS_ROOT_CA", "/x")], file("/x")),
        (
            &[("PILOT_CERT_PROVIDER", "none"), ("XDS_ROOT_CA", "SYSTEM")],
            Ok(RootSource::System),
        ),
        (&[("CA_ROOT_CA", "/x")], mounted_root(ISTIOD_ROOT)),
    ] {
        let got = with(variables, &mounted, |s| s.xds_root());
        assert_eq!(got.map_err(|e| e.to_string()), want, "{variables:?}");
    }
}

#[test]
fn roots_of_the_ca_follow_their_order() {
    for (variables, want) in [
        (&[][..], mounted_root(ISTIOD_ROOT)),
        (
            &[("PILOT_CERT_PROVIDER", "custom")],
            mounted_root(LEGACY_ROOT),
        ),
        (
            &[("PILOT_CERT_PROVIDER", "none")],
            Err("PILOT_CERT_PROVIDER=none: no root to verify CA with".to_owned()),
        ),
        (&[("PROV_CERT", "/p")], file("/p/root-cert.pem")),
        (&[("PROV_CERT", "/p"), ("CA_ROOT_CA", "/x")], file("/x")),
        (&[("CA_ROOT_CA", "SYSTEM")], Ok(RootSource::System)),
        (&[("XDS_ROOT_CA", "/x")], mounted_root(ISTIOD_ROOT)),
    ] {
        let got = with(variables, &settings(), |s| s.ca_root());
        assert_eq!(got.map_err(|e| e.to_string()), want, "{variables:?}");
    }
}

#[test]
fn a_root_file_must_exist_at_start_and_system_roots_need_none() {
    let missing = [("XDS_ROOT_CA", "/not/there"), ("CA_ROOT_CA", "/nor/there")];
    for (peer, path) in [("XDS", "/not/there"), ("CA", "/nor/there")] {
        let got = with(&missing, &settings(), |security| match peer {
            "XDS" => security.xds_endpoint().map(drop),
            _ => security.ca_endpoint().map(drop),
        });
        let want = format!("root CA file for {peer} does not exist {path}");
        assert_eq!(got.expect_err("refused").to_string(), want);
    }
    let system = [("XDS_ROOT_CA", "SYSTEM"), ("CA_ROOT_CA", "SYSTEM")];
    with(&system, &settings(), |security| {
        security.xds_endpoint().expect("xDS");
        security.ca_endpoint().expect("CA");
    });
}

#[test]
fn plaintext_is_by_policy_for_istiod_and_by_port_for_the_ca() {
    let system = [("XDS_ROOT_CA", "SYSTEM"), ("CA_ROOT_CA", "SYSTEM")];
    let open = ProxySettings {
        control_plane_auth_policy: AuthPolicy::None,
        ..settings()
    };
    for (settings, ca, xds_tls, ca_tls) in [
        (&settings(), "", true, true),
        (&open, "", false, true),
        (&settings(), "ca.test:15010", true, false),
        (&settings(), "ca.test:15012", true, true),
    ] {
        let variables = [&system[..], &[("CA_ADDR", ca)]].concat();
        with(&variables, settings, |security| {
            let xds = security.xds_endpoint().expect("xDS");
            let ca = security.ca_endpoint().expect("CA");
            assert_eq!((xds.tls.is_some(), ca.tls.is_some()), (xds_tls, ca_tls));
        });
    }
}

#[test]
fn istiod_san_is_for_xds_and_for_the_ca_only_without_ca_addr() {
    let system = [
        ("XDS_ROOT_CA", "SYSTEM"),
        ("CA_ROOT_CA", "SYSTEM"),
        ("ISTIOD_SAN", "istiod.test"),
    ];
    for (ca, address, san) in [
        ("", "istiod.istio-system.svc:15012", Some("istiod.test")),
        ("ca.test:443", "ca.test:443", None),
    ] {
        let variables = [&system[..], &[("CA_ADDR", ca)]].concat();
        with(&variables, &settings(), |security| {
            let xds = security.xds_endpoint().expect("xDS");
            assert_eq!(xds.san.as_deref(), Some("istiod.test"));
            let ca = security.ca_endpoint().expect("CA");
            assert_eq!((ca.address.as_str(), ca.san.as_deref()), (address, san));
        });
    }
}

#[test]
fn client_certificates_come_from_prov_cert_or_from_mounted_files() {
    let mut mounted = settings();
    for (key, value) in [
        ("ISTIO_META_TLS_CLIENT_CERT_CHAIN", "/m/chain"),
        ("ISTIO_META_TLS_CLIENT_KEY", "/m/key"),
        ("ISTIO_META_TLS_CLIENT_ROOT_CERT", "/m/root"),
    ] {
        mounted.proxy_metadata.insert(key.into(), value.into());
    }
    for (variables, want) in [
        (&[][..], None),
        (
            &[("PROV_CERT", "/p")],
            Some(("/p/cert-chain.pem", "/p/key.pem")),
        ),
        (
            &[("FILE_MOUNTED_CERTS", "true")],
            Some(("/m/chain", "/m/key")),
        ),
    ] {
        let got = with(variables, &mounted, |s| s.client_certificate());
        let want = want.map(|(chain, key)| ClientCertificate {
            chain: chain.into(),
            key: key.into(),
        });
        assert_eq!(got, want, "{variables:?}");
    }
}

#[test]
fn https_proxy_applies_to_istiod_and_the_ca_unless_no_proxy_says_otherwise() {
    let base = [
        ("XDS_ROOT_CA", "SYSTEM"),
        ("CA_ROOT_CA", "SYSTEM"),
        ("CA_ADDR", "ca.test:443"),
    ];
    for (variables, xds, ca) in [
        (&[][..], false, false),
        (&[("HTTPS_PROXY", "http://p:3128")], true, true),
        (&[("https_proxy", "p:3128")], true, true),
        (&[("HTTP_PROXY", "http://p:3128")], false, false),
        (
            &[("HTTPS_PROXY", "http://p:3128"), ("NO_PROXY", ".svc")],
            false,
            true,
        ),
        (
            &[
                ("HTTPS_PROXY", "http://p:3128"),
                ("no_proxy", "ca.test:443"),
            ],
            true,
            false,
        ),
    ] {
        let variables = [&base[..], variables].concat();
        with(&variables, &settings(), |security| {
            let used = |config: Result<IstiodConfig, SecurityError>| {
                config.expect("accepted").https_proxy.is_some()
            };
            assert_eq!(used(security.xds_endpoint()), xds, "{variables:?}");
            assert_eq!(used(security.ca_endpoint()), ca, "{variables:?}");
        });
    }
    let socks = [&base[..], &[("HTTPS_PROXY", "socks5://p:1080")]].concat();
    let error = with(&socks, &settings(), |s| s.xds_endpoint().map(drop));
    let want = "HTTPS_PROXY: scheme \"socks5\" is not supported, only http";
    assert_eq!(error.expect_err("refused").to_string(), want);
}

#[tokio::test]
async fn request_headers_come_from_their_variables_in_lower_case() {
    let variables = [
        ("XDS_HEADER_X-Tenant", "a b"),
        ("XDS_HEADER_UPPER_CASE", ""),
        ("CA_HEADER_X-Other", "c"),
        ("ISTIO_META_CLUSTER_ID", "east"),
        ("CREDENTIAL_FETCHER_TYPE", "Mock"),
    ];
    let metadata = |prefix| {
        let got = with(&variables, &settings(), |security| {
            security.metadata(prefix)
        });
        got.expect("valid")
    };
    let headers = metadata("XDS_HEADER_").headers().await.expect("headers");
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let want = ["authorization", "clusterid", "upper_case", "x-tenant"];
    assert_eq!(names, want);
    assert_eq!(headers["x-tenant"], "a b");
    assert_eq!(headers["clusterid"], "east");
    let headers = metadata("CA_HEADER_").headers().await.expect("headers");
    assert_eq!(headers["x-other"], "c");
    for variable in ["XDS_HEADER_", "XDS_HEADER_a b"] {
        let got = with(&[(variable, "v")], &settings(), |security| {
            security.metadata("XDS_HEADER_").map(drop)
        });
        let error = got.expect_err("refused").to_string();
        assert_eq!(error, format!("{variable} is not a valid request header"));
    }
}

#[test]
fn keepalive_and_socket_limits_have_defaults_and_lower_bounds() {
    let seconds = Duration::from_secs;
    for (variables, client, server, streams, message) in [
        (&[][..], (30, 10), (30, 10), 100_000, 64 << 20),
        (
            &[
                ("GRPC_KEEPALIVE_INTERVAL", "1m"),
                ("GRPC_KEEPALIVE_TIMEOUT", "20s"),
                ("ISTIO_GPRC_MAXSTREAMS", "7"),
                ("ISTIO_GPRC_MAXRECVMSGSIZE", "1000"),
            ],
            (60, 20),
            (60, 20),
            7,
            1000,
        ),
        (
            &[
                ("GRPC_KEEPALIVE_INTERVAL", "0s"),
                ("GRPC_KEEPALIVE_TIMEOUT", "0s"),
                ("ISTIO_GPRC_MAXSTREAMS", "-1"),
                ("ISTIO_GPRC_MAXRECVMSGSIZE", "much"),
            ],
            (10, 1),
            (1, 1),
            100_000,
            64 << 20,
        ),
    ] {
        let variables = [&[("XDS_ROOT_CA", "SYSTEM")][..], variables].concat();
        with(&variables, &settings(), |security| {
            let pair = |(a, b)| (seconds(a), seconds(b));
            let upstream = security.xds_endpoint().expect("accepted").keepalive;
            assert_eq!(upstream, pair(client), "{variables:?}");
            let got = security.server();
            assert_eq!(got.keepalive, Some(pair(server)), "{variables:?}");
            assert_eq!((got.max_streams, got.max_message), (streams, message));
        });
    }
}
