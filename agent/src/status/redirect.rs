//! What an application is asked over HTTP, and where its redirects lead.

use std::net::IpAddr;

use http::header::LOCATION;
use http::{Response, Uri};

/// More than these are a loop.
pub(super) const MAX_REDIRECTS: usize = 10;

pub(super) struct Target {
    pub(super) port: u16,
    pub(super) path: String,
    pub(super) https: bool,
    /// Of the Host header.
    pub(super) host: String,
}

/// Without port and brackets.
pub(super) fn host_name(authority: &str) -> &str {
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    };
    name.trim_matches(['[', ']'])
}

impl Target {
    /// What a kept connection leads to.
    pub(super) fn key(&self) -> (u16, bool) {
        (self.port, self.https)
    }

    /// Where a redirect on the same host leads; `None` for another host or no usable location.
    pub(super) fn follow<B>(&self, answer: &Response<B>, name: &str, ip: IpAddr) -> Option<Self> {
        let location = answer.headers().get(LOCATION)?.to_str().ok()?;
        let scheme = if self.https { "https" } else { "http" };
        let absolute = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.contains("://") {
            location.to_owned()
        } else {
            return Some(Self {
                path: self.relative(location)?,
                host: self.host.clone(),
                ..*self
            });
        };
        let location: Uri = absolute.parse().ok()?;
        let authority = location.authority()?;
        let target = host_name(authority.as_str());
        if !target.eq_ignore_ascii_case(name) && target != ip.to_string() {
            return None;
        }
        let https = location.scheme_str() == Some("https");
        let default = if https { 443 } else { 80 };
        Some(Self {
            port: authority.port_u16().unwrap_or(default),
            path: location
                .path_and_query()
                .map_or("/", |p| p.as_str())
                .to_owned(),
            https,
            host: authority.to_string(),
        })
    }

    /// A location without scheme and host: absolute, a query alone, or beside the current path.
    fn relative(&self, location: &str) -> Option<String> {
        let location = location.split('#').next().unwrap_or_default();
        let current = self.path.split('?').next().unwrap_or_default();
        let path = if location.starts_with('/') {
            location.to_owned()
        } else if location.is_empty() || location.starts_with('?') {
            format!("{current}{location}")
        } else {
            let folder = current.rsplit_once('/').map_or("", |(folder, _)| folder);
            without_dots(&format!("{folder}/{location}"))
        };
        // Only what a request line can carry.
        path.parse::<Uri>().ok().map(|_| path)
    }
}

/// Resolves `.` and `..` of a path; the query stays.
fn without_dots(path: &str) -> String {
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (path, String::new()),
    };
    let mut out: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    format!("/{}{query}", out.join("/"))
}

#[cfg(test)]
mod tests {
    use http::header::HeaderValue;

    use super::*;

    #[test]
    fn redirects_stay_on_the_host() {
        let target = Target {
            port: 8080,
            path: "/a/b?q=1".to_owned(),
            https: false,
            host: "app:8080".to_owned(),
        };
        let ip: IpAddr = [10, 0, 0, 1].into();
        let follow = |location: &'static str| {
            let mut answer = Response::new(());
            let value = HeaderValue::from_static(location);
            answer.headers_mut().insert(LOCATION, value);
            let to = target.follow(&answer, "app", ip)?;
            Some(format!("{} {} {} {}", to.https, to.port, to.host, to.path))
        };
        for (location, want) in [
            ("/x?y", Some("false 8080 app:8080 /x?y")),
            ("c", Some("false 8080 app:8080 /a/c")),
            ("./c#part", Some("false 8080 app:8080 /a/c")),
            ("../../c?d=..", Some("false 8080 app:8080 /c?d=..")),
            ("?r=2", Some("false 8080 app:8080 /a/b?r=2")),
            ("http://app/x", Some("false 80 app /x")),
            ("https://APP:8443", Some("true 8443 APP:8443 /")),
            ("//app:81/x", Some("false 81 app:81 /x")),
            ("http://10.0.0.1:8080/", Some("false 8080 10.0.0.1:8080 /")),
            ("http://elsewhere/", None),
            ("http://", None),
            ("c d", None),
        ] {
            assert_eq!(follow(location).as_deref(), want, "{location:?}");
        }
        assert!(target.follow(&Response::new(()), "app", ip).is_none());
    }

    #[test]
    fn names_lose_port_and_brackets() {
        for (authority, want) in [
            ("app:80", "app"),
            ("app", "app"),
            ("[fd00::1]:80", "fd00::1"),
            ("[fd00::1]", "fd00::1"),
        ] {
            assert_eq!(host_name(authority), want);
        }
    }
}
