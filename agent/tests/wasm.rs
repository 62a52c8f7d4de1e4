//! Wasm modules from a web server and a registry on loopback, and what becomes of the extension
//! configs that name them.

#[path = "support/pki.rs"]
mod pki;
#[path = "support/web.rs"]
mod web;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use outrigger_api::envoy::envoy::config::core::v3::async_data_source::Specifier;
use outrigger_api::envoy::envoy::config::core::v3::{
    AsyncDataSource, DataSource, HttpUri, RemoteDataSource, TypedExtensionConfig, data_source,
};
use outrigger_api::envoy::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use outrigger_api::envoy::envoy::extensions::filters::http::wasm::v3::Wasm;
use outrigger_api::envoy::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use outrigger_api::envoy::envoy::extensions::wasm::v3::{
    EnvironmentVariables, FailurePolicy, PluginConfig, VmConfig, plugin_config,
};
use outrigger_api::envoy::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource,
};
use outrigger_api::google::protobuf::Any;
use outrigger_xds::Protocol;
use pilot_agent::istiod::RootSource;
use pilot_agent::metrics::Metrics;
use pilot_agent::resolver::Resolver;
use pilot_agent::wasm::{ModuleRequest, PullPolicy, WasmCache, WasmConfig, convert};
use pki::Authority;
use prost::Message;
use serde_json::json;
use web::{Answer, Web};

const MODULE: &[u8] = b"\0asm\x01\0\0\0one";
const OTHER: &[u8] = b"\0asm\x01\0\0\0two";
const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
const HTTP_WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const NETWORK_WASM: &str = "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm";

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("in time")
}

fn sha256(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// A cache with a folder, a resolver and a root of its own.
struct Bench {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let authority = Authority::new("ca");
        std::fs::write(dir.path().join("root.pem"), &authority.root_pem).expect("root");
        let hosts = "127.0.0.1 web.test registry.test auth.test other.test\n169.254.1.1 bad.test\n";
        std::fs::write(dir.path().join("hosts"), hosts).expect("hosts");
        Self { dir, authority }
    }

    fn config(&self) -> WasmConfig {
        let file = |name: &str| self.dir.path().join(name);
        WasmConfig {
            directory: file("data"),
            roots: RootSource::File(file("root.pem")),
            resolver: Resolver::new(file("hosts"), file("resolv.conf")),
            ..WasmConfig::default()
        }
    }

    fn cache(&self) -> WasmCache {
        WasmCache::new(self.config())
    }

    fn files(&self) -> Vec<PathBuf> {
        let folders = std::fs::read_dir(self.dir.path().join("data"));
        let folders = folders.into_iter().flatten().flatten();
        folders
            .flat_map(|folder| {
                std::fs::read_dir(folder.path())
                    .expect("a folder")
                    .flatten()
            })
            .map(|file| file.path())
            .collect()
    }
}

fn request(url: impl Into<String>) -> ModuleRequest {
    ModuleRequest {
        url: url.into(),
        resource_name: "plugin".to_owned(),
        timeout: Duration::from_secs(15),
        ..ModuleRequest::default()
    }
}

async fn get(cache: &WasmCache, request: &ModuleRequest) -> Result<Vec<u8>, String> {
    let path = within(cache.get(request))
        .await
        .map_err(|e| e.to_string())?;
    Ok(std::fs::read(path).expect("the module"))
}

/// The metrics page as the status server makes it.
fn page(cache: &Arc<WasmCache>) -> String {
    let metrics = Metrics::default();
    let source = Arc::clone(cache);
    metrics.add_source(move |page| source.metrics().render(page));
    metrics.render()
}

