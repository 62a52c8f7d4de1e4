//! Requests of a session as wire bytes, the node spliced in verbatim.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::session::{Request, RequestMessage};

/// Field number of `node` in `DeltaDiscoveryRequest`.
const DELTA_NODE: u32 = 1;
/// Field number of `node` in `DiscoveryRequest`.
const SOTW_NODE: u32 = 2;

/// Encodes `request`; `node` (wire bytes of `core.v3.Node`) goes in if the request wants it.
#[must_use]
pub fn encode_request(request: &Request, node: &Bytes) -> Bytes {
    let (field, len) = match &request.message {
        RequestMessage::Delta(message) => (DELTA_NODE, message.encoded_len()),
        RequestMessage::Sotw(message) => (SOTW_NODE, message.encoded_len()),
    };
    let mut buf = BytesMut::with_capacity(len + node.len() + 16);
    if request.with_node {
        encode_key(field, WireType::LengthDelimited, &mut buf);
        encode_varint(node.len() as u64, &mut buf);
        buf.put_slice(node);
    }
    match &request.message {
        RequestMessage::Delta(message) => message.encode_raw(&mut buf),
        RequestMessage::Sotw(message) => message.encode_raw(&mut buf),
    }
    buf.freeze()
}
