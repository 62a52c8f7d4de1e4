//! The index of golden rule sets: which file, which flags, which machine it was made on.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use iptables_init::cli::{Cli, Environment, Settings};
use iptables_init::config::{Config, Host};

/// Folders of the capture and derived sets.
pub(crate) const CAPTURE: [&str; 4] = [
    "iptables-capture",
    "nftables-capture",
    "derived-iptables",
    "derived-nftables",
];

struct Env(HashMap<String, String>);

impl Environment for Env {
    fn var(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

/// The machine of a row.
pub(crate) struct Stand {
    pub ipv6: bool,
    pub(crate) resolv_conf: String,
}

impl Host for Stand {
    fn addresses(&self) -> Result<Vec<IpAddr>, std::io::Error> {
        let mut list = vec![IpAddr::from([10, 0, 0, 5])];
        if self.ipv6 {
            list.push(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 5]));
        }
        Ok(list)
    }

    fn resolv_conf(&self) -> Result<String, std::io::Error> {
        Ok(self.resolv_conf.clone())
    }

    fn user_id(&self, _: &str) -> Option<u32> {
        None
    }
}

/// One row of index.tsv.
pub(crate) struct Row {
    pub(crate) file: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: HashMap<String, String>,
    pub(crate) host: Stand,
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace()
        .map(|word| word.trim_matches('\'').to_owned())
        .collect()
}

fn parse_row(line: &str) -> Option<Row> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [file, _, kind, _, args, env, preconditions, ..] = columns[..] else {
        return None;
    };
    if !matches!(kind, "upstream" | "derived") {
        return None;
    }
    let resolv_conf = preconditions
        .split_once("nameservers=")
        .map(|(_, list)| {
            list.split(',')
                .map(|s| format!("nameserver {}\n", s.trim()))
                .collect()
        })
        .unwrap_or_default();
    let env = env
        .split_whitespace()
        .filter_map(|pair| pair.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    Some(Row {
        file: file.to_owned(),
        args: words(args),
        env,
        host: Stand {
            ipv6: preconditions.contains("ipv6=on"),
            resolv_conf,
        },
    })
}

/// What the program makes of a row's flags.
pub(crate) fn config(row: &Row) -> Config {
    let argv = std::iter::once("istio-iptables").chain(row.args.iter().map(String::as_str));
    let cli = Cli::try_parse_from(argv).expect("golden arguments are valid");
    let settings = Settings::resolve(cli, &Env(row.env.clone()));
    Config::build(settings, &row.host).expect("golden configuration is valid")
}

/// The shared fixtures, when they are there.
pub(crate) fn shared() -> Option<PathBuf> {
    let base = std::env::var_os("OUTRIGGER_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    );
    let root = base.join("fixtures/interception");
    root.join("index.tsv").is_file().then_some(root)
}

/// Rows of the index whose files are in these folders.
pub(crate) fn rows(root: &Path, folders: &[&str]) -> Vec<Row> {
    let index = fs::read_to_string(root.join("index.tsv")).expect("index.tsv is readable");
    index
        .lines()
        .filter(|line| folders.iter().any(|f| line.starts_with(&format!("{f}/"))))
        .filter_map(parse_row)
        .collect()
}
