//! `--explain table`: one row per kind of packet that the given flags tell apart, for every family
//! that has rules.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::PodFacts;
use super::packet::{ConnState, Direction, Packet, Protocol};
use super::ruleset::Ruleset;
use super::text::{backend, place};
use super::walk::walk;
use crate::host::{OwnerError, OwnerNames};
use crate::rules::{Family, Flavor, RuleConfig, dns_effective};
use crate::values::{Interface, OwnerId, PortRange, Selection};

/// Where the search for the application's user and group begins.
const APPLICATION: u32 = 1000;

/// Heading of a row, and its packet.
type Row = (String, Packet);

/// Renders the table of every family that the pod has.
///
/// # Errors
/// A user or group without a number.
pub(super) fn render(facts: &PodFacts<'_>, flavor: Flavor) -> Result<String, OwnerError> {
    let mut out = String::new();
    for family in [Family::V4, Family::V6] {
        let Some(pod) = facts.pod.address(family) else {
            continue;
        };
        let rules = Ruleset::load(facts, flavor, family)?;
        let _ = write!(out, "{}, pod {pod}", backend(&rules, family));
        if rules.is_empty() {
            out.push_str(": no rules, everything passes\n\n");
            continue;
        }
        out.push('\n');
        let mut rows = Rows {
            config: facts.config,
            flavor,
            names: facts.names,
            pod,
            rows: Vec::new(),
        };
        rows.fill();
        for (what, packet) in rows.rows {
            let explanation = walk(&packet, &rules, facts);
            let _ = writeln!(out, "  {what}\n      {explanation}");
            let deciders = explanation.deciders();
            if deciders.is_empty() {
                out.push_str("      no rule applies\n");
            }
            for step in deciders {
                let _ = writeln!(out, "      by {}: {}", place(step, flavor), step.text);
            }
        }
        out.push('\n');
    }
    out.push_str(
        "Ask for one packet to see every rule it meets, for instance --explain 'out tcp 10.1.2.3:80 uid=1000'.\n",
    );
    Ok(out)
}

struct Rows<'a> {
    config: &'a RuleConfig,
    flavor: Flavor,
    names: &'a OwnerNames,
    pod: IpAddr,
    rows: Vec<Row>,
}

