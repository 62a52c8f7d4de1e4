//! The clock against times that others wrote: the token's and those of the root certificates. A
//! clock that is wrong fails every handshake, with messages that name certificates.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_base::time::rfc3339;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::token::Claims;
use super::{Check, span};
use crate::options::Options;

const NAME: &str = "clock";
/// Clocks of a cluster differ so much without harm.
const TOLERANCE: Duration = Duration::from_secs(60);
const FIX: &str = "set the node's clock (NTP): tokens and certificates are judged by it";
/// Where roots of istiod are mounted.
const ROOTS: [&str; 2] = [
    "./var/run/secrets/istio/root-cert.pem",
    "./etc/certs/root-cert.pem",
];

pub(super) fn check(options: &Options, token: Option<&Claims>) -> Check {
    let provisioned = options.environment.text("PROV_CERT");
    let provisioned = Path::new(&provisioned).join("cert-chain.pem");
    let files = ROOTS.iter().map(Path::new).chain([provisioned.as_path()]);
    let mut marks: Vec<Mark> = files.flat_map(certificates).collect();
    if let Some(issued) = token.and_then(|t| t.iat) {
        marks.push(Mark {
            what: "the token".to_owned(),
            not_before: UNIX_EPOCH + Duration::from_secs(issued),
            not_after: None,
        });
    }
    judge(&marks, SystemTime::now())
}

/// A time that cannot be in the future, and one that should not be past.
struct Mark {
    what: String,
    not_before: SystemTime,
    not_after: Option<SystemTime>,
}

fn certificates(path: &Path) -> Vec<Mark> {
    let Ok(bytes) = std::fs::read(path) else {
        return Vec::new();
    };
    let time = |seconds: i64| {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        UNIX_EPOCH + Duration::from_secs(seconds)
    };
    let mark = |der: CertificateDer<'static>| {
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        let validity = certificate.validity();
        Some(Mark {
            what: format!("the certificate in {}", path.display()),
            not_before: time(validity.not_before.timestamp()),
            not_after: Some(time(validity.not_after.timestamp())),
        })
    };
    CertificateDer::pem_slice_iter(&bytes)
        .flatten()
        .filter_map(mark)
        .collect()
}

fn judge(marks: &[Mark], now: SystemTime) -> Check {
    for mark in marks {
        if let Ok(ahead) = mark.not_before.duration_since(now)
            && ahead > TOLERANCE
        {
            let detail = format!("{} is of {} from now", mark.what, span(ahead));
            return Check::failure(NAME, detail, FIX);
        }
    }
    for mark in marks {
        if let Some(Ok(past)) = mark.not_after.map(|end| now.duration_since(end)) {
            let detail = format!("{} expired {} ago", mark.what, span(past));
            let fix = "renew it, if the node's clock is right (NTP)";
            return Check::failure(NAME, detail, fix);
        }
    }
    let time = rfc3339(now);
    match marks.len() {
        0 => Check::skipped(NAME, format!("{time}; nothing to compare with")),
        n => Check::ok(
            NAME,
            format!("{time} agrees with {n} token and certificate times"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_clock_that_is_behind_or_far_ahead_is_seen() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let mark = |from, to: Option<u64>| Mark {
            what: "it".to_owned(),
            not_before: at(from),
            not_after: to.map(at),
        };
        for (marks, want, text) in [
            (vec![], Verdict::Skipped, "nothing to compare"),
            (
                vec![mark(900, Some(2000)), mark(1030, None)],
                Verdict::Ok,
                "2 token",
            ),
            (
                vec![mark(5000, None)],
                Verdict::Failure,
                "it is of 66 min from now",
            ),
            (
                vec![mark(1, Some(500))],
                Verdict::Failure,
                "it expired 8 min ago",
            ),
        ] {
            let check = judge(&marks, at(1000));
            assert_eq!(check.verdict, want, "{}", check.detail);
            assert!(check.detail.contains(text), "{}", check.detail);
        }
    }
}
