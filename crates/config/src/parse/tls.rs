//! TLS contexts and secrets. Whatever would loosen a check when skipped is refused.

use std::sync::Arc;

use envoy_types::pb;
use pb::envoy::config::core::v3 as core;
use pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::matcher::string;
use super::wkt::{
    Source, config_source, data_source, enum_of, extension, non_empty, optional_str, truthy,
    unregistered,
};
use super::{Cx, Result, UNSUPPORTED, ignore_set, refuse_set};
use crate::cluster::TransportSocket;
use crate::tls::{
    CommonTls, DownstreamTls, SanMatcher, SanType, SdsConfig, SdsSource, Secret, SecretKind,
    SecretRef, TlsCertificate, TlsVersion, UpstreamTls, Validation, ValidationContext,
};

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const RESUMPTION: &str = "only tunes session resumption";

/// TLS 1.2 suites that can be negotiated here, by their OpenSSL names.
const SUITES: &[&str] = &[
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
];
/// Key exchange groups that can be negotiated here, by Envoy's names.
const CURVES: &[&str] = &["X25519", "P-256", "P-384", "X25519MLKEM768"];

/// Which side a context is for: the default of the highest version differs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Downstream,
    Upstream,
}

/// `transport_socket` of a filter chain; `None` = raw buffer.
pub(super) fn downstream_socket(
    cx: &mut Cx,
    value: core::TransportSocket,
) -> Result<Option<Arc<DownstreamTls>>> {
    let core::TransportSocket { name, config_type } = value;
    let any = config_type.map(|core::transport_socket::ConfigType::TypedConfig(any)| any);
    if any.is_none() && name == "envoy.transport_sockets.raw_buffer" {
        return Ok(None);
    }
    cx.field("typed_config", |cx| {
        let ext = extension(cx, &name, any)?;
        match ext.type_name.as_str() {
            RAW_BUFFER => Ok(None),
            "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" => {
                let message = ext.decode(cx)?;
                downstream(cx, message).map(|t| Some(Arc::new(t)))
            }
            t => Err(unregistered(cx, &name, t)),
        }
    })
}

/// `transport_socket` of a cluster.
pub(super) fn upstream_socket(
    cx: &mut Cx,
    value: core::TransportSocket,
) -> Result<TransportSocket> {
    let core::TransportSocket { name, config_type } = value;
    let any = config_type.map(|core::transport_socket::ConfigType::TypedConfig(any)| any);
    if any.is_none() && name == "envoy.transport_sockets.raw_buffer" {
        return Ok(TransportSocket::RawBuffer);
    }
    cx.field("typed_config", |cx| {
        let ext = extension(cx, &name, any)?;
        match ext.type_name.as_str() {
            RAW_BUFFER => Ok(TransportSocket::RawBuffer),
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
                let message = ext.decode(cx)?;
                upstream(cx, message).map(|t| TransportSocket::Tls(Arc::new(t)))
            }
            t => Err(unregistered(cx, &name, t)),
        }
    })
}

fn downstream(cx: &mut Cx, value: tls::DownstreamTlsContext) -> Result<DownstreamTls> {
    use tls::downstream_tls_context::SessionTicketKeysType as K;
    let tls::DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni,
        disable_stateful_session_resumption,
        session_timeout,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch,
        prefer_client_ciphers,
        session_ticket_keys_type,
    } = value;
    let require_sni = truthy(require_sni);
    let full_scan_certs_on_sni_mismatch = truthy(full_scan_certs_on_sni_mismatch);
    refuse_set!(cx; require_sni, full_scan_certs_on_sni_mismatch, ocsp_staple_policy);
    ignore_set!(cx, RESUMPTION; disable_stateful_session_resumption, session_timeout);
    ignore_set!(cx, "both orders pick a suite that both sides allow"; prefer_client_ciphers);
    match session_ticket_keys_type {
        Some(K::DisableStatelessSessionResumption(true)) => {
            return Err(cx.err_at("disable_stateless_session_resumption", UNSUPPORTED));
        }
        Some(K::SessionTicketKeys(_) | K::SessionTicketKeysSdsSecretConfig(_)) => {
            return Err(cx.err_at("session_ticket_keys", UNSUPPORTED));
        }
        Some(K::DisableStatelessSessionResumption(false)) | None => {}
    }
    let common = cx.field("common_tls_context", |cx| {
        common(cx, common_tls_context.unwrap_or_default(), Side::Downstream)
    })?;
    if common.certificates.is_empty() {
        return Err(cx.err_at(
            "common_tls_context",
            "No TLS certificates found for server context",
        ));
    }
    Ok(DownstreamTls {
        common,
        require_client_certificate: truthy(require_client_certificate),
    })
}

