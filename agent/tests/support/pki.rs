//! A certificate authority in the process: roots, server certificates, answers to requests.

#![allow(dead_code, reason = "shared by test targets that use different parts")]

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer,
    KeyPair, SanType, date_time_ymd,
};

/// A root with its key.
pub(crate) struct Authority {
    pub(crate) root_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// The moment `seconds` from now (negative: before).
fn moment(seconds: i64) -> SystemTime {
    let offset = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::now() - offset
    } else {
        SystemTime::now() + offset
    }
}

macro_rules! date {
    ($seconds:expr) => {
        date_time_ymd(1970, 1, 1)
            + moment($seconds)
                .duration_since(UNIX_EPOCH)
                .expect("after the epoch")
    };
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params
            .distinguished_name
            .push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("self-signed root");
        Self {
            root_pem: root.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Signs a request; the certificate ends `seconds` from now.
    pub(crate) fn sign(&self, csr_pem: &str, seconds: i64) -> String {
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem).expect("valid request");
        csr.params.not_before = date!(seconds.min(0) - 60);
        csr.params.not_after = date!(seconds);
        csr.signed_by(&self.issuer).expect("signed").pem()
    }

    /// Signs a request for the time between two moments, to the second, rounded up.
    pub(crate) fn sign_between(&self, csr_pem: &str, from: SystemTime, to: SystemTime) -> String {
        self.sign_request(csr_pem, from, to, None)
    }

    /// The same with another identity than the request's.
    pub(crate) fn sign_as(
        &self,
        uri: &str,
        csr_pem: &str,
        from: SystemTime,
        to: SystemTime,
    ) -> String {
        self.sign_request(csr_pem, from, to, Some(uri))
    }

    fn sign_request(
        &self,
        csr_pem: &str,
        from: SystemTime,
        to: SystemTime,
        uri: Option<&str>,
    ) -> String {
        let seconds = |moment: SystemTime| {
            let since = moment.duration_since(UNIX_EPOCH).expect("after the epoch");
            let up = u64::from(since.subsec_nanos() > 0);
            date_time_ymd(1970, 1, 1) + Duration::from_secs(since.as_secs() + up)
        };
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem).expect("valid request");
        csr.params.not_before = seconds(from);
        csr.params.not_after = seconds(to);
        if let Some(uri) = uri {
            let uri = uri.try_into().expect("ASCII");
            csr.params.subject_alt_names = vec![SanType::URI(uri)];
        }
        csr.signed_by(&self.issuer).expect("signed").pem()
    }

    /// A certificate for `dns_name` with its key, PEM.
    pub(crate) fn certificate(&self, dns_name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![dns_name.to_owned()]).expect("parameters");
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        (cert.pem(), key.serialize_pem())
    }
}

/// No file below `dir` may hold a private key.
pub(crate) fn assert_no_key_in(dir: &Path) {
    for entry in std::fs::read_dir(dir).expect("directory") {
        let entry = entry.expect("entry");
        let kind = entry.file_type().expect("type");
        if kind.is_dir() {
            assert_no_key_in(&entry.path());
        } else if kind.is_file() {
            let content = std::fs::read(entry.path()).expect("file");
            let found = content.windows(11).any(|window| window == b"PRIVATE KEY");
            assert!(!found, "a private key in {}", entry.path().display());
        }
    }
}
