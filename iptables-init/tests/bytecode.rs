//! The encoded netlink messages, decoded again, must give the expression lists that nft itself
//! produces for the same transaction (`nft --debug=netlink`).

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use clap::Parser as _;
use iptables_init::cli::{Cli, Environment, INJECTED_ARGS, Settings};
use iptables_init::config::{Config, Host};
use iptables_init::host::OwnerNames;
use iptables_init::nft::compile::compile_rule;
use iptables_init::nft::expr::{Expr, decode, encode};
use iptables_init::nft::plan::{NftTable, base_chain, build_plan, table_name};

struct NoEnv;

impl Environment for NoEnv {
    fn var(&self, _: &str) -> Option<String> {
        None
    }
}

struct Stand(bool);

impl Host for Stand {
    fn addresses(&self) -> Result<Vec<IpAddr>, std::io::Error> {
        let v4 = IpAddr::from([10, 0, 0, 5]);
        let v6 = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 5]);
        Ok(if self.0 { vec![v4, v6] } else { vec![v4] })
    }

    fn resolv_conf(&self) -> Result<String, std::io::Error> {
        Ok(String::new())
    }

    fn user_id(&self, _: &str) -> Option<u32> {
        None
    }
}

fn plan(extra: &[&str], ipv6: bool) -> Vec<NftTable> {
    let dual: &[&str] = if ipv6 { &["--dual-stack"] } else { &[] };
    let argv = [&["istio-iptables"], INJECTED_ARGS, extra, dual].concat();
    let cli = Cli::try_parse_from(argv).expect("arguments");
    let config = Config::build(Settings::resolve(cli, &NoEnv), &Stand(ipv6)).expect("config");
    build_plan(&config.rules)
}

/// Encodes and decodes, so that the listing describes bytes and not the typed form.
fn through_the_wire(exprs: &[Expr]) -> Vec<Expr> {
    let keys: Vec<Vec<Vec<u8>>> = exprs
        .iter()
        .filter_map(|e| match e {
            Expr::Lookup { keys, .. } => Some(keys.clone()),
            _ => None,
        })
        .collect();
    let bytes = encode(exprs, &mut (0..));
    decode(&bytes.0, &mut |_, id| {
        keys[usize::try_from(id.expect("set id")).expect("small")].clone()
    })
}

fn listing(tables: &[NftTable]) -> String {
    let mut out = String::new();
    for table in tables {
        for chain in &table.chains {
            out += "inet (null) (null) use 0";
            if let Some(base) = base_chain(table.table, *chain) {
                out += &format!(
                    " type {} hook {} prio {} packets 0 bytes 0",
                    base.kind, base.hook, base.priority
                );
            }
            out.push('\n');
        }
        let name = table_name(table.table);
        for rule in &table.rules {
            let exprs = compile_rule(rule, &OwnerNames::default()).expect("numeric owners");
            let exprs = through_the_wire(&exprs);
            for expr in &exprs {
                if let Expr::Lookup { keys, .. } = expr {
                    out += &format!("__set%d {name} 3 size {}\n__set%d {name} 0\n", keys.len());
                    for key in keys {
                        let word = u32::from(u16::from_le_bytes([key[0], key[1]]));
                        out += &format!("\telement {word:08x}  : 0 [end]");
                    }
                    out.push('\n');
                }
            }
            out += &format!("inet {name} {}\n", rule.chain.nft_name());
            for expr in &exprs {
                out += &format!("  {expr}\n");
            }
            out.push('\n');
        }
    }
    out
}

/// nft appends batch-local rule numbers to rules that a later insert refers to.
fn without_positions(text: &str) -> String {
    text.lines()
        .map(|line| match line.strip_prefix("inet istio-") {
            Some(_) => line.split(' ').take(3).collect::<Vec<_>>().join(" "),
            None => line.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn encoded_expressions_equal_those_of_nft() {
    let cases: [(&str, &[&str], bool); 6] = [
        ("injected-default", &[], false),
        ("injected-default-v6", &[], true),
        ("injected-tproxy-v6", &["-m", "TPROXY"], true),
        (
            "exclude-interfaces-tproxy",
            &["-m", "TPROXY", "-c", "eth1,net1"],
            false,
        ),
        ("drop-invalid-redirect-v6", &["--drop-invalid"], true),
        (
            "dns-captureall-v6",
            &["--redirect-dns", "--capture-all-dns"],
            true,
        ),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nft-bytecode");
    for (name, extra, ipv6) in cases {
        let golden = fs::read_to_string(folder.join(format!("{name}.txt"))).expect("fixture");
        let got = listing(&plan(extra, ipv6));
        assert_eq!(
            without_positions(got.trim_end()),
            without_positions(golden.trim_end()),
            "{name}"
        );
    }
}
