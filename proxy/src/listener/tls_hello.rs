//! ClientHello parser of the TLS inspector. Pure: bytes in, facts out; made for hostile input and fuzzing.

/// Most bytes looked at before a connection is given up.
pub const MAX_HELLO: usize = 16 * 1024;

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const MAX_RECORD: usize = 16 * 1024 + 256;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// Cannot be told yet.
    NeedMore,
    /// No TLS.
    NotTls,
    /// A ClientHello larger than the limit.
    TooLarge,
    /// A ClientHello.
    Found {
        /// `server_name`, as sent.
        server_name: Option<String>,
        /// `application_layer_protocol_negotiation`, in the client's order.
        alpn: Vec<String>,
    },
}

/// Looks at everything read so far.
#[must_use]
pub fn parse_client_hello(bytes: &[u8]) -> Hello {
    match bytes {
        [] => return Hello::NeedMore,
        [HANDSHAKE_RECORD] => return Hello::NeedMore,
        [HANDSHAKE_RECORD, 3, ..] => {}
        _ => return Hello::NotTls,
    }
    match handshake_message(bytes) {
        Ok(message) => parse_body(&message).unwrap_or(Hello::NotTls),
        Err(Hello::NeedMore) if bytes.len() >= MAX_HELLO => Hello::TooLarge,
        Err(other) => other,
    }
}

/// Joins the records until the first handshake message is whole; returns its body.
fn handshake_message(mut bytes: &[u8]) -> Result<Vec<u8>, Hello> {
    let mut message: Vec<u8> = Vec::new();
    loop {
        let Some((header, rest)) = bytes.split_first_chunk::<5>() else {
            return Err(Hello::NeedMore);
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[0] != HANDSHAKE_RECORD || header[1] != 3 || length == 0 || length > MAX_RECORD {
            return Err(Hello::NotTls);
        }
        let have = rest.len().min(length);
        message.extend_from_slice(&rest[..have]);
        if let [kind, a, b, c, body @ ..] = &message[..] {
            let wanted = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if *kind != CLIENT_HELLO {
                return Err(Hello::NotTls);
            }
            if wanted > MAX_HELLO {
                return Err(Hello::TooLarge);
            }
            if body.len() >= wanted {
                return Ok(body[..wanted].to_vec());
            }
        }
        if have < length {
            return Err(Hello::NeedMore);
        }
        bytes = &rest[length..];
    }
}

/// A cursor over length-prefixed vectors.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<usize> {
        self.take(1).map(|b| usize::from(b[0]))
    }

    fn u16(&mut self) -> Option<usize> {
        self.take(2)
            .map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])))
    }

    fn vec8(&mut self) -> Option<&'a [u8]> {
        let n = self.u8()?;
        self.take(n)
    }

    fn vec16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(n)
    }
}

fn parse_body(body: &[u8]) -> Option<Hello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?; // version, random
    reader.vec8()?; // session id
    reader.vec16()?; // cipher suites
    reader.vec8()?; // compression methods
    let (mut server_name, mut alpn) = (None, Vec::new());
    if !reader.0.is_empty() {
        let mut extensions = Reader(reader.vec16()?);
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let data = extensions.vec16()?;
            match kind {
                0 => server_name = parse_server_name(data)?,
                16 => alpn = parse_alpn(data)?,
                _ => {}
            }
        }
    }
    Some(Hello::Found { server_name, alpn })
}

fn parse_server_name(data: &[u8]) -> Option<Option<String>> {
    let mut list = Reader(Reader(data).vec16()?);
    while !list.0.is_empty() {
        let kind = list.u8()?;
        let name = list.vec16()?;
        if kind == 0 {
            let plain = !name.is_empty() && name.iter().all(|b| (0x21..0x7f).contains(b));
            return Some(plain.then(|| String::from_utf8_lossy(name).into_owned()));
        }
    }
    Some(None)
}

fn parse_alpn(data: &[u8]) -> Option<Vec<String>> {
    let mut list = Reader(Reader(data).vec16()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let name = list.vec8()?;
        if name.is_empty() {
            return None;
        }
        // Protocol ids are bytes; one that is no text cannot equal any configured name.
        protocols.push(String::from_utf8_lossy(name).into_owned());
    }
    Some(protocols)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A ClientHello as rustls makes it.
    fn hello(name: &str, alpn: &[&str]) -> Vec<u8> {
        let roots = rustls::RootCertStore::empty();
        let provider = crate::tls::crypto::default_crypto();
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        let name = name.to_owned().try_into().expect("name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("client");
        let mut out = Vec::new();
        client.write_tls(&mut out).expect("vec");
        out
    }

    #[test]
    fn name_and_protocols_are_found_however_the_bytes_arrive() {
        let bytes = hello(
            "outbound_.80_._.a.b.svc.cluster.local",
            &["istio-http/1.1", "istio"],
        );
        for cut in 0..bytes.len() {
            assert_eq!(
                parse_client_hello(&bytes[..cut]),
                Hello::NeedMore,
                "{cut} bytes"
            );
        }
        let expected = Hello::Found {
            server_name: Some("outbound_.80_._.a.b.svc.cluster.local".into()),
            alpn: vec!["istio-http/1.1".into(), "istio".into()],
        };
        assert_eq!(parse_client_hello(&bytes), expected);
        // The same message in records of 7 bytes.
        let mut split = Vec::new();
        for piece in bytes[5..].chunks(7) {
            split.extend_from_slice(&[22, 3, 1, 0, piece.len() as u8]);
            split.extend_from_slice(piece);
        }
        assert_eq!(parse_client_hello(&split), expected);
    }

    #[test]
    fn other_protocols_and_broken_hellos_are_told_apart_at_once() {
        let cases: [(&[u8], Hello); 7] = [
            (b"", Hello::NeedMore),
            (b"G", Hello::NotTls),
            (b"\x16", Hello::NeedMore),
            (b"\x16\x02", Hello::NotTls),
            (b"\x16\x03\x01\x00\x00", Hello::NotTls),
            (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", Hello::NotTls),
            (b"\x16\x03\x01\x00\x04\x01\x00\xff\xff", Hello::TooLarge),
        ];
        for (bytes, expected) in cases {
            assert_eq!(parse_client_hello(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn no_mutation_of_a_hello_panics() {
        let bytes = hello("a.example", &["h2"]);
        for at in 0..bytes.len() {
            for value in [0u8, 1, 0x7f, 0xff] {
                let mut broken = bytes.clone();
                broken[at] = value;
                let _ = parse_client_hello(&broken); // only that it returns
            }
        }
    }
}