#[tokio::test]
async fn a_module_is_fetched_once_checked_and_kept() {
    let bench = Bench::new();
    let web = Web::tls(&bench.authority, "web.test", |path, _| match path {
        "/m.wasm" => Answer::ok(MODULE),
        _ => Answer::status(404),
    })
    .await;
    let cache = Arc::new(bench.cache());
    let url = format!("https://web.test:{}/m.wasm", web.port);
    let wanted = ModuleRequest {
        checksum: sha256(MODULE),
        ..request(&url)
    };
    let (one, two) = tokio::join!(get(&cache, &wanted), get(&cache, &wanted));
    assert_eq!((one, two), (Ok(MODULE.to_vec()), Ok(MODULE.to_vec())));
    assert_eq!(get(&cache, &request(&url)).await, Ok(MODULE.to_vec()));
    assert_eq!(web.requests().len(), 1, "one fetch for all");
    let name = format!("{}/{}.wasm", sha256(url.as_bytes()), sha256(MODULE));
    assert_eq!(bench.files(), [bench.dir.path().join("data").join(name)]);

    let wrong = ModuleRequest {
        checksum: "0".repeat(64),
        ..request(&url)
    };
    let error = get(&cache, &wrong).await.expect_err("mismatch");
    assert!(error.contains("does not match"), "{error}");
    let missing = request(format!("https://web.test:{}/no", web.port));
    let error = get(&cache, &missing).await.expect_err("missing");
    assert_eq!(error, "web.test answered 404 Not Found");
    let page = page(&cache);
    for line in [
        "istio_agent_wasm_cache_entries 1",
        "istio_agent_wasm_cache_lookup_count{hit=\"true\"} 2",
        "istio_agent_wasm_cache_lookup_count{hit=\"false\"} 3",
        "istio_agent_wasm_remote_fetch_count{result=\"success\"} 1",
        "istio_agent_wasm_remote_fetch_count{result=\"checksum_mismatched\"} 1",
        "istio_agent_wasm_remote_fetch_count{result=\"download_failure\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} in {page}");
    }
    // A new run knows nothing of the files of the old one, and keeps none.
    drop(cache);
    let _cache = bench.cache();
    assert_eq!(bench.files(), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn servers_that_stumble_are_asked_again_and_others_are_not() {
    let bench = Bench::new();
    let web = Web::plain(|path, earlier| match (path, earlier) {
        ("/stumbles", 0) => Answer::status(503),
        ("/stumbles", 1) => Answer::cut(MODULE),
        ("/stumbles" | "/moved-here", _) => Answer::ok(MODULE),
        ("/moved", _) => Answer::redirect("/moved-here"),
        ("/loop", _) => Answer::redirect("/loop"),
        ("/metadata", _) => Answer::redirect("http://169.254.169.254/latest"),
        ("/unimplemented", _) => Answer::status(501),
        ("/large", _) => Answer::ok(&[MODULE, &[0; 5000]].concat()),
        ("/page", _) => Answer::ok(b"<html>"),
        _ => Answer::status(404),
    })
    .await;
    let cache = WasmCache::new(WasmConfig {
        max_bytes: 1000,
        ..bench.config()
    });
    let ask = async |path: &str| {
        let url = format!("http://web.test:{}{path}", web.port);
        get(&cache, &request(url)).await
    };
    assert_eq!(ask("/stumbles").await, Ok(MODULE.to_vec()));
    assert_eq!(ask("/moved").await, Ok(MODULE.to_vec()));
    for (path, text) in [
        ("/loop", "too many redirects"),
        ("/metadata", "169.254.169.254 is a blocked address"),
        ("/unimplemented", "answered 501"),
        ("/large", "larger than 1000 bytes"),
        ("/page", "fetched Wasm binary is invalid"),
    ] {
        let error = ask(path).await.expect_err(path);
        assert!(error.contains(text), "{error}");
    }
    let asked = |path: &str| web.requests().iter().filter(|r| r.path == path).count();
    assert_eq!((asked("/stumbles"), asked("/unimplemented")), (3, 1));
    assert!(
        bench
            .files()
            .iter()
            .all(|f| f.extension() == Some("wasm".as_ref())),
        "no scraps"
    );
}

#[tokio::test]
async fn urls_that_lead_nowhere_or_to_forbidden_places_are_refused() {
    let bench = Bench::new();
    let cache = WasmCache::new(WasmConfig {
        blocked: vec!["10.0.0.0/8".parse().expect("block")],
        attempts: 1,
        ..bench.config()
    });
    for (url, text) in [
        ("ftp://web.test/m", "is no URL of a Wasm module"),
        ("m.wasm", "is no URL of a Wasm module"),
        ("", "is no URL of a Wasm module"),
        ("oci://", "is no image reference"),
        ("http://bad.test/m", "bad.test is a blocked address"),
        ("http://10.1.2.3/m", "10.1.2.3 is a blocked address"),
        ("http://[fe80::1]/m", "fe80::1 is a blocked address"),
    ] {
        let error = get(&cache, &request(url)).await.expect_err(url);
        assert!(error.contains(text), "{error}");
    }
}

#[tokio::test]
async fn an_untrusted_server_is_refused_unless_it_is_known_as_insecure() {
    let bench = Bench::new();
    let stranger = Authority::new("stranger");
    let web = Web::tls(&stranger, "other.test", |_, _| Answer::ok(MODULE)).await;
    let url = format!("https://web.test:{}/m.wasm", web.port);
    let error = get(&bench.cache(), &request(&url)).await;
    let error = error.expect_err("not trusted");
    assert!(error.contains("TLS handshake with web.test"), "{error}");
    let insecure = WasmCache::new(WasmConfig {
        insecure_registries: vec!["web.test".to_owned()],
        ..bench.config()
    });
    assert_eq!(get(&insecure, &request(&url)).await, Ok(MODULE.to_vec()));
}

/// A registry with one image: `(media type of its layer, bytes of its layer)`.
fn manifest(layer: &[u8], media_type: &str) -> Vec<u8> {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "layers": [
            {"mediaType": "application/octet-stream", "digest": format!("sha256:{}", "1".repeat(64))},
            {"mediaType": media_type, "digest": format!("sha256:{}", sha256(layer))},
        ],
    })
    .to_string()
    .into_bytes()
}

