//! Numbers and addresses as bytes. A request writes some ten of them; `fmt` costs a few hundred instructions
//! for each.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Longest text of an IPv4 address and a port, `255.255.255.255:65535`.
const MAX_V4: usize = 21;

/// A decimal number on the stack.
#[derive(Debug, Clone, Copy)]
pub struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    /// The digits of `value`.
    #[must_use]
    pub fn new(mut value: u64) -> Self {
        let mut digits = [b'0'; 20];
        let mut start = digits.len() - 1;
        while value >= 10 {
            digits[start] = b'0' + (value % 10) as u8;
            value /= 10;
            start -= 1;
        }
        digits[start] = b'0' + value as u8;
        Self { digits, start }
    }

    /// The text.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.digits[self.start..]
    }
}

/// An IPv4 address, perhaps with a port, on the stack.
struct V4 {
    text: [u8; MAX_V4],
    len: usize,
}

impl V4 {
    fn new(address: Ipv4Addr) -> Self {
        let mut v4 = Self {
            text: [b'.'; MAX_V4],
            len: 0,
        };
        for (i, octet) in address.octets().into_iter().enumerate() {
            v4.len += usize::from(i > 0);
            if octet >= 100 {
                v4.push(b'0' + octet / 100);
            }
            if octet >= 10 {
                v4.push(b'0' + octet / 10 % 10);
            }
            v4.push(b'0' + octet % 10);
        }
        v4
    }

    fn push(&mut self, byte: u8) {
        self.text[self.len] = byte;
        self.len += 1;
    }

    fn with_port(mut self, port: u16) -> Self {
        self.push(b':');
        for digit in Decimal::new(u64::from(port)).as_bytes() {
            self.push(*digit);
        }
        self
    }

    fn as_bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }
}

/// Appends an IP address.
pub fn ip(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(v4) => out.extend_from_slice(V4::new(v4).as_bytes()),
        // Writing to a vector cannot fail.
        IpAddr::V6(v6) => drop(write!(out, "{v6}")),
    }
}

/// Appends an address with its port, an IPv6 one in brackets.
pub fn socket_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address {
        SocketAddr::V4(v4) => {
            out.extend_from_slice(V4::new(*v4.ip()).with_port(v4.port()).as_bytes());
        }
        // Writing to a vector cannot fail.
        SocketAddr::V6(v6) => drop(write!(out, "{v6}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_fmt_prints() {
        for n in [
            0,
            7,
            9,
            10,
            99,
            100,
            65_535,
            1_000_000,
            u64::MAX - 1,
            u64::MAX,
        ] {
            assert_eq!(Decimal::new(n).as_bytes(), n.to_string().as_bytes());
        }
    }

    #[test]
    fn addresses_are_what_fmt_prints() {
        for text in [
            "0.0.0.0:0",
            "9.10.99.100:7",
            "255.255.255.255:65535",
            "1.20.0.199:15006",
            "[::]:80",
            "[2001:db8::1]:443",
            "[::ffff:10.0.0.1]:1",
            "[fe80::1%3]:9",
        ] {
            let address: SocketAddr = text.parse().expect("an address");
            let mut out = Vec::new();
            socket_address(address, &mut out);
            assert_eq!(out, address.to_string().as_bytes());
            out.clear();
            ip(address.ip(), &mut out);
            assert_eq!(out, address.ip().to_string().as_bytes());
        }
    }
}