fn upstream(cx: &mut Cx, value: tls::UpstreamTlsContext) -> Result<UpstreamTls> {
    let tls::UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation,
        max_session_keys,
        enforce_rsa_key_usage,
    } = value;
    let enforce_rsa_key_usage = truthy(enforce_rsa_key_usage);
    refuse_set!(cx; auto_host_sni, auto_sni_san_validation, allow_renegotiation, enforce_rsa_key_usage);
    ignore_set!(cx, RESUMPTION; max_session_keys);
    if sni.len() > 255 {
        return Err(cx.err_at("sni", "value length must be at most 255 bytes"));
    }
    let common = cx.field("common_tls_context", |cx| {
        common(cx, common_tls_context.unwrap_or_default(), Side::Upstream)
    })?;
    if common.certificates.len() > 1 {
        return Err(cx.err_at(
            "common_tls_context",
            "Multiple TLS certificates are not supported for client contexts",
        ));
    }
    Ok(UpstreamTls {
        common,
        sni: optional_str(sni),
        allow_renegotiation: false,
    })
}

fn common(cx: &mut Cx, value: tls::CommonTlsContext, side: Side) -> Result<CommonTls> {
    let tls::CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        alpn_protocols,
        custom_handshaker,
        key_log,
        validation_context_type,
    } = value;
    refuse_set!(cx; tls_certificate_provider_instance, custom_tls_certificate_selector,
        tls_certificate_certificate_provider, tls_certificate_certificate_provider_instance,
        custom_handshaker, key_log);
    let params = cx.field("tls_params", |cx| {
        params(cx, tls_params.unwrap_or_default(), side)
    })?;
    let mut certificates = cx.each("tls_certificates", tls_certificates, |cx, c| {
        Ok(SecretRef::Inline(Arc::new(certificate(cx, c)?)))
    })?;
    certificates.extend(cx.each(
        "tls_certificate_sds_secret_configs",
        tls_certificate_sds_secret_configs,
        |cx, c| Ok(SecretRef::Sds(sds(cx, c)?)),
    )?);
    Ok(CommonTls {
        min_version: params.min,
        max_version: params.max,
        cipher_suites: params.suites,
        ecdh_curves: params.curves,
        alpn_protocols: alpn(cx, alpn_protocols)?,
        certificates,
        validation: validation(cx, validation_context_type)?,
    })
}

/// Negotiating `istio-peer-exchange` promises a metadata preamble that is never sent here, so the name is
/// never offered and never accepted: the peer then goes on without the preamble.
fn alpn(cx: &mut Cx, protocols: Vec<String>) -> Result<Vec<Arc<str>>> {
    let mut kept = Vec::with_capacity(protocols.len());
    for (i, p) in protocols.into_iter().enumerate() {
        if p.is_empty() || p.len() > 255 {
            return Err(cx.err_at("alpn_protocols", "Invalid ALPN protocol string"));
        }
        if p == "istio-peer-exchange" {
            cx.ignore(
                &format!("alpn_protocols[{i}]"),
                "istio-peer-exchange",
                "TCP metadata exchange is not run, so its ALPN is never negotiated: peers skip the preamble",
            );
        } else {
            kept.push(p.into());
        }
    }
    Ok(kept)
}

struct Params {
    min: TlsVersion,
    max: TlsVersion,
    suites: Vec<Arc<str>>,
    curves: Vec<Arc<str>>,
}

