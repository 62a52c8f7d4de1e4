//! What the proxy waits for: names from its admin port, and since when each has been missing.

use std::collections::BTreeMap;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Deserialize;

/// Names in one answer; a broken push can leave thousands of routes missing.
const MAX_NAMES: usize = 8;
/// Names remembered with their time.
const MAX_REMEMBERED: usize = 256;

/// Since when each name has been missing, as far as somebody asked.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<BTreeMap<String, Instant>>);

impl Waits {
    /// Takes the names that are missing now; what is no longer among them is forgotten. `None` if
    /// nothing is missing, else e.g. `waiting for RDS http.80, 12 s`.
    pub(super) fn describe(&self, mut missing: Vec<String>, now: Instant) -> Option<String> {
        missing.sort();
        missing.dedup();
        let total = missing.len();
        missing.truncate(MAX_REMEMBERED);
        let mut since = self.0.lock();
        since.retain(|name, _| missing.binary_search(name).is_ok());
        for name in missing {
            since.entry(name).or_insert(now);
        }
        let mut oldest: Vec<_> = since.iter().collect();
        // Stable: names of one age stay in order.
        oldest.sort_by_key(|(_, at)| **at);
        let named: Vec<String> = oldest
            .iter()
            .take(MAX_NAMES)
            .map(|(name, at)| format!("{name}, {} s", now.duration_since(**at).as_secs()))
            .collect();
        let more = match total.saturating_sub(named.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (total > 0).then(|| format!("waiting for {}{more}", named.join("; ")))
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct InitDump {
    unready_targets_dumps: Vec<Unready>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Unready {
    target_names: Vec<String>,
}

/// Names in Envoy's `/init_dump`, in the words of xDS: `RDS http.80`, `SDS default`, `EDS c`.
/// A page that is none gives no names.
pub(super) fn unready(page: &str) -> Vec<String> {
    let dump: InitDump = serde_json::from_str(page).unwrap_or_default();
    let dumps = dump.unready_targets_dumps.into_iter();
    dumps
        .flat_map(|dump| dump.target_names)
        .map(|target| resource(&target))
        .collect()
}

fn resource(target: &str) -> String {
    let target = target.strip_prefix("shared ").unwrap_or(target);
    let target = target.strip_prefix("target ").unwrap_or(target);
    if let Some(rest) = target.strip_prefix("RdsRouteConfigSubscription ") {
        let name = rest.rsplit_once("init ").map_or(rest, |(_, name)| name);
        return format!("RDS {name}");
    }
    match target.strip_prefix("SdsApi ") {
        Some(name) => format!("SDS {name}"),
        None => target.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn targets_become_resources() {
        let page = r#"{"unready_targets_dumps":[
            {"name":"init manager Listener-local-init-manager l 1","target_names":[
                "shared target RdsRouteConfigSubscription RDS init http.80",
                "shared target RdsRouteConfigSubscription init 90",
                "shared target SdsApi kubernetes://cred"]},
            {"name":"init manager Server","target_names":["target LDS","target EDS c"]}]}"#;
        let want = [
            "RDS http.80",
            "RDS 90",
            "SDS kubernetes://cred",
            "LDS",
            "EDS c",
        ];
        assert_eq!(unready(page), want);
        for page in ["{}", "", "<html>", "[1]"] {
            assert_eq!(unready(page), Vec::<String>::new(), "{page}");
        }
    }

    #[test]
    fn each_name_has_its_own_time_and_the_list_is_bounded() {
        let waits = Waits::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        assert_eq!(waits.describe(Vec::new(), start), None);
        waits.describe(names(&["RDS http.80"]), start);
        waits.describe(names(&["LDS", "RDS http.80"]), at(10));
        let text = waits.describe(names(&["LDS", "RDS http.80"]), at(12));
        let want = "waiting for RDS http.80, 12 s; LDS, 2 s";
        assert_eq!(text.as_deref(), Some(want));
        waits.describe(names(&["LDS"]), at(13));
        let text = waits.describe(names(&["RDS http.80"]), at(14));
        assert_eq!(
            text.as_deref(),
            Some("waiting for RDS http.80, 0 s"),
            "forgotten"
        );
        let many: Vec<String> = (0..1000).map(|n| format!("RDS {n:04}")).collect();
        let text = waits.describe(many, at(15)).expect("missing");
        assert!(text.ends_with("RDS 0007, 0 s and 992 more"), "{text}");
    }
}
