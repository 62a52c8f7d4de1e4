//! The tracer of Envoy's bootstrap: which one, where it is, and its configuration block.

use serde_json::{Value, json};

use super::{EnvoyInputs, TokenFile, socket_address};
use crate::error::{FieldError, FieldProblem, Warning};
use crate::node::Node;

/// Name of the token file next to the bootstrap.
const LIGHTSTEP_TOKEN_FILE: &str = "lightstep_access_token.txt";

/// The tracer that the bootstrap configures.
pub(super) struct Tracer {
    pub(super) kind: TracerKind,
    pub(super) address: Value,
    pub(super) token_file: Option<TokenFile>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TracerKind {
    Zipkin,
    Lightstep,
    Datadog,
}

impl TracerKind {
    pub(super) fn cluster_name(self) -> &'static str {
        match self {
            Self::Zipkin => "zipkin",
            Self::Lightstep => "lightstep",
            Self::Datadog => "datadog_agent",
        }
    }
}

impl Tracer {
    pub(super) fn of(
        inputs: &EnvoyInputs<'_>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Option<Self>, FieldError> {
        let Some(tracing) = &inputs.settings.tracing else {
            return Ok(None);
        };
        let (kind, path, address) = if let Some(zipkin) = &tracing.zipkin {
            (
                TracerKind::Zipkin,
                "tracing.zipkin.address",
                &zipkin.address,
            )
        } else if let Some(lightstep) = &tracing.lightstep {
            (
                TracerKind::Lightstep,
                "tracing.lightstep.address",
                &lightstep.address,
            )
        } else if let Some(datadog) = &tracing.datadog {
            (
                TracerKind::Datadog,
                "tracing.datadog.address",
                &datadog.address,
            )
        } else {
            if tracing.stackdriver.is_some() {
                if !inputs.node.platform_metadata.contains_key("gcp_project") {
                    let problem = FieldProblem::Unsupported(" without a known GCP project");
                    return Err(FieldError::new("tracing.stackdriver", problem));
                }
                warnings.push(Warning::TracerWithoutBootstrap("tracing.stackdriver"));
            }
            if tracing.open_census_agent.is_some() {
                warnings.push(Warning::TracerWithoutBootstrap("tracing.openCensusAgent"));
            }
            return Ok(None);
        };
        let token_file = tracing.lightstep.as_ref().map(|lightstep| TokenFile {
            path: format!("{}/{LIGHTSTEP_TOKEN_FILE}", inputs.settings.config_path),
            token: lightstep.access_token.clone(),
        });
        Ok(Some(Self {
            kind,
            address: socket_address(inputs, path, address)?,
            token_file,
        }))
    }

    pub(super) fn block(&self, node: &Node) -> Value {
        let (name, typed_config) = match self.kind {
            TracerKind::Zipkin => (
                "envoy.tracers.zipkin",
                json!({
                    "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
                    "collector_cluster": "zipkin",
                    "collector_endpoint": "/api/v2/spans",
                    "collector_endpoint_version": "HTTP_JSON",
                    "trace_id_128bit": true,
                    "shared_span_context": false,
                }),
            ),
            TracerKind::Lightstep => (
                "envoy.tracers.lightstep",
                json!({
                    "@type": "type.googleapis.com/envoy.config.trace.v3.LightstepConfig",
                    "collector_cluster": "lightstep",
                    "access_token_file": self.token_file.as_ref().map(|f| f.path.as_str()),
                }),
            ),
            TracerKind::Datadog => (
                "envoy.tracers.datadog",
                json!({
                    "@type": "type.googleapis.com/envoy.config.trace.v3.DatadogConfig",
                    "collector_cluster": "datadog_agent",
                    "service_name": node.cluster,
                }),
            ),
        };
        json!({ "http": { "name": name, "typed_config": typed_config } })
    }
}
