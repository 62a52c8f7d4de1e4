//! DNS messages on the wire (RFC 1035, 6891), as far as a forwarder needs them: one question in,
//! addresses out, answers of others cut to size. Borrows from the packet; no IO, no table.

use std::ops::Range;

/// Bytes of a header.
pub const HEADER: usize = 12;
/// Longest name, RFC 1035 2.3.4, with the root's byte.
pub const MAX_NAME: usize = 255;
/// Largest answer by UDP to a client that says nothing else.
pub const PLAIN_UDP: usize = 512;
/// Largest answer by UDP at all: what fits into an IPv4 packet.
const MAX_UDP: usize = 65_507;
/// UDP size that local answers advertise, the common value of resolvers.
const OWN_UDP: u16 = 1232;

const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const CHECKING_DISABLED: u16 = 0x0010;
const CLASS_IN: u16 = 1;
const OPT: u16 = 41;
/// A name pointer to the first question.
const QUESTION_POINTER: u16 = 0xc000 | HEADER as u16;
/// Bytes of an OPT record without options.
const OPT_LEN: usize = 11;
/// Bytes of a record whose owner is a pointer, without its data.
const RECORD_LEN: usize = 12;

/// A: IPv4 address.
pub const TYPE_A: u16 = 1;
/// CNAME: canonical name.
pub const TYPE_CNAME: u16 = 5;
/// AAAA: IPv6 address.
pub const TYPE_AAAA: u16 = 28;

/// Response codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// No error.
    NoError = 0,
    /// The query cannot be read.
    FormErr = 1,
    /// No answer can be had.
    ServFail = 2,
    /// Not a standard query.
    NotImp = 4,
    /// EDNS of an unknown version.
    BadVers = 16,
}

/// EDNS parameters of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// Largest UDP answer the client takes.
    pub udp_size: u16,
    /// Version; only 0 is known.
    pub version: u8,
    /// The DNSSEC OK bit.
    dnssec: bool,
}

/// Why a packet is not looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Shorter than a header, or an answer: nobody waits for a reply.
    #[error("not a query")]
    NotAQuery,
    /// To be answered with a code.
    #[error("refused with {0:?}")]
    Refuse(Code),
}

/// A message that ends too early or contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed message")]
pub struct Malformed;

/// A query with one question.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    bytes: &'a [u8],
    /// End of the question.
    question_end: usize,
    /// Type asked for.
    pub kind: u16,
    /// Class asked for.
    pub class: u16,
    /// Present if the client speaks EDNS.
    pub edns: Option<Edns>,
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    let pair = bytes.get(at..at + 2).ok_or(Malformed)?;
    Ok(u16::from_be_bytes([pair[0], pair[1]]))
}

/// End of the name at `at`. `pointers`: whether compression is allowed.
fn name_end(bytes: &[u8], at: usize, pointers: bool) -> Result<usize, Malformed> {
    let mut here = at;
    loop {
        let len = usize::from(*bytes.get(here).ok_or(Malformed)?);
        match len {
            0 if here + 1 - at <= MAX_NAME => return Ok(here + 1),
            1..=63 => here += 1 + len,
            0xc0..=0xff if pointers => return Ok(here + 2),
            _ => return Err(Malformed),
        }
        if here - at >= MAX_NAME {
            return Err(Malformed);
        }
    }
}

/// A record's place in a message.
struct Record {
    name: Range<usize>,
    kind: u16,
    end: usize,
}

fn record(bytes: &[u8], at: usize) -> Result<Record, Malformed> {
    let name = at..name_end(bytes, at, true)?;
    let data = name.end + 10;
    let len = usize::from(u16_at(bytes, name.end + 8)?);
    if data + len > bytes.len() {
        return Err(Malformed);
    }
    Ok(Record {
        kind: u16_at(bytes, name.end)?,
        end: data + len,
        name,
    })
}

