//! The packet of `--explain`: any text is refused or explained, and what is explained can be asked again
//! in the words of the answer.
#![no_main]

use std::net::IpAddr;
use std::sync::LazyLock;

use iptables_init::cli::{Cli, Environment, Settings};
use iptables_init::config::{Config, Host};
use iptables_init::explain::{Pod, PodFacts, explain, packet};
use iptables_init::host::OwnerNames;
use iptables_init::rules::Flavor;
use libfuzzer_sys::fuzz_target;

struct Nothing;

impl Environment for Nothing {
    fn var(&self, _: &str) -> Option<String> {
        None
    }
}

const ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5)),
];

impl Host for Nothing {
    fn addresses(&self) -> Result<Vec<IpAddr>, std::io::Error> {
        Ok(ADDRESSES.to_vec())
    }

    fn resolv_conf(&self) -> Result<String, std::io::Error> {
        Ok(String::new())
    }

    fn user_id(&self, _: &str) -> Option<u32> {
        None
    }
}

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let all = || Some("*".to_owned());
    let cli = Cli {
        istio_inbound_interception_mode: Some("TPROXY".to_owned()),
        istio_inbound_ports: all(),
        istio_service_cidr: all(),
        dual_stack: Some(true),
        redirect_dns: Some(true),
        capture_all_dns: Some(true),
        drop_invalid: Some(true),
        ..Cli::default()
    };
    Config::build(Settings::resolve(cli, &Nothing), &Nothing).expect("fixed values")
});

/// Beginnings that lead past the first words.
const BEGINNINGS: [&str; 6] = [
    "",
    "out tcp ",
    "in tcp to :80 ",
    "out udp from 10.0.0.5 to :53 ",
    "out tcp [::1]:80 state=",
    "in udp from ",
];

fuzz_target!(|data: (u8, &str)| {
    let beginning = BEGINNINGS[usize::from(data.0) % BEGINNINGS.len()];
    let text = &format!("{beginning}{}", data.1);
    let config = &*CONFIG;
    let pod = Pod {
        addresses: ADDRESSES.map(|ip| ("eth0".to_owned(), ip)).to_vec(),
        ..Pod::default()
    };
    let names = OwnerNames::default();
    let facts = PodFacts {
        config: &config.rules,
        route_table: config.route_table,
        pod: &pod,
        names: &names,
    };
    if let Ok(packet) = packet::parse(text, &pod, &names) {
        let again = packet::parse(&packet.to_string(), &pod, &names).expect("our own words");
        assert_eq!(again, packet);
        for flavor in [Flavor::Iptables, Flavor::Nft] {
            explain(text, &facts, flavor).expect("a packet that parses");
        }
    }
});
