//! xDS resources to the model: the first byte chooses the type, the rest is the resource.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 6 {
        0 => drop(outrigger_config::parse_cluster(bytes)),
        1 => drop(outrigger_config::parse_load_assignment(bytes)),
        2 => drop(outrigger_config::parse_listener(bytes)),
        3 => drop(outrigger_config::parse_route_configuration(bytes)),
        4 => drop(outrigger_config::parse_secret(bytes)),
        _ => drop(outrigger_config::parse_bootstrap(bytes)),
    }
});