const WASM_LAYER: &str = "application/vnd.module.wasm.content.layer.v1+wasm";
const TAR_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn image_layer() -> Vec<u8> {
    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(
        Vec::new(),
        flate2::Compression::fast(),
    ));
    let mut header = tar::Header::new_ustar();
    header.set_size(MODULE.len() as u64);
    let added = builder.append_data(&mut header, "plugin.wasm", MODULE);
    added.expect("added");
    let gzip = builder.into_inner().expect("archive");
    gzip.finish().expect("compressed")
}

#[tokio::test]
async fn artifacts_images_and_indexes_of_a_registry_are_unpacked() {
    let bench = Bench::new();
    let layer = image_layer();
    let artifact = manifest(MODULE, WASM_LAYER);
    let image = manifest(&layer, TAR_LAYER);
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let index = json!({"manifests": [
        {"digest": format!("sha256:{}", "2".repeat(64)), "platform": {"os": "plan9", "architecture": arch}},
        {"digest": format!("sha256:{}", sha256(&image)), "platform": {"os": "linux", "architecture": arch}},
    ]});
    let (by_digest, checksum) = (sha256(&image), sha256(&artifact));
    let pages = [
        ("/v2/a/b/manifests/artifact".to_owned(), artifact),
        ("/v2/a/b/manifests/image".to_owned(), image.clone()),
        (format!("/v2/a/b/manifests/sha256:{by_digest}"), image),
        (
            "/v2/a/b/manifests/index".to_owned(),
            index.to_string().into_bytes(),
        ),
        ("/v2/a/b/manifests/broken".to_owned(), b"{".to_vec()),
        ("/v2/a/b/manifests/empty".to_owned(), b"{}".to_vec()),
        (
            format!("/v2/a/b/blobs/sha256:{}", sha256(MODULE)),
            MODULE.to_vec(),
        ),
        (format!("/v2/a/b/blobs/sha256:{}", sha256(&layer)), layer),
    ];
    let web = Web::tls(&bench.authority, "registry.test", move |path, _| {
        let found = pages.iter().find(|(p, _)| p == path);
        found.map_or(Answer::status(404), |(_, body)| Answer::ok(body))
    })
    .await;
    let cache = bench.cache();
    let image = |version: &str| request(format!("oci://registry.test:{}/a/b{version}", web.port));
    for version in [
        ":artifact",
        ":image",
        ":index",
        &format!("@sha256:{by_digest}"),
    ] {
        assert_eq!(
            get(&cache, &image(version)).await,
            Ok(MODULE.to_vec()),
            "{version}"
        );
    }
    // The checksum of an image is that of its manifest.
    let wanted = ModuleRequest {
        checksum,
        ..image(":artifact")
    };
    assert_eq!(get(&cache, &wanted).await, Ok(MODULE.to_vec()));
    let wrong = ModuleRequest {
        checksum: sha256(MODULE),
        ..image(":artifact")
    };
    for (request, text) in [
        (wrong, "does not match"),
        (image(":broken"), "manifest broken: "),
        (image(":empty"), "the manifest has no layers"),
        (image(":nothing"), "manifest nothing: 404"),
        (image(&format!("@sha256:{}", "3".repeat(64))), "404"),
    ] {
        let error = get(&cache, &request).await.expect_err(text);
        assert!(error.contains(text), "{error}");
    }
    let blobs = web
        .requests()
        .iter()
        .filter(|r| r.path.contains("/blobs/"))
        .count();
    assert_eq!(blobs, 2, "an image that is there is not fetched again");
}

