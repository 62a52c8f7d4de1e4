//! Configuration and counting; the probes themselves are tested over sockets.

use serde_json::json;

use super::*;

fn config(value: &serde_json::Value) -> Result<HealthConfig, String> {
    let local = Some(IpAddr::from([10, 0, 0, 7]));
    HealthConfig::parse(value, local).map_err(|e| e.to_string())
}

#[test]
fn absent_numbers_have_their_defaults_and_zero_counts_as_absent() {
    let second = Duration::from_secs;
    let bare = config(&json!({"successThreshold": 0})).expect("accepted");
    let want = HealthConfig {
        initial_delay: Duration::ZERO,
        timeout: second(1),
        period: second(10),
        success_threshold: 1,
        failure_threshold: 1,
        probe: None,
    };
    assert_eq!(bare, want);
    let full = config(&json!({
        "initialDelaySeconds": 1, "timeoutSeconds": 2, "periodSeconds": 3,
        "successThreshold": 4, "failureThreshold": 5, "exec": {"command": ["/bin/true"]},
    }));
    let want = HealthConfig {
        initial_delay: second(1),
        timeout: second(2),
        period: second(3),
        success_threshold: 4,
        failure_threshold: 5,
        probe: Some(Probe::Exec(vec!["/bin/true".to_owned()])),
    };
    assert_eq!(full, Ok(want));
}

#[test]
fn http_probes_have_the_pods_address_a_path_and_an_agent() {
    let probe = |value| config(&json!({"httpGet": value})).expect("accepted").probe;
    let Some(Probe::Http {
        target,
        https,
        path,
        headers,
    }) = probe(json!({"port": 8080}))
    else {
        panic!("an HTTP probe");
    };
    assert_eq!(
        (target.host.as_str(), target.port, https),
        ("10.0.0.7", 8080, false)
    );
    assert_eq!(path.as_str(), "/");
    assert_eq!(headers["host"], "10.0.0.7:8080");
    assert_eq!(headers["user-agent"], "istio-probe/1.0");
    let given = json!({
        "port": 1, "host": "::1", "scheme": "HTTPS", "path": "ready?x=1",
        "httpHeaders": [{"name": "Host", "value": "a"}, {"name": "User-Agent", "value": "b"}],
    });
    let Some(Probe::Http {
        target,
        https,
        path,
        headers,
    }) = probe(given)
    else {
        panic!("an HTTP probe");
    };
    assert_eq!((target.authority().as_str(), https), ("[::1]:1", true));
    assert_eq!(path.as_str(), "/ready?x=1");
    assert_eq!(
        (&headers["host"], &headers["user-agent"]),
        (&"a".parse().expect("value"), &"b".parse().expect("value"))
    );
    let legacy = HealthConfig::parse(&json!({"httpGet": {"port": 1}}), None);
    let Some(Probe::Http { target, .. }) = legacy.expect("accepted").probe else {
        panic!("an HTTP probe");
    };
    assert_eq!(target.host, "localhost");
}

#[test]
fn what_makes_no_sense_is_refused_by_field() {
    for (value, want) in [
        (
            json!({"periodSeconds": -1}),
            "readinessProbe.periodSeconds: -1 is negative",
        ),
        (
            json!({"httpGet": {}}),
            "readinessProbe.httpGet.port: must be between 1 and 65535",
        ),
        (
            json!({"tcpSocket": {"port": 65536}}),
            "readinessProbe.tcpSocket.port: must be between 1 and 65535",
        ),
        (
            json!({"grpc": {"service": "x"}}),
            "readinessProbe.grpc.port: must be between 1 and 65535",
        ),
        (
            json!({"exec": {"command": []}}),
            "readinessProbe.exec.command: is empty",
        ),
        (
            json!({"httpGet": {"port": 1, "scheme": "ftp"}}),
            "readinessProbe.httpGet.scheme: must be http or https",
        ),
        (
            json!({"httpGet": {"port": 1, "httpHeaders": [{"name": "a b", "value": ""}]}}),
            "readinessProbe.httpGet.httpHeaders: holds what no header can carry",
        ),
        (
            json!({"httpGet": {"port": 1, "path": "/a b"}}),
            "readinessProbe.httpGet.path: is no path of a URL",
        ),
        (
            json!({"grpc": {"port": 1}, "exec": {"command": ["x"]}}),
            "readinessProbe: more than one of httpGet, tcpSocket, exec and grpc",
        ),
    ] {
        assert_eq!(config(&value), Err(want.to_owned()));
    }
}

#[test]
fn news_is_a_threshold_that_is_reached_with_another_state() {
    let config = config(&json!({"successThreshold": 2, "failureThreshold": 3})).expect("accepted");
    let mut tally = Tally::default();
    // + success, - failure; the news after each.
    let results = "-+-+ + + --- - - ++ -- + --- +";
    let mut news = String::new();
    for result in results.chars() {
        let result = match result {
            '+' => Ok(()),
            '-' => Err("no".to_owned()),
            _ => continue,
        };
        news.push(match tally.add(&config, result) {
            None => '.',
            Some(Health::Healthy) => 'H',
            Some(Health::Unhealthy(text)) => {
                assert_eq!(text, "no");
                'U'
            }
        });
    }
    assert_eq!(news, "....H...U...H.....U.");
}

#[test]
fn the_first_failure_is_news_too() {
    let config = config(&json!({})).expect("accepted");
    let mut tally = Tally::default();
    let first = tally.add(&config, Err("proxy".to_owned()));
    assert_eq!(first, Some(Health::Unhealthy("proxy".to_owned())));
    assert_eq!(tally.add(&config, Err("again".to_owned())), None);
    assert_eq!(tally.add(&config, Ok(())), Some(Health::Healthy));
}
