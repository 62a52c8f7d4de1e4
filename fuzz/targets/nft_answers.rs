//! Answers of the kernel over netlink: any bytes. No length is trusted, and an expression that was
//! understood is written back as it was.
#![no_main]

use iptables_init::nft::expr::{Expr, decode, encode};
use iptables_init::nft::wire::{attribute, attributes, be32, messages, text};
use libfuzzer_sys::fuzz_target;

/// Keys of every set that is asked for.
fn keys(name: &str, id: Option<u32>) -> Vec<Vec<u8>> {
    vec![
        name.as_bytes().to_vec(),
        id.unwrap_or(0).to_be_bytes().to_vec(),
    ]
}

fuzz_target!(|data: &[u8]| {
    for message in messages(data) {
        let body = message.payload.get(4..).unwrap_or_default();
        for (kind, value) in attributes(body) {
            let _ = (text(value, kind), be32(value, kind), attribute(value, kind));
        }
        let _ = decode(attribute(body, 4).unwrap_or_default(), &mut keys);
    }
    let first = decode(data, &mut keys);
    let known = !first
        .iter()
        .any(|e| matches!(e, Expr::Unknown { .. } | Expr::Lookup { .. }));
    if known {
        let bytes = encode(&first, &mut std::iter::repeat(0));
        let again = decode(&bytes.0, &mut keys);
        assert_eq!(again, first);
    }
});
