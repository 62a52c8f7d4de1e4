//! Where redirects lead.

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
