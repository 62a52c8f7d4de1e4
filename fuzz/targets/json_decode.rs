//! Wire bytes of any known message to JSON: decoding must end with a value or an error, and what it
//! gives must encode again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_api::json::{self, DecodeOptions, EncodeOptions};

const TYPES: &[&str] = &[
    "envoy.config.listener.v3.Listener",
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "envoy.extensions.transport_sockets.tls.v3.Secret",
    "envoy.config.bootstrap.v3.Bootstrap",
];

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let name = TYPES[usize::from(*first) % TYPES.len()];
    if let Ok(value) = json::decode(name, rest, &DecodeOptions::default()) {
        let _ = json::encode(name, &value, &EncodeOptions::default());
    }
});
