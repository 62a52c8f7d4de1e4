//! Reads the bootstrap: file by extension, `--config-yaml` merged over it.

use outrigger_api::json::{EncodeOptions, encode};
use outrigger_config::bootstrap::Bootstrap;
use outrigger_config::{Parsed, parse_bootstrap};

use super::options::CommandLine;

const TYPE: &str = "envoy.config.bootstrap.v3.Bootstrap";

/// The path as given, empty without one.
#[must_use]
pub fn file_name(options: &CommandLine) -> String {
    options
        .config_path
        .as_ref()
        .map_or_else(String::new, |p| p.display().to_string())
}

/// Loads and checks the bootstrap.
///
/// # Errors
/// The reason, with the field path where there is one.
pub fn load(options: &CommandLine) -> Result<Parsed<Bootstrap>, String> {
    let mut bytes = Vec::new();
    if let Some(path) = &options.config_path {
        let content = std::fs::read(path)
            .map_err(|e| format!("Unable to read file {}: {e}", path.display()))?;
        match path.extension().and_then(|e| e.to_str()) {
            Some("pb") => bytes = content,
            Some("pb_text") => return Err("text protobuf is not supported".to_owned()),
            Some("yaml" | "yml") => bytes = from_yaml(&content, options)?,
            _ => bytes = from_json(&content, options)?,
        }
    }
    if let Some(yaml) = &options.config_yaml {
        // Concatenated messages merge as protobuf's MergeFrom does.
        bytes.extend(from_yaml(yaml.as_bytes(), options)?);
    }
    if options.config_path.is_none() && options.config_yaml.is_none() {
        return Err("At least one of --config-path or --config-yaml or Options::configProto() should be non-empty".to_owned());
    }
    parse_bootstrap(&bytes).map_err(|e| e.to_string())
}

fn from_json(content: &[u8], options: &CommandLine) -> Result<Vec<u8>, String> {
    let value = serde_json::from_slice(content).map_err(|e| format!("not JSON: {e}"))?;
    to_bytes(&value, options)
}

fn from_yaml(content: &[u8], options: &CommandLine) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(content).map_err(|_| "not UTF-8".to_owned())?;
    let value: serde_json::Value =
        serde_saphyr::from_str(text).map_err(|e| format!("not YAML: {e}"))?;
    to_bytes(&value, options)
}

fn to_bytes(value: &serde_json::Value, options: &CommandLine) -> Result<Vec<u8>, String> {
    let allow = EncodeOptions {
        allow_unknown_fields: options.allow_unknown_static_fields,
    };
    let encoded = encode(TYPE, value, &allow).map_err(|e| e.to_string())?;
    Ok(encoded.bytes)
}
