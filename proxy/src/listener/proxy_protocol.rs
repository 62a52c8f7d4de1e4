//! PROXY protocol header, versions 1 and 2 (haproxy's proxy-protocol.txt). Pure and made for hostile input.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1_MAX: usize = 107;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Cannot be told yet.
    NeedMore,
    /// Not a PROXY header.
    Absent,
    /// A header that breaks the protocol.
    Invalid,
    /// A header of that many bytes.
    Found {
        /// Bytes to take off the stream.
        length: usize,
        /// Source and destination; `None` for LOCAL, UNKNOWN and families without ports.
        addresses: Option<(SocketAddr, SocketAddr)>,
    },
}

/// Looks at everything read so far.
#[must_use]
pub fn parse_header(bytes: &[u8]) -> Header {
    let n = bytes.len().min(SIGNATURE.len());
    if bytes[..n] == SIGNATURE[..n] {
        return if n < SIGNATURE.len() {
            Header::NeedMore
        } else {
            v2(bytes)
        };
    }
    let n = bytes.len().min(6);
    if bytes[..n] != b"PROXY "[..n] {
        return Header::Absent;
    }
    let line = &bytes[..bytes.len().min(V1_MAX)];
    match memchr::memchr(b'\n', line) {
        Some(end) => v1(&line[..end], end + 1),
        None if line.len() < V1_MAX => Header::NeedMore,
        None => Header::Invalid,
    }
}

fn v1(line: &[u8], length: usize) -> Header {
    let parsed = || {
        let text = std::str::from_utf8(line.strip_suffix(b"\r")?).ok()?;
        let mut words = text.split(' ').skip(1);
        let family = words.next()?;
        if family == "UNKNOWN" {
            return Some(None);
        }
        let (source, destination) = (words.next()?, words.next()?);
        let ports: (u16, u16) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        if words.next().is_some() {
            return None;
        }
        let pair = |v4: bool| -> Option<(SocketAddr, SocketAddr)> {
            Some(if v4 {
                let ips: (Ipv4Addr, Ipv4Addr) = (source.parse().ok()?, destination.parse().ok()?);
                ((ips.0, ports.0).into(), (ips.1, ports.1).into())
            } else {
                let ips: (Ipv6Addr, Ipv6Addr) = (source.parse().ok()?, destination.parse().ok()?);
                ((ips.0, ports.0).into(), (ips.1, ports.1).into())
            })
        };
        match family {
            "TCP4" => pair(true).map(Some),
            "TCP6" => pair(false).map(Some),
            _ => None,
        }
    };
    parsed().map_or(Header::Invalid, |addresses| Header::Found {
        length,
        addresses,
    })
}

fn v2(bytes: &[u8]) -> Header {
    let Some([command, family, high, low]) = bytes.get(12..16) else {
        return Header::NeedMore;
    };
    let size = usize::from(u16::from_be_bytes([*high, *low]));
    let length = 16 + size;
    if command >> 4 != 2 || command & 0xf > 1 {
        return Header::Invalid;
    }
    let Some(body) = bytes.get(16..length) else {
        return Header::NeedMore;
    };
    if command & 0xf == 0 {
        return Header::Found {
            length,
            addresses: None,
        };
    }
    let addresses = match family {
        0x11 => v2_ipv4(body),
        0x21 => v2_ipv6(body),
        // Unspecified, datagram and Unix families carry no usable addresses.
        _ => {
            return Header::Found {
                length,
                addresses: None,
            };
        }
    };
    addresses.map_or(Header::Invalid, |pair| Header::Found {
        length,
        addresses: Some(pair),
    })
}

fn port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn v2_ipv4(body: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let ip = |at: usize| {
        Some(Ipv4Addr::from(
            <[u8; 4]>::try_from(body.get(at..at + 4)?).ok()?,
        ))
    };
    let (source, destination) = (port(body.get(8..10)?)?, port(body.get(10..12)?)?);
    Some(((ip(0)?, source).into(), (ip(4)?, destination).into()))
}

fn v2_ipv6(body: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let ip = |at: usize| {
        Some(Ipv6Addr::from(
            <[u8; 16]>::try_from(body.get(at..at + 16)?).ok()?,
        ))
    };
    let (source, destination) = (port(body.get(32..34)?)?, port(body.get(34..36)?)?);
    Some(((ip(0)?, source).into(), (ip(16)?, destination).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(a: &str, b: &str) -> Option<(SocketAddr, SocketAddr)> {
        Some((a.parse().expect("address"), b.parse().expect("address")))
    }

    #[test]
    fn headers_are_read() {
        let v1: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 443\r\nGET";
        let mut v2 = SIGNATURE.to_vec();
        v2.extend_from_slice(&[
            0x21, 0x11, 0, 12, 192, 0, 2, 1, 192, 0, 2, 2, 0x13, 0x88, 1, 0xbb,
        ]);
        let mut local = SIGNATURE.to_vec();
        local.extend_from_slice(&[0x20, 0, 0, 0]);
        let mut short = SIGNATURE.to_vec();
        short.extend_from_slice(&[0x21, 0x11, 0, 4, 1, 2, 3, 4]);
        let addresses = pair("192.0.2.1:5000", "192.0.2.2:443");
        let cases: [(&[u8], Header); 12] = [
            (
                v1,
                Header::Found {
                    length: 41,
                    addresses,
                },
            ),
            (&v1[..20], Header::NeedMore),
            (
                b"PROXY TCP6 ::1 ::2 1 2\r\n",
                Header::Found {
                    length: 24,
                    addresses: pair("[::1]:1", "[::2]:2"),
                },
            ),
            (
                b"PROXY UNKNOWN\r\n",
                Header::Found {
                    length: 15,
                    addresses: None,
                },
            ),
            (b"PROXY TCP4 1.2.3.4 x 1 2\r\n", Header::Invalid),
            (b"PROXY TCP4 1.2.3.4 1.2.3.5 1 99999\r\n", Header::Invalid),
            (b"GET / HTTP/1.1\r\n", Header::Absent),
            (b"", Header::NeedMore),
            (
                &v2,
                Header::Found {
                    length: 28,
                    addresses,
                },
            ),
            (&v2[..20], Header::NeedMore),
            (
                &local,
                Header::Found {
                    length: 16,
                    addresses: None,
                },
            ),
            (&short, Header::Invalid),
        ];
        for (bytes, expected) in cases {
            assert_eq!(parse_header(bytes), expected, "{bytes:?}");
        }
        assert_eq!(
            parse_header(&[&b"PROXY "[..], &[b'x'; 120]].concat()),
            Header::Invalid
        );
    }
}
