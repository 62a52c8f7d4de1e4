//! SPIFFE identities of Istio workloads: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;
use std::str::FromStr;

/// A workload identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Trust domain.
    pub trust_domain: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
}

/// The text is no workload identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>: {0}")]
pub struct IdentityError(String);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trust_domain,
            namespace,
            service_account,
        } = self;
        write!(
            f,
            "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"
        )
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.strip_prefix("spiffe://")?.split('/');
            let trust_domain = parts.next().filter(|t| !t.is_empty())?;
            let ("ns", namespace) = (parts.next()?, parts.next().filter(|t| !t.is_empty())?) else {
                return None;
            };
            let ("sa", service_account) = (parts.next()?, parts.next().filter(|t| !t.is_empty())?)
            else {
                return None;
            };
            parts.next().is_none().then(|| Self {
                trust_domain: trust_domain.to_owned(),
                namespace: namespace.to_owned(),
                service_account: service_account.to_owned(),
            })
        };
        parse().ok_or_else(|| IdentityError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parsed() {
        let text = "spiffe://cluster.local/ns/sample/sa/sleep";
        assert_eq!(text.parse::<Identity>().expect("valid").to_string(), text);
    }

    #[test]
    fn refuses_other_forms() {
        for text in [
            "",
            "spiffe://a",
            "spiffe:///ns/a/sa/b",
            "spiffe://t/ns/a/sa/",
            "spiffe://t/ns/a/sa/b/c",
            "http://t/ns/a/sa/b",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
