//! Third view of the rule model: the JSON of libnftables, command by command as in the transaction
//! text. It must be valid for the `nftables` crate's schema, say the same as the golden text when
//! each object is printed in nft's words, and `nft -j` must make the same kernel state of it as our
//! netlink batch does.

#[path = "golden/rows.rs"]
mod rows;

use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use clap::Parser as _;
use ipnet::IpNet;
use iptables_init::cli::{Cli, Environment, INJECTED_ARGS, Settings};
use iptables_init::config::{Config, Host};
use iptables_init::nft::plan::{NftMatch, NftRule, NftTable, base_chain, build_plan, table_name};
use iptables_init::rules::{Action, Family, Match, Ports};
use iptables_init::values::{Interface, OwnerId, PortRange};
use serde_json::{Value, json};

struct NoEnv;

impl Environment for NoEnv {
    fn var(&self, _: &str) -> Option<String> {
        None
    }
}

struct Pod(bool);

impl Host for Pod {
    fn addresses(&self) -> Result<Vec<IpAddr>, std::io::Error> {
        let mut all = vec![IpAddr::from([10, 81, 0, 2])];
        if self.0 {
            all.push(IpAddr::from([0xfd81, 0, 0, 0, 0, 0, 0, 2]));
        }
        Ok(all)
    }

    fn resolv_conf(&self) -> Result<String, std::io::Error> {
        Ok(String::new())
    }

    fn user_id(&self, _: &str) -> Option<u32> {
        None
    }
}

/// Flags beyond the injected ones, and whether the pod has IPv6.
const VARIANTS: &[(&[&str], bool)] = &[
    (&[], false),
    (&["--dual-stack"], true),
    (&["-m", "TPROXY", "--dual-stack"], true),
    (&["--redirect-dns", "--capture-all-dns"], false),
    (
        &["-x", "10.1.0.0/16", "-q", "9000", "-o", "7000:7010"],
        false,
    ),
    (&["--drop-invalid", "-c", "eth7"], false),
    // A prefix of interface names, and rules that are inserted before others.
    (
        &["-c", "eth7,net+", "-k", "tap+,veth0", "-m", "TPROXY"],
        false,
    ),
    (
        &["-i", "10.0.0.0/8,fd00::/8", "-k", "tap+", "--dual-stack"],
        true,
    ),
];

fn plan(extra: &[&str], ipv6: bool) -> Vec<NftTable> {
    let argv = [&["istio-iptables"], INJECTED_ARGS, extra].concat();
    let cli = Cli::try_parse_from(argv).expect("arguments");
    let config = Config::build(Settings::resolve(cli, &NoEnv), &Pod(ipv6)).expect("config");
    build_plan(&config.rules)
}

