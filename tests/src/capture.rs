//! Records the TCP segments that cross a network namespace, for tests of what is on the wire.
//!
//! It only reads, and only in the namespace that it is given.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::netns;

/// One IPv4 TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Sender.
    pub from: (Ipv4Addr, u16),
    /// Receiver.
    pub to: (Ipv4Addr, u16),
    /// Sequence number of the first payload byte.
    pub sequence: u32,
    /// Payload.
    pub payload: Vec<u8>,
}

/// A packet socket on every interface of a namespace, loopback included. The kernel keeps what
/// arrives until it is read (about 200 KiB), so there is nothing to wait for.
#[derive(Debug)]
pub struct Capture {
    // A datagram socket is all the standard library needs to know of it.
    socket: UdpSocket,
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The segment of an Ethernet frame; `None` for anything but IPv4 TCP.
fn segment(frame: &[u8]) -> Option<Segment> {
    if short(frame, 12)? != 0x0800 {
        return None;
    }
    let packet = frame.get(14..)?;
    if *packet.first()? >> 4 != 4 || *packet.get(9)? != 6 {
        return None;
    }
    let packet = packet.get(..usize::from(short(packet, 2)?))?;
    let tcp = packet.get(usize::from(packet.first()? & 15) * 4..)?;
    let address = |at: usize| -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(bytes.into())
    };
    Some(Segment {
        from: (address(12)?, short(tcp, 0)?),
        to: (address(16)?, short(tcp, 2)?),
        sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        payload: tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?.to_vec(),
    })
}

impl Capture {
    /// Begins to record in a namespace.
    pub fn start(ns: &str) -> io::Result<Self> {
        let socket = netns::inside(ns, || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let kind = SockType::Raw;
            Ok(socket(
                AddressFamily::Packet,
                kind,
                flags,
                SockProtocol::EthAll,
            )?)
        })?;
        Ok(Self {
            socket: UdpSocket::from(socket),
        })
    }

    /// The segments that crossed since the last call, in order.
    pub fn segments(&self) -> io::Result<Vec<Segment>> {
        let mut frame = vec![0_u8; 1 << 17];
        let mut segments = Vec::new();
        loop {
            match self.socket.recv(&mut frame) {
                Ok(n) => segments.extend(segment(&frame[..n])),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(segments),
                Err(e) => return Err(e),
            }
        }
    }
}

/// The bytes of each direction of each connection, in sequence order, without repetitions.
pub fn streams(segments: &[Segment]) -> Vec<(Segment, Vec<u8>)> {
    let mut streams: Vec<(Segment, Vec<u8>)> = Vec::new();
    for segment in segments.iter().filter(|s| !s.payload.is_empty()) {
        let same = |s: &&mut (Segment, Vec<u8>)| s.0.from == segment.from && s.0.to == segment.to;
        let Some((first, bytes)) = streams.iter_mut().find(same) else {
            streams.push((segment.clone(), segment.payload.clone()));
            continue;
        };
        let offset = segment.sequence.wrapping_sub(first.sequence) as usize;
        if offset == bytes.len() {
            bytes.extend_from_slice(&segment.payload);
        }
    }
    streams
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_gives_its_segment_without_padding() {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 42, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1]);
        frame.extend([10, 0, 0, 2, 0, 80, 1, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0]);
        frame.extend([0; 6]);
        frame.extend(*b"hi\0\0");
        let seen = segment(&frame).expect("a segment");
        assert_eq!(seen.from, ([10, 0, 0, 1].into(), 80));
        assert_eq!(seen.to, ([10, 0, 0, 2].into(), 256));
        assert_eq!((seen.sequence, seen.payload.as_slice()), (7, &b"hi"[..]));
        for cut in 0..56 {
            assert_eq!(segment(&frame[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn repeated_segments_count_once() {
        let one = |sequence: u32, text: &str| Segment {
            from: ([1, 1, 1, 1].into(), 1),
            to: ([2, 2, 2, 2].into(), 2),
            sequence,
            payload: text.into(),
        };
        let all = [one(u32::MAX, "ab"), one(u32::MAX, "ab"), one(1, "c")];
        let streams = streams(&all);
        assert_eq!(streams.len(), 1);
        assert_eq!(streams[0].1, b"abc");
    }
}
