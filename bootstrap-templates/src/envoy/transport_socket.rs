//! TLS towards collectors named in ProxyConfig, and the SDS references it and the secure metrics
//! listeners use.

use serde_json::{Map, Value, json};

use crate::error::{FieldError, FieldProblem};
use crate::node::Node;
use crate::proxy_config::{ClientTlsSettings, TlsMode};

const TLS_TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// An SDS reference to the agent. The workload's own certificates are waited for without limit.
fn sds(name: &str, wait: bool) -> Value {
    let mut config = json!({
        "api_config_source": {
            "api_type": "GRPC",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "sds-grpc" } }],
            "set_node_on_first_message_only": true,
            "transport_api_version": "V3",
        },
        "resource_api_version": "V3",
    });
    if wait {
        config["initial_fetch_timeout"] = "0s".into();
    }
    json!({ "name": name, "sds_config": config })
}

/// The server side of the secure metrics listeners: mesh certificates, client certificate needed.
pub(super) fn mesh_downstream() -> Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TLS_TYPE}.DownstreamTlsContext"),
            "require_client_certificate": true,
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [sds("default", false)],
                "combined_validation_context": {
                    "default_validation_context": {},
                    "validation_context_sds_secret_config": sds("ROOTCA", false),
                },
            },
        },
    })
}

/// Client TLS to one collector. `path` is where the settings stand in ProxyConfig, `default_sni`
/// what ISTIO_MUTUAL uses without an explicit name, `http2` whether the cluster speaks it.
/// `None` for plaintext.
pub(super) fn upstream(
    node: &Node,
    path: &str,
    tls: Option<&ClientTlsSettings>,
    default_sni: &str,
    http2: bool,
) -> Result<Option<Value>, FieldError> {
    let Some(tls) = tls else { return Ok(None) };
    let (certificate, root, alpn) = match tls.mode {
        TlsMode::Disable => return Ok(None),
        TlsMode::Simple => (None, file_root(node, path, tls)?, &["h2"][..]),
        TlsMode::Mutual => (
            Some(file_certificate(node, tls)),
            file_root(node, path, tls)?,
            &["h2"][..],
        ),
        TlsMode::IstioMutual => (
            Some(sds("default", true)),
            sds("ROOTCA", true),
            &["istio", "h2"][..],
        ),
    };
    let mut common = Map::new();
    if let Some(certificate) = certificate {
        common.insert(
            "tls_certificate_sds_secret_configs".to_owned(),
            json!([certificate]),
        );
    }
    common.insert(
        "combined_validation_context".to_owned(),
        json!({
            "default_validation_context": expected_names(tls),
            "validation_context_sds_secret_config": root,
        }),
    );
    if http2 {
        common.insert("alpn_protocols".to_owned(), json!(alpn));
    }
    let mut context = json!({
        "@type": format!("{TLS_TYPE}.UpstreamTlsContext"),
        "common_tls_context": common,
    });
    let sni = match (tls.sni.as_str(), tls.mode) {
        ("", TlsMode::IstioMutual) => default_sni,
        (sni, _) => sni,
    };
    if !sni.is_empty() {
        context["sni"] = sni.into();
    }
    Ok(Some(
        json!({ "name": "envoy.transport_sockets.tls", "typed_config": context }),
    ))
}

fn expected_names(tls: &ClientTlsSettings) -> Value {
    if tls.subject_alt_names.is_empty() {
        return json!({});
    }
    let names: Vec<Value> = tls
        .subject_alt_names
        .iter()
        .map(|name| json!({ "exact": name }))
        .collect();
    json!({ "match_subject_alt_names": names })
}

/// Node metadata `TLS_CLIENT_*` beats the paths of the settings.
fn path_or<'a>(node: &'a Node, key: &str, configured: &'a str) -> &'a str {
    node.raw
        .text(key)
        .filter(|path| !path.is_empty())
        .unwrap_or(configured)
}

fn file_certificate(node: &Node, tls: &ClientTlsSettings) -> Value {
    let chain = path_or(node, "TLS_CLIENT_CERT_CHAIN", &tls.client_certificate);
    let key = path_or(node, "TLS_CLIENT_KEY", &tls.private_key);
    sds(&format!("file-cert:{chain}~{key}"), false)
}

/// Without roots any server would be accepted, so they are required.
fn file_root(node: &Node, path: &str, tls: &ClientTlsSettings) -> Result<Value, FieldError> {
    let file = path_or(node, "TLS_CLIENT_ROOT_CERT", &tls.ca_certificates);
    if file.is_empty() {
        return Err(FieldError::new(
            format!("{path}.caCertificates"),
            FieldProblem::Required,
        ));
    }
    Ok(sds(&format!("file-root:{file}"), false))
}
