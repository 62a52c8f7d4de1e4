//! JSON text to wire bytes: what encodes must decode again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_api::json::{self, DecodeOptions, EncodeOptions};

fuzz_target!(|data: &[u8]| {
    const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";
    let Ok(value) = serde_json::from_slice(data) else {
        return;
    };
    if let Ok(encoded) = json::encode(BOOTSTRAP, &value, &EncodeOptions::default()) {
        let again = json::decode(BOOTSTRAP, &encoded.bytes, &DecodeOptions::default());
        assert!(
            again.is_ok(),
            "encoded bytes do not decode: {:?}",
            again.err()
        );
    }
});
