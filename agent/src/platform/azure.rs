//! Azure: name, place, machine id and tags from the instance metadata service.

use bootstrap_templates::{Locality, Platform};
use serde_json::Value;
use tokio::time::Instant;

use super::server::MetadataServer;

const INSTANCE: &str = "/metadata/instance";
const HEADER: (&str, &str) = ("metadata", "True");
/// The oldest version with everything that is read here; the server may name newer ones.
const BASE_VERSION: &str = "2019-08-15";
const PREFIX: &str = "azure_";

pub(super) async fn ask(server: &MetadataServer, until: Instant) -> Option<Platform> {
    let versions = server.get(INSTANCE, Some(HEADER), until).await;
    let version = newest(versions.as_deref().unwrap_or_default());
    let path = format!("{INSTANCE}?api-version={version}");
    let text = server.get(&path, Some(HEADER), until).await?;
    let document: Value = serde_json::from_str(&text).ok()?;
    platform(&document["compute"])
}

/// The server answers a question without a version with the versions it has, newest first or not.
fn newest(text: &str) -> String {
    let document: Value = serde_json::from_str(text).unwrap_or_default();
    let offered = document["newest-versions"].as_array().into_iter().flatten();
    let dates = offered.filter_map(Value::as_str).filter(|version| {
        version
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    dates
        .chain([BASE_VERSION])
        .max()
        .unwrap_or(BASE_VERSION)
        .to_owned()
}

fn platform(compute: &Value) -> Option<Platform> {
    let text = |key: &str| compute[key].as_str().unwrap_or_default().to_owned();
    let mut found = Platform::default();
    for key in ["name", "location", "vmId"] {
        if !text(key).is_empty() {
            found.metadata.insert(format!("{PREFIX}{key}"), text(key));
        }
    }
    for (name, value) in tags(compute) {
        found.metadata.insert(format!("{PREFIX}{name}"), value);
    }
    found.locality = Locality {
        region: text("location"),
        zone: text("zone"),
        sub_zone: String::new(),
    };
    (!found.metadata.is_empty()).then_some(found)
}

/// A list of names and values, or in old versions one text `name:value;name:value`.
fn tags(compute: &Value) -> Vec<(String, String)> {
    if let Some(list) = compute["tagsList"].as_array() {
        let text = |tag: &Value, key: &str| tag[key].as_str().unwrap_or_default().to_owned();
        return list
            .iter()
            .map(|tag| (text(tag, "name"), text(tag, "value")))
            .collect();
    }
    let text = compute["tags"].as_str().unwrap_or_default();
    let tags = text.split(';').filter(|tag| !tag.is_empty());
    tags.map(|tag| tag.split_once(':').unwrap_or((tag, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_offered_version_is_used_and_nothing_odd() {
        let offered = r#"{"newest-versions":["2020-01-01","2018-01-01","9999 evil&x=1"]}"#;
        assert_eq!(newest(offered), "2020-01-01");
        assert_eq!(newest("not JSON"), BASE_VERSION);
        assert_eq!(
            newest(r#"{"newest-versions":["2017-01-01",7]}"#),
            BASE_VERSION
        );
    }

    #[test]
    fn both_forms_of_tags_are_read() {
        for compute in [
            r#"{"tagsList":[{"name":"a","value":"b:c"},{"name":"d"}]}"#,
            r#"{"tags":"a:b:c;d"}"#,
        ] {
            let compute: Value = serde_json::from_str(compute).expect("JSON");
            let want = [("a", "b:c"), ("d", "")].map(|(n, v)| (n.to_owned(), v.to_owned()));
            assert_eq!(tags(&compute), want);
        }
        assert!(platform(&Value::Null).is_none());
    }
}
