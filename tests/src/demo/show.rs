//! The steps of the demo: each does something real, prints what is to be seen, and fails when it
//! is not as it should be.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::DemoError;
use super::mesh::Mesh;
use crate::pod::fabric::sh;
use crate::pod::interception::{ipv6_of, peer_of};

fn unexpected(text: impl Into<String>) -> DemoError {
    DemoError::Unexpected(text.into())
}

async fn curl(mesh: &Mesh, arguments: &[&str]) -> Result<String, DemoError> {
    let mut words = vec!["/usr/bin/curl", "-sS", "-m", "10"];
    words.extend(arguments);
    Ok(mesh.client()?.exec(&words).await?)
}

/// Answers by version.
fn versions(text: &str) -> BTreeMap<String, u32> {
    let mut seen = BTreeMap::new();
    for line in text.lines() {
        let version = line
            .strip_prefix("Hello version: ")
            .and_then(|l| l.split(',').next());
        *seen
            .entry(version.unwrap_or("other").to_owned())
            .or_insert(0) += 1;
    }
    seen
}

pub(super) async fn split(mesh: &Mesh, requests: u32) -> Result<(), DemoError> {
    let begin = Instant::now();
    let url = format!("http://helloworld.sample:5000/hello?n=[1-{requests}]");
    let text = curl(mesh, &[&url]).await?;
    let seen = versions(&text);
    let took = begin.elapsed().as_secs_f64();
    println!("   $ curl '{url}'    ({requests} requests in {took:.1} s)");
    for (version, count) in &seen {
        let percent = f64::from(*count) * 100.0 / f64::from(requests);
        let bar = "#".repeat(usize::try_from(count * 50 / requests).unwrap_or(0));
        println!("   {version:>6} {count:>5}  {percent:>5.1} %  {bar}");
    }
    if let Some(others) = seen.get("other") {
        return Err(unexpected(format!(
            "{others} answers were not from the application"
        )));
    }
    let first = f64::from(*seen.get("v1").unwrap_or(&0)) / f64::from(requests);
    // Five standard deviations of a fair draw.
    let allowed = 5.0 * (0.8 * 0.2 / f64::from(requests)).sqrt();
    if (first - 0.8).abs() > allowed {
        return Err(unexpected(format!(
            "v1 got {:.1} %, not about 80 %",
            first * 100.0
        )));
    }
    Ok(())
}

