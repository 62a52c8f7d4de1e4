//! PROXY protocol headers, version 1 and 2, on arbitrary bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = outrigger::listener::proxy_protocol::parse_header(data);
    // A version 2 signature leads deeper than noise finds by itself.
    let v2 = [&b"\r\n\r\n\x00\r\nQUIT\n"[..], data].concat();
    let _ = outrigger::listener::proxy_protocol::parse_header(&v2);
});
