//! HTTP/1 heads, chunked bodies and the first-line inspector on arbitrary bytes.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use outrigger::http::h1::body::{Decoder, Framing, Step};
use outrigger::http::h1::parse::{self, Limits};

const LIMITS: Limits = Limits { max_bytes: 61_440, max_headers: 100 };

fuzz_target!(|data: &[u8]| {
    let _ = outrigger::listener::http_first_line::parse_first_line(data);
    let mut buf = BytesMut::from(data);
    if let Some(end) = parse::find_end(&buf, &mut 0) {
        let mut response = buf.clone();
        let _ = parse::response(&mut response, end, LIMITS);
        if let Ok(request) = parse::request(&mut buf, end, LIMITS) {
            // What was accepted must be safe to forward: no line end can hide in a value.
            for (name, value) in request.headers.iter() {
                assert!(!name.is_empty() && !name.iter().any(|c| *c <= b' '));
                assert!(!value.iter().any(|c| matches!(c, b'\r' | b'\n' | 0)));
            }
            assert!(!request.headers.path().iter().any(|c| *c <= b' '));
            let mut decoder = Decoder::new(request.framing);
            while let Ok(Step::Data(_)) = decoder.decode(&mut buf) {}
        }
    }
    let mut body = BytesMut::from(data);
    let mut decoder = Decoder::new(Framing::Chunked);
    while let Ok(Step::Data(_)) = decoder.decode(&mut body) {}
});
