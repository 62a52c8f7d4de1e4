//! Makes two runs comparable: replaces what differs by nature (times, ports, ids, durations).

use regex::Regex;

/// What to replace by what, in order.
#[derive(Debug)]
pub struct Mask {
    rules: Vec<(Regex, String)>,
}

impl Mask {
    /// Rules for access-log lines, header values and bodies: RFC 3339 and HTTP dates, UUIDs, and
    /// the ports given (each with its own name, so that mixing them up is seen).
    pub fn new(ports: &[(u16, &str)]) -> Result<Self, regex::Error> {
        let mut rules = Vec::new();
        for (port, name) in ports {
            rules.push((Regex::new(&format!(r":{port}\b"))?, format!(":<{name}>")));
        }
        for (pattern, with) in [
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<time>"),
            (
                r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT",
                "<date>",
            ),
            (
                r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b",
                "<uuid>",
            ),
            (
                r"\b(127\.0\.0\.\d+):(3[2-9]|[45]\d|6[0-5])\d{3}\b",
                "$1:<port>",
            ),
        ] {
            rules.push((Regex::new(pattern)?, with.to_owned()));
        }
        Ok(Self { rules })
    }

    /// The text with everything replaced.
    pub fn apply(&self, text: &str) -> String {
        self.rules
            .iter()
            .fold(text.to_owned(), |text, (pattern, with)| {
                pattern.replace_all(&text, with.as_str()).into_owned()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_ids_and_ports_are_replaced_and_the_rest_kept() {
        let mask = Mask::new(&[(10_001, "listener")]).expect("patterns");
        let line = r#"[2026-11-21T04:22:15.888Z] "GET /" 200 - 127.0.0.1:42342 127.0.0.1:10001 "91d50f9d-1fe4-9443-8f99-b3e2d2fd2552""#;
        let wanted = r#"[<time>] "GET /" 200 - 127.0.0.1:<port> 127.0.0.1:<listener> "<uuid>""#;
        assert_eq!(mask.apply(line), wanted);
        assert_eq!(mask.apply("503 UF,URX 0 91"), "503 UF,URX 0 91");
    }
}
