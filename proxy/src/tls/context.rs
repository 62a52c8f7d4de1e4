//! TLS contexts of filter chains and clusters. Compiled from configuration, completed on first use, rebuilt
//! when their secrets change; open connections keep what they have. Never falls back to plaintext.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use outrigger_config::tls::{
    CommonTls, DownstreamTls, SanType, SecretRef, UpstreamTls, ValidationContext,
};
use parking_lot::Mutex;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, CommonState, HandshakeKind, ProtocolVersion, ServerConfig, SignatureAlgorithm,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, client, server};
use webpki::KeyUsage;

use super::crypto;
pub use super::failure::{ContextError, FailureKind, TlsFailure};
use super::secret::{LoadedCertificate, LoadedValidation, SecretSlot, SecretStore};
use super::session::{EndpointSessions, SessionCache};
use super::verify::{self, Requirements, Verdict, Verifier, take_failure, with_handshake};
use super::x509::{CertificateFacts, hex, sha256};
use crate::control::store::Store;
use crate::io::stream::Rewound;
use crate::stream_info::TlsInfo;

/// An own certificate: fixed, or the slot it arrives in.
#[derive(Debug)]
enum Identity {
    Inline(Arc<LoadedCertificate>),
    Sds(Arc<SecretSlot<LoadedCertificate>>),
}

/// How the peer is checked: the context's own part and the one that arrives.
#[derive(Debug)]
struct Trust {
    default: LoadedValidation,
    sds: Option<Arc<SecretSlot<LoadedValidation>>>,
}

/// What a context is made of, with references resolved to slots.
#[derive(Debug)]
struct Materials {
    secrets: SecretStore,
    identities: Vec<Identity>,
    trust: Option<Trust>,
}

/// One consistent reading of the slots.
#[derive(Debug)]
struct Snapshot {
    certificates: Vec<Arc<LoadedCertificate>>,
    validation: Option<Arc<LoadedValidation>>,
}

impl Materials {
    fn build(common: &CommonTls, secrets: &SecretStore) -> Result<Self, ContextError> {
        let identities = common.certificates.iter().map(|reference| {
            Ok(match reference {
                SecretRef::Inline(c) => Identity::Inline(Arc::new(LoadedCertificate::load(c)?)),
                SecretRef::Sds(config) => Identity::Sds(secrets.certificate(config)),
            })
        });
        let trust = match &common.validation {
            None => None,
            Some(validation) => {
                let default = LoadedValidation::load(&validation.default)?;
                let sds = validation
                    .sds
                    .as_ref()
                    .map(|config| secrets.validation(config));
                if sds.is_none() && default.roots.is_none() {
                    if !default.context.subject_alt_names.is_empty() {
                        return Err(ContextError::SanWithoutCa);
                    }
                    if !default.crls.is_empty() {
                        let origin = "<inline>".into();
                        return Err(super::secret::SecretError::CrlWithoutCa(origin).into());
                    }
                }
                Some(Trust { default, sds })
            }
        };
        Ok(Self {
            secrets: secrets.clone(),
            identities: identities.collect::<Result<_, ContextError>>()?,
            trust,
        })
    }

    /// `None` while a secret is missing.
    fn snapshot(&self) -> Option<Snapshot> {
        let certificates = self.identities.iter().map(|identity| match identity {
            Identity::Inline(c) => Some(Arc::clone(c)),
            Identity::Sds(slot) => slot.load(),
        });
        let certificates = certificates.collect::<Option<Vec<_>>>()?;
        let validation = match self.trust.as_ref().and_then(|t| t.sds.as_ref()) {
            Some(slot) => Some(slot.load()?),
            None => None,
        };
        Some(Snapshot {
            certificates,
            validation,
        })
    }

    /// Merges the two validation contexts as protobuf's MergeFrom does: what SDS sets wins, lists add up.
    fn requirements(&self, snapshot: &Snapshot) -> Requirements {
        let Some(trust) = &self.trust else {
            return Requirements {
                none_asked: true,
                ..Requirements::default()
            };
        };
        let own = &trust.default;
        let mut merged = Requirements {
            roots: own.roots.clone(),
            crls: own.crls.clone(),
            sans: own.context.subject_alt_names.clone(),
            spki_pins: own.spki_pins.clone(),
            hash_pins: own.hash_pins.clone(),
            only_leaf_crl: own.context.only_verify_leaf_cert_crl,
            allow_expired: own.context.allow_expired_certificate,
            accept_untrusted: own.context.accept_untrusted,
            none_asked: trust.sds.is_none() && own.context == ValidationContext::default(),
        };
        if let Some(sds) = &snapshot.validation {
            if sds.roots.is_some() {
                merged.roots.clone_from(&sds.roots);
            }
            if !sds.crls.is_empty() {
                merged.crls.clone_from(&sds.crls);
            }
            merged
                .sans
                .extend(sds.context.subject_alt_names.iter().cloned());
            merged.spki_pins.extend(&sds.spki_pins);
            merged.hash_pins.extend(&sds.hash_pins);
            merged.only_leaf_crl |= sds.context.only_verify_leaf_cert_crl;
            merged.allow_expired |= sds.context.allow_expired_certificate;
            merged.accept_untrusted |= sds.context.accept_untrusted;
        }
        merged
    }
}

