//! Builds nf_tables batches. Pure: bytes out, no socket.

use super::expr::{ANONYMOUS_SET, Expr, encode};
use super::state::{ChainState, POLICY_ACCEPT, TableState};
use super::wire::{Attributes, push_message};

/// nfgen_family of `inet` tables.
pub const NFPROTO_INET: u8 = 1;
/// nfgen_family of the ip tables that iptables-nft writes.
pub const NFPROTO_IPV4: u8 = 2;
/// nfgen_family of the ip6 tables.
pub const NFPROTO_IPV6: u8 = 10;

/// High byte of nf_tables message types.
const SUBSYSTEM: u16 = 10 << 8;
/// NFT_MSG_* numbers.
pub mod kind {
    #![allow(missing_docs, reason = "kernel names")]
    pub const NEWTABLE: u16 = 0;
    pub const DELTABLE: u16 = 2;
    pub const NEWCHAIN: u16 = 3;
    pub const GETTABLE: u16 = 1;
    pub const GETCHAIN: u16 = 4;
    pub const DELCHAIN: u16 = 5;
    pub const NEWRULE: u16 = 6;
    pub const GETRULE: u16 = 7;
    pub const DELRULE: u16 = 8;
    pub const NEWSET: u16 = 9;
    pub const NEWSETELEM: u16 = 12;
    pub const GETSETELEM: u16 = 13;
    pub const NEWGEN: u16 = 15;
    pub const GETGEN: u16 = 16;
}

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Create if it does not exist.
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// Add a rule behind the others, not before them.
pub(super) const NLM_F_APPEND: u16 = 0x800;
/// Both dump bits.
pub const NLM_F_DUMP: u16 = 0x300;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// nft's number for the type "internet service", shown by `nft list`.
const INET_SERVICE: u32 = 13;
/// NFT_SET_ANONYMOUS | NFT_SET_CONSTANT.
const SET_FLAGS: u32 = 3;

/// struct nfgenmsg followed by attributes.
#[must_use]
pub fn payload(family: u8, resource: u16, attributes: &Attributes) -> Vec<u8> {
    let mut bytes = vec![family, 0];
    bytes.extend_from_slice(&resource.to_be_bytes());
    bytes.extend_from_slice(&attributes.0);
    bytes
}

/// nlmsg_type of an nf_tables message.
#[must_use]
pub const fn message_type(kind: u16) -> u16 {
    SUBSYSTEM | kind
}

/// One request outside a batch.
#[must_use]
pub fn request(kind: u16, flags: u16, family: u8, attributes: &Attributes, seq: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let body = payload(family, 0, attributes);
    push_message(
        &mut out,
        message_type(kind),
        NLM_F_REQUEST | flags,
        seq,
        &body,
    );
    out
}

/// Collects the messages of one transaction.
#[derive(Debug, Default)]
pub struct Batch {
    messages: Vec<(u16, u16, u8, Attributes)>,
    next_set: u32,
}

impl Batch {
    /// Adds one message.
    pub(super) fn push(&mut self, kind: u16, flags: u16, family: u8, attributes: Attributes) {
        self.messages.push((kind, flags, family, attributes));
    }

    /// Whether nothing was added.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Makes sure that a table exists.
    pub(super) fn create_table(&mut self, family: u8, name: &str) {
        let mut a = Attributes::default();
        a.text(1, name).be32(2, 0);
        self.push(kind::NEWTABLE, NLM_F_CREATE, family, a);
    }

    /// Deletes a table with all it holds.
    pub(super) fn delete_table(&mut self, family: u8, name: &str) {
        let mut a = Attributes::default();
        a.text(1, name);
        self.push(kind::DELTABLE, 0, family, a);
    }

    /// Turns our tables from one state into another. A base chain that is in both stays the same
    /// kernel object: every packet then meets either its old rules or its new ones, while of a
    /// chain and its replacement it could meet neither.
    pub fn update(&mut self, from: &[TableState], to: &[TableState]) -> &mut Self {
        for old in from {
            let new = to.iter().find(|new| new.name == old.name);
            match new.filter(|new| new.can_follow(old)) {
                Some(new) => self.update_table(old, new),
                None => self.delete_table(NFPROTO_INET, &old.name),
            }
        }
        let updated = |new: &TableState| {
            from.iter()
                .any(|old| old.name == new.name && new.can_follow(old))
        };
        for new in to.iter().filter(|new| !updated(new)) {
            self.create_table(NFPROTO_INET, &new.name);
            self.create_chains(new, &[]);
            self.create_rules(new);
        }
        self
    }

    fn update_table(&mut self, old: &TableState, new: &TableState) {
        let mut a = Attributes::default();
        // Without a chain: all rules of the table.
        a.text(1, &old.name);
        self.push(kind::DELRULE, 0, NFPROTO_INET, a);
        let gone = |chain: &&ChainState| new.chain(&chain.name).is_none();
        for chain in old.chains.iter().filter(gone) {
            self.delete_chain(NFPROTO_INET, &old.name, &chain.name);
        }
        self.create_chains(new, &old.chains);
        self.create_rules(new);
    }

