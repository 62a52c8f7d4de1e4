//! The codec against another one (hickory), on generated and on broken messages.

use hickory_proto::op::{Edns as OtherEdns, Message, OpCode, Query as OtherQuery};
use hickory_proto::rr::rdata::{CNAME, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::*;

fn query_bytes(name: &str, kind: RecordType, udp_size: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 0x1234;
    message.metadata.recursion_desired = true;
    message.add_query(OtherQuery::query(
        Name::from_ascii(name).expect("name"),
        kind,
    ));
    if let Some(size) = udp_size {
        let mut edns = OtherEdns::new();
        edns.set_max_payload(size);
        message.edns = Some(edns);
    }
    message.to_vec().expect("encodes")
}

fn decode(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).expect("the other codec reads it")
}

#[test]
fn a_query_is_read_as_the_other_codec_wrote_it() {
    let bytes = query_bytes("WWW.Example.com.", RecordType::AAAA, Some(4096));
    let query = Query::parse(&bytes).expect("a query");
    assert_eq!(query.name(), b"\x03WWW\x07Example\x03com");
    assert_eq!((query.kind, query.is_internet()), (TYPE_AAAA, true));
    assert_eq!(query.udp_limit(), 4096);
    let root = query_bytes(".", RecordType::NS, None);
    let query = Query::parse(&root).expect("a query");
    assert_eq!((query.name(), query.udp_limit()), (&b""[..], PLAIN_UDP));
}

#[test]
fn what_is_no_lookup_is_refused_by_its_kind() {
    let good = query_bytes("a.b.", RecordType::A, None);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        Query::parse(&bytes).err()
    };
    let refuse = |code| Some(QueryError::Refuse(code));
    let cases: [(&str, Option<QueryError>, Option<QueryError>); 9] = [
        (
            "answer",
            changed(&|b| b[2] |= 0x80),
            Some(QueryError::NotAQuery),
        ),
        (
            "short",
            changed(&|b| b.truncate(11)),
            Some(QueryError::NotAQuery),
        ),
        (
            "header only",
            changed(&|b| b.truncate(12)),
            refuse(Code::FormErr),
        ),
        ("update", changed(&|b| b[2] |= 5 << 3), refuse(Code::NotImp)),
        ("no question", changed(&|b| b[5] = 0), refuse(Code::FormErr)),
        (
            "two questions",
            changed(&|b| b[5] = 2),
            refuse(Code::FormErr),
        ),
        ("pointer", changed(&|b| b[12] = 0xc0), refuse(Code::FormErr)),
        (
            "missing record",
            changed(&|b| b[11] = 1),
            refuse(Code::FormErr),
        ),
        (
            "cut question",
            changed(&|b| b.truncate(18)),
            refuse(Code::FormErr),
        ),
    ];
    for (what, found, want) in cases {
        assert_eq!(found, want, "{what}");
    }
    assert_eq!(changed(&|_| {}), None);
}

#[test]
fn two_opt_records_are_malformed() {
    let mut bytes = query_bytes("a.", RecordType::A, Some(1000));
    let opt = bytes[bytes.len() - OPT_LEN..].to_vec();
    bytes.extend_from_slice(&opt);
    assert!(Query::parse(&bytes).expect("one counted").edns.is_some());
    bytes[11] = 2;
    let refused = Query::parse(&bytes).err();
    assert_eq!(refused, Some(QueryError::Refuse(Code::FormErr)));
}

#[test]
fn answers_are_read_by_the_other_codec() {
    let bytes = query_bytes("Web.ns.svc.", RecordType::A, Some(1400));
    let query = Query::parse(&bytes).expect("a query");
    let mut out = b"left over".to_vec();
    let mut answer = query.answer(&mut out, Code::NoError, 1400);
    answer.authoritative();
    assert!(answer.alias(&[b"", b"\x03Web"], 30));
    answer.address(TYPE_A, 30, &[10, 0, 0, 1]);
    answer.address(TYPE_A, 30, &[10, 0, 0, 2]);
    answer.finish();
    let message = decode(&out);
    assert_eq!(message.metadata.id, 0x1234);
    assert!(message.metadata.authoritative && message.metadata.recursion_desired);
    assert!(!message.metadata.recursion_available && !message.metadata.truncation);
    assert_eq!(message.queries[0].name().to_ascii(), "Web.ns.svc.");
    assert_eq!(message.answers.len(), 3);
    assert_eq!(message.answers[0].name.to_ascii(), "Web.ns.svc.");
    let target = Name::from_ascii("Web.").expect("name");
    assert_eq!(message.answers[0].data, RData::CNAME(CNAME(target)));
    for (record, last) in message.answers[1..].iter().zip([1, 2]) {
        assert_eq!(record.name.to_ascii(), "Web.");
        assert_eq!(record.ttl, 30);
        assert_eq!(record.data.ip_addr(), Some([10, 0, 0, last].into()));
    }
    assert_eq!(message.edns.expect("EDNS").max_payload(), OWN_UDP);
}

