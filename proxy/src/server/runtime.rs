//! Runtime layers: the static ones of the bootstrap and the admin layer that `/runtime_modify` writes.

use std::collections::BTreeMap;

use outrigger_config::bootstrap::Bootstrap;

/// Values by key.
#[derive(Debug, Default)]
pub struct Layers {
    names: Vec<String>,
    statics: BTreeMap<String, String>,
    admin: BTreeMap<String, String>,
}

impl Layers {
    /// The layers of a bootstrap.
    #[must_use]
    pub fn new(bootstrap: &Bootstrap) -> Self {
        Self {
            names: bootstrap
                .runtime_layers
                .iter()
                .map(ToString::to_string)
                .collect(),
            statics: bootstrap
                .runtime
                .iter()
                .map(|(k, v)| (k.to_string(), plain(v)))
                .collect(),
            admin: BTreeMap::new(),
        }
    }

    /// A boolean feature.
    #[must_use]
    pub fn flag(&self, key: &str, default: bool) -> bool {
        let value = self.admin.get(key).or_else(|| self.statics.get(key));
        value.map_or(default, |v| v == "true" || v == "1")
    }

    /// Writes the admin layer; an empty value takes the key away.
    pub fn modify(&mut self, key: &str, value: &str) {
        if value.is_empty() {
            self.admin.remove(key);
        } else {
            self.admin.insert(key.to_owned(), value.to_owned());
        }
    }

    /// `/runtime`.
    #[must_use]
    pub fn page(&self) -> serde_json::Value {
        let mut entries = serde_json::Map::new();
        let keys: std::collections::BTreeSet<_> =
            self.statics.keys().chain(self.admin.keys()).collect();
        for key in keys {
            let fixed = self.statics.get(key).map_or("", String::as_str);
            let admin = self.admin.get(key).map_or("", String::as_str);
            let mut layers = vec![""; self.names.len()];
            if let Some(first) = layers.first_mut() {
                *first = fixed;
            }
            if self.names.len() > 1
                && let Some(last) = layers.last_mut()
            {
                *last = admin;
            }
            let value = if admin.is_empty() { fixed } else { admin };
            entries.insert(
                key.clone(),
                serde_json::json!({"final_value": value, "layer_values": layers}),
            );
        }
        serde_json::json!({"layers": self.names, "entries": entries})
    }
}

/// JSON scalar text without quotes.
fn plain(scalar: &str) -> String {
    serde_json::from_str::<String>(scalar).unwrap_or_else(|_| scalar.to_owned())
}
