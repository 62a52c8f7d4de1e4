//! Trace context headers. Spans are not exported yet, but a trace must not break at this hop: upstreams see the
//! headers they would see behind Envoy.

use outrigger_config::bootstrap::Zipkin;

use crate::http::headers::Headers;

fn is_id(text: &[u8]) -> bool {
    matches!(text.len(), 16 | 32) && text.iter().all(u8::is_ascii_hexdigit)
}

/// Starts or continues a B3 trace. An incoming decision wins over `sampled`.
pub fn propagate_b3(
    headers: &mut Headers,
    zipkin: Zipkin,
    sampled: bool,
    random: &impl Fn() -> u64,
) {
    let incoming = headers
        .get(b"x-b3-traceid")
        .filter(|t| is_id(t))
        .map(<[u8]>::to_vec);
    let span = format!("{:016x}", random());
    match incoming {
        Some(_) => {
            let parent = headers
                .get(b"x-b3-spanid")
                .filter(|t| is_id(t))
                .map(<[u8]>::to_vec);
            if !zipkin.shared_span_context || parent.is_none() {
                headers.set(b"x-b3-spanid", span.as_bytes());
                if let Some(parent) = parent {
                    headers.set(b"x-b3-parentspanid", &parent);
                }
            }
        }
        None => {
            let high = if zipkin.trace_id_128bit {
                format!("{:016x}", random())
            } else {
                String::new()
            };
            // A root span's id is the low half of its trace's (seen with Envoy 1.40).
            headers.set(b"x-b3-traceid", format!("{high}{span}").as_bytes());
            headers.set(b"x-b3-spanid", span.as_bytes());
        }
    }
    let decision: &[u8] = match headers.get(b"x-b3-sampled") {
        Some(b"1" | b"d" | b"true") => b"1",
        Some(b"0" | b"false") => b"0",
        _ if sampled => b"1",
        _ => b"0",
    };
    headers.set(b"x-b3-sampled", decision);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISTIO: Zipkin = Zipkin {
        trace_id_128bit: true,
        shared_span_context: false,
    };

    #[test]
    fn a_root_span_has_the_low_half_of_its_trace_as_id() {
        let mut h = Headers::new();
        propagate_b3(&mut h, ISTIO, true, &|| 0xabc);
        assert_eq!(
            h.get(b"x-b3-traceid"),
            Some(&b"0000000000000abc0000000000000abc"[..])
        );
        assert_eq!(h.get(b"x-b3-spanid"), Some(&b"0000000000000abc"[..]));
        assert_eq!(h.get(b"x-b3-sampled"), Some(&b"1"[..]));
        assert!(!h.contains(b"x-b3-parentspanid"));
    }

    #[test]
    fn a_second_hop_gets_a_span_of_its_own_and_keeps_the_decision() {
        let mut h = Headers::new();
        h.append(b"x-b3-traceid", b"128ae26d8cb668f29ea5ea61a48e46c5");
        h.append(b"x-b3-spanid", b"9ea5ea61a48e46c5");
        h.append(b"x-b3-sampled", b"0");
        propagate_b3(&mut h, ISTIO, true, &|| 1);
        assert_eq!(h.get(b"x-b3-parentspanid"), Some(&b"9ea5ea61a48e46c5"[..]));
        assert_eq!(h.get(b"x-b3-spanid"), Some(&b"0000000000000001"[..]));
        assert_eq!(h.get(b"x-b3-sampled"), Some(&b"0"[..]));
    }
}
