//! Bytes from the network never make the parser panic: neither noise, nor a recorded resource with damage.

use outrigger_config::{
    parse_bootstrap, parse_cluster, parse_listener, parse_load_assignment,
    parse_route_configuration, parse_secret,
};
use proptest::prelude::*;

const RECORDED: [&[u8]; 4] = [
    include_bytes!("fixtures/basic-sleep-cds.pb"),
    include_bytes!("fixtures/basic-sleep-eds.pb"),
    include_bytes!("fixtures/basic-sleep-rds.pb"),
    include_bytes!("fixtures/eastwest-lds.pb"),
];

fn parse_as_everything(bytes: &[u8]) {
    let _ = parse_cluster(bytes);
    let _ = parse_load_assignment(bytes);
    let _ = parse_listener(bytes);
    let _ = parse_route_configuration(bytes);
    let _ = parse_secret(bytes);
    let _ = parse_bootstrap(bytes);
}

/// The resources of a recorded response.
fn resources(response: &[u8]) -> Vec<Vec<u8>> {
    use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
    use prost::Message;
    DiscoveryResponse::decode(response)
        .expect("recorded responses decode")
        .resources
        .into_iter()
        .map(|any| any.value)
        .collect()
}

proptest! {
    #[test]
    fn noise_is_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        parse_as_everything(&bytes);
    }

    #[test]
    fn damaged_resources_are_refused_or_read(
        file in 0..RECORDED.len(),
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let all = resources(RECORDED[file]);
        let mut bytes = all[which.index(all.len())].clone();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        parse_as_everything(&bytes);
    }
}
