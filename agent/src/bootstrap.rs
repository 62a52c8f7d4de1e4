//! The files the proxy and proxyless clients start from: Envoy's bootstrap, built in or rendered
//! from the user's template, and gRPC's. Decides no content.

use std::path::{Path, PathBuf};

use bootstrap_templates::{
    EnvoyInputs, FieldError, GrpcCertificates, Node, RenderError, TokenFile, envoy_bootstrap,
    grpc_bootstrap, render_bootstrap,
};

use crate::options::{BootstrapSource, Options};

/// Readable by the agent and the proxy, which run as one user.
const TOKEN_MODE: u32 = 0o600;
const DOCUMENT_MODE: u32 = 0o644;

/// Why there is no bootstrap.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The document cannot express a setting.
    #[error("cannot build the bootstrap: {0}")]
    Setting(#[from] FieldError),
    /// The user's template cannot be read.
    #[error("cannot read bootstrap template {path}: {source}")]
    ReadTemplate {
        /// File.
        path: String,
        /// System error.
        source: std::io::Error,
    },
    /// The user's template is wrong.
    #[error("bootstrap template {path}: {source}")]
    Template {
        /// File.
        path: String,
        /// Line and reason, or the setting.
        source: RenderError,
    },
    /// The user's template does not make a document.
    #[error("bootstrap template {path} renders neither JSON nor YAML: {reason}")]
    NoDocument {
        /// File.
        path: String,
        /// Parser message.
        reason: String,
    },
    /// A file of the agent.
    #[error("cannot write {path}: {source}")]
    Write {
        /// File.
        path: String,
        /// System error.
        source: std::io::Error,
    },
}

/// Writes `grpc-bootstrap.json`, unless `GRPC_XDS_BOOTSTRAP` is empty. Readers never see a part.
///
/// # Errors
/// A file that cannot be written.
pub fn write_grpc(options: &Options, node: &Node) -> Result<(), BootstrapError> {
    let Some(path) = &options.grpc_bootstrap else {
        return Ok(());
    };
    let output = options.environment.text("OUTPUT_CERTS");
    let file = |name: &str| Path::new(&output).join(name).display().to_string();
    let certificates = (!output.is_empty()).then(|| GrpcCertificates {
        certificate_file: file("cert-chain.pem"),
        private_key_file: file("key.pem"),
        ca_certificate_file: file("root-cert.pem"),
    });
    let socket = cleaned(&options.xds_socket_path());
    let document = grpc_bootstrap(node, &socket, certificates.as_ref());
    let text = format!("{document:#}");
    let temporary = path.with_extension("json.tmp");
    write(&temporary, text.as_bytes(), DOCUMENT_MODE)?;
    std::fs::rename(&temporary, path).map_err(|source| failed(path, source))
}

/// Go's `filepath.Clean`, as far as paths of settings need it: no `./` in front.
fn cleaned(path: &Path) -> String {
    let text: PathBuf = path.components().filter(|c| c.as_os_str() != ".").collect();
    text.display().to_string()
}

/// Writes the proxy's bootstrap. Returns its path, and whether the agent made the file.
///
/// # Errors
/// A setting or template that gives no document, or a file that cannot be read or written.
pub fn write_envoy(options: &Options, node: &Node) -> Result<(PathBuf, bool), BootstrapError> {
    if let BootstrapSource::File(path) = &options.bootstrap {
        return Ok((path.clone(), false));
    }
    let path = options.bootstrap_path();
    if options.disable_envoy {
        return Ok((path, false));
    }
    let inputs = EnvoyInputs {
        node,
        settings: &options.settings,
        log_as_json: options.log_as_json,
        delta_xds: options.delta_xds,
        dual_stack: options.dual_stack,
        strip_fragment: options.strip_fragment,
        status_proxy_protocol: options.status_proxy_protocol,
        compliance: options.compliance,
        host_ip: options.host_ip.as_deref(),
    };
    let (text, token_file) = match &options.bootstrap {
        BootstrapSource::Template(template) => rendered(template, options, &inputs)?,
        _ => built_in(&inputs)?,
    };
    if let Some(token) = token_file {
        write(Path::new(&token.path), token.token.as_bytes(), TOKEN_MODE)?;
    }
    write(&path, text.as_bytes(), DOCUMENT_MODE)?;
    Ok((path, true))
}