fn params(cx: &mut Cx, value: tls::TlsParameters, side: Side) -> Result<Params> {
    use tls::tls_parameters::TlsProtocol as P;
    let tls::TlsParameters {
        tls_minimum_protocol_version,
        tls_maximum_protocol_version,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    } = value;
    refuse_set!(cx; signature_algorithms, compliance_policies);
    let min = match enum_of::<P>(
        cx,
        "tls_minimum_protocol_version",
        tls_minimum_protocol_version,
    )? {
        P::TlsAuto | P::TlSv12 => TlsVersion::V1_2,
        P::TlSv13 => TlsVersion::V1_3,
        P::TlSv10 | P::TlSv11 => {
            cx.ignore(
                "tls_minimum_protocol_version",
                "tls_minimum_protocol_version",
                "TLS below 1.2 does not exist here: 1.2 is the lowest version",
            );
            TlsVersion::V1_2
        }
    };
    let max = match enum_of::<P>(
        cx,
        "tls_maximum_protocol_version",
        tls_maximum_protocol_version,
    )? {
        P::TlsAuto if side == Side::Upstream => TlsVersion::V1_2.max(min),
        P::TlsAuto | P::TlSv13 => TlsVersion::V1_3,
        P::TlSv12 => TlsVersion::V1_2,
        P::TlSv10 | P::TlSv11 => {
            return Err(cx.err_at(
                "tls_maximum_protocol_version",
                format!("TLS below 1.2 is {UNSUPPORTED}"),
            ));
        }
    };
    if min > max {
        return Err(cx.err_at(
            "tls_minimum_protocol_version",
            "the lowest version is above the highest version",
        ));
    }
    Ok(Params {
        min,
        max,
        suites: known(
            cx,
            "cipher_suites",
            expand_groups(cipher_suites),
            SUITES,
            "the suite cannot be negotiated here: the others of the list are used",
        )?,
        curves: known(
            cx,
            "ecdh_curves",
            ecdh_curves,
            CURVES,
            "the group cannot be negotiated here: the others of the list are used",
        )?,
    })
}

/// `[A|B]` is BoringSSL's group of equal preference.
fn expand_groups(suites: Vec<String>) -> Vec<String> {
    suites
        .into_iter()
        .flat_map(
            |s| match s.strip_prefix('[').and_then(|s| s.strip_suffix(']')) {
                Some(group) => group.split('|').map(str::to_owned).collect(),
                None => vec![s],
            },
        )
        .collect()
}

fn known(
    cx: &mut Cx,
    field: &str,
    names: Vec<String>,
    available: &[&str],
    reason: &'static str,
) -> Result<Vec<Arc<str>>> {
    let asked = names.len();
    let mut kept = Vec::with_capacity(asked);
    for (i, name) in names.into_iter().enumerate() {
        if available.contains(&name.as_str()) {
            kept.push(name.into());
        } else {
            cx.ignore(&format!("{field}[{i}]"), &name, reason);
        }
    }
    if asked > 0 && kept.is_empty() {
        return Err(cx.err_at(field, format!("none of the {asked} given is supported")));
    }
    Ok(kept)
}

/// `SdsSecretConfig`.
fn sds(cx: &mut Cx, value: tls::SdsSecretConfig) -> Result<SdsConfig> {
    let tls::SdsSecretConfig { name, sds_config } = value;
    let name = non_empty(cx, "name", name)?;
    let Some(source) = sds_config else {
        return Ok(SdsConfig {
            name,
            source: SdsSource::Static,
            initial_fetch_timeout: None,
        });
    };
    let (source, initial_fetch_timeout) = cx.field("sds_config", |cx| config_source(cx, source))?;
    let source = match source {
        Source::Ads => SdsSource::Ads,
        Source::Grpc {
            delta: false,
            cluster,
        } => SdsSource::Grpc { cluster },
        Source::Grpc { delta: true, .. } => {
            return Err(cx.err_at("sds_config.api_config_source.api_type", UNSUPPORTED));
        }
    };
    Ok(SdsConfig {
        name,
        source,
        initial_fetch_timeout,
    })
}