impl Snapshot {
    fn same(&self, other: &Self) -> bool {
        let certificates = self.certificates.len() == other.certificates.len()
            && self
                .certificates
                .iter()
                .zip(&other.certificates)
                .all(|(a, b)| Arc::ptr_eq(a, b));
        let validation = match (&self.validation, &other.validation) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        certificates && validation
    }
}

/// What was built from a snapshot.
#[derive(Debug)]
struct Built<T> {
    /// Generation of the secret store at which the snapshot was last found current.
    generation: AtomicU64,
    snapshot: Snapshot,
    value: T,
}

/// A value built on first use and again when secrets change. The common path is two atomic loads.
#[derive(Debug)]
struct Lazy<T> {
    built: ArcSwapOption<Built<T>>,
    building: Mutex<()>,
}

impl<T> Default for Lazy<T> {
    fn default() -> Self {
        Self {
            built: ArcSwapOption::empty(),
            building: Mutex::new(()),
        }
    }
}

impl<T> Lazy<T> {
    fn current(
        &self,
        materials: &Materials,
        build: impl Fn(&Snapshot) -> Result<T, ContextError>,
    ) -> Result<Arc<Built<T>>, TlsFailure> {
        let generation = materials.secrets.generation();
        if let Some(built) = self.built.load_full()
            && built.generation.load(Ordering::Acquire) == generation
        {
            return Ok(built);
        }
        let _guard = self.building.lock();
        let snapshot = materials
            .snapshot()
            .ok_or_else(TlsFailure::secret_missing)?;
        if let Some(built) = self.built.load_full()
            && built.snapshot.same(&snapshot)
        {
            built.generation.store(generation, Ordering::Release);
            return Ok(built);
        }
        let value = build(&snapshot)?;
        let built = Arc::new(Built {
            generation: AtomicU64::new(generation),
            snapshot,
            value,
        });
        self.built.store(Some(Arc::clone(&built)));
        Ok(built)
    }
}

fn wire(protocols: &[Arc<str>]) -> Vec<Vec<u8>> {
    protocols.iter().map(|p| p.as_bytes().to_vec()).collect()
}

/// Polls a handshake so that the verifier's words are at hand when it fails.
async fn drive<T, F>(mut handshake: F, dns_name: Option<Arc<str>>) -> Result<T, TlsFailure>
where
    F: Future<Output = io::Result<T>> + Unpin,
{
    poll_fn(|cx| {
        with_handshake(dns_name.as_ref(), || Pin::new(&mut handshake).poll(cx))
            .map_err(|e| take_failure().map_or_else(|| TlsFailure::from_io(&e), TlsFailure::from))
    })
    .await
}

/// Chooses among own certificates.
#[derive(Debug)]
struct Certificates(Vec<Arc<LoadedCertificate>>);

impl Certificates {
    /// The certificate for a ClientHello: one whose names cover the SNI before others, ECDSA before RSA, then
    /// the configured order.
    fn select(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<usize> {
        if self.0.len() == 1 {
            return Some(0);
        }
        let rank = |c: &LoadedCertificate| {
            let named =
                name.is_some_and(|n| c.leaf.sans_of(SanType::Dns).any(|san| covers(san, n)));
            let ecdsa = c.key.key.algorithm() == SignatureAlgorithm::ECDSA;
            (!named, !ecdsa)
        };
        let usable = self.0.iter().enumerate();
        let usable = usable.filter(|(_, c)| c.key.key.choose_scheme(schemes).is_some());
        usable.min_by_key(|(i, c)| (rank(c), *i)).map(|(i, _)| i)
    }
}

fn covers(san: &str, name: &str) -> bool {
    san.eq_ignore_ascii_case(name)
        || san.strip_prefix("*.").is_some_and(|suffix| {
            name.split_once('.')
                .is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(suffix))
        })
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let index = self.select(hello.server_name(), hello.signature_schemes())?;
        self.0.get(index).map(|c| Arc::clone(&c.key))
    }
}

