//! The explanation in words.

use std::fmt::{self, Write as _};

use super::ruleset::Ruleset;
use super::walk::{Answer, Delivery, Event, Explanation, Pass, Step};
use crate::iptables::text::table_name as iptables_table;
use crate::nft::plan::table_name as nft_table;
use crate::rules::{Action, Chain, Family, Flavor, Table};

/// What the reader sees first and in each row of the table: the end of the packet.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.packet.to;
        match self.delivery {
            Delivery::Leaves => write!(f, "direct: leaves to {to}")?,
            Delivery::Local => write!(f, "direct: the socket at {to} gets it")?,
            Delivery::Redirected(listener) => {
                write!(f, "redirected to {listener}, original destination {to}")?;
            }
            Delivery::Transparent { port, local } => {
                let peer = self.packet.from;
                write!(
                    f,
                    "TPROXY to the listener on {port}, local address {local}, peer {peer}"
                )?;
                if local != to {
                    write!(f, ", original destination {to}")?;
                }
            }
            Delivery::Forwarded => write!(f, "direct: forwarded to {to}")?,
            Delivery::Dropped => f.write_str("dropped")?,
        }
        if let Some(zone) = self.zone {
            write!(f, ", conntrack zone {zone}")?;
        }
        if self.mark != 0 {
            write!(f, ", mark {}", self.mark)?;
        }
        if self.connmark != 0 {
            write!(f, ", connection mark {}", self.connmark)?;
        }
        if let Some(table) = self.route_table {
            write!(f, ", routed by table {table}")?;
        }
        Ok(())
    }
}

/// `nat ISTIO_OUTPUT rule 3`.
#[must_use]
pub fn place(step: &Step, flavor: Flavor) -> String {
    let chain = chain_place(step.table, step.chain, flavor);
    format!("{chain} rule {}", step.number)
}

fn chain_place(table: Table, chain: Chain, flavor: Flavor) -> String {
    match flavor {
        Flavor::Iptables => format!("{} {}", iptables_table(table), chain.iptables_name()),
        Flavor::Nft => format!("{} {}", nft_table(table), chain.nft_name()),
    }
}

/// Backend and family.
#[must_use]
pub fn backend(rules: &Ruleset, family: Family) -> String {
    let family = match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    match rules.flavor {
        Flavor::Iptables => format!("iptables, {family}"),
        Flavor::Nft => format!("native nftables, {family}"),
    }
}

/// The whole walk, one line per rule that was asked.
#[must_use]
pub fn render(explanation: &Explanation, rules: &Ruleset) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "packet   {}", explanation.packet);
    let _ = writeln!(
        out,
        "rules    {}{}",
        backend(rules, explanation.packet.family()),
        if rules.is_empty() {
            " (none: this family is off)"
        } else {
            ""
        }
    );
    for pass in &explanation.passes {
        render_pass(&mut out, pass, rules.flavor);
    }
    let _ = writeln!(out, "\nresult   {explanation}");
    let deciders = explanation.deciders();
    if deciders.is_empty() {
        out.push_str("decided  by no rule: what no rule takes passes\n");
    }
    for step in deciders {
        let _ = writeln!(out, "decided  {}: {}", place(step, rules.flavor), step.text);
    }
    out
}

fn render_pass(out: &mut String, pass: &Pass, flavor: Flavor) {
    let (hook, verb) = match pass.hook {
        Chain::Output => ("output", "leaves"),
        _ => ("prerouting", "arrives"),
    };
    let _ = writeln!(out, "\n{hook}, {verb} on {}", pass.dev);
    let mut at = None;
    for event in &pass.events {
        let step = match event {
            Event::Note(text) => {
                at = None;
                let _ = writeln!(out, "  -- {text}");
                continue;
            }
            Event::Rule(step) => step,
        };
        let place = (step.table, step.chain);
        if at != Some(place) {
            let _ = writeln!(out, "  {}", chain_place(step.table, step.chain, flavor));
            at = Some(place);
        }
        let _ = writeln!(
            out,
            "    {:>2}  {}\n        {}",
            step.number,
            step.text,
            answer(&step.answer, flavor)
        );
    }
}

fn answer(answer: &Answer, flavor: Flavor) -> String {
    let action = match answer {
        Answer::No(instead) => return format!("no: {instead}"),
        Answer::Yes { action, .. } => action,
    };
    let then = match action {
        Action::Return => "back to the calling chain".to_owned(),
        Action::Accept => "accepted".to_owned(),
        Action::Drop => "dropped".to_owned(),
        Action::Jump(chain) => {
            let name = match flavor {
                Flavor::Iptables => chain.iptables_name(),
                Flavor::Nft => chain.nft_name(),
            };
            format!("go on in {name}")
        }
        Action::Redirect(port) => format!("redirected to port {port}"),
        Action::SetMark(mark) => format!("mark becomes {mark}"),
        Action::Tproxy { port, mark } => {
            format!("taken by the transparent listener on {port}, mark becomes {mark}")
        }
        Action::SaveMark => "the connection gets the packet's mark".to_owned(),
        Action::RestoreMark => "the packet gets the connection's mark".to_owned(),
        Action::Zone(zone) => format!("conntrack zone {zone}, unless one is set"),
    };
    format!("YES: {then}")
}
