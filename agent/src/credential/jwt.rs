//! The expiry of a token. Nothing else of it is read, and nothing is verified: that is the
//! receiver's business.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

#[derive(Deserialize)]
struct Claims {
    exp: f64,
}

/// `exp` of a JSON web token; `None` if it is none, or has none.
pub(crate) fn expiry(token: &str) -> Option<SystemTime> {
    let payload = token.split('.').nth(1)?;
    let json = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let Claims { exp } = serde_json::from_slice(&json).ok()?;
    let since_epoch = Duration::try_from_secs_f64(exp).ok()?;
    UNIX_EPOCH.checked_add(since_epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_read_and_nonsense_has_none() {
        let token = |claims: &str| format!("h.{}.s", URL_SAFE_NO_PAD.encode(claims));
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        for (text, expected) in [
            (token(r#"{"exp":1795232879,"sub":"x"}"#), at(1_795_232_879)),
            (token(r#"{"exp":1.7e9}"#), at(1_700_000_000)),
            (token(r#"{"exp":-5}"#), None),
            (token(r#"{"exp":1e300}"#), None),
            (token(r#"{"exp":"soon"}"#), None),
            (token("{}"), None),
            ("opaque".to_owned(), None),
            ("a.!!.c".to_owned(), None),
        ] {
            assert_eq!(expiry(&text), expected, "{text}");
        }
    }
}