fn validation(
    cx: &mut Cx,
    value: Option<tls::common_tls_context::ValidationContextType>,
) -> Result<Option<Validation>> {
    use tls::common_tls_context::ValidationContextType as V;
    Ok(Some(match value {
        None => return Ok(None),
        Some(V::ValidationContext(c)) => Validation {
            default: cx.field("validation_context", |cx| validation_context(cx, c))?,
            sds: None,
        },
        Some(V::ValidationContextSdsSecretConfig(c)) => Validation {
            default: ValidationContext::default(),
            sds: Some(cx.field("validation_context_sds_secret_config", |cx| sds(cx, c))?),
        },
        Some(V::CombinedValidationContext(c)) => {
            return cx
                .field("combined_validation_context", |cx| combined(cx, c))
                .map(Some);
        }
        Some(V::ValidationContextCertificateProvider(_)) => {
            return Err(cx.err_at("validation_context_certificate_provider", UNSUPPORTED));
        }
        Some(V::ValidationContextCertificateProviderInstance(_)) => {
            return Err(cx.err_at(
                "validation_context_certificate_provider_instance",
                UNSUPPORTED,
            ));
        }
    }))
}

fn combined(
    cx: &mut Cx,
    value: tls::common_tls_context::CombinedCertificateValidationContext,
) -> Result<Validation> {
    let tls::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context,
        validation_context_sds_secret_config,
        validation_context_certificate_provider,
        validation_context_certificate_provider_instance,
    } = value;
    refuse_set!(cx; validation_context_certificate_provider,
        validation_context_certificate_provider_instance);
    Ok(Validation {
        default: cx.required(
            "default_validation_context",
            default_validation_context,
            validation_context,
        )?,
        sds: Some(cx.required(
            "validation_context_sds_secret_config",
            validation_context_sds_secret_config,
            sds,
        )?),
    })
}

fn validation_context(
    cx: &mut Cx,
    value: tls::CertificateValidationContext,
) -> Result<ValidationContext> {
    use tls::certificate_validation_context::TrustChainVerification as T;
    let tls::CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        suppress_client_ca_list,
    } = value;
    let require_signed_certificate_timestamp = truthy(require_signed_certificate_timestamp);
    refuse_set!(cx; ca_certificate_provider_instance, system_root_certs, watched_directory,
        require_signed_certificate_timestamp, max_verify_depth);
    ignore_set!(cx, "the list is a hint for clients only"; suppress_client_ca_list);
    if let Some(core::TypedExtensionConfig { name, typed_config }) = custom_validator_config {
        return Err(cx.field("custom_validator_config", |cx| {
            match extension(cx, &name, typed_config) {
                Ok(ext) => unregistered(cx, &name, &ext.type_name),
                Err(e) => e,
            }
        }));
    }
    let typed = cx.each(
        "match_typed_subject_alt_names",
        match_typed_subject_alt_names,
        san,
    )?;
    let untyped = cx.each(
        "match_subject_alt_names",
        match_subject_alt_names,
        |cx, m| {
            Ok(SanMatcher {
                san_type: None,
                matcher: string(cx, m)?,
            })
        },
    )?;
    let accept_untrusted = enum_of::<T>(cx, "trust_chain_verification", trust_chain_verification)?
        == T::AcceptUntrusted;
    Ok(ValidationContext {
        trusted_ca: cx.opt("trusted_ca", trusted_ca, |cx, d| data_source(cx, d))?,
        subject_alt_names: if typed.is_empty() { untyped } else { typed },
        verify_certificate_spki: cx.each(
            "verify_certificate_spki",
            verify_certificate_spki,
            |cx, s| spki(cx, s),
        )?,
        verify_certificate_hash: cx.each(
            "verify_certificate_hash",
            verify_certificate_hash,
            |cx, s| hash(cx, &s),
        )?,
        crl: cx.opt("crl", crl, |cx, d| data_source(cx, d))?,
        only_verify_leaf_cert_crl,
        allow_expired_certificate,
        accept_untrusted,
    })
}

