//! `TypedStruct`: an `Any` whose content is the JSON of another message. Unwraps it and, when the table knows the
//! inner type, makes that message's wire bytes. Never guesses a type.

use serde_json::Value;

use crate::json::{self, DecodeOptions, EncodeOptions, Encoded, JsonError};
use crate::type_url::message_name;

/// What a `TypedStruct` carries.
#[derive(Debug, Clone, PartialEq)]
pub struct Typed {
    /// Type URL of the inner message.
    pub type_url: String,
    /// JSON of the inner message, always an object.
    pub value: Value,
}

/// Whether a type URL is that of a `TypedStruct`, old (`udpa.type.v1`) or new (`xds.type.v3`).
#[must_use]
pub fn is_typed_struct(type_url: &str) -> bool {
    matches!(
        message_name(type_url),
        "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct"
    )
}

/// Takes a `TypedStruct` apart; `None` if the `Any` holds something else.
///
/// # Errors
/// The bytes are no `TypedStruct`.
pub fn unwrap(type_url: &str, bytes: &[u8]) -> Result<Option<Typed>, JsonError> {
    if !is_typed_struct(type_url) {
        return Ok(None);
    }
    let outer = json::decode(message_name(type_url), bytes, &DecodeOptions::default())?;
    let Value::Object(mut outer) = outer else {
        return Ok(None);
    };
    let inner = match outer.remove("type_url") {
        Some(Value::String(url)) => url,
        _ => String::new(),
    };
    let value = outer
        .remove("value")
        .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    Ok(Some(Typed {
        type_url: inner,
        value,
    }))
}

impl Typed {
    /// Wire bytes of the inner message; `None` if its type is not in the table.
    ///
    /// # Errors
    /// The JSON does not fit the type; the path is that within the inner message.
    pub fn resolve(&self, options: &EncodeOptions) -> Result<Option<Encoded>, JsonError> {
        let name = message_name(&self.type_url);
        if !json::is_known(name) {
            return Ok(None);
        }
        json::encode(name, &self.value, options).map(Some)
    }
}
