//! Typed look-ups in a snapshot of the environment. A value that does not parse is said and the
//! default is used, as in the reference.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use bootstrap_templates::{parse_go_bool, parse_go_duration};

/// A snapshot of environment variables. Values may be secrets; `Debug` prints names only.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(variables: T) -> Self {
        Self(variables.into_iter().collect())
    }
}

impl Environment {
    /// The process's environment; variables that are not UTF-8 are left out.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// Whether the variable exists, even if empty.
    pub fn is_set(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Text, empty if unset.
    pub fn text(&self, name: &str) -> String {
        self.text_or(name, "")
    }

    /// Text; set-but-empty counts as empty, not as the default.
    pub fn text_or(&self, name: &str, default: &str) -> String {
        self.0
            .get(name)
            .cloned()
            .unwrap_or_else(|| default.to_owned())
    }

    /// Boolean in Go's spellings.
    pub fn boolean(&self, name: &str, default: bool) -> bool {
        self.parsed(name, default, parse_go_bool)
    }

    /// Number.
    pub fn number<T: FromStr>(&self, name: &str, default: T) -> T {
        self.parsed(name, default, |text| text.parse().ok())
    }

    /// Go duration.
    pub fn duration(&self, name: &str, default: Duration) -> Duration {
        self.parsed(name, default, parse_go_duration)
    }

    /// Variables whose name starts with `prefix`, full names.
    pub fn with_prefix(&self, prefix: &str) -> BTreeMap<String, String> {
        let wanted = self.0.iter().filter(|(name, _)| name.starts_with(prefix));
        wanted
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn parsed<T>(&self, name: &str, default: T, parse: impl Fn(&str) -> Option<T>) -> T {
        let Some(text) = self.0.get(name) else {
            return default;
        };
        parse(text).unwrap_or_else(|| {
            tracing::warn!("Invalid environment variable value `{text}` for {name}, ignored");
            default
        })
    }
}
