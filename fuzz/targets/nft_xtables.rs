//! The tables of the iptables programs as the kernel lists them: other programs' objects, with any
//! expressions, in any order. Whatever is there: what is removed is ours or an empty built-in, and what
//! is put back is what was read.
#![no_main]

use iptables_init::nft::expr::{Expr, Verdict, encode};
use iptables_init::nft::message::{Batch, kind, message_type};
use iptables_init::nft::ours::is_own_chain;
use iptables_init::nft::socket::{Dump, NetlinkError};
use iptables_init::nft::wire::{Attributes, be64, messages, text};
use iptables_init::nft::xtables::Xtables;
use iptables_init::rules::Family;
use libfuzzer_sys::fuzz_target;

const TABLES: [&str; 5] = ["nat", "filter", "mangle", "raw", "theirs"];
const CHAINS: [&str; 6] = [
    "PREROUTING",
    "INPUT",
    "OUTPUT",
    "ISTIO_INBOUND",
    "ISTIO_OUTPUT",
    "THEIRS",
];
/// NFPROTO_IPV4 and NFPROTO_IPV6.
const FAMILIES: [u8; 2] = [2, 10];

/// One object: what it is, where, a number, and bytes of its own.
type Object<'a> = (u8, u8, u8, u32, &'a [u8]);

struct Kernel<'a> {
    objects: &'a [Object<'a>],
    /// Answers without any order in them.
    noise: &'a [u8],
}

impl Dump for Kernel<'_> {
    fn dump(
        &mut self,
        wanted: u16,
        family: u8,
        query: &Attributes,
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let table = text(&query.0, 1);
        let mut answers = Vec::new();
        for (index, (what, place, chain, number, bytes)) in self.objects.iter().enumerate() {
            let is = [kind::GETTABLE, kind::GETCHAIN, kind::GETRULE][usize::from(what % 3)];
            let here = TABLES[usize::from(place / 2) % TABLES.len()];
            let of_family = FAMILIES[usize::from(place % 2)];
            if is != wanted || of_family != family || table.as_ref().is_some_and(|t| t != here) {
                continue;
            }
            let chain = CHAINS[usize::from(*chain) % CHAINS.len()];
            let mut a = Attributes::default();
            match wanted {
                kind::GETTABLE => a.text(1, here).be32(3, *number),
                kind::GETCHAIN => {
                    a.text(1, here).text(3, chain).be32(6, number % 4);
                    if number % 2 == 1 {
                        a.bytes(4, bytes).be32(5, number % 3).text(7, "nat");
                    }
                    &mut a
                }
                _ => {
                    a.text(1, here).text(2, chain);
                    a.bytes(3, &(index as u64).to_be_bytes());
                    let jump = [Expr::Verdict(Verdict::Jump("ISTIO_OUTPUT".to_owned()))];
                    match number % 3 {
                        0 => a.bytes(4, &encode(&jump, &mut std::iter::repeat(0)).0),
                        1 => a.bytes(4, bytes),
                        _ => a.bytes(7, bytes),
                    }
                }
            };
            answers.push(a.0);
        }
        answers.extend(messages(self.noise).map(|m| m.payload.to_vec()));
        Ok(answers)
    }
}

fuzz_target!(|data: (Vec<Object<'_>>, &[u8])| {
    let mut kernel = Kernel {
        objects: &data.0,
        noise: data.1,
    };
    let Ok(read) = Xtables::read(&mut kernel, None) else {
        return;
    };
    assert!(read.same(&read));
    let _ = read.tproxy_marks();
    for empty_too in [false, true] {
        let mut batch = Batch::default();
        read.remove(&[Family::V4, Family::V6], empty_too, &mut batch);
        let (bytes, _) = batch.encode(None);
        for message in messages(&bytes) {
            let body = message.payload.get(4..).unwrap_or_default();
            if message.kind == message_type(kind::DELCHAIN) {
                let name = text(body, 3).expect("a name");
                assert!(is_own_chain(&name) || CHAINS[..3].contains(&&*name) || !data.1.is_empty());
            } else if message.kind == message_type(kind::DELRULE) {
                assert!(be64(body, 3).is_some(), "never all rules of a chain");
            } else if message.kind == message_type(kind::DELTABLE) {
                let name = text(body, 1).expect("a name");
                assert!(TABLES[..4].contains(&&*name), "removes {name}");
            } else {
                // The batch's own brackets.
                assert!(matches!(message.kind, 0x10 | 0x11), "makes {message:?}");
            }
        }
    }
    let mut batch = Batch::default();
    read.put_back(&Xtables::default(), &mut batch);
    read.put_back(&read, &mut batch);
    let _ = batch.encode(Some(1));
});