impl ResolvesClientCert for Certificates {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let usable = self
            .0
            .iter()
            .find(|c| c.key.key.choose_scheme(schemes).is_some());
        usable.map(|c| Arc::clone(&c.key))
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Facts of a finished handshake; `None` in place of the peer when it sent no certificate.
fn tls_info(
    connection: &CommonState,
    peer: Option<(&CertificateDer<'_>, CertificateFacts)>,
    local: Option<&LoadedCertificate>,
    validated: bool,
) -> TlsInfo {
    let mut info = TlsInfo {
        version: match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        },
        cipher: connection
            .negotiated_cipher_suite()
            .map_or("UNKNOWN", |s| crypto::cipher_name(s.suite())),
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
        resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        ..TlsInfo::default()
    };
    if let Some(local) = local {
        info.local_uri_sans = local.leaf.sans_of(SanType::Uri).map(Into::into).collect();
        info.local_subject.clone_from(&local.leaf.subject);
    }
    if let Some((der, facts)) = peer {
        info.peer_validated = validated;
        info.peer_fingerprint_256 = hex(&sha256(der));
        info.peer_uri_sans = facts.sans_of(SanType::Uri).map(Into::into).collect();
        info.peer_dns_sans = facts.sans_of(SanType::Dns).map(Into::into).collect();
        info.peer_subject = facts.subject;
        info.peer_issuer = facts.issuer;
        info.peer_serial = facts.serial;
        info.peer_certificate = Some(der.to_vec());
    }
    info
}

type Peer<'a> = Option<(&'a CertificateDer<'a>, CertificateFacts)>;

/// Looks at the peer once more after the handshake. A resumed session skipped the verifier: its certificate
/// may have expired since, and this handshake may demand another name.
fn review<'a>(
    verifier: Option<&Verifier>,
    connection: &'a CommonState,
    usage: KeyUsage,
    dns_name: Option<&str>,
) -> Result<(Peer<'a>, bool), TlsFailure> {
    let Some((leaf, intermediates)) = connection.peer_certificates().and_then(<[_]>::split_first)
    else {
        return Ok((None, false));
    };
    let mut validated = verifier.is_some_and(|v| !v.requirements.none_asked);
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    if let Some(verifier) = verifier
        && (resumed || verifier.requirements.accept_untrusted)
    {
        let now = verify::now();
        let verdict = verifier
            .requirements
            .verify(leaf, intermediates, now, usage, dns_name);
        validated = verdict.map_err(|(failure, _)| failure)? == Verdict::Validated;
    }
    let facts = CertificateFacts::parse(leaf).unwrap_or_default();
    Ok((Some((leaf, facts)), validated))
}

/// Terminates TLS for a filter chain.
#[derive(Debug)]
pub struct DownstreamContext {
    config: Arc<DownstreamTls>,
    materials: Materials,
    alpn: Vec<Vec<u8>>,
    lazy: Lazy<ServerSide>,
}

#[derive(Debug)]
struct ServerSide {
    with_alpn: Arc<ServerConfig>,
    /// For clients that offer nothing of ours: rustls would end the handshake, Envoy goes on without ALPN.
    without_alpn: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    verifier: Option<Arc<Verifier>>,
}

impl DownstreamContext {
    /// Compiles the context; secrets may arrive later.
    ///
    /// # Errors
    /// When inline certificates or keys do not load, or cipher, curve or version settings are unusable.
    pub fn build(config: &Arc<DownstreamTls>, store: &Store) -> Result<Arc<Self>, TlsFailure> {
        if config.common.certificates.is_empty() {
            return Err(ContextError::NoCertificate.into());
        }
        crypto::provider(&config.common)?;
        crypto::versions(&config.common)?;
        Ok(Arc::new(Self {
            materials: Materials::build(&config.common, &store.secrets)?,
            alpn: wire(&config.common.alpn_protocols),
            config: Arc::clone(config),
            lazy: Lazy::default(),
        }))
    }