    /// All chains of a table but those that are there, so that no jump is ahead of its chain.
    fn create_chains(&mut self, table: &TableState, there: &[ChainState]) {
        for chain in &table.chains {
            if there.iter().any(|old| old.name == chain.name) {
                continue;
            }
            let mut a = Attributes::default();
            a.text(1, &table.name).text(3, &chain.name);
            if let Some(base) = &chain.base {
                a.nest(4, |hook| {
                    // The priority is signed; the attribute carries its bits.
                    hook.be32(1, base.hook)
                        .be32(2, base.priority.cast_unsigned());
                });
                a.text(7, &base.kind);
                if base.policy != POLICY_ACCEPT {
                    a.be32(5, base.policy);
                }
            }
            self.push(kind::NEWCHAIN, NLM_F_CREATE, NFPROTO_INET, a);
        }
    }

    fn create_rules(&mut self, table: &TableState) {
        for chain in &table.chains {
            for rule in &chain.rules {
                self.rule(&table.name, &chain.name, rule);
            }
        }
    }

    fn rule(&mut self, table: &str, chain: &str, exprs: &[Expr]) {
        let mut ids = Vec::new();
        for expr in exprs {
            if let Expr::Lookup { keys, .. } = expr {
                ids.push(self.anonymous_set(table, keys));
            }
        }
        let mut a = Attributes::default();
        a.text(1, table).text(2, chain);
        let list = encode(exprs, &mut ids.into_iter());
        a.nest(4, |inner| inner.0.extend_from_slice(&list.0));
        self.push(kind::NEWRULE, NLM_F_CREATE | NLM_F_APPEND, NFPROTO_INET, a);
    }

    fn anonymous_set(&mut self, table: &str, keys: &[Vec<u8>]) -> u32 {
        self.next_set += 1;
        let id = self.next_set;
        let size = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        let key_length = u32::try_from(keys.first().map_or(0, Vec::len)).unwrap_or(0);
        let mut set = Attributes::default();
        set.text(1, table).text(2, ANONYMOUS_SET).be32(3, SET_FLAGS);
        set.be32(4, INET_SERVICE).be32(5, key_length).be32(10, id);
        set.nest(9, |desc| {
            desc.be32(1, size);
        });
        self.push(kind::NEWSET, NLM_F_CREATE, NFPROTO_INET, set);
        let mut elements = Attributes::default();
        elements.text(1, table).text(2, ANONYMOUS_SET).be32(4, id);
        elements.nest(3, |list| {
            for key in keys {
                list.nest(1, |element| {
                    element.nest(1, |data| {
                        data.bytes(1, key);
                    });
                });
            }
        });
        self.push(kind::NEWSETELEM, NLM_F_CREATE, NFPROTO_INET, elements);
        id
    }

    /// Deletes one rule of any family by handle.
    pub fn delete_rule(&mut self, family: u8, table: &str, chain: &str, handle: u64) {
        let mut a = Attributes::default();
        a.text(1, table).text(2, chain);
        a.bytes(3, &handle.to_be_bytes());
        self.push(kind::DELRULE, 0, family, a);
    }

    /// Deletes an empty chain that nothing jumps to.
    pub fn delete_chain(&mut self, family: u8, table: &str, chain: &str) {
        let mut a = Attributes::default();
        a.text(1, table).text(3, chain);
        self.push(kind::DELCHAIN, 0, family, a);
    }

    /// The datagram. Message sequence numbers are 1 for begin, 2.. for the content; only the last
    /// mutating message asks for an acknowledgement, failing ones are always reported. With a
    /// generation the kernel refuses the batch if anything changed since.
    #[must_use]
    pub fn encode(&self, generation: Option<u32>) -> (Vec<u8>, u32) {
        let mut out = Vec::new();
        let mut begin = Attributes::default();
        if let Some(generation) = generation {
            begin.be32(1, generation);
        }
        let subsystem = SUBSYSTEM >> 8;
        let body = payload(0, subsystem, &begin);
        push_message(&mut out, BATCH_BEGIN, NLM_F_REQUEST, 1, &body);
        let mut sequence = 1;
        for (index, (kind, flags, family, attributes)) in self.messages.iter().enumerate() {
            sequence += 1;
            let last = index + 1 == self.messages.len();
            let ack = if last { NLM_F_ACK } else { 0 };
            let flags = NLM_F_REQUEST | flags | ack;
            let body = payload(*family, 0, attributes);
            push_message(&mut out, message_type(*kind), flags, sequence, &body);
        }
        let body = payload(0, subsystem, &Attributes::default());
        push_message(&mut out, BATCH_END, NLM_F_REQUEST, sequence + 1, &body);
        (out, sequence)
    }
}