#[tokio::test]
async fn a_registry_gets_the_credentials_of_the_pull_secret_and_its_token() {
    let bench = Bench::new();
    let manifest = manifest(MODULE, WASM_LAYER);
    // Two servers: the registry refers to its token service.
    let auth = Web::plain(|_, _| Answer::ok(br#"{"token": "granted"}"#)).await;
    let realm = format!("http://auth.test:{}/token", auth.port);
    let blob = format!("/v2/a/blobs/sha256:{}", sha256(MODULE));
    let store = Web::plain(|_, _| Answer::ok(MODULE)).await;
    let elsewhere = format!("http://other.test:{}/blob", store.port);
    let web = Web::tls_with(
        &bench.authority,
        "registry.test",
        move |request, _| match request.header("authorization") {
            Some("Bearer granted") if request.path == blob => Answer::redirect(&elsewhere),
            Some("Bearer granted") => Answer::ok(&manifest),
            _ => Answer::challenge(&format!("Bearer realm=\"{realm}\",service=\"r\"")),
        },
    )
    .await;
    let host = format!("registry.test:{}", web.port);
    let secret = json!({"auths": {host.clone(): {"username": "u", "password": "p"}}});
    let wanted = ModuleRequest {
        pull_secret: Some(secret.to_string().into()),
        ..request(format!("oci://{host}/a:v1"))
    };
    assert_eq!(get(&bench.cache(), &wanted).await, Ok(MODULE.to_vec()));
    let asked = &auth.requests()[0];
    assert_eq!(asked.path, "/token?scope=repository:a:pull&service=r");
    assert_eq!(asked.header("authorization"), Some("Basic dTpw"));
    let moved = &store.requests()[0];
    assert_eq!(
        moved.header("authorization"),
        None,
        "the token is the registry's"
    );

    let basic = Web::tls_with(
        &bench.authority,
        "registry.test",
        |request, _| match request.header("authorization") {
            Some("Basic dTpw") if request.path.contains("/blobs/") => Answer::ok(MODULE),
            Some("Basic dTpw") => Answer::ok(&self::manifest(MODULE, WASM_LAYER)),
            _ => Answer::challenge("Basic realm=\"r\""),
        },
    )
    .await;
    let host = format!("registry.test:{}", basic.port);
    let secret = json!({"auths": {host.clone(): {"auth": "dTpw"}}});
    let with = ModuleRequest {
        pull_secret: Some(secret.to_string().into()),
        ..request(format!("oci://{host}/a"))
    };
    assert_eq!(get(&bench.cache(), &with).await, Ok(MODULE.to_vec()));
    let without = request(format!("oci://{host}/a"));
    let error = get(&bench.cache(), &without).await.expect_err("refused");
    assert!(error.contains("needs credentials"), "{error}");
}

#[tokio::test]
async fn a_token_service_inside_the_machine_is_never_asked() {
    let bench = Bench::new();
    let inner = Web::plain(|_, _| Answer::ok(br#"{"token": "stolen"}"#)).await;
    let realm = format!("Bearer realm=\"http://127.0.0.1:{}/\"", inner.port);
    let web = Web::tls(&bench.authority, "registry.test", move |_, _| {
        Answer::challenge(&realm)
    })
    .await;
    let url = format!("oci://registry.test:{}/a", web.port);
    let error = get(&bench.cache(), &request(url))
        .await
        .expect_err("refused");
    assert!(
        error.contains("bearer realm") && error.contains("refused"),
        "{error}"
    );
    assert!(inner.requests().is_empty());
}

#[tokio::test]
async fn a_registry_without_tls_must_be_known_as_insecure() {
    let bench = Bench::new();
    let web = Web::plain(|path, _| {
        if path.contains("/blobs/") {
            Answer::ok(MODULE)
        } else {
            Answer::ok(&manifest(MODULE, WASM_LAYER))
        }
    })
    .await;
    let host = format!("registry.test:{}", web.port);
    let wanted = request(format!("oci://{host}/a"));
    let error = get(&bench.cache(), &wanted).await.expect_err("no TLS");
    assert!(error.contains("WASM_INSECURE_REGISTRIES"), "{error}");
    let insecure = WasmCache::new(WasmConfig {
        insecure_registries: vec![host],
        ..bench.config()
    });
    assert_eq!(get(&insecure, &wanted).await, Ok(MODULE.to_vec()));
}

#[tokio::test]
async fn pull_policies_decide_when_a_tag_is_asked_for_again() {
    let bench = Bench::new();
    // The tag moves to another module with the second request for the manifest; then it is gone.
    let manifests = [manifest(MODULE, WASM_LAYER), manifest(OTHER, WASM_LAYER)];
    let web = Web::tls(&bench.authority, "registry.test", move |path, earlier| {
        if path.ends_with(&sha256(MODULE)) {
            return Answer::ok(MODULE);
        }
        if path.ends_with(&sha256(OTHER)) {
            return Answer::ok(OTHER);
        }
        manifests
            .get(earlier)
            .map_or(Answer::status(404), |m| Answer::ok(m))
    })
    .await;
    let cache = bench.cache();
    let ask = async |tag: &str, policy, version: &str| {
        let wanted = ModuleRequest {
            policy,
            resource_version: version.to_owned(),
            ..request(format!("oci://registry.test:{}/a:{tag}", web.port))
        };
        get(&cache, &wanted).await
    };
    let (one, two) = (Ok(MODULE.to_vec()), Ok(OTHER.to_vec()));
    for (tag, always, unspecified) in [
        ("v1", PullPolicy::Always, PullPolicy::Unspecified),
        ("latest", PullPolicy::Unspecified, PullPolicy::IfNotPresent),
    ] {
        assert_eq!(ask(tag, always, "1").await, one);
        assert_eq!(ask(tag, always, "1").await, one, "the same version");
        assert_eq!(ask(tag, unspecified, "2").await, one);
        assert_eq!(ask(tag, always, "3").await, two, "pulled again");
        assert_eq!(
            ask(tag, always, "4").await,
            two,
            "the tag is gone; the module is not"
        );
    }
}

#[tokio::test]
async fn modules_nobody_asks_for_are_purged() {
    let bench = Bench::new();
    let web = Web::plain(|_, _| Answer::ok(MODULE)).await;
    let cache = WasmCache::new(WasmConfig {
        module_expiry: Duration::ZERO,
        ..bench.config()
    });
    let wanted = request(format!("http://web.test:{}/m", web.port));
    get(&cache, &wanted).await.expect("a module");
    assert_eq!(bench.files().len(), 1);
    cache.purge();
    assert_eq!(bench.files().len(), 0);
    get(&cache, &wanted).await.expect("fetched again");
    assert_eq!(web.requests().len(), 2);
    // A file that somebody removed is fetched again too.
    std::fs::remove_file(&bench.files()[0]).expect("removed");
    get(&cache, &wanted).await.expect("fetched again");
    assert_eq!(web.requests().len(), 3);
}

fn plugin(code: Option<Specifier>, policy: FailurePolicy, env: &[(&str, &str)]) -> PluginConfig {
    PluginConfig {
        name: "p".to_owned(),
        failure_policy: policy as i32,
        vm: Some(plugin_config::Vm::VmConfig(VmConfig {
            runtime: "envoy.wasm.runtime.v8".to_owned(),
            code: Some(AsyncDataSource { specifier: code }),
            environment_variables: Some(EnvironmentVariables {
                host_env_keys: Vec::new(),
                key_values: env
                    .iter()
                    .map(|(k, v)| ((*k).into(), (*v).into()))
                    .collect(),
            }),
            ..VmConfig::default()
        })),
        ..PluginConfig::default()
    }
}

fn remote(url: &str, sha256: &str) -> Option<Specifier> {
    Some(Specifier::Remote(RemoteDataSource {
        http_uri: Some(HttpUri {
            uri: url.to_owned(),
            ..HttpUri::default()
        }),
        sha256: sha256.to_owned(),
        ..RemoteDataSource::default()
    }))
}

fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value,
    }
}

fn extension(name: &str, type_url: &str, plugin: PluginConfig) -> Any {
    let mut filter = Wasm {
        config: Some(plugin),
    }
    .encode_to_vec();
    // A field of a later API.
    filter.extend_from_slice(&[0xfa, 0x3f, 3, b'x', b'y', b'z']);
    typed(name, any(type_url, filter))
}

fn typed(name: &str, config: Any) -> Any {
    let config = TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(config),
    };
    any(EXTENSION, config.encode_to_vec())
}

fn sotw(resources: Vec<Any>) -> Bytes {
    let response = DiscoveryResponse {
        type_url: EXTENSION.to_owned(),
        version_info: "v".to_owned(),
        nonce: "n".to_owned(),
        resources,
        ..DiscoveryResponse::default()
    };
    response.encode_to_vec().into()
}

/// The typed configs of a response by name.
fn configs(response: &Bytes) -> Vec<(String, Any)> {
    let response = DiscoveryResponse::decode(response.clone()).expect("a response");
    assert_eq!(
        (response.nonce.as_str(), response.version_info.as_str()),
        ("n", "v")
    );
    let resources = response.resources.into_iter();
    let config = resources.map(|r| TypedExtensionConfig::decode(r.value.as_slice()));
    config
        .map(|c| c.expect("an extension"))
        .map(|c| (c.name, c.typed_config.expect("a config")))
        .collect()
}

fn file_of(filter: &[u8]) -> (String, VmConfig) {
    let filter = Wasm::decode(filter).expect("a filter");
    let Some(plugin_config::Vm::VmConfig(vm)) = filter.config.expect("a plugin").vm else {
        panic!("a VM");
    };
    let code = vm.code.clone().expect("code").specifier;
    let Some(Specifier::Local(DataSource {
        specifier: Some(data_source::Specifier::Filename(path)),
        ..
    })) = code
    else {
        panic!("a file: {code:?}");
    };
    (path, vm)
}

#[tokio::test]
async fn remote_code_becomes_a_file_and_the_rest_stays() {
    let bench = Bench::new();
    let web = Web::plain(|path, _| match path {
        "/m" => Answer::ok(MODULE),
        _ => Answer::status(404),
    })
    .await;
    let cache = bench.cache();
    let url = format!("http://web.test:{}/m", web.port);
    let env = [
        ("KEEP", "1"),
        ("ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION", "7"),
    ];
    let closed = FailurePolicy::FailClosed;
    let one = extension("one", HTTP_WASM, plugin(remote(&url, "nil"), closed, &env));
    let two = extension(
        "two",
        NETWORK_WASM,
        plugin(remote(&url, &sha256(MODULE)), closed, &[]),
    );
    let local = Some(Specifier::Local(DataSource::default()));
    let untouched = [
        extension("local", HTTP_WASM, plugin(local, closed, &env)),
        typed("other", any("type.googleapis.com/x.Y", vec![0xff; 3])),
    ];
    let struct_url = "type.googleapis.com/udpa.type.v1.TypedStruct";
    let document = json!({"type_url": HTTP_WASM, "value": {"config": {"vm_config": {
        "runtime": "envoy.wasm.runtime.v8",
        "code": {"remote": {"http_uri": {"uri": url, "timeout": "10s"}}},
    }}}});
    let packed =
        outrigger_api::json::encode("udpa.type.v1.TypedStruct", &document, &Default::default());
    let three = typed("three", any(struct_url, packed.expect("a struct").bytes));
    let all = [vec![one, two, three], untouched.to_vec()].concat();
    let converted = within(convert(&cache, Protocol::Sotw, &sotw(all))).await;
    let converted = configs(&converted.expect("converted"));
    let names: Vec<&str> = converted.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["one", "two", "three", "local", "other"]);
    for ((name, config), type_url) in converted.iter().zip([HTTP_WASM, NETWORK_WASM, HTTP_WASM]) {
        assert_eq!(config.type_url, type_url, "{name}");
        let (path, vm) = file_of(&config.value);
        assert_eq!(std::fs::read(path).expect("the module"), MODULE);
        assert_eq!(vm.runtime, "envoy.wasm.runtime.v8");
        let keys = vm
            .environment_variables
            .map(|e| e.key_values.into_keys().collect());
        let want = (name == "one").then(|| vec!["KEEP".to_owned()]);
        assert_eq!(keys, want, "{name}");
    }
    assert!(
        converted[0].1.value.windows(3).any(|w| w == b"xyz"),
        "unknown fields survive"
    );
    for (converted, original) in converted[3..].iter().zip(&untouched) {
        let original = TypedExtensionConfig::decode(original.value.as_slice()).expect("one");
        assert_eq!(Some(&converted.1), original.typed_config.as_ref());
    }
    // Delta wraps each resource once more.
    let resource = Resource {
        name: "one".to_owned(),
        version: "3".to_owned(),
        resource: Some(extension(
            "one",
            HTTP_WASM,
            plugin(remote(&url, ""), closed, &[]),
        )),
        ..Resource::default()
    };
    let response = DeltaDiscoveryResponse {
        resources: vec![resource],
        removed_resources: vec!["gone".to_owned()],
        ..DeltaDiscoveryResponse::default()
    };
    let bytes = response.encode_to_vec().into();
    let converted = within(convert(&cache, Protocol::Delta, &bytes)).await;
    let response = DeltaDiscoveryResponse::decode(converted.expect("converted")).expect("delta");
    assert_eq!(response.removed_resources, ["gone"]);
    assert_eq!(response.resources[0].version, "3");
    let any = response.resources[0].resource.clone().expect("a body");
    let config = TypedExtensionConfig::decode(any.value.as_slice()).expect("an extension");
    file_of(&config.typed_config.expect("a filter").value);
}

