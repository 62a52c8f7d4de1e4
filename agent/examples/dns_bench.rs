//! Queries per second of the DNS server, whose thread is held on one core; the clients run on the
//! others. Prints one row per kind of question for BENCHMARKS.md.
//!
//!     cargo run --release -p pilot-agent --example dns_bench [seconds per row]

#![allow(clippy::print_stdout, reason = "the table is the result")]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use pilot_agent::dns::{DnsConfig, DnsServer, Scope, THREAD, Table, UpstreamConfig};
use pilot_agent::xds_proxy::{NameInfo, NameTable};

/// Services in the table.
const SERVICES: u32 = 10_000;
/// Clients, each with one socket.
const CLIENTS: usize = 2;
/// Queries a client has under way.
const WINDOW: usize = 32;

type AnyError = Box<dyn std::error::Error>;

fn table() -> Result<Table, AnyError> {
    let service = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        let info = NameInfo {
            ips: vec![format!("10.{a}.{b}.{c}")],
            registry: "Kubernetes".to_owned(),
            shortname: format!("svc-{n}"),
            namespace: "ns".to_owned(),
            alt_hosts: Vec::new(),
        };
        (format!("svc-{n}.ns.svc.cluster.local"), info)
    };
    let mut names = NameTable {
        table: (0..SERVICES).map(service).collect(),
    };
    let wildcard = NameInfo {
        ips: vec!["240.240.0.1".to_owned()],
        registry: "External".to_owned(),
        ..NameInfo::default()
    };
    names.table.insert("*.wild.example".to_owned(), wildcard);
    let scope = Scope::new(
        "client",
        "client.svc.cluster.local",
        Some("client.svc.cluster.local"),
    );
    Ok(Table::build(&names, &scope)?)
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut packet = b"\0\0\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet
}

/// A name server that says NOERROR to everything.
fn upstream() -> std::io::Result<SocketAddr> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
            buffer[2] |= 0x80;
            // A lost answer is a lost packet.
            let _ = socket.send_to(&buffer[..len], peer);
        }
    });
    Ok(address)
}

/// The thread of the server.
fn server_thread() -> Result<i32, AnyError> {
    for entry in std::fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        if std::fs::read_to_string(path.join("comm"))?.trim() == THREAD {
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            return Ok(name.parse()?);
        }
    }
    Err("no DNS thread".into())
}

/// CPU time of a thread.
fn cpu_time(thread: i32) -> Result<Duration, AnyError> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat"))?;
    let nanos = text.split(' ').next().unwrap_or_default();
    Ok(Duration::from_nanos(nanos.parse()?))
}

fn pin(thread: i32, core: usize) -> nix::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(thread), &cores)
}

/// Keeps [`WINDOW`] queries under way until told to stop; counts answers.
fn client(
    to: SocketAddr,
    packets: &[Vec<u8>],
    stop: &AtomicBool,
    answers: &AtomicU64,
) -> std::io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut next = packets.iter().cycle();
    let mut send = || next.next().map_or(Ok(0), |packet| socket.send(packet));
    for _ in 0..WINDOW {
        send()?;
    }
    let mut buffer = [0; 1500];
    while !stop.load(Ordering::Relaxed) {
        // After a loss the window is filled again.
        if socket.recv(&mut buffer).is_ok() {
            answers.fetch_add(1, Ordering::Relaxed);
        }
        send()?;
    }
    Ok(())
}

fn measure(
    agent: &DnsServer,
    thread: i32,
    packets: &[Vec<u8>],
    length: Duration,
) -> Result<(f64, f64), AnyError> {
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    let to = agent.addresses()[0];
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| client(to, packets, &stop, &answers));
        }
        std::thread::sleep(length / 5);
        let (begin, cpu, count) = (
            Instant::now(),
            cpu_time(thread)?,
            answers.load(Ordering::Relaxed),
        );
        std::thread::sleep(length);
        let count = (answers.load(Ordering::Relaxed) - count) as f64;
        let (wall, cpu) = (begin.elapsed(), cpu_time(thread)? - cpu);
        stop.store(true, Ordering::Relaxed);
        Ok((count / wall.as_secs_f64(), count / cpu.as_secs_f64()))
    })
}

fn main() -> Result<(), AnyError> {
    let seconds = std::env::args().nth(1).map_or(Ok(5), |text| text.parse())?;
    let agent = DnsServer::start(DnsConfig {
        addresses: vec![([127, 0, 0, 1], 0).into()],
        upstream: UpstreamConfig {
            servers: vec![upstream()?],
            parallel: false,
            timeout: Duration::from_secs(5),
        },
        forward_before_sync: false,
    })?;
    let begin = Instant::now();
    let table = table()?;
    println!(
        "table of {} names built in {:?}",
        table.len(),
        begin.elapsed()
    );
    agent.publish(table);
    let thread = server_thread()?;
    pin(thread, 0)?;
    let agent = Arc::new(agent);
    let names = |suffix: &str, kind: u16| -> Vec<Vec<u8>> {
        (0..SERVICES)
            .step_by(7)
            .map(|n| query(&format!("svc-{n}{suffix}"), kind))
            .collect()
    };
    println!("| question | answers/s | answers per CPU second |\n|---|---|---|");
    for (what, packets) in [
        ("A, service", names(".ns.svc.cluster.local", 1)),
        (
            "A, search domain appended",
            names(".ns.svc.client.svc.cluster.local", 1),
        ),
        ("AAAA, IPv4 service", names(".ns.svc.cluster.local", 28)),
        ("A, wildcard", names(".wild.example", 1)),
        ("A, passed to a name server", names(".outside.example", 1)),
    ] {
        let (wall, cpu) = measure(&agent, thread, &packets, Duration::from_secs(seconds))?;
        println!("| {what} | {wall:.0} | {cpu:.0} |");
    }
    Ok(())
}