#[test]
fn an_unknown_edns_version_is_told_by_its_long_code() {
    let bytes = query_bytes("a.", RecordType::A, Some(1400));
    let query = Query::parse(&bytes).expect("a query");
    let mut out = Vec::new();
    query.answer(&mut out, Code::BadVers, 512).finish();
    // 16 is BADVERS to a query and BADSIG to a signature; the other codec knows one name for it.
    assert_eq!(u16::from(decode(&out).metadata.response_code), 16);
}

#[test]
fn only_the_answer_to_this_query_is_taken() {
    let bytes = query_bytes("a.b.", RecordType::A, None);
    let query = Query::parse(&bytes).expect("a query");
    let mut reply = Vec::new();
    query.answer(&mut reply, Code::NoError, 512).finish();
    assert!(query.is_answered_by(&reply, 0x1234));
    assert!(!query.is_answered_by(&reply, 0x1235), "another id");
    assert!(!query.is_answered_by(&bytes, 0x1234), "a query");
    assert!(!query.is_answered_by(&reply[..11], 0x1234), "no header");
    let mut other = reply.clone();
    other[13] = b'A';
    assert!(query.is_answered_by(&other, 0x1234), "another case");
    other[13] = b'x';
    assert!(!query.is_answered_by(&other, 0x1234), "another name");
    let mut bare = reply[..12].to_vec();
    bare[5] = 0;
    assert!(
        !query.is_answered_by(&bare, 0x1234),
        "nothing asked and nothing wrong"
    );
    bare[3] |= 1;
    assert!(
        query.is_answered_by(&bare, 0x1234),
        "FORMERR without the question"
    );
}

fn long_reply(id: u16, name: &str, records: u8, edns: bool) -> Vec<u8> {
    let mut message = Message::response(id, OpCode::Query);
    let name = Name::from_ascii(name).expect("name");
    message.add_query(OtherQuery::query(name.clone(), RecordType::TXT));
    for n in 0..records {
        let text = TXT::new(vec![format!("{n:>40}")]);
        message.add_answer(Record::from_rdata(name.clone(), 5, RData::TXT(text)));
    }
    if edns {
        message.edns = Some(OtherEdns::new());
    }
    message.to_vec().expect("encodes")
}

proptest! {
    #[test]
    fn no_packet_panics_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(query) = Query::parse(&bytes) {
            prop_assert!(query.name().len() < MAX_NAME);
            let mut out = Vec::new();
            query.answer(&mut out, Code::ServFail, PLAIN_UDP).finish();
            prop_assert!(out.len() <= PLAIN_UDP);
        }
    }

    #[test]
    fn broken_queries_never_panic(cut in 0..80_usize, at in 0..80_usize, byte in any::<u8>()) {
        let mut bytes = query_bytes("one.two.three.example.", RecordType::A, Some(900));
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Ok(query) = Query::parse(&bytes) {
            let mut reply = long_reply(1, "one.two.three.example.", 9, true);
            // Whatever happens, what is called an answer fits.
            if query.adopt(&mut reply, PLAIN_UDP).is_ok() {
                prop_assert!(reply.len() <= PLAIN_UDP);
            }
        }
    }

    #[test]
    fn long_answers_are_cut_between_records(
        records in 0..60_u8, limit in 60..2000_usize, edns in any::<bool>(),
    ) {
        let bytes = query_bytes("cut.example.", RecordType::TXT, None);
        let query = Query::parse(&bytes).expect("a query");
        let mut reply = long_reply(7, "CUT.example.", records, edns);
        let whole = reply.len() <= limit;
        query.adopt(&mut reply, limit).expect("well formed");
        prop_assert!(reply.len() <= limit);
        let message = decode(&reply);
        prop_assert_eq!(message.metadata.id, 0x1234);
        prop_assert_eq!(message.metadata.truncation, !whole);
        prop_assert_eq!(message.edns.is_some(), edns);
        prop_assert_eq!(message.queries[0].name().to_ascii(), "cut.example.");
        let kept = message.answers.len();
        prop_assert!(kept == usize::from(records) || !whole);
        for (n, record) in message.answers.iter().enumerate() {
            let want = RData::TXT(TXT::new(vec![format!("{n:>40}")]));
            prop_assert_eq!(&record.data, &want);
        }
        // One more would not have fitted: 12 bytes of record, 41 of text.
        prop_assert!(whole || reply.len() + 53 > limit);
    }

    #[test]
    fn broken_answers_never_panic(
        at in 0..500_usize, byte in any::<u8>(), cut in 0..500_usize, limit in 12..900_usize,
    ) {
        let bytes = query_bytes("cut.example.", RecordType::TXT, None);
        let query = Query::parse(&bytes).expect("a query");
        let mut reply = long_reply(7, "cut.example.", 8, true);
        let at = at % reply.len();
        reply[at] = byte;
        reply.truncate(reply.len().saturating_sub(cut));
        if query.adopt(&mut reply, limit).is_ok() {
            prop_assert!(reply.len() <= limit);
        }
    }
}
