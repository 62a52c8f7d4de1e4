//! The service-account token: there, for istiod, and not expired. Only its claims are read; the
//! token itself and its signature are never shown.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::{Check, span};
use crate::credential::CredentialSource;
use crate::options::Options;
use crate::options::security::Security;

const NAME: &str = "token";
/// What istiod accepts unless it was told otherwise (`TOKEN_AUDIENCES`).
const AUDIENCE: &str = "istio-ca";
/// No token is longer.
const MAX_TOKEN: u64 = 64 << 10;
/// The kubelet replaces a token at four fifths of its life; one nearer to its end is stuck.
const NEAR_END: Duration = Duration::from_secs(300);

/// Claims of interest; times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Claims {
    aud: Audience,
    pub(super) exp: Option<u64>,
    pub(super) iat: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl Audience {
    fn list(&self) -> Vec<&str> {
        match self {
            Self::One(one) => vec![one],
            Self::Several(several) => several.iter().map(String::as_str).collect(),
        }
    }
}

/// Why there are no claims.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoToken {
    /// This agent does not use one.
    Unused(&'static str),
    /// The file cannot be read.
    Unreadable(PathBuf, String),
    /// What it holds is no JWT.
    NoJwt(PathBuf),
}

pub(super) fn read(options: &Options) -> Result<Claims, NoToken> {
    let security = Security {
        environment: &options.environment,
        settings: &options.settings,
        compliance: options.compliance,
        directory: Path::new("."),
    };
    match security.metadata("XDS_HEADER_").map(|m| m.credential) {
        Ok(CredentialSource::JwtFile(path)) => read_file(path),
        Ok(_) => Err(NoToken::Unused("the credential fetcher reads no file")),
        Err(_) => Err(NoToken::Unused("the credential fetcher is not known")),
    }
}

pub(super) fn read_file(path: PathBuf) -> Result<Claims, NoToken> {
    let mut text = String::new();
    let read =
        std::fs::File::open(&path).and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut text));
    if let Err(e) = read {
        return Err(NoToken::Unreadable(path, e.to_string()));
    }
    claims(text.trim()).ok_or(NoToken::NoJwt(path))
}

fn claims(token: &str) -> Option<Claims> {
    let [_, payload, _] = token.split('.').collect::<Vec<_>>()[..] else {
        return None;
    };
    let bytes = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&bytes).ok()
}

pub(super) fn check(options: &Options, token: &Result<Claims, NoToken>) -> Check {
    let provisioned = !options.environment.text("PROV_CERT").is_empty();
    judge(token, provisioned, SystemTime::now())
}

/// `provisioned`: a certificate authenticates as well (`PROV_CERT`).
fn judge(token: &Result<Claims, NoToken>, provisioned: bool, now: SystemTime) -> Check {
    let mount = "mount a projected service-account token with audience istio-ca at \
                 /var/run/secrets/tokens (volume istio-token of the injection template)";
    let claims = match token {
        Ok(claims) => claims,
        Err(NoToken::Unused(why)) => return Check::skipped(NAME, *why),
        Err(NoToken::Unreadable(path, e)) if provisioned => {
            let detail = format!("{}: {e}; PROV_CERT authenticates", path.display());
            return Check::skipped(NAME, detail);
        }
        Err(NoToken::Unreadable(path, e)) => {
            return Check::failure(NAME, format!("{}: {e}", path.display()), mount);
        }
        Err(NoToken::NoJwt(path)) => {
            let detail = format!("{} holds no JWT", path.display());
            return Check::failure(NAME, detail, mount);
        }
    };
    let audience = claims.aud.list().join(", ");
    let left = claims
        .exp
        .map(|exp| (UNIX_EPOCH + Duration::from_secs(exp)).duration_since(now));
    let life = match left {
        None => "without expiry".to_owned(),
        Some(Ok(left)) => format!("expires in {}", span(left)),
        Some(Err(past)) => {
            let detail = format!(
                "expired {} ago (audience {audience})",
                span(past.duration())
            );
            let fix = "see why the kubelet does not renew it (its log, the node's clock); a VM needs \
                       a new token file, or PROV_CERT";
            return Check::failure(NAME, detail, fix);
        }
    };
    let detail = format!("audience {audience}, {life}");
    if !claims.aud.list().contains(&AUDIENCE) {
        let fix = format!(
            "request the token for audience {AUDIENCE}, or set TOKEN_AUDIENCES of istiod to one \
             of these"
        );
        return Check::warning(NAME, detail, fix);
    }
    if left.is_some_and(|left| left.is_ok_and(|left| left < NEAR_END)) {
        let fix = "see why the kubelet has not renewed it yet (its log, the node's clock)";
        return Check::warning(NAME, detail, fix);
    }
    Check::ok(NAME, detail)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn each_state_of_a_token_has_its_verdict() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let file = || PathBuf::from("istio-token");
        let unreadable = || Err(NoToken::Unreadable(file(), "not found".to_owned()));
        for (claims_text, want, text) in [
            (
                r#"{"aud":["istio-ca"],"exp":1043200}"#,
                Verdict::Ok,
                "expires in 12 h",
            ),
            (r#"{"aud":"istio-ca"}"#, Verdict::Ok, "without expiry"),
            (
                r#"{"aud":["x"],"exp":1043200}"#,
                Verdict::Warning,
                "audience x",
            ),
            (
                r#"{"aud":["istio-ca"],"exp":1000100}"#,
                Verdict::Warning,
                "expires in 100 s",
            ),
            (
                r#"{"aud":["istio-ca"],"exp":996400}"#,
                Verdict::Failure,
                "expired 60 min ago",
            ),
        ] {
            let claims = claims(&token(claims_text)).expect("claims");
            let check = judge(&Ok(claims), false, now);
            assert_eq!(check.verdict, want, "{claims_text}");
            assert!(check.detail.contains(text), "{}", check.detail);
            assert_eq!(check.fix.is_some(), want != Verdict::Ok);
        }
        assert_eq!(judge(&unreadable(), false, now).verdict, Verdict::Failure);
        assert_eq!(judge(&unreadable(), true, now).verdict, Verdict::Skipped);
        let no_jwt = judge(&Err(NoToken::NoJwt(file())), true, now);
        assert_eq!(no_jwt.verdict, Verdict::Failure);
    }

    #[test]
    fn what_is_no_token_is_never_shown() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("istio-token");
        for text in ["hunter2", "a.b", "a.!.c", "", "a.aGk.c"] {
            std::fs::write(&path, text).expect("written");
            let token = read_file(path.clone());
            assert_eq!(token, Err(NoToken::NoJwt(path.clone())), "{text}");
            let line = judge(&token, false, SystemTime::now()).text();
            assert!(
                text.is_empty() || !line.contains(&format!("{text} ")),
                "{line}"
            );
            assert!(!line.contains("hunter2"), "{line}");
        }
    }
}