fn compare(not: bool, left: Value, right: Value) -> Value {
    json!({"match": {"op": if not { "!=" } else { "==" }, "left": left, "right": right}})
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn owner(id: &OwnerId) -> Value {
    match id {
        OwnerId::Number(n) => json!(n),
        OwnerId::Range(a, b) => json!({"range": [a, b]}),
        OwnerId::Name(name) => json!(name),
    }
}

/// nft marks a prefix with an asterisk.
fn interface(interface: &Interface) -> Value {
    let mark = if interface.prefix { "*" } else { "" };
    json!(format!("{}{mark}", interface.name))
}

fn ports(ports: Ports) -> Value {
    match ports {
        Ports::Range(PortRange { low, high }) if low == high => json!(low),
        Ports::Range(PortRange { low, high }) => json!({"range": [low, high]}),
        Ports::Pair(a, b) => json!({"set": [a, b]}),
    }
}

fn condition(matching: &NftMatch, protocol: &str) -> Option<Value> {
    let matching = match matching {
        NftMatch::Address { source, not, net } => {
            let protocol = if matches!(net, IpNet::V4(_)) {
                "ip"
            } else {
                "ip6"
            };
            let field = if *source { "saddr" } else { "daddr" };
            let prefix =
                json!({"prefix": {"addr": net.addr().to_string(), "len": net.prefix_len()}});
            let payload = json!({"payload": {"protocol": protocol, "field": field}});
            return Some(compare(*not, payload, prefix));
        }
        NftMatch::Other(matching) => matching,
    };
    let port = |field: &str| json!({"payload": {"protocol": protocol, "field": field}});
    let state = |list: Value| json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": list}});
    Some(match matching {
        Match::InInterface(i) => compare(false, meta("iifname"), interface(i)),
        Match::OutInterface(i) => compare(false, meta("oifname"), interface(i)),
        Match::InLo => compare(false, meta("iifname"), json!("lo")),
        Match::OutLo => compare(false, meta("oifname"), json!("lo")),
        Match::Tcp => compare(false, meta("l4proto"), json!("tcp")),
        Match::TcpImplied | Match::Udp | Match::Source(_) | Match::Destination { .. } => {
            return None;
        }
        Match::DestinationPort { not, ports: p } => compare(*not, port("dport"), ports(*p)),
        Match::SourcePort(p) => compare(false, port("sport"), json!(p)),
        Match::Established => state(json!(["related", "established"])),
        Match::Invalid => state(json!("invalid")),
        Match::Mark { not, mark } => compare(*not, meta("mark"), json!(mark)),
        Match::ConnMark(mark) => compare(false, json!({"ct": {"key": "mark"}}), json!(mark)),
        Match::User { not, id } => compare(*not, meta("skuid"), owner(id)),
        Match::Group { not, id } => compare(*not, meta("skgid"), owner(id)),
    })
}

fn statements(rule: &NftRule) -> Vec<Value> {
    let counter = json!({"counter": {"packets": 0, "bytes": 0}});
    let set = |key: Value, value: Value| json!({"mangle": {"key": key, "value": value}});
    let ct = |key: &str| json!({"ct": {"key": key}});
    let last = match rule.action {
        Action::Return => json!({"return": null}),
        Action::Accept => json!({"accept": null}),
        Action::Drop => json!({"drop": null}),
        Action::Jump(chain) => json!({"jump": {"target": chain.nft_name()}}),
        Action::Redirect(port) => json!({"redirect": {"port": port}}),
        Action::SetMark(mark) => set(meta("mark"), json!(mark)),
        Action::Tproxy { port, mark } => {
            let family = if rule.family == Family::V4 {
                "ip"
            } else {
                "ip6"
            };
            let tproxy = json!({"tproxy": {"family": family, "port": port}});
            return vec![
                tproxy,
                set(meta("mark"), json!(mark)),
                counter,
                json!({"accept": null}),
            ];
        }
        Action::SaveMark => set(ct("mark"), meta("mark")),
        Action::RestoreMark => set(meta("mark"), ct("mark")),
        Action::Zone(zone) => set(ct("zone"), json!(zone)),
    };
    vec![counter, last]
}

/// One rule, appended or inserted before the rule that has the index at that moment.
fn command(rule: &NftRule) -> Value {
    let udp = rule.matches.contains(&NftMatch::Other(Match::Udp));
    let protocol = if udp { "udp" } else { "tcp" };
    let conditions = rule.matches.iter();
    let mut expr: Vec<Value> = conditions.filter_map(|m| condition(m, protocol)).collect();
    expr.extend(statements(rule));
    let mut object = json!({"family": "inet", "table": table_name(rule.table),
        "chain": rule.chain.nft_name(), "expr": expr});
    match rule.index {
        Some(index) => {
            object["index"] = json!(index);
            json!({"insert": {"rule": object}})
        }
        None => json!({"add": {"rule": object}}),
    }
}

fn render(tables: &[NftTable]) -> Value {
    let mut objects = Vec::new();
    for table in tables {
        let name = table_name(table.table);
        objects.push(json!({"add": {"table": {"family": "inet", "name": name}}}));
        for chain in &table.chains {
            let mut object = json!({"family": "inet", "table": name, "name": chain.nft_name()});
            if let Some(base) = base_chain(table.table, *chain) {
                object["type"] = json!(base.kind);
                object["hook"] = json!(base.hook);
                object["prio"] = json!(base.priority);
            }
            objects.push(json!({"add": {"chain": object}}));
        }
        objects.extend(table.rules.iter().map(command));
    }
    json!({ "nftables": objects })
}

/// The transaction in nft's words, made of the JSON objects alone.
fn print(document: &Value) -> String {
    let mut out = String::new();
    for object in document["nftables"].as_array().expect("a list") {
        let (verb, object) = object
            .as_object()
            .and_then(|o| o.iter().next())
            .expect("one key");
        let (kind, body) = object
            .as_object()
            .and_then(|o| o.iter().next())
            .expect("one key");
        let word = |key: &str| body[key].as_str().unwrap_or_default();
        match kind.as_str() {
            "table" => {
                let name = word("name");
                out += &format!("add table inet {name}\nflush table inet {name}\n");
            }
            "chain" => {
                out += &format!("add chain inet {} {}", word("table"), word("name"));
                if !body["hook"].is_null() {
                    let (kind, hook, priority) = (word("type"), word("hook"), &body["prio"]);
                    out += &format!(" {{ type {kind} hook {hook} priority {priority} ; }}");
                }
                out.push('\n');
            }
            _ => {
                out += &format!("{verb} rule inet {} {}", word("table"), word("chain"));
                if !body["index"].is_null() {
                    out += &format!(" index {}", body["index"]);
                }
                for statement in body["expr"].as_array().expect("statements") {
                    out.push(' ');
                    out += &print_statement(statement, word("table").ends_with("raw"));
                }
                out.push('\n');
            }
        }
    }
    out
}

fn print_statement(statement: &Value, raw: bool) -> String {
    let (name, body) = statement
        .as_object()
        .and_then(|o| o.iter().next())
        .expect("one key");
    match name.as_str() {
        "match" => {
            let not = if body["op"] == "!=" { "!= " } else { "" };
            let left = print_value(&body["left"]);
            // The reference writes the word `meta` for protocols, and for owners in the raw table.
            let whole = left.ends_with("l4proto") || (raw && left.starts_with("meta sk"));
            let left = if whole {
                &left
            } else {
                left.trim_start_matches("meta ")
            };
            format!("{left} {not}{}", print_value(&body["right"]))
        }
        "mangle" => {
            let value = print_value(&body["value"]);
            // A mark on the right-hand side goes without its word as well.
            let value = value.trim_start_matches("meta ");
            format!("{} set {value}", print_value(&body["key"]))
        }
        "jump" => format!("jump {}", body["target"].as_str().unwrap_or_default()),
        "redirect" => format!("redirect to :{}", body["port"]),
        "tproxy" => {
            let family = body["family"].as_str().unwrap_or_default();
            format!("tproxy {family} to :{}", body["port"])
        }
        verdict => verdict.to_owned(),
    }
}

fn print_value(value: &Value) -> String {
    let part = |value: &Value, key: &str| print_value(&value[key]);
    if let Value::Array(list) = value {
        return list.iter().map(print_value).collect::<Vec<_>>().join(",");
    }
    let Some((name, body)) = value.as_object().and_then(|o| o.iter().next()) else {
        return value
            .as_str()
            .map_or_else(|| value.to_string(), ToOwned::to_owned);
    };
    match name.as_str() {
        "payload" => format!("{} {}", part(body, "protocol"), part(body, "field")),
        "prefix" => format!("{}/{}", part(body, "addr"), part(body, "len")),
        "range" => format!("{}-{}", print_value(&body[0]), print_value(&body[1])),
        "set" => format!("{{ {}, {} }}", print_value(&body[0]), print_value(&body[1])),
        key => format!("{key} {}", part(body, "key")),
    }
}

#[test]
fn the_objects_say_what_the_golden_text_says() {
    let copied = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let root = rows::shared().unwrap_or_else(copied);
    let rows = rows::rows(&root, &rows::CAPTURE);
    let mut checked = 0;
    for row in rows.iter().filter(|row| row.file.contains("nftables")) {
        let golden = std::fs::read_to_string(root.join(&row.file)).expect("golden file");
        let mut got = print(&render(&build_plan(&rows::config(row).rules)));
        if row.file.ends_with("dns-uid-gid.golden") {
            // The upstream test sets the text form directly; a resolv.conf value is normalised.
            got = got.replace("::7f00:35", "::127.0.0.53");
        }
        assert_eq!(got.trim_end(), golden.trim_end(), "{}", row.file);
        checked += 1;
    }
    assert!(checked >= 6, "{checked}");
}

/// A namespace with the pod's addresses, removed on drop.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "orjson-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let made = sh(&format!(
            "set -e; ip netns add {name}; ip -n {name} link set lo up
             ip -n {name} link add eth0 type veth peer name eth1; ip -n {name} link set eth0 up
             ip -n {name} addr add 10.81.0.2/24 dev eth0; ip -n {name} addr add fd81::2/64 dev eth0 nodad"
        ));
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        Self(name)
    }

    fn exec(&self, words: &[&str], input: &str) -> Output {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.0])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip runs");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(input.as_bytes())
            .expect("written");
        child.wait_with_output().expect("ends")
    }

    fn ruleset(&self) -> String {
        String::from_utf8_lossy(&self.exec(&["nft", "-s", "list", "ruleset"], "").stdout)
            .into_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        sh(&format!("ip netns del {}", self.0));
    }
}

