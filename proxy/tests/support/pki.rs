//! Certificates and stores for the tests of this folder.

use std::sync::Arc;
use std::time::Duration;

use outrigger::control::store::{Options, Store};
use outrigger_config::matcher::{StringMatcher, StringPattern};
use outrigger_config::tls::{
    CommonTls, DataSource, DownstreamTls, SanMatcher, SdsConfig, SdsSource, Secret, SecretKind,
    SecretRef, TlsCertificate, TlsVersion, UpstreamTls, Validation, ValidationContext,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// An empty store.
pub(crate) fn store() -> Arc<Store> {
    Arc::new(Store {
        clusters: Default::default(),
        routes: Default::default(),
        secrets: Default::default(),
        stats: Default::default(),
        logs: Default::default(),
        options: Options {
            node_id: "test".into(),
            reject_path_with_fragment: true,
            zipkin: None,
            local_address: None,
            drain_time: Duration::from_millis(300),
        },
    })
}

/// A certificate authority.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub(crate) pem: String,
}

/// A leaf with its key.
#[derive(Clone)]
pub(crate) struct Leaf {
    /// Chain, leaf first.
    pub(crate) chain: String,
    /// Key.
    pub(crate) key: String,
}

impl Leaf {
    /// As configuration.
    pub(crate) fn config(&self) -> TlsCertificate {
        TlsCertificate {
            certificate_chain: inline(&self.chain),
            private_key: inline(&self.key),
        }
    }
}

/// Inline bytes.
pub(crate) fn inline(text: &str) -> DataSource {
    DataSource::Inline(text.as_bytes().to_vec().into())
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Ca {
    /// A root.
    pub(crate) fn new(name: &str) -> Self {
        Self::with(ca_params(name))
    }

    /// A root that expired.
    pub(crate) fn expired(name: &str) -> Self {
        let mut params = ca_params(name);
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        Self::with(params)
    }

    fn with(params: CertificateParams) -> Self {
        let key = KeyPair::generate().expect("key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// An intermediate of this authority; its leaves carry it in their chain.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let params = ca_params(name);
        let key = KeyPair::generate().expect("key");
        let pem = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// A leaf for a URI or DNS name.
    pub(crate) fn leaf(&self, name: &str) -> Leaf {
        self.leaf_with(name, |_| {})
    }

    /// A leaf whose parameters are changed.
    pub(crate) fn leaf_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Leaf {
        let key = KeyPair::generate().expect("key");
        let mut params = params_for(name);
        change(&mut params);
        let chain = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Leaf {
            chain,
            key: key.serialize_pem(),
        }
    }

    /// A CRL that revokes these serials.
    pub(crate) fn crl(&self, serials: &[u64]) -> String {
        let revoked = serials.iter().map(|s| rcgen::RevokedCertParams {
            serial_number: (*s).into(),
            revocation_time: rcgen::date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(2090, 1, 1),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params
            .signed_by(&self.issuer)
            .expect("signed")
            .pem()
            .expect("pem")
    }
}

fn params_for(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    let san = name.to_owned().try_into().expect("ascii");
    params.subject_alt_names.push(if name.contains("://") {
        SanType::URI(san)
    } else {
        SanType::DnsName(san)
    });
    params
}

/// A certificate signed by its own key, no CA.
pub(crate) fn self_signed(name: &str) -> Leaf {
    let key = KeyPair::generate().expect("key");
    let chain = params_for(name).self_signed(&key).expect("signed").pem();
    Leaf {
        chain,
        key: key.serialize_pem(),
    }
}

/// An SDS reference over ADS.
pub(crate) fn sds(name: &str) -> SdsConfig {
    SdsConfig {
        name: name.into(),
        source: SdsSource::Ads,
        initial_fetch_timeout: None,
    }
}

/// Publishes a certificate.
pub(crate) fn publish_certificate(store: &Store, name: &str, leaf: &Leaf) {
    let kind = SecretKind::TlsCertificate(Arc::new(leaf.config()));
    let secret = Secret {
        name: name.into(),
        kind,
    };
    store
        .secrets
        .update(&SdsSource::Ads, &secret)
        .expect("a good certificate");
}

/// Publishes a validation context.
pub(crate) fn publish_validation(
    store: &Store,
    name: &str,
    context: ValidationContext,
) -> Result<(), outrigger::tls::secret::SecretError> {
    let kind = SecretKind::ValidationContext(Arc::new(context));
    store.secrets.update(
        &SdsSource::Ads,
        &Secret {
            name: name.into(),
            kind,
        },
    )
}

/// A validation context with this bundle.
pub(crate) fn trusting(pem: &str) -> ValidationContext {
    ValidationContext {
        trusted_ca: Some(inline(pem)),
        ..ValidationContext::default()
    }
}

/// An untyped SAN matcher.
pub(crate) fn san(pattern: StringPattern) -> SanMatcher {
    SanMatcher {
        san_type: None,
        matcher: StringMatcher {
            pattern,
            ignore_case: false,
        },
    }
}

/// Settings of either side.
pub(crate) fn common(
    certificate: Option<SecretRef<TlsCertificate>>,
    validation: Option<Validation>,
) -> CommonTls {
    CommonTls {
        min_version: TlsVersion::V1_2,
        max_version: TlsVersion::V1_3,
        cipher_suites: Vec::new(),
        ecdh_curves: Vec::new(),
        alpn_protocols: Vec::new(),
        certificates: certificate.into_iter().collect(),
        validation,
    }
}

/// A server context's configuration that wants client certificates.
pub(crate) fn server(common: CommonTls) -> Arc<DownstreamTls> {
    Arc::new(DownstreamTls {
        common,
        require_client_certificate: true,
    })
}

/// A client context's configuration.
pub(crate) fn client(common: CommonTls, sni: Option<&str>) -> Arc<UpstreamTls> {
    Arc::new(UpstreamTls {
        common,
        sni: sni.map(Into::into),
        allow_renegotiation: false,
    })
}

/// Inline validation only.
pub(crate) fn validate(context: ValidationContext) -> Option<Validation> {
    Some(Validation {
        default: context,
        sds: None,
    })
}

/// Inline certificate.
pub(crate) fn own(leaf: &Leaf) -> Option<SecretRef<TlsCertificate>> {
    Some(SecretRef::Inline(Arc::new(leaf.config())))
}