    /// Whether every secret it needs is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.materials.snapshot().is_some()
    }

    fn server_side(&self, snapshot: &Snapshot) -> Result<ServerSide, ContextError> {
        let requirements = self.materials.requirements(snapshot);
        let required = self.config.require_client_certificate;
        // Required, but nothing says how to check: nobody passes (`none_asked` would let everyone).
        let requirements = Requirements {
            none_asked: requirements.none_asked && !required,
            ..requirements
        };
        let verifier =
            (required || !requirements.none_asked).then(|| Verifier::new(requirements, required));
        let certificates = Arc::new(Certificates(snapshot.certificates.clone()));
        let builder = ServerConfig::builder_with_provider(crypto::provider(&self.config.common)?)
            .with_protocol_versions(crypto::versions(&self.config.common)?)
            .map_err(ContextError::Refused)?;
        let builder = match &verifier {
            Some(v) => builder.with_client_cert_verifier(Arc::clone(v) as _),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_cert_resolver(Arc::clone(&certificates) as _);
        server.ignore_client_order = true;
        // Stateless tickets with keys of this build: they die with the context.
        server.ticketer =
            rustls::crypto::aws_lc_rs::Ticketer::new().map_err(ContextError::Refused)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 2;
        let without_alpn = Arc::new(server.clone());
        server.alpn_protocols.clone_from(&self.alpn);
        Ok(ServerSide {
            with_alpn: Arc::new(server),
            without_alpn,
            certificates,
            verifier,
        })
    }

    /// Runs the server handshake. The caller sets the deadline.
    ///
    /// # Errors
    /// See [`TlsFailure`].
    pub async fn accept(
        &self,
        mut io: Rewound,
    ) -> Result<(Box<server::TlsStream<Rewound>>, Arc<TlsInfo>), TlsFailure> {
        let built = self
            .lazy
            .current(&self.materials, |s| self.server_side(s))?;
        let side = &built.value;
        let first = first_bytes(&mut io)
            .await
            .map_err(|e| TlsFailure::from_io(&e))?;
        // Handshake record, or an alert of a client that gave up. Anything else is not TLS.
        if !matches!(first[0], 0x15 | 0x16) {
            return Err(TlsFailure::not_tls(&first));
        }
        let hello = LazyConfigAcceptor::new(Acceptor::default(), io)
            .await
            .map_err(|e| TlsFailure::from_io(&e))?;
        let (config, local) = {
            let hello = hello.client_hello();
            let index = side
                .certificates
                .select(hello.server_name(), hello.signature_schemes());
            let offered = hello
                .alpn()
                .is_some_and(|mut offered| offered.any(|p| self.alpn.iter().any(|own| own == p)));
            let config = if offered {
                &side.with_alpn
            } else {
                &side.without_alpn
            };
            (
                Arc::clone(config),
                index.and_then(|i| side.certificates.0.get(i)),
            )
        };
        let stream = drive(hello.into_stream(config), None).await?;
        let connection = stream.get_ref().1;
        let (peer, validated) = review(
            side.verifier.as_deref(),
            connection,
            KeyUsage::client_auth(),
            None,
        )?;
        if peer.is_none() && self.config.require_client_certificate {
            return Err(TlsFailure::no_certificate());
        }
        let info = Arc::new(tls_info(connection, peer, local.map(|c| &**c), validated));
        Ok((Box::new(stream), info))
    }
}

/// The first bytes of a connection, which stay to be read.
async fn first_bytes(io: &mut Rewound) -> io::Result<[u8; 8]> {
    while io.prefix().len() < 5 {
        let start = io.prefix().first().copied();
        // A record header tells enough; text may be shorter than that.
        if start.is_some_and(|b| b != 0x16) || io.fill().await? == 0 {
            break;
        }
    }
    let prefix = io.prefix();
    if prefix.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut first = [0; 8];
    let n = prefix.len().min(first.len());
    first[..n].copy_from_slice(&prefix[..n]);
    Ok(first)
}

/// What one upstream handshake needs beyond the context.
#[derive(Debug, Default, Clone, Copy)]
pub struct HandshakeOptions<'a> {
    /// Overrides the context's SNI (`auto_sni`).
    pub server_name: Option<&'a str>,
    /// Overrides the context's ALPN list (istio.alpn).
    pub alpn: Option<&'a [Arc<str>]>,
    /// The peer's DNS SANs must hold this name (`auto_san_validation`).
    pub verify_dns_name: Option<&'a str>,
}

/// Originates TLS for a cluster.
#[derive(Debug)]
pub struct UpstreamContext {
    config: Arc<UpstreamTls>,
    alpn: Vec<Vec<u8>>,
    core: Arc<ClientCore>,
}

/// What clusters with equal settings share: everything but SNI and ALPN.
#[derive(Debug)]
struct ClientCore {
    common: CommonTls,
    materials: Materials,
    lazy: Lazy<ClientSide>,
}

