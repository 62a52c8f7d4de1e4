//! The bootstrap of gRPC clients that speak xDS themselves (`grpc-bootstrap.json`).

use serde_json::{Value, json};

use crate::node::Node;

/// Files a proxyless client reads its workload certificate from.
#[derive(Debug, Clone)]
pub struct GrpcCertificates {
    /// Chain.
    pub certificate_file: String,
    /// Key.
    pub private_key_file: String,
    /// Roots.
    pub ca_certificate_file: String,
}

/// Builds the document. `xds_socket` is the cleaned path of the agent's xDS socket, e.g.
/// `etc/istio/proxy/XDS`; gRPC wants it behind `unix:///`.
pub fn grpc_bootstrap(
    node: &Node,
    xds_socket: &str,
    certificates: Option<&GrpcCertificates>,
) -> Value {
    let mut document = json!({
        "xds_servers": [{
            "server_uri": format!("unix:///{}", xds_socket.trim_start_matches('/')),
            "channel_creds": [{ "type": "insecure" }],
            "server_features": ["xds_v3"],
        }],
        "node": node.to_grpc_json(),
        "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
    });
    if let Some(files) = certificates {
        document["certificate_providers"] = json!({ "default": {
            "plugin_name": "file_watcher",
            "config": {
                "certificate_file": files.certificate_file,
                "private_key_file": files.private_key_file,
                "ca_certificate_file": files.ca_certificate_file,
                "refresh_interval": "900s",
            },
        }});
    }
    document
}
