//! The TLS inspector's ClientHello parser on arbitrary bytes, whole and cut short.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for end in [data.len(), data.len() / 2, 5.min(data.len())] {
        let _ = outrigger::listener::tls_hello::parse_client_hello(&data[..end]);
    }
});
