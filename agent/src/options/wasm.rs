//! Variables to the settings of the Wasm cache.

use std::time::Duration;

use super::{Environment, OptionsError};
use crate::wasm::WasmConfig;

const BLOCKED: &str = "BLOCKED_CIDRS_IN_WASM_FETCH";

/// `None` if `ISTIO_AGENT_ENABLE_WASM_REMOTE_LOAD_CONVERSION` is off.
pub(super) fn config(environment: &Environment) -> Result<Option<WasmConfig>, OptionsError> {
    if !environment.boolean("ISTIO_AGENT_ENABLE_WASM_REMOTE_LOAD_CONVERSION", true) {
        return Ok(None);
    }
    let defaults = WasmConfig::default();
    let list = |name: &str| -> Vec<String> {
        let text = environment.text(name);
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect()
    };
    // A rule that is not understood would let through what it was to stop.
    let blocked = list(BLOCKED)
        .into_iter()
        .map(|text| {
            text.parse().map_err(|_| OptionsError::Variable {
                variable: BLOCKED,
                value: text,
                reason: "is no CIDR block",
            })
        })
        .collect::<Result<_, _>>()?;
    let duration = |name, default: Duration| environment.duration(name, default);
    Ok(Some(WasmConfig {
        insecure_registries: list("WASM_INSECURE_REGISTRIES"),
        module_expiry: duration("WASM_MODULE_EXPIRY", defaults.module_expiry),
        purge_interval: duration("WASM_PURGE_INTERVAL", defaults.purge_interval)
            .max(Duration::from_secs(1)),
        request_timeout: duration("WASM_HTTP_REQUEST_TIMEOUT", defaults.request_timeout),
        attempts: environment.number("WASM_HTTP_REQUEST_MAX_RETRIES", defaults.attempts),
        max_bytes: environment.number("ISTIO_WASM_MAX_BINARY_SIZE_BYTES", defaults.max_bytes),
        blocked,
        https_proxy: super::security::proxy_variables(environment),
        ..defaults
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let pairs = variables.iter();
        pairs.map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    #[test]
    fn every_variable_has_its_place_and_default() {
        let defaults = config(&environment(&[])).expect("accepted").expect("on");
        assert_eq!(defaults.directory.to_str(), Some("/var/lib/istio/data"));
        assert_eq!(defaults.module_expiry, Duration::from_secs(86_400));
        assert_eq!(defaults.purge_interval, Duration::from_secs(3600));
        assert_eq!(defaults.request_timeout, Duration::from_secs(15));
        assert_eq!((defaults.attempts, defaults.max_bytes), (5, 268_435_456));
        assert!(defaults.insecure_registries.is_empty() && defaults.blocked.is_empty());
        let set = environment(&[
            ("WASM_INSECURE_REGISTRIES", "a.test:5000, b.test,"),
            ("WASM_MODULE_EXPIRY", "1m"),
            ("WASM_PURGE_INTERVAL", "0s"),
            ("WASM_HTTP_REQUEST_TIMEOUT", "2s"),
            ("WASM_HTTP_REQUEST_MAX_RETRIES", "7"),
            ("ISTIO_WASM_MAX_BINARY_SIZE_BYTES", "1000"),
            ("BLOCKED_CIDRS_IN_WASM_FETCH", "10.0.0.0/8, fd00::/8"),
            ("HTTPS_PROXY", "http://p:1"),
            ("no_proxy", "x"),
        ]);
        let set = config(&set).expect("accepted").expect("on");
        assert_eq!(set.insecure_registries, ["a.test:5000", "b.test"]);
        assert_eq!(set.module_expiry, Duration::from_secs(60));
        assert_eq!(set.purge_interval, Duration::from_secs(1));
        assert_eq!(set.request_timeout, Duration::from_secs(2));
        assert_eq!((set.attempts, set.max_bytes), (7, 1000));
        assert_eq!(set.blocked.len(), 2);
        assert_eq!(set.https_proxy, ("http://p:1".into(), "x".into()));
    }

    #[test]
    fn conversion_can_be_turned_off_and_a_bad_block_is_refused() {
        let off = [("ISTIO_AGENT_ENABLE_WASM_REMOTE_LOAD_CONVERSION", "false")];
        assert!(config(&environment(&off)).expect("accepted").is_none());
        let error = config(&environment(&[(BLOCKED, "10.0.0.0/8,10.0.0.1")]));
        let want = "BLOCKED_CIDRS_IN_WASM_FETCH=10.0.0.1: is no CIDR block";
        assert_eq!(error.expect_err("refused").to_string(), want);
    }
}
