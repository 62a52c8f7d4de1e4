//! From typed inputs to the two bootstraps a pod needs: Envoy's (`envoy-rev.json`) and gRPC's
//! (`grpc-bootstrap.json`). Pure: reads no environment, no file, no clock. Map: `proxy_config`
//! merges the mesh's settings, `node` says who the proxy is, `envoy` and `grpc` write documents.

mod downward;
mod duration;
mod envoy;
mod error;
mod grpc;
mod metadata;
mod node;
mod proxy_config;
mod proxy_config_schema;
mod schema;
mod template;

pub use downward::{DownwardError, parse_downward_api};
pub use duration::{format_proto_duration, parse_go_duration, parse_proto_duration};
pub use envoy::{
    CompliancePolicy, EnvoyBootstrap, EnvoyInputs, RenderError, RenderedBootstrap, TokenFile,
    envoy_bootstrap, render_bootstrap,
};
pub use error::{FieldError, FieldProblem, Warning};
pub use grpc::{GrpcCertificates, grpc_bootstrap};
pub use metadata::{istiod_server_name, parse_go_bool};
pub use node::{Locality, Node, NodeInputs, NodePorts, NodeType, Platform};
pub use proxy_config::{
    AuthPolicy, PolledProvider, PrivateKeyProvider, ProxyConfig, ProxySettings, ProxyStatsMatcher,
    TlsMode, TracingServiceName, split_host_port,
};
pub use template::{NoValue, TemplateError};

/// The file the image carries where users expect Istio's bootstrap template. It is a reference
/// document for people; [`envoy_bootstrap`] does not read it.
pub const STOCK_TEMPLATE: &str = include_str!("../envoy_bootstrap_tmpl.json");

/// First member of [`STOCK_TEMPLATE`]; no template of a user has it.
const STOCK_MARKER: &str = "outrigger_stock_bootstrap";

/// Whether `contents` is a stock template of this product (of any version), so that naming its
/// path in `ISTIO_BOOTSTRAP` or `proxyBootstrapTemplatePath` is the same as naming none.
pub fn is_stock_template(contents: &str) -> bool {
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(contents)
        .is_ok_and(|document| document.contains_key(STOCK_MARKER))
}
