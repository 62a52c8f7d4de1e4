//! Key pairs and certificate requests, DER by hand where bytes must equal the reference.
//! Private keys live in zeroizing buffers and are never printed.

use aws_lc_rs::encoding::{AsDer, EcPrivateKeyRfc5915Der, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_SHA256,
};
use base64::Engine;
use zeroize::Zeroizing;

use super::der;

/// Kind of key (`ECC_SIGNATURE_ALGORITHM`, `ECC_CURVE`, `WORKLOAD_RSA_KEY_SIZE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// RSA of so many bits; 2048 by default.
    Rsa(u32),
    /// ECDSA on P-256, signing with SHA-256.
    EcdsaP256,
    /// ECDSA on P-384, signing with SHA-384.
    EcdsaP384,
}

impl KeyAlgorithm {
    /// Whether such keys can be made.
    ///
    /// # Errors
    /// RSA sizes other than 2048, 3072, 4096 and 8192.
    pub fn check(self) -> Result<(), KeyError> {
        match self {
            Self::Rsa(bits) => rsa_size(bits).map(drop),
            Self::EcdsaP256 | Self::EcdsaP384 => Ok(()),
        }
    }
}

/// How keys are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyConfig {
    /// Kind and size.
    pub algorithm: KeyAlgorithm,
    /// `PKCS8_KEY`: PEM `PRIVATE KEY` instead of `RSA PRIVATE KEY` or `EC PRIVATE KEY`.
    pub pkcs8: bool,
}

impl Default for KeyConfig {
    fn default() -> Self {
        Self {
            algorithm: KeyAlgorithm::Rsa(2048),
            pkcs8: false,
        }
    }
}

/// A key or request could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Size below 2048 or not one of 2048, 3072, 4096, 8192.
    #[error("WORKLOAD_RSA_KEY_SIZE {0} is not supported (2048, 3072, 4096, 8192)")]
    RsaSize(u32),
    /// The crypto library failed.
    #[error("key generation or signing failed")]
    Crypto,
}

impl From<aws_lc_rs::error::Unspecified> for KeyError {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self::Crypto
    }
}

/// A new key with its certificate request.
pub struct KeyAndCsr {
    /// PEM of the private key.
    pub key_pem: Zeroizing<Vec<u8>>,
    /// PEM `CERTIFICATE REQUEST`.
    pub csr_pem: String,
    /// Bits of the public key, as in a certificate's `subjectPublicKey`.
    pub public_key: Vec<u8>,
}

impl std::fmt::Debug for KeyAndCsr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyAndCsr")
            .field("csr_pem", &self.csr_pem)
            .finish_non_exhaustive()
    }
}

enum Key {
    Rsa(rsa::KeyPair),
    Ecdsa(EcdsaKeyPair, KeyAlgorithm),
}

/// Makes a key and a request for the single URI `san`.
///
/// Takes tens of milliseconds for RSA: call it off the runtime's thread.
///
/// # Errors
/// For unsupported RSA sizes, or if the crypto library fails.
pub fn generate(config: KeyConfig, san: &str) -> Result<KeyAndCsr, KeyError> {
    let key = Key::new(config.algorithm)?;
    let info = der::request_info(san, &key.subject_public_key_info()?);
    let signature = key.sign(&info)?;
    let csr = der::request(&info, key.signature_algorithm(), &signature);
    Ok(KeyAndCsr {
        key_pem: key.pem(config.pkcs8)?,
        csr_pem: pem("CERTIFICATE REQUEST", &csr),
        public_key: key.public_bits(),
    })
}

impl Key {
    fn new(algorithm: KeyAlgorithm) -> Result<Self, KeyError> {
        Ok(match algorithm {
            KeyAlgorithm::Rsa(bits) => Self::Rsa(rsa::KeyPair::generate(rsa_size(bits)?)?),
            KeyAlgorithm::EcdsaP256 => Self::Ecdsa(
                EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?,
                algorithm,
            ),
            KeyAlgorithm::EcdsaP384 => Self::Ecdsa(
                EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING)?,
                algorithm,
            ),
        })
    }

    fn subject_public_key_info(&self) -> Result<Vec<u8>, KeyError> {
        let der: PublicKeyX509Der<'static> = match self {
            Self::Rsa(key) => key.public_key().as_der()?,
            Self::Ecdsa(key, _) => key.public_key().as_der()?,
        };
        Ok(der.as_ref().to_vec())
    }

    fn public_bits(&self) -> Vec<u8> {
        match self {
            Self::Rsa(key) => key.public_key().as_ref().to_vec(),
            Self::Ecdsa(key, _) => key.public_key().as_ref().to_vec(),
        }
    }

    const fn signature_algorithm(&self) -> &'static [u8] {
        match self {
            Self::Rsa(_) => der::SHA256_WITH_RSA,
            Self::Ecdsa(_, KeyAlgorithm::EcdsaP384) => der::ECDSA_WITH_SHA384,
            Self::Ecdsa(..) => der::ECDSA_WITH_SHA256,
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let random = SystemRandom::new();
        Ok(match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                signature
            }
            Self::Ecdsa(key, _) => key.sign(&random, message)?.as_ref().to_vec(),
        })
    }

    fn pem(&self, pkcs8: bool) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        match self {
            Self::Rsa(key) => {
                let document: Pkcs8V1Der<'static> = key.as_der()?;
                let document = Zeroizing::new(document.as_ref().to_vec());
                if pkcs8 {
                    return Ok(secret_pem("PRIVATE KEY", &document));
                }
                let inner = der::pkcs8_private_key(&document).ok_or(KeyError::Crypto)?;
                Ok(secret_pem("RSA PRIVATE KEY", inner))
            }
            Self::Ecdsa(key, _) if pkcs8 => {
                Ok(secret_pem("PRIVATE KEY", key.to_pkcs8v1()?.as_ref()))
            }
            Self::Ecdsa(key, _) => {
                let document: EcPrivateKeyRfc5915Der<'static> = key.private_key().as_der()?;
                Ok(secret_pem("EC PRIVATE KEY", document.as_ref()))
            }
        }
    }
}

fn rsa_size(bits: u32) -> Result<KeySize, KeyError> {
    Ok(match bits {
        2048 => KeySize::Rsa2048,
        3072 => KeySize::Rsa3072,
        4096 => KeySize::Rsa4096,
        8192 => KeySize::Rsa8192,
        other => return Err(KeyError::RsaSize(other)),
    })
}

fn secret_pem(label: &str, der: &[u8]) -> Zeroizing<Vec<u8>> {
    // One allocation of the full size: a growing buffer would leave copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(der.len() * 2 + 128));
    let mut encoded = Zeroizing::new(vec![0; der.len() * 2 + 4]);
    let len = base64::engine::general_purpose::STANDARD
        .encode_slice(der, &mut encoded)
        .unwrap_or_default();
    text.extend_from_slice(format!("-----BEGIN {label}-----\n").as_bytes());
    for line in encoded[..len].chunks(64) {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text.extend_from_slice(format!("-----END {label}-----\n").as_bytes());
    text
}

fn pem(label: &str, der: &[u8]) -> String {
    String::from_utf8_lossy(&secret_pem(label, der)).into_owned()
}
