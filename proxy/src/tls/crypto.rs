//! Crypto providers: which cipher suites and key exchange groups a context offers, by OpenSSL's names.
//! Never offers what the configuration leaves out; names rustls has no safe form of are left out loudly.

use std::sync::{Arc, OnceLock};

use outrigger_config::tls::{CommonTls, TlsVersion};
use rustls::crypto::aws_lc_rs::{cipher_suite as cs, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite, SupportedProtocolVersion};

use super::failure::ContextError;

/// TLS 1.3 suites, AES-128-GCM first: it is the cheapest with AES instructions and strong enough.
const TLS13: [SupportedCipherSuite; 3] = [
    cs::TLS13_AES_128_GCM_SHA256,
    cs::TLS13_AES_256_GCM_SHA384,
    cs::TLS13_CHACHA20_POLY1305_SHA256,
];

/// TLS 1.2 suites with OpenSSL's names, in Envoy's default order.
const TLS12: [(&str, SupportedCipherSuite); 6] = [
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        cs::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        cs::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "ECDHE-RSA-AES128-GCM-SHA256",
        cs::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "ECDHE-RSA-CHACHA20-POLY1305",
        cs::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        cs::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "ECDHE-RSA-AES256-GCM-SHA384",
        cs::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
];

/// Names that OpenSSL knows and this proxy has no implementation of: key exchange without forward secrecy
/// and CBC modes. Offering fewer suites than listed is safe; an empty list is refused.
const UNSUPPORTED: [&str; 11] = [
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "AES128-SHA256",
    "AES256-SHA256",
    "DES-CBC3-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
];

/// The provider of contexts without cipher or curve settings; shared by the whole process.
#[must_use]
pub fn default_crypto() -> Arc<CryptoProvider> {
    static DEFAULT: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(DEFAULT.get_or_init(|| {
        let mut suites = TLS13.to_vec();
        suites.extend(TLS12.iter().map(|(_, s)| *s));
        Arc::new(CryptoProvider {
            cipher_suites: suites,
            kx_groups: vec![
                kx_group::X25519MLKEM768,
                kx_group::X25519,
                kx_group::SECP256R1,
            ],
            ..default_provider()
        })
    }))
}

/// The provider of a context.
///
/// # Errors
/// When a cipher or curve name is unknown, or nothing usable is left.
pub fn provider(common: &CommonTls) -> Result<Arc<CryptoProvider>, ContextError> {
    if common.cipher_suites.is_empty() && common.ecdh_curves.is_empty() {
        return Ok(default_crypto());
    }
    let base = default_crypto();
    let mut provider = CryptoProvider::clone(&base);
    if !common.cipher_suites.is_empty() {
        provider.cipher_suites = cipher_suites(common)?;
    }
    if !common.ecdh_curves.is_empty() {
        provider.kx_groups = curves(&common.ecdh_curves)?;
    }
    Ok(Arc::new(provider))
}

fn cipher_suites(common: &CommonTls) -> Result<Vec<SupportedCipherSuite>, ContextError> {
    let mut suites = TLS13.to_vec();
    let mut usable = 0;
    for entry in &common.cipher_suites {
        // `[A|B]` is BoringSSL's group of equal preference.
        for name in entry.trim_matches(['[', ']']).split(['|', ':']) {
            if let Some((_, suite)) = TLS12.iter().find(|(n, _)| *n == name) {
                if !suites.contains(suite) {
                    suites.push(*suite);
                }
                usable += 1;
            } else if UNSUPPORTED.contains(&name) {
                tracing::debug!(
                    cipher = name,
                    "cipher suite is not implemented, not offered"
                );
            } else {
                return Err(ContextError::UnknownCipher(name.into()));
            }
        }
    }
    if usable == 0 && common.max_version == TlsVersion::V1_2 {
        return Err(ContextError::NoUsableCipher);
    }
    Ok(suites)
}

fn curves(names: &[Arc<str>]) -> Result<Vec<&'static dyn SupportedKxGroup>, ContextError> {
    let mut groups = Vec::with_capacity(names.len());
    for entry in names {
        for name in entry.split(':') {
            groups.push(match name {
                "X25519MLKEM768" => kx_group::X25519MLKEM768,
                "X25519" => kx_group::X25519,
                "P-256" | "prime256v1" => kx_group::SECP256R1,
                "P-384" | "secp384r1" => kx_group::SECP384R1,
                _ => return Err(ContextError::UnknownCurve(name.into())),
            });
        }
    }
    Ok(groups)
}

/// The protocol versions of a context.
///
/// # Errors
/// When the lowest version is above the highest.
pub fn versions(
    common: &CommonTls,
) -> Result<&'static [&'static SupportedProtocolVersion], ContextError> {
    static OLD: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
    static BOTH: [&SupportedProtocolVersion; 2] =
        [&rustls::version::TLS13, &rustls::version::TLS12];
    static NEW: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    match (common.min_version, common.max_version) {
        (TlsVersion::V1_2, TlsVersion::V1_2) => Ok(&OLD),
        (TlsVersion::V1_2, TlsVersion::V1_3) => Ok(&BOTH),
        (TlsVersion::V1_3, TlsVersion::V1_3) => Ok(&NEW),
        (TlsVersion::V1_3, TlsVersion::V1_2) => Err(ContextError::NoVersion),
    }
}

/// OpenSSL's name of a negotiated suite, as `%DOWNSTREAM_TLS_CIPHER%` prints it.
#[must_use]
pub const fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => {
            "ECDHE-ECDSA-CHACHA20-POLY1305"
        }
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => "UNKNOWN",
    }
}

/// Envoy's name of a negotiated group, as in `ssl.curves.<name>`.
#[must_use]
pub const fn curve_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(ciphers: &[&str], curves: &[&str], max: TlsVersion) -> CommonTls {
        CommonTls {
            min_version: TlsVersion::V1_2,
            max_version: max,
            cipher_suites: ciphers.iter().map(|s| (*s).into()).collect(),
            ecdh_curves: curves.iter().map(|s| (*s).into()).collect(),
            alpn_protocols: Vec::new(),
            certificates: Vec::new(),
            validation: None,
        }
    }

    #[test]
    fn listed_tls12_ciphers_are_offered_in_their_order_and_others_are_not() {
        let ciphers = ["ECDHE-RSA-AES256-GCM-SHA384", "AES256-GCM-SHA384"];
        let p = provider(&common(&ciphers, &[], TlsVersion::V1_2)).expect("usable");
        assert_eq!(
            p.cipher_suites[3..],
            [cs::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384]
        );
    }

    #[test]
    fn a_list_without_a_usable_or_known_name_is_refused() {
        let none = provider(&common(&["AES128-SHA"], &[], TlsVersion::V1_2));
        assert!(matches!(none, Err(ContextError::NoUsableCipher)));
        let unknown = provider(&common(&["NOPE"], &[], TlsVersion::V1_3));
        assert!(matches!(unknown, Err(ContextError::UnknownCipher(_))));
        let curve = provider(&common(&[], &["P-521"], TlsVersion::V1_3));
        assert!(matches!(curve, Err(ContextError::UnknownCurve(_))));
    }

    #[test]
    fn the_hybrid_group_comes_first_by_default() {
        let names: Vec<_> = default_crypto()
            .kx_groups
            .iter()
            .map(|g| g.name())
            .collect();
        assert_eq!(
            names,
            [
                NamedGroup::X25519MLKEM768,
                NamedGroup::X25519,
                NamedGroup::secp256r1
            ]
        );
    }
}