/// The first log line with `text`, waiting for the flush of one second.
async fn line_with(pod: &crate::pod::Pod, text: &str) -> Result<String, DemoError> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let log = pod.proxy.as_ref().map(|p| p.log()).unwrap_or_default();
        if let Some(line) = log.lines().find(|l| l.contains(text)) {
            return Ok(line.to_owned());
        }
        if Instant::now() > until {
            return Err(unexpected(format!("{} logged no {text:?}", pod.spec.name)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(super) async fn one_request(mesh: &Mesh) -> Result<(), DemoError> {
    // Not by x-request-id: the proxy notes the trace decision in it.
    let mark = format!("/hello?look={:016x}", rand::random::<u64>());
    let url = format!("http://helloworld.sample:5000{mark}");
    let text = curl(mesh, &[&url]).await?;
    println!("   $ curl '{url}'\n   {}", text.trim_end());
    let version = versions(&text).into_keys().next().unwrap_or_default();
    let name = format!("helloworld-{version}");
    let server = mesh.pods.iter().find(|p| p.spec.name == name);
    let server = server.ok_or_else(|| unexpected(format!("no pod {name} answered")))?;
    let outbound = line_with(mesh.client()?, &mark).await?;
    let inbound = line_with(server, &mark).await?;
    println!("   outbound (sleep):\n     {outbound}\n   inbound ({name}):\n     {inbound}");
    for (line, wanted) in [(&outbound, "outbound|5000|"), (&inbound, "inbound|5000||")] {
        if !line.contains(wanted) || !line.contains(" 200 ") {
            return Err(unexpected(format!("log line without {wanted:?} and 200")));
        }
    }
    Ok(())
}

pub(super) async fn identities(mesh: &Mesh) -> Result<(), DemoError> {
    let text = curl(mesh, &["http://helloworld.sample:5000/headers"]).await?;
    let seen: serde_json::Value = serde_json::from_str(text.trim())
        .map_err(|e| unexpected(format!("the application's answer: {e}: {text}")))?;
    let headers = seen
        .get("headers")
        .and_then(|h| h.as_array())
        .cloned()
        .unwrap_or_default();
    let xfcc = headers.iter().find_map(|pair| {
        let name = pair.get(0)?.as_str()?;
        name.eq_ignore_ascii_case("x-forwarded-client-cert")
            .then(|| pair.get(1)?.as_str())?
    });
    let xfcc = xfcc.ok_or_else(|| unexpected("no x-forwarded-client-cert: not mTLS"))?;
    let part = |key: &str| xfcc.split([';', ',']).find_map(|p| p.strip_prefix(key));
    let (by, uri) = (
        part("By=").unwrap_or_default(),
        part("URI=").unwrap_or_default(),
    );
    println!("   server presented  {by}\n   client presented  {uri}");
    let wanted = |sa: &str| format!("spiffe://cluster.local/ns/sample/sa/{sa}");
    if by != wanted("helloworld") || uri != wanted("sleep") {
        return Err(unexpected(format!("x-forwarded-client-cert: {xfcc}")));
    }
    Ok(())
}

pub(super) async fn peer(mesh: &Mesh) -> Result<(), DemoError> {
    let interception = mesh.interception;
    let mode = match interception.mode {
        Some(mode) => mode.to_string(),
        None => "as the specification says".to_owned(),
    };
    println!("   interception: {mode}");
    let ip = mesh.client()?.spec.ip.clone();
    let ipv6 = ipv6_of(&ip).filter(|_| interception.ipv6).map(IpAddr::V6);
    let client = ipv6.map_or_else(|| ip.parse().ok(), Some);
    let client = client.ok_or_else(|| unexpected(format!("address {ip}")))?;
    let wanted = peer_of(interception, client).to_string();
    let families: &[&str] = if interception.ipv6 {
        &["-4", "-6"]
    } else {
        &["-4"]
    };
    for family in families {
        let url = "http://helloworld.sample:5000/headers";
        let text = curl(mesh, &[family, url]).await?;
        let seen: serde_json::Value = serde_json::from_str(text.trim())
            .map_err(|e| unexpected(format!("the application's answer: {e}: {text}")))?;
        let peer = seen.get("peer").and_then(|p| p.as_str());
        let peer = peer.unwrap_or_default();
        println!("   $ curl {family} {url}\n   the client is {client}, the application saw {peer}");
        if peer != wanted {
            return Err(unexpected(format!("{wanted} was to be seen")));
        }
    }
    Ok(())
}

/// The client's rules of whichever backend has them.
fn rule_text(mesh: &Mesh) -> Result<String, DemoError> {
    let ns = &mesh.client()?.netns;
    let both = if mesh.interception.ipv6 {
        "ip6tables"
    } else {
        ""
    };
    let mut out = String::new();
    for program in ["iptables", both] {
        for variant in ["nft", "legacy"].iter().filter(|_| !program.is_empty()) {
            // Saving only reads; listing by the wrong variant would create its tables.
            let line =
                format!("ip netns exec {ns} {program}-{variant}-save | grep -v '^#' || true");
            let text = sh(&line)?;
            if text.contains("15001") {
                out += &text;
            }
        }
    }
    if out.is_empty() {
        out = sh(&format!("ip netns exec {ns} nft list ruleset"))?;
    }
    Ok(out)
}

pub(super) fn rules(mesh: &Mesh) -> Result<(), DemoError> {
    let text = rule_text(mesh)?;
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        println!("   {line}");
    }
    if text.contains("15001") && text.contains("15006") {
        return Ok(());
    }
    Err(unexpected("no redirect to 15001 and 15006"))
}

pub(super) async fn failover(mesh: &mut Mesh, deadline: Duration) -> Result<(), DemoError> {
    mesh.push_second_network(false)?;
    println!("   pushed: helloworld now also has endpoints in network2 (10.245.0.31:15443)");
    println!(
        "   stopping the applications of helloworld-v1 and -v2; their endpoints are withdrawn"
    );
    for pod in &mut mesh.pods {
        if matches!(pod.spec.name.as_str(), "helloworld-v1" | "helloworld-v2") {
            pod.app = None;
        }
    }
    mesh.push_second_network(true)?;
    let begin = Instant::now();
    let mut failures = 0;
    loop {
        let url = "http://helloworld.sample:5000/hello";
        let text = curl(mesh, &[url]).await.unwrap_or_default();
        if text.starts_with("Hello version: v3") {
            let took = begin.elapsed().as_secs_f64();
            println!(
                "   after {failures} failed request(s), {took:.1} s: {}",
                text.trim_end()
            );
            break;
        }
        failures += 1;
        if begin.elapsed() > deadline {
            return Err(unexpected(format!("still: {}", text.trim_end())));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let gateway = mesh.pods.iter().find(|p| p.spec.name == "eastwest");
    let gateway = gateway.ok_or_else(|| unexpected("no gateway pod"))?;
    println!("   the gateway passed it on without opening it (it logs when the connection ends)");
    let direct = mesh.client()?.connect("10.245.1.11:5000");
    let refused = direct.is_err();
    drop(direct);
    if gateway.proxy.is_none() || !(refused || mesh_captures(mesh)) {
        return Err(unexpected("the second network can be reached directly"));
    }
    Ok(())
}

/// With redirect rules every connection is accepted by the client's own sidecar.
fn mesh_captures(mesh: &Mesh) -> bool {
    rules_present(mesh).unwrap_or(false)
}

fn rules_present(mesh: &Mesh) -> Result<bool, DemoError> {
    Ok(rule_text(mesh)?.contains("15001"))
}

pub(super) fn memory(mesh: &Mesh) -> Result<(), DemoError> {
    println!(
        "   {:<15} {:<16} {:>12} {:>16}",
        "pod", "process", "private KiB", "file-backed KiB"
    );
    for pod in &mesh.pods {
        let Some(proxy) = &pod.proxy else { continue };
        let processes = proxy.memory();
        if processes.is_empty() {
            return Err(unexpected(format!("{} runs nothing", pod.spec.name)));
        }
        for p in processes {
            println!(
                "   {:<15} {:<16} {:>12} {:>16}",
                pod.spec.name, p.name, p.private, p.file
            );
        }
    }
    Ok(())
}

pub(super) async fn next(mesh: &Mesh) -> Result<(), DemoError> {
    let client = mesh.client()?;
    let info = client.fetch("127.0.0.1:15000", "GET", "/server_info").await;
    let info = info.map_err(|e| unexpected(format!("/server_info: {e}")))?;
    let parsed: serde_json::Value =
        serde_json::from_slice(&info.body).map_err(|e| unexpected(format!("/server_info: {e}")))?;
    let state = parsed
        .get("state")
        .and_then(|s| s.as_str())
        .unwrap_or_default();
    println!("   the client's proxy says: state {state}");
    let (ns, pid) = (
        &client.netns,
        client.proxy.as_ref().and_then(|p| p.init()).unwrap_or(0),
    );
    println!("   admin page:     ip netns exec {ns} curl -s localhost:15000/help");
    println!("   configuration:  ip netns exec {ns} curl -s localhost:15000/config_dump");
    if let crate::pod::Sidecar::Injected { .. } = client.spec.sidecar {
        println!(
            "   through agent:  nsenter -t {pid} -a -r /usr/local/bin/pilot-agent request GET clusters"
        );
        println!("   merged metrics: ip netns exec {ns} curl -s localhost:15020/stats/prometheus");
    }
    println!(
        "   logs:           {}/<pod>/istio-proxy.log",
        mesh.lab.folder().display()
    );
    if state == "LIVE" {
        Ok(())
    } else {
        Err(unexpected(format!("state {state:?}, not LIVE")))
    }
}