#[tokio::test]
async fn a_module_that_cannot_be_had_is_replaced_by_all_or_nothing() {
    let bench = Bench::new();
    let cache = bench.cache();
    let (open, closed) = (FailurePolicy::FailOpen, FailurePolicy::FailClosed);
    let url = "ftp://nowhere";
    let mut old = plugin(remote(url, ""), FailurePolicy::Unspecified, &[]);
    #[allow(deprecated, reason = "istiod of old versions sets it")]
    {
        old.fail_open = true;
    }
    let secret = [("ISTIO_META_WASM_IMAGE_PULL_SECRET", "")];
    let response = sotw(vec![
        extension("a", HTTP_WASM, plugin(remote(url, ""), open, &[])),
        extension("b", HTTP_WASM, plugin(remote(url, ""), closed, &[])),
        extension("c", NETWORK_WASM, old),
        extension(
            "d",
            NETWORK_WASM,
            plugin(remote("oci://r.test/a", ""), closed, &secret),
        ),
        extension(
            "e",
            HTTP_WASM,
            plugin(remote(url, ""), FailurePolicy::Unspecified, &[]),
        ),
    ]);
    let converted = within(convert(&cache, Protocol::Sotw, &response)).await;
    for (name, config) in configs(&converted.expect("converted")) {
        let (prefix, rules) = if config.type_url.contains(".http.") {
            let filter = HttpRbac::decode(config.value.as_slice()).expect("RBAC");
            (filter.rules_stat_prefix, filter.rules)
        } else {
            let filter = NetworkRbac::decode(config.value.as_slice()).expect("RBAC");
            (filter.stat_prefix, filter.rules)
        };
        let open = name == "a" || name == "c";
        let want = if open {
            "wasm-default-allow"
        } else {
            "wasm-default-deny"
        };
        assert_eq!((prefix.as_str(), rules.is_none()), (want, open), "{name}");
        if let Some(rules) = rules {
            // DENY for everybody.
            assert_eq!((rules.action, rules.policies.len()), (1, 1));
        }
    }
}

#[tokio::test]
async fn what_cannot_be_understood_is_an_error_of_the_whole_response() {
    let bench = Bench::new();
    let cache = bench.cache();
    let none = plugin(None, FailurePolicy::FailOpen, &[]);
    for (resource, text) in [
        (
            extension("a", HTTP_WASM, none),
            "extension config \"a\": typed_config.config.vm_config.code is neither local nor remote",
        ),
        (typed("b", any(HTTP_WASM, vec![0x0a, 9])), "malformed"),
        (any(EXTENSION, vec![0xff]), "malformed"),
    ] {
        let converted = within(convert(&cache, Protocol::Sotw, &sotw(vec![resource]))).await;
        let error = converted.expect_err(text).to_string();
        assert!(error.contains(text), "{error}");
    }
}