impl<'a> Query<'a> {
    /// Reads a packet.
    ///
    /// # Errors
    /// If it is no query, or one that must be refused: another operation (NOTIMP), not exactly one
    /// question or broken records (FORMERR).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, QueryError> {
        let form_err = |_| QueryError::Refuse(Code::FormErr);
        let flags = u16_at(bytes, 2).map_err(|_| QueryError::NotAQuery)?;
        if bytes.len() < HEADER || flags & QR != 0 {
            return Err(QueryError::NotAQuery);
        }
        if flags & OPCODE != 0 {
            return Err(QueryError::Refuse(Code::NotImp));
        }
        if u16_at(bytes, 4).map_err(form_err)? != 1 {
            return Err(QueryError::Refuse(Code::FormErr));
        }
        Self::sections(bytes).map_err(form_err)
    }

    fn sections(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let name_end = name_end(bytes, HEADER, false)?;
        let mut query = Self {
            bytes,
            question_end: name_end + 4,
            kind: u16_at(bytes, name_end)?,
            class: u16_at(bytes, name_end + 2)?,
            edns: None,
        };
        let records: u32 = [6, 8, 10]
            .into_iter()
            .map(|at| u16_at(bytes, at).map(u32::from))
            .sum::<Result<_, _>>()?;
        let mut at = query.question_end;
        for _ in 0..records {
            let record = record(bytes, at)?;
            at = record.end;
            if record.kind != OPT {
                continue;
            }
            // At most one, owned by the root.
            if query.edns.is_some() || record.name.len() != 1 {
                return Err(Malformed);
            }
            let fields = record.name.end;
            query.edns = Some(Edns {
                udp_size: u16_at(bytes, fields + 2)?,
                version: u16_at(bytes, fields + 4)?.to_be_bytes()[1],
                dnssec: u16_at(bytes, fields + 6)? & 0x8000 != 0,
            });
        }
        Ok(query)
    }

    /// The name as asked: labels with their lengths, without the root's byte.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        &self.bytes[HEADER..self.question_end - 5]
    }

    /// The whole packet.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether the class is the Internet's.
    #[must_use]
    pub fn is_internet(&self) -> bool {
        self.class == CLASS_IN
    }

    /// Longest answer by UDP.
    #[must_use]
    pub fn udp_limit(&self) -> usize {
        let size = self.edns.map_or(0, |edns| usize::from(edns.udp_size));
        size.clamp(PLAIN_UDP, MAX_UDP)
    }

    fn question(&self) -> &'a [u8] {
        &self.bytes[HEADER..self.question_end]
    }

    /// Whether `reply`, from the server it was sent to under `id`, belongs to this query. Servers
    /// that could not read a query may leave out its question.
    #[must_use]
    pub fn is_answered_by(&self, reply: &[u8], id: u16) -> bool {
        let (Ok(found), Ok(flags), Ok(questions)) =
            (u16_at(reply, 0), u16_at(reply, 2), u16_at(reply, 4))
        else {
            return false;
        };
        if reply.len() < HEADER || found != id || flags & QR == 0 {
            return false;
        }
        let question = reply.get(HEADER..self.question_end);
        match questions {
            0 => flags & 0xf != 0,
            1 => question.is_some_and(|q| q.eq_ignore_ascii_case(self.question())),
            _ => false,
        }
    }

    /// Makes an upstream's answer the client's: its id, its spelling of the question, and no more
    /// than `limit` bytes (whole records, TC set).
    ///
    /// # Errors
    /// If the answer is too long and cannot be taken apart. It is unusable then.
    pub fn adopt(&self, reply: &mut Vec<u8>, limit: usize) -> Result<(), Malformed> {
        let questions = u16_at(reply, 4)?;
        reply[..2].copy_from_slice(&self.bytes[..2]);
        if let Some(question) = reply.get_mut(HEADER..self.question_end)
            && questions == 1
        {
            question.copy_from_slice(self.question());
        }
        if reply.len() <= limit {
            return Ok(());
        }
        cut(reply, limit)
    }

    /// Starts an answer in `out` with at most `limit` bytes.
    pub fn answer<'o>(&self, out: &'o mut Vec<u8>, code: Code, limit: usize) -> Answer<'o> {
        let reserved = if self.edns.is_some() { OPT_LEN } else { 0 };
        start(out, self.bytes, code);
        out[4..6].copy_from_slice(&1_u16.to_be_bytes());
        out.extend_from_slice(self.question());
        Answer {
            out,
            edns: self.edns,
            code,
            limit: limit - reserved,
            answers: 0,
            owner: QUESTION_POINTER,
        }
    }
}

