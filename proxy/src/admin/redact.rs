//! Cuts private keys out of a Secret's wire bytes before they are kept for a page. Works on field numbers, so
//! that a key never reaches a JSON printer.

use bytes::{BufMut as _, Bytes, BytesMut};
use outrigger_xds::wire::{Fields, Value, WireError};

/// What stands for a secret value, as Envoy prints it (base64 `W3JlZGFjdGVkXQ==` in bytes fields).
const REDACTED: &[u8] = b"[redacted]";

/// What to do with a field.
enum Change {
    Keep,
    Replace(Bytes),
}

/// `Secret` with its private key, password, session ticket keys and generic secret replaced. A body that is
/// not protobuf becomes empty.
#[must_use]
pub fn secret(body: &Bytes) -> Bytes {
    // Secret: 2 tls_certificate, 3 session_ticket_keys, 5 generic_secret.
    rewrite(body, &|number, value| {
        Ok(match number {
            2 => Change::Replace(certificate(value)?),
            3 => Change::Replace(each(value, 1)?),
            5 => Change::Replace(rewrite(value, &|n, v| {
                Ok(match n {
                    1 => Change::Replace(data_source(v)?),
                    // A map entry: its value is a DataSource.
                    2 => Change::Replace(each(v, 2)?),
                    _ => Change::Keep,
                })
            })?),
            _ => Change::Keep,
        })
    })
    .unwrap_or_default()
}

/// `TlsCertificate`: private_key, password and pkcs12 are data sources; private_key_provider is dropped whole.
fn certificate(value: &Bytes) -> Result<Bytes, WireError> {
    rewrite(value, &|n, v| {
        Ok(match n {
            2 | 3 | 8 => Change::Replace(data_source(v)?),
            6 => Change::Replace(Bytes::new()),
            _ => Change::Keep,
        })
    })
}

/// Replaces the data sources in field `number`.
fn each(value: &Bytes, number: u32) -> Result<Bytes, WireError> {
    rewrite(value, &|n, v| {
        Ok(if n == number {
            Change::Replace(data_source(v)?)
        } else {
            Change::Keep
        })
    })
}

/// `DataSource` with its inline value replaced; file and variable names stay.
fn data_source(value: &Bytes) -> Result<Bytes, WireError> {
    rewrite(value, &|n, _| {
        Ok(if matches!(n, 2 | 3) {
            Change::Replace(Bytes::from_static(REDACTED))
        } else {
            Change::Keep
        })
    })
}

/// Writes a message again, length-delimited fields changed by `change`.
fn rewrite(
    message: &Bytes,
    change: &dyn Fn(u32, &Bytes) -> Result<Change, WireError>,
) -> Result<Bytes, WireError> {
    let mut out = BytesMut::with_capacity(message.len());
    for field in Fields::new(message.clone()) {
        let (number, value) = field?;
        match value {
            Value::Varint(v) => {
                key(&mut out, number, 0);
                varint(&mut out, v);
            }
            Value::Fixed64(v) => {
                key(&mut out, number, 1);
                out.put_u64_le(v);
            }
            Value::Fixed32(v) => {
                key(&mut out, number, 5);
                out.put_u32_le(v);
            }
            Value::Bytes(v) => {
                let v = match change(number, &v)? {
                    Change::Keep => v,
                    Change::Replace(new) => new,
                };
                key(&mut out, number, 2);
                varint(&mut out, v.len() as u64);
                out.put(v);
            }
        }
    }
    Ok(out.freeze())
}

fn key(out: &mut BytesMut, number: u32, wire_type: u32) {
    varint(out, (u64::from(number) << 3) | u64::from(wire_type));
}

fn varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value as u8) | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_cut_out_and_certificates_stay() {
        // Secret { name: "a", tls_certificate { certificate_chain { inline_string: "C" },
        // private_key { inline_bytes: "KEY" } } }
        let body = Bytes::from_static(b"\x0a\x01a\x12\x0c\x0a\x03\x1a\x01C\x12\x05\x12\x03KEY");
        let out = secret(&body);
        assert!(!out.windows(3).any(|w| w == b"KEY"));
        assert_eq!(
            &*out,
            b"\x0a\x01a\x12\x13\x0a\x03\x1a\x01C\x12\x0c\x12\x0a[redacted]"
        );
    }

    #[test]
    fn what_is_no_secret_is_not_shown_at_all() {
        assert!(secret(&Bytes::from_static(b"\x12\x7fKEY")).is_empty());
    }
}
