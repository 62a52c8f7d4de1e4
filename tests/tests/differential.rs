//! The same bootstrap and the same bytes through a real Envoy and through the product, compared:
//! answer, end of connection, and access-log line.
//!
//! `DIFF_SELF=1` runs Envoy against itself, which checks the harness and its masks. `DIFF_ONLY=43,44`
//! runs some rows. Skipped, with the reason printed, where there is no Envoy.

#[path = "differential/bootstrap.rs"]
mod bootstrap;
#[path = "differential/cases.rs"]
mod cases;
#[path = "differential/run.rs"]
mod run;

use std::collections::BTreeSet;

use outrigger_tests::apps::{App, Kind};
use outrigger_tests::oracle::{self, free_ports};

use bootstrap::Upstreams;
use cases::Case;
use run::{Outcome, Side};

fn chosen() -> Vec<Case> {
    let only: Option<BTreeSet<u32>> = std::env::var("DIFF_ONLY").ok().map(|list| {
        list.split(',')
            .filter_map(|n| n.trim().parse().ok())
            .collect()
    });
    let wanted = |c: &Case| only.as_ref().is_none_or(|o| o.contains(&c.number));
    cases::all().into_iter().filter(wanted).collect()
}

#[test]
fn every_case_has_a_name_of_its_own_and_there_are_enough() {
    let all = cases::all();
    let names: BTreeSet<String> = all.iter().map(Case::id).collect();
    assert_eq!(names.len(), all.len());
    assert!(names.len() >= 60, "{} cases", names.len());
    assert!(all.iter().all(|c| (1..=165).contains(&c.number)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_product_answers_and_logs_as_envoy_does() {
    let Some(envoy) = oracle::find_envoy() else {
        return println!("skipped: no Envoy (set ENVOY_BIN, or run `make setup`)");
    };
    let other = if std::env::var_os("DIFF_SELF").is_some() {
        envoy.clone()
    } else {
        match std::env::var_os("OUTRIGGER_BIN") {
            Some(path) => path.into(),
            None => return println!("skipped: OUTRIGGER_BIN is not set (or set DIFF_SELF=1)"),
        }
    };
    let compare_all = std::env::var_os("DIFF_SELF").is_some();
    let http = App::loopback(Kind::Http, "v1")
        .await
        .expect("an application");
    let tcp = App::loopback(Kind::Tcp, "v1")
        .await
        .expect("an application");
    let reset = App::loopback(Kind::Reset, "v1")
        .await
        .expect("an application");
    let mut cases = chosen();
    cases.retain(|c| compare_all || !c.is_refused());
    let free = free_ports(2 * (cases.len() + 1) + 1).expect("ports");
    let (dead, free) = (free[0], &free[1..]);
    let (free_left, free_right) = free.split_at(cases.len() + 1);
    let up = Upstreams {
        http: http.address(),
        tcp: tcp.address(),
        reset: reset.address(),
        dead: ([127, 0, 0, 1], dead).into(),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (folder.path().join("envoy"), folder.path().join("product"));
    let (left, right) = tokio::join!(
        Side::run(&envoy, &cases, &one, up, free_left),
        Side::run(&other, &cases, &two, up, free_right),
    );
    let (left, right) = (left.expect("Envoy runs"), right.expect("the product runs"));
    let mut failed = Vec::new();
    for case in &cases {
        let (wanted, got) = (&left[&case.id()], &right[&case.id()]);
        if wanted != got {
            println!("--- {}", case.id());
            for (name, wanted, got) in Outcome::parts(wanted, got) {
                println!("  {name}\n    envoy:   {wanted}\n    product: {got}");
            }
            failed.push(case.id());
        }
    }
    println!(
        "{} of {} cases equal",
        cases.len() - failed.len(),
        cases.len()
    );
    assert!(
        failed.is_empty(),
        "{} cases differ: {}",
        failed.len(),
        failed.join(", ")
    );
}

/// What is not implemented yet must be refused with the field path, never skipped.
#[test]
fn filters_that_are_not_implemented_are_refused() {
    let Some(product) = std::env::var_os("OUTRIGGER_BIN") else {
        return println!("skipped: OUTRIGGER_BIN is not set");
    };
    let folder = tempfile::tempdir().expect("a folder");
    let refused: Vec<Case> = chosen().into_iter().filter(Case::is_refused).collect();
    for case in refused {
        let up = ([127, 0, 0, 1], 1).into();
        let up = Upstreams {
            http: up,
            tcp: up,
            reset: up,
            dead: up,
        };
        let ports = [(case.id(), 1)].into();
        let name = case.filters[0]["name"].as_str().expect("a name").to_owned();
        let text = bootstrap::build(&[case], &ports, 1, folder.path(), up);
        let file = folder.path().join("bootstrap.json");
        std::fs::write(&file, text).expect("written");
        let output = std::process::Command::new(&product)
            .args(["--mode", "validate", "-c"])
            .arg(&file)
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(
            said.contains("http_filters[0]") && said.contains(&name),
            "{name}: {said}"
        );
    }
}