/// A header without questions in `out`: id, operation and RD of the query.
fn start(out: &mut Vec<u8>, query: &[u8], code: Code) {
    let flags = u16::from_be_bytes([query[2], query[3]]);
    let kept = flags & (OPCODE | RECURSION_DESIRED | CHECKING_DISABLED);
    out.clear();
    out.extend_from_slice(&query[..2]);
    out.extend_from_slice(&(QR | kept | u16::from(code as u8 & 0xf)).to_be_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// An answer to a packet whose question cannot be repeated. `query` is at least a header.
pub fn refuse(out: &mut Vec<u8>, query: &[u8], code: Code) {
    start(out, query, code);
}

/// An answer being written. Ends with [`Answer::finish`].
pub struct Answer<'o> {
    out: &'o mut Vec<u8>,
    edns: Option<Edns>,
    code: Code,
    limit: usize,
    answers: u16,
    /// Pointer to the owner of the next address.
    owner: u16,
}

impl Answer<'_> {
    /// The answer is the own authority's.
    pub fn authoritative(&mut self) {
        self.set(AUTHORITATIVE);
    }

    fn set(&mut self, flag: u16) {
        let [high, _] = flag.to_be_bytes();
        self.out[2] |= high;
    }

    fn record(&mut self, kind: u16, ttl: u32, len: u16) {
        self.answers += 1;
        self.out.extend_from_slice(&self.owner.to_be_bytes());
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        self.out.extend_from_slice(&len.to_be_bytes());
    }

    /// A CNAME from the question to `target`, given in parts without the root's byte; addresses
    /// that follow belong to the target. False, and TC set, if it does not fit.
    pub fn alias(&mut self, target: &[&[u8]], ttl: u32) -> bool {
        let len = target.iter().map(|part| part.len()).sum::<usize>() + 1;
        let fits = self.out.len() + RECORD_LEN + len <= self.limit && len <= MAX_NAME;
        if !fits {
            self.set(TRUNCATED);
            return false;
        }
        self.record(TYPE_CNAME, ttl, len as u16);
        // Below 0x4000: behind a header, one question and one fixed part.
        self.owner = 0xc000 | self.out.len() as u16;
        for part in target {
            self.out.extend_from_slice(part);
        }
        self.out.push(0);
        true
    }

    /// How many addresses of `len` bytes still fit.
    #[must_use]
    pub fn room(&self, len: usize) -> usize {
        self.limit.saturating_sub(self.out.len()) / (RECORD_LEN + len)
    }

    /// Says that not everything fits.
    pub fn truncated(&mut self) {
        self.set(TRUNCATED);
    }

    /// One address; there must be room for it.
    pub fn address<const N: usize>(&mut self, kind: u16, ttl: u32, address: &[u8; N]) {
        self.record(kind, ttl, N as u16);
        self.out.extend_from_slice(address);
    }

    /// Fills in the counts, and EDNS if the client used it.
    pub fn finish(self) {
        self.out[6..8].copy_from_slice(&self.answers.to_be_bytes());
        let Some(edns) = self.edns else { return };
        self.out[10..12].copy_from_slice(&1_u16.to_be_bytes());
        self.out.push(0);
        self.out.extend_from_slice(&OPT.to_be_bytes());
        self.out.extend_from_slice(&OWN_UDP.to_be_bytes());
        // High bits of the code, version 0.
        self.out.extend_from_slice(&[self.code as u8 >> 4, 0]);
        let flags = if edns.dnssec { 0x8000_u16 } else { 0 };
        self.out.extend_from_slice(&flags.to_be_bytes());
        self.out.extend_from_slice(&[0; 2]);
    }
}

/// Removes records from the end until `reply` fits, keeps EDNS, sets TC. Names point backwards
/// only, so the records that stay are whole.
fn cut(reply: &mut Vec<u8>, limit: usize) -> Result<(), Malformed> {
    let mut at = HEADER;
    for _ in 0..u16_at(reply, 4)? {
        at = name_end(reply, at, true)? + 4;
    }
    if at > limit || at > reply.len() {
        return Err(Malformed);
    }
    let edns = find_opt(reply, at)?;
    let reserved = edns.as_ref().map_or(0, Vec::len);
    let mut counts = [0_u16; 3];
    let mut open = true;
    for (section, count) in counts.iter_mut().enumerate() {
        let records = u16_at(reply, 6 + 2 * section)?;
        for _ in 0..records {
            let record = record(reply, at)?;
            // OPT is put at the end again.
            open = open && record.kind != OPT && record.end + reserved <= limit;
            if !open {
                break;
            }
            at = record.end;
            *count += 1;
        }
    }
    reply.truncate(at);
    if let Some(edns) = edns.filter(|edns| at + edns.len() <= limit) {
        reply.extend_from_slice(&edns);
        counts[2] += 1;
    }
    for (section, count) in counts.iter().enumerate() {
        let at = 6 + 2 * section;
        reply[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }
    reply[2] |= TRUNCATED.to_be_bytes()[0];
    Ok(())
}

/// A copy of the first OPT record.
fn find_opt(reply: &[u8], mut at: usize) -> Result<Option<Vec<u8>>, Malformed> {
    for section in 0..3 {
        for _ in 0..u16_at(reply, 6 + 2 * section)? {
            let record = record(reply, at)?;
            if record.kind == OPT {
                return Ok(Some(reply[at..record.end].to_vec()));
            }
            at = record.end;
        }
    }
    Ok(None)
}

/// A name as text in wire form: lower case, labels with their lengths, without the root's byte.
/// `None` if it is no DNS name (empty labels, too long).
#[must_use]
pub fn encode_name(text: &str) -> Option<Vec<u8>> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut out = Vec::with_capacity(text.len() + 1);
    for label in text.split('.') {
        let len = u8::try_from(label.len())
            .ok()
            .filter(|n| (1..=63).contains(n))?;
        out.push(len);
        out.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
    }
    (out.len() < MAX_NAME).then_some(out)
}

#[cfg(test)]
mod tests;
