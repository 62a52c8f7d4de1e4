//! What is answered to a packet: from the name table, with a refusal, or not here. Pure: table
//! and packet in, bytes out.

use rand::RngExt;

use super::table::{Found, Table, WILDCARD};
use super::wire::{Code, Query, QueryError, TYPE_A, TYPE_AAAA, refuse};

/// TTL of every record of the table, as in Istio's agent.
const TTL_SECONDS: u32 = 30;

/// How a message travels; decides how long an answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A stream with lengths.
    Tcp,
}

impl Transport {
    /// Longest answer to `query`.
    #[must_use]
    pub fn limit(self, query: &Query<'_>) -> usize {
        match self {
            Self::Udp => query.udp_limit(),
            Self::Tcp => usize::from(u16::MAX),
        }
    }
}

/// What is to be done.
#[derive(Debug)]
pub enum Verdict<'a> {
    /// Send the answer.
    Reply,
    /// Ask a name server.
    Forward(Query<'a>),
    /// Nothing: the packet is no query.
    Drop,
}

/// Decides about a packet and writes the answer, if it has one, to `out`. Without a table every
/// question is SERVFAIL, or a name server's with `forward_before_sync`.
pub fn answer<'a>(
    table: Option<&Table>,
    forward_before_sync: bool,
    transport: Transport,
    packet: &'a [u8],
    out: &mut Vec<u8>,
) -> Verdict<'a> {
    let query = match Query::parse(packet) {
        Ok(query) => query,
        Err(QueryError::NotAQuery) => return Verdict::Drop,
        Err(QueryError::Refuse(code)) => {
            refuse(out, packet, code);
            return Verdict::Reply;
        }
    };
    let limit = transport.limit(&query);
    if query.edns.is_some_and(|edns| edns.version != 0) {
        query.answer(out, Code::BadVers, limit).finish();
        return Verdict::Reply;
    }
    let Some(table) = table else {
        if forward_before_sync {
            return Verdict::Forward(query);
        }
        query.answer(out, Code::ServFail, limit).finish();
        return Verdict::Reply;
    };
    // Other types and classes are not the mesh's to answer, even for its names.
    if !query.is_internet() || !matches!(query.kind, TYPE_A | TYPE_AAAA) {
        return Verdict::Forward(query);
    }
    let Some(found) = table.lookup(query.name()) else {
        return Verdict::Forward(query);
    };
    match query.kind {
        TYPE_A => write(&query, &found, found.v4, limit, out),
        _ => write(&query, &found, found.v6, limit, out),
    }
    Verdict::Reply
}

/// A known name is never NXDOMAIN: without addresses of the family the answer is empty, so that
/// clients which ask for both families at once are content.
fn write<const N: usize>(
    query: &Query<'_>,
    found: &Found<'_>,
    addresses: &[[u8; N]],
    limit: usize,
    out: &mut Vec<u8>,
) {
    let mut answer = query.answer(out, Code::NoError, limit);
    answer.authoritative();
    let fits = match &found.alias {
        Some(alias) if !addresses.is_empty() => {
            let name = &query.name()[alias.name.clone()];
            let star = if alias.wildcard { WILDCARD } else { b"" };
            answer.alias(&[star, name], TTL_SECONDS)
        }
        _ => true,
    };
    if fits {
        let kind = if N == 4 { TYPE_A } else { TYPE_AAAA };
        let count = addresses.len().min(answer.room(N));
        for address in shuffled(addresses, count) {
            answer.address(kind, TTL_SECONDS, address);
        }
        if count < addresses.len() {
            answer.truncated();
        }
    }
    answer.finish();
}

/// `count` of the addresses in random order: clients take the first, which spreads them over the
/// pods of a headless service.
fn shuffled<const N: usize>(addresses: &[[u8; N]], count: usize) -> impl Iterator<Item = &[u8; N]> {
    let mut order: Vec<u32> = Vec::new();
    if addresses.len() > 1 {
        let mut random = rand::rng();
        order.extend(0..addresses.len() as u32);
        for at in 0..count {
            let other = random.random_range(at..order.len());
            order.swap(at, other);
        }
    } else {
        order.resize(count, 0);
    }
    order
        .into_iter()
        .take(count)
        .map(|at| &addresses[at as usize])
}
