//! The few DER structures of a certificate request (RFC 2986), built so that the bytes equal what
//! the reference agent sends.

/// `AlgorithmIdentifier` sha256WithRSAEncryption, NULL parameters.
pub(super) const SHA256_WITH_RSA: &[u8] = &[
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00,
];
/// `AlgorithmIdentifier` ecdsa-with-SHA256.
pub(super) const ECDSA_WITH_SHA256: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
];
/// `AlgorithmIdentifier` ecdsa-with-SHA384.
pub(super) const ECDSA_WITH_SHA384: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03,
];
/// Name with one RDN: organizationName, empty PrintableString.
pub(super) const EMPTY_ORGANIZATION: &[u8] = &[
    0x30, 0x0b, 0x31, 0x09, 0x30, 0x07, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x13, 0x00,
];
/// OID 1.2.840.113549.1.9.14, extensionRequest.
const EXTENSION_REQUEST: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e,
];
/// OID 2.5.29.17, subjectAltName.
const SUBJECT_ALT_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];
/// BOOLEAN TRUE: the extension is critical.
const TRUE: &[u8] = &[0x01, 0x01, 0xff];
/// INTEGER 0, the version of a request.
const VERSION: &[u8] = &[0x02, 0x01, 0x00];

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OCTET_STRING: u8 = 0x04;
const BIT_STRING: u8 = 0x03;
const ATTRIBUTES: u8 = 0xa0;
const URI_NAME: u8 = 0x86;

/// One TLV whose content is the concatenation of `parts`.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length + 6);
    out.push(tag);
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let skip = bytes.iter().take_while(|&&byte| byte == 0).count();
        out.push(0x80 | (bytes.len() - skip) as u8);
        out.extend_from_slice(&bytes[skip..]);
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// `CertificationRequestInfo` with the critical SAN `uri`.
pub(super) fn request_info(uri: &str, subject_public_key_info: &[u8]) -> Vec<u8> {
    let names = tlv(SEQUENCE, &[&tlv(URI_NAME, &[uri.as_bytes()])]);
    let extension = tlv(
        SEQUENCE,
        &[SUBJECT_ALT_NAME, TRUE, &tlv(OCTET_STRING, &[&names])],
    );
    let extensions = tlv(SEQUENCE, &[&extension]);
    let attribute = tlv(SEQUENCE, &[EXTENSION_REQUEST, &tlv(SET, &[&extensions])]);
    tlv(
        SEQUENCE,
        &[
            VERSION,
            EMPTY_ORGANIZATION,
            subject_public_key_info,
            &tlv(ATTRIBUTES, &[&attribute]),
        ],
    )
}

/// `CertificationRequest`.
pub(super) fn request(info: &[u8], algorithm: &[u8], signature: &[u8]) -> Vec<u8> {
    tlv(
        SEQUENCE,
        &[info, algorithm, &tlv(BIT_STRING, &[&[0], signature])],
    )
}

/// The content of `privateKey` in a PKCS#8 document (PKCS#1 for RSA).
pub(super) fn pkcs8_private_key(document: &[u8]) -> Option<&[u8]> {
    let (SEQUENCE, body, _) = read(document)? else {
        return None;
    };
    let (_, _, rest) = read(body)?;
    let (_, _, rest) = read(rest)?;
    match read(rest)? {
        (OCTET_STRING, key, _) => Some(key),
        _ => None,
    }
}

/// Tag, content and what follows of the first TLV.
fn read(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let count = usize::from(first & 0x7f);
        if count > 4 || count > rest.len() {
            return None;
        }
        let (digits, tail) = rest.split_at(count);
        length = digits
            .iter()
            .fold(0, |n, &digit| (n << 8) | usize::from(digit));
        rest = tail;
    }
    (length <= rest.len()).then(|| {
        let (content, tail) = rest.split_at(length);
        (tag, content, tail)
    })
}