#[derive(Debug)]
struct ClientSide {
    template: ClientConfig,
    verifier: Arc<Verifier>,
    sessions: Arc<SessionCache>,
}

/// The client cores of a process by a hash of their settings.
#[derive(Debug, Default)]
pub struct ClientCores {
    cores: Mutex<HashMap<u64, Vec<Weak<ClientCore>>>>,
}

impl ClientCores {
    fn share(&self, common: &CommonTls, store: &Store) -> Result<Arc<ClientCore>, ContextError> {
        let common = CommonTls {
            alpn_protocols: Vec::new(),
            ..common.clone()
        };
        let mut hasher = DefaultHasher::new();
        // Debug text leaves inline bytes out; the comparison below looks at them.
        format!("{common:?}").hash(&mut hasher);
        let mut cores = self.cores.lock();
        let same = cores.entry(hasher.finish()).or_default();
        same.retain(|c| c.strong_count() > 0);
        if let Some(core) = same
            .iter()
            .filter_map(Weak::upgrade)
            .find(|c| c.common == common)
        {
            return Ok(core);
        }
        let materials = Materials::build(&common, &store.secrets)?;
        crypto::provider(&common)?;
        crypto::versions(&common)?;
        let core = Arc::new(ClientCore {
            common,
            materials,
            lazy: Lazy::default(),
        });
        same.push(Arc::downgrade(&core));
        Ok(core)
    }
}

impl ClientCore {
    fn client_side(&self, snapshot: &Snapshot) -> Result<ClientSide, ContextError> {
        let verifier = Verifier::new(self.materials.requirements(snapshot), false);
        let builder = ClientConfig::builder_with_provider(crypto::provider(&self.common)?)
            .with_protocol_versions(crypto::versions(&self.common)?)
            .map_err(ContextError::Refused)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as _);
        let template = if snapshot.certificates.is_empty() {
            builder.with_no_client_auth()
        } else {
            builder.with_client_cert_resolver(Arc::new(Certificates(snapshot.certificates.clone())))
        };
        Ok(ClientSide {
            template,
            verifier,
            sessions: Arc::default(),
        })
    }
}

impl UpstreamContext {
    /// Compiles the context; secrets may arrive later.
    ///
    /// # Errors
    /// When inline certificates or keys do not load, or cipher, curve or version settings are unusable.
    pub fn build(config: &Arc<UpstreamTls>, store: &Store) -> Result<Arc<Self>, TlsFailure> {
        Ok(Arc::new(Self {
            core: store.secrets.client_cores().share(&config.common, store)?,
            alpn: wire(&config.common.alpn_protocols),
            config: Arc::clone(config),
        }))
    }

    /// Whether every secret it needs is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.core.materials.snapshot().is_some()
    }

    /// Runs the client handshake. The caller sets the deadline.
    ///
    /// # Errors
    /// See [`TlsFailure`].
    pub async fn connect(
        &self,
        socket: TcpStream,
        options: HandshakeOptions<'_>,
    ) -> Result<(Box<client::TlsStream<TcpStream>>, Arc<TlsInfo>), TlsFailure> {
        let built = self
            .core
            .lazy
            .current(&self.core.materials, |s| self.core.client_side(s))?;
        let side = &built.value;
        let endpoint = socket.peer_addr().map_err(|e| TlsFailure::from_io(&e))?;
        let mut config = side.template.clone();
        config.alpn_protocols = options.alpn.map_or_else(|| self.alpn.clone(), wire);
        let sessions = EndpointSessions {
            cache: Arc::clone(&side.sessions),
            endpoint,
        };
        config.resumption = Resumption::store(Arc::new(sessions));
        let name = match options.server_name.or(self.config.sni.as_deref()) {
            // Without SNI rustls still wants a name: an address is never sent.
            None => ServerName::from(endpoint.ip()),
            Some(name) => ServerName::try_from(name.to_owned()).map_err(|_| TlsFailure {
                reason: format!("TLS_error:|invalid SNI {name}:TLS_error_end"),
                secret_missing: false,
                kind: FailureKind::Connection,
            })?,
        };
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, socket);
        let dns_name: Option<Arc<str>> = options.verify_dns_name.map(Into::into);
        let stream = drive(handshake, dns_name).await?;
        let connection = stream.get_ref().1;
        let (peer, validated) = review(
            Some(&side.verifier),
            connection,
            KeyUsage::server_auth(),
            options.verify_dns_name,
        )?;
        let local = built.snapshot.certificates.first();
        let info = Arc::new(tls_info(connection, peer, local.map(|c| &**c), validated));
        Ok((Box::new(stream), info))
    }
}