impl Rows<'_> {
    fn fill(&mut self) {
        self.outbound();
        self.dns();
        self.owners();
        self.inbound();
        self.own_address();
    }

    /// Documentation ranges: addresses that belong to nobody.
    fn outside(&self) -> IpAddr {
        if self.pod.is_ipv4() {
            IpAddr::from([203, 0, 113, 10])
        } else {
            IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10])
        }
    }

    fn loopback(&self) -> IpAddr {
        if self.pod.is_ipv4() {
            IpAddr::from([127, 0, 0, 1])
        } else {
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])
        }
    }

    fn passthrough(&self) -> IpAddr {
        if self.pod.is_ipv4() {
            IpAddr::from([127, 0, 0, 6])
        } else {
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 6])
        }
    }

    /// An id that is not one of the proxy's, as user and group.
    fn application(&self) -> (u32, u32) {
        let users = self.config.proxy_uids.iter().map(|id| self.user(id));
        let groups = self.config.proxy_gids.iter().map(|id| self.group(id));
        let taken: Vec<u32> = users.chain(groups).collect();
        let free = (APPLICATION..).find(|id| !taken.contains(id));
        let id = free.unwrap_or(APPLICATION);
        (id, id)
    }

    fn proxy(&self) -> (u32, u32) {
        let uid = self.config.proxy_uids.first().map(|id| self.user(id));
        let gid = self.config.proxy_gids.first().map(|id| self.group(id));
        (uid.unwrap_or(0), gid.unwrap_or(0))
    }

    // An unknown name has been refused before.
    fn user(&self, id: &OwnerId) -> u32 {
        self.names.user(id).map_or(0, |(low, _)| low)
    }

    fn group(&self, id: &OwnerId) -> u32 {
        self.names.group(id).map_or(0, |(low, _)| low)
    }

    fn send(&mut self, what: &str, protocol: Protocol, owner: (u32, u32), to: (IpAddr, u16)) {
        let local = to.0 == self.pod || to.0.is_loopback();
        let from = if local { to.0 } else { self.pod };
        self.send_from(what, protocol, owner, from, to);
    }

    fn send_from(
        &mut self,
        what: &str,
        protocol: Protocol,
        owner: (u32, u32),
        from: IpAddr,
        to: (IpAddr, u16),
    ) {
        let local = to.0 == self.pod || to.0.is_loopback();
        let packet = Packet {
            direction: Direction::Out,
            protocol,
            from: SocketAddr::new(from, 40000),
            to: SocketAddr::from(to),
            owner: Some(owner),
            dev: if local { "lo" } else { "eth0" }.to_owned(),
            state: ConnState::New,
            mark: 0,
            connmark: 0,
        };
        self.rows.push((what.to_owned(), packet));
    }

    fn arrive(&mut self, what: &str, dev: &str, to: (IpAddr, u16)) {
        let packet = Packet {
            direction: Direction::In,
            protocol: Protocol::Tcp,
            from: SocketAddr::new(self.outside(), 40000),
            to: SocketAddr::from(to),
            owner: None,
            dev: dev.to_owned(),
            state: ConnState::New,
            mark: 0,
            connmark: 0,
        };
        self.rows.push((what.to_owned(), packet));
    }

    /// An address of a range, if it is of this family.
    fn inside(&self, net: &IpNet) -> Option<IpAddr> {
        let same = net.addr().is_ipv4() == self.pod.is_ipv4();
        same.then(|| net.hosts().next().unwrap_or_else(|| net.addr()))
    }

    fn outbound(&mut self) {
        let (app, out) = (self.application(), self.outside());
        self.send(
            "application -> elsewhere, TCP",
            Protocol::Tcp,
            app,
            (out, 80),
        );
        self.send(
            "application -> elsewhere, UDP",
            Protocol::Udp,
            app,
            (out, 443),
        );
        let config = self.config;
        for net in config.outbound_cidrs.items() {
            if let Some(ip) = self.inside(net) {
                let what = format!("application -> included range {net}");
                self.send(&what, Protocol::Tcp, app, (ip, 80));
            }
        }
        for net in &config.outbound_exclude_cidrs {
            if let Some(ip) = self.inside(net) {
                let what = format!("application -> excluded range {net}");
                self.send(&what, Protocol::Tcp, app, (ip, 80));
            }
        }
        for range in &config.outbound_ports {
            let what = format!("application -> included port {}", ports(*range));
            self.send(&what, Protocol::Tcp, app, (out, range.low));
        }
        for range in &config.outbound_exclude_ports {
            let what = format!("application -> excluded port {}", ports(*range));
            self.send(&what, Protocol::Tcp, app, (out, range.low));
        }
        for interface in &config.exclude_interfaces {
            let name = device(interface);
            let what = format!("application -> elsewhere over {name}");
            self.send(&what, Protocol::Tcp, app, (out, 80));
            if let Some((_, packet)) = self.rows.last_mut() {
                packet.dev = name;
            }
        }
    }

    fn dns(&mut self) {
        if !dns_effective(self.config, self.flavor) {
            return;
        }
        let mut servers: Vec<IpAddr> = Vec::new();
        if self.config.capture_all_dns {
            servers.push(self.outside());
        }
        let v4 = self.config.nameservers_v4.iter().map(|ip| IpAddr::V4(*ip));
        let v6 = self.config.nameservers_v6.iter().map(|ip| IpAddr::V6(*ip));
        let family = self.pod.is_ipv4();
        servers.extend(v4.chain(v6).filter(|ip| ip.is_ipv4() == family));
        for server in servers {
            for (name, protocol) in [("UDP", Protocol::Udp), ("TCP", Protocol::Tcp)] {
                let what = format!("application -> nameserver {server}, {name}");
                self.send(&what, protocol, self.application(), (server, 53));
                let what = format!("proxy -> nameserver {server}, {name}");
                self.send(&what, protocol, self.proxy(), (server, 53));
            }
        }
    }

    fn owners(&mut self) {
        let out = (self.outside(), 80);
        let config = self.config;
        let (user, group) = self.application();
        for id in &config.proxy_uids {
            let what = format!("user {id} -> elsewhere");
            self.send(&what, Protocol::Tcp, (self.user(id), group), out);
        }
        for id in &config.proxy_gids {
            let what = format!("group {id} -> elsewhere");
            self.send(&what, Protocol::Tcp, (user, self.group(id)), out);
        }
        let groups = match &config.owner_groups {
            Selection::All => &config.owner_groups_exclude,
            Selection::Some(groups) => groups,
            Selection::None => return,
        };
        for id in groups {
            let what = format!("group {id} -> elsewhere");
            self.send(&what, Protocol::Tcp, (user, self.group(id)), out);
        }
    }

    fn inbound(&mut self) {
        let (pod, config) = (self.pod, self.config);
        self.arrive("elsewhere -> pod, port 8080", "eth0", (pod, 8080));
        for port in [
            config.tunnel_port,
            config.proxy_port,
            config.inbound_capture_port,
        ] {
            self.arrive(
                &format!("elsewhere -> pod, port {port}"),
                "eth0",
                (pod, port),
            );
        }
        for range in config.inbound_ports.items() {
            let what = format!("elsewhere -> included port {}", ports(*range));
            self.arrive(&what, "eth0", (pod, range.low));
        }
        if config.inbound_ports == Selection::All {
            for range in &config.inbound_exclude {
                let what = format!("elsewhere -> excluded port {}", ports(*range));
                self.arrive(&what, "eth0", (pod, range.low));
            }
        }
        for interface in &config.exclude_interfaces {
            let name = device(interface);
            let what = format!("elsewhere -> pod over {name}");
            self.arrive(&what, &name, (pod, 8080));
        }
        for interface in &config.kube_virt_interfaces {
            let name = device(interface);
            let to = config
                .outbound_cidrs
                .items()
                .iter()
                .find_map(|net| self.inside(net))
                .unwrap_or_else(|| self.outside());
            let what = format!("virtual machine behind {name} -> {to}");
            self.arrive(&what, &name, (to, 80));
        }
    }

    fn own_address(&mut self) {
        let (pod, lo, six) = (self.pod, self.loopback(), self.passthrough());
        let (app, proxy) = (self.application(), self.proxy());
        let tcp = Protocol::Tcp;
        self.send("application -> loopback", tcp, app, (lo, 8080));
        self.send("application -> own address", tcp, app, (pod, 8080));
        self.send("proxy -> own address", tcp, proxy, (pod, 8080));
        let root = (0, proxy.1);
        self.send("proxy as user 0 -> own address", tcp, root, (pod, 8080));
        let tunnel = (pod, self.config.tunnel_port);
        self.send("proxy -> own address, tunnel port", tcp, proxy, tunnel);
        let what = format!("proxy from {six} -> own address");
        self.send_from(&what, tcp, proxy, six, (pod, 8080));
    }
}

fn ports(range: PortRange) -> String {
    if range.is_single() {
        range.low.to_string()
    } else {
        format!("{}-{}", range.low, range.high)
    }
}

/// A name that the interface value covers.
fn device(interface: &Interface) -> String {
    let end = if interface.prefix { "0" } else { "" };
    format!("{}{end}", interface.name)
}