/// Base64 of a SHA-256: 44 characters.
fn spki(cx: &Cx, value: String) -> Result<Arc<str>> {
    let body = value.trim_end_matches('=');
    let valid = value.len() == 44
        && body
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
    if valid {
        Ok(value.into())
    } else {
        Err(cx.err(format!("Invalid base64-encoded SHA-256 {value}")))
    }
}

/// Hex of a SHA-256, with or without colons, kept lower case without.
fn hash(cx: &Cx, value: &str) -> Result<Arc<str>> {
    let plain: String = if value.len() == 95 {
        value.split(':').collect()
    } else {
        value.to_owned()
    };
    if plain.len() == 64 && plain.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(plain.to_ascii_lowercase().into())
    } else {
        Err(cx.err(format!("Invalid hex-encoded SHA-256 {value}")))
    }
}

fn san(cx: &mut Cx, value: tls::SubjectAltNameMatcher) -> Result<SanMatcher> {
    use tls::subject_alt_name_matcher::SanType as T;
    let tls::SubjectAltNameMatcher {
        san_type,
        matcher,
        oid,
    } = value;
    refuse_set!(cx; oid);
    let san_type = match enum_of::<T>(cx, "san_type", san_type)? {
        T::Email => SanType::Email,
        T::Dns => SanType::Dns,
        T::Uri => SanType::Uri,
        T::IpAddress => SanType::IpAddress,
        T::OtherName => return Err(cx.err_at("san_type", UNSUPPORTED)),
        T::Unspecified => {
            return Err(cx.err_at("san_type", "value must not be in list [0]"));
        }
    };
    Ok(SanMatcher {
        san_type: Some(san_type),
        matcher: cx.required("matcher", matcher, string)?,
    })
}

fn certificate(cx: &mut Cx, value: tls::TlsCertificate) -> Result<TlsCertificate> {
    let tls::TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        watched_directory,
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = value;
    refuse_set!(cx; pkcs12, watched_directory, password, ocsp_staple,
        signed_certificate_timestamp, tls_params);
    if let Some(provider) = private_key_provider {
        cx.field("private_key_provider", |cx| key_provider(cx, provider))?;
    }
    Ok(TlsCertificate {
        certificate_chain: cx.required("certificate_chain", certificate_chain, |cx, d| {
            data_source(cx, d)
        })?,
        private_key: cx.required("private_key", private_key, |cx, d| data_source(cx, d))?,
    })
}

/// Accelerators are used only where a fallback to the plain key is allowed.
fn key_provider(cx: &mut Cx, value: tls::PrivateKeyProvider) -> Result<()> {
    let tls::PrivateKeyProvider {
        provider_name,
        fallback,
        config_type,
    } = value;
    let _ = config_type;
    if !fallback {
        return Err(cx.err(format!(
            "Failed to load private key provider: {provider_name}"
        )));
    }
    cx.ignore_here(
        &provider_name,
        "fallback is allowed: the plain private key is used",
    );
    Ok(())
}

/// `Secret`.
pub(super) fn secret(cx: &mut Cx, value: tls::Secret) -> Result<Secret> {
    use tls::secret::Type as T;
    let tls::Secret { name, r#type } = value;
    let kind = match r#type {
        Some(T::TlsCertificate(c)) => SecretKind::TlsCertificate(Arc::new(
            cx.field("tls_certificate", |cx| certificate(cx, c))?,
        )),
        Some(T::ValidationContext(c)) => SecretKind::ValidationContext(Arc::new(
            cx.field("validation_context", |cx| validation_context(cx, c))?,
        )),
        Some(T::SessionTicketKeys(_)) => {
            return Err(cx.err_at("session_ticket_keys", UNSUPPORTED));
        }
        Some(T::GenericSecret(_)) => return Err(cx.err_at("generic_secret", UNSUPPORTED)),
        None => return Err(cx.err("Secret type not implemented")),
    };
    Ok(Secret {
        name: name.into(),
        kind,
    })
}