fn built_in(inputs: &EnvoyInputs<'_>) -> Result<(String, Option<TokenFile>), BootstrapError> {
    let built = envoy_bootstrap(inputs)?;
    for warning in &built.warnings {
        tracing::warn!("{warning}");
    }
    Ok((format!("{:#}", built.document), built.token_file))
}

fn rendered(
    template: &Path,
    options: &Options,
    inputs: &EnvoyInputs<'_>,
) -> Result<(String, Option<TokenFile>), BootstrapError> {
    let path = template.display().to_string();
    let source = std::fs::read_to_string(template).map_err(|source| {
        let path = path.clone();
        BootstrapError::ReadTemplate { path, source }
    })?;
    let environment = |name: &str| Some(options.environment.text(name));
    let rendered = render_bootstrap(&source, inputs, &environment).map_err(|source| {
        let path = path.clone();
        BootstrapError::Template { path, source }
    })?;
    for warning in &rendered.warnings {
        tracing::warn!("{warning}");
    }
    for place in &rendered.no_values {
        tracing::warn!(
            "bootstrap template {path}, line {}: printed <no value>",
            place.line
        );
    }
    tracing::info!("bootstrap rendered from {path}");
    let yaml = options
        .bootstrap_path()
        .extension()
        .is_some_and(|e| e == "yaml");
    let text = checked(rendered.text, yaml)
        .map_err(|reason| BootstrapError::NoDocument { path, reason })?;
    Ok((text, rendered.token_file))
}

/// A template's output as it is, if it is a document. Templates leave commas behind that YAML
/// allows and JSON does not; then the document is printed again as JSON.
fn checked(text: String, yaml: bool) -> Result<String, String> {
    if !yaml && serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok() {
        return Ok(text);
    }
    // YAML forbids tabs as indentation, JSON does not.
    let spaced = if yaml {
        text.clone()
    } else {
        text.replace('\t', " ")
    };
    let parsed: Result<serde_json::Value, _> = serde_saphyr::from_str(&spaced);
    match parsed {
        Ok(value) if !value.is_object() => Err("it is not a mapping".to_owned()),
        Ok(_) if yaml => Ok(text),
        Ok(value) => Ok(format!("{value:#}")),
        Err(e) => Err(e.to_string()),
    }
}

fn failed(path: &Path, source: std::io::Error) -> BootstrapError {
    BootstrapError::Write {
        path: path.display().to_string(),
        source,
    }
}

fn write(path: &Path, contents: &[u8], mode: u32) -> Result<(), BootstrapError> {
    use std::io::Write;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let attempt = || {
        if let Some(folder) = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty() && !p.exists())
        {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
        }
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        options.open(path)?.write_all(contents)
    };
    attempt().map_err(|source| failed(path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendered_document_is_checked_and_left_alone() {
        let json = "{\n\t\"a\": 1 }";
        assert_eq!(checked(json.to_owned(), false), Ok(json.to_owned()));
        let comma = checked("{\n\t\"a\": [1,\n\t2,],\n}".to_owned(), false).expect("YAML");
        let value: serde_json::Value = serde_json::from_str(&comma).expect("JSON");
        assert_eq!(value, serde_json::json!({ "a": [1, 2] }));
        let yaml = "a:\n- 1 # kept\n";
        assert_eq!(checked(yaml.to_owned(), true), Ok(yaml.to_owned()));
        checked("{ \"a\": }}".to_owned(), false).expect_err("neither");
        checked("just words".to_owned(), false).expect_err("no mapping");
    }
}