fn sh(command: &str) -> Output {
    Command::new("sh")
        .args(["-c", command])
        .output()
        .expect("sh runs")
}

#[test]
fn every_variant_is_valid_for_the_schema_and_has_a_rule_per_rule() {
    for (extra, ipv6) in VARIANTS {
        let tables = plan(extra, *ipv6);
        let document = render(&tables);
        let typed: nftables::schema::Nftables<'_> =
            serde_json::from_value(document.clone()).unwrap_or_else(|e| panic!("{extra:?}: {e}"));
        let rules: usize = tables.iter().map(|t| t.rules.len()).sum();
        let chains: usize = tables.iter().map(|t| t.chains.len()).sum();
        assert_eq!(
            typed.objects.len(),
            tables.len() + chains + rules,
            "{extra:?}"
        );
    }
}

#[test]
fn nft_makes_the_same_state_of_the_json_as_the_netlink_batch_does() {
    if !nix::unistd::Uid::effective().is_root() {
        return println!("skipped: needs root");
    }
    if !sh("nft -j list ruleset && command -v ip").status.success() {
        return println!("skipped: needs ip, and nft with JSON");
    }
    for (extra, ipv6) in VARIANTS {
        let (ours, theirs) = (Namespace::new(), Namespace::new());
        let program = env!("CARGO_BIN_EXE_istio-iptables");
        let words = [&[program], INJECTED_ARGS, extra, &["--native-nftables"]].concat();
        let applied = ours.exec(&words, "");
        assert!(
            applied.status.success(),
            "{extra:?}: {}",
            String::from_utf8_lossy(&applied.stdout)
        );
        let document = render(&plan(extra, *ipv6)).to_string();
        let loaded = theirs.exec(&["nft", "-j", "-f", "-"], &document);
        assert!(
            loaded.status.success(),
            "{extra:?}: {}",
            String::from_utf8_lossy(&loaded.stderr)
        );
        assert_eq!(ours.ruleset(), theirs.ruleset(), "{extra:?}");
    }
}
