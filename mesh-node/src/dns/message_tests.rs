//! Messages in, messages out, and bytes that are neither.

use super::*;

pub(in crate::dns) fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn question(packet: &[u8], stream: bool) -> Box<Question> {
    match read(packet, stream) {
        Incoming::Question(question) => question,
        other => panic!("{other:?}"),
    }
}

fn many(n: u8) -> Vec<IpAddr> {
    (0..n).map(|i| IpAddr::from([10, 0, 0, i])).collect()
}

#[test]
fn a_question_is_answered_with_its_own_name() {
    let asked = question(
        &query("CaRt.Shop.svc.cluster.local.", RecordType::A, Some(1232)),
        false,
    );
    assert_eq!(
        (asked.name.as_str(), asked.asked),
        ("cart.shop.svc.cluster.local", Asked::A)
    );
    let reply = Message::from_vec(&asked.reply(&many(2)).unwrap()).unwrap();
    assert_eq!(reply.metadata.id, 0x1234);
    assert!(
        reply.metadata.recursion_available
            && reply.metadata.authoritative
            && !reply.metadata.truncation
    );
    assert_eq!(
        reply.queries[0].name().to_ascii(),
        "CaRt.Shop.svc.cluster.local."
    );
    assert_eq!(reply.answers.len(), 2);
    assert!(reply.answers.iter().all(|r| r.ttl == 30) && reply.edns.is_some());
    let none = Message::from_vec(&asked.reply(&[]).unwrap()).unwrap();
    assert_eq!(
        (none.metadata.response_code, none.answers.len()),
        (ResponseCode::NoError, 0)
    );
}

#[test]
fn an_answer_is_as_long_as_the_client_takes() {
    let check = |payload, stream, count: u8, whole: bool| {
        let asked = question(
            &query("db.shop.svc.cluster.local.", RecordType::A, payload),
            stream,
        );
        let bytes = asked.reply(&many(count)).unwrap();
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!(
            reply.metadata.truncation, !whole,
            "{payload:?} {stream} {count}"
        );
        assert_eq!(reply.answers.len() == usize::from(count), whole);
        assert!(stream || bytes.len() <= usize::from(payload.unwrap_or(512)));
    };
    check(None, false, 5, true);
    check(None, false, 60, false);
    check(Some(1232), false, 60, true);
    check(Some(1232), false, 200, false);
    check(None, true, 200, true);
}

#[test]
fn an_alias_points_on() {
    let asked = question(
        &query("out.shop.svc.cluster.local.", RecordType::A, None),
        false,
    );
    let reply =
        Message::from_vec(&asked.reply_alias("api.example.com", &many(1)).unwrap()).unwrap();
    assert!(
        matches!(&reply.answers[0].data, RData::CNAME(c) if c.0.to_ascii() == "api.example.com.")
    );
    assert_eq!(reply.answers[1].name.to_ascii(), "api.example.com.");
    let on = asked.about("api.example.com", 7).unwrap();
    assert_eq!(question(&on, false).name, "api.example.com");
    assert_eq!(
        addresses_in(
            &asked.reply_alias("api.example.com", &many(3)).unwrap(),
            Asked::A
        ),
        many(3)
    );
}

#[test]
fn what_is_no_question_is_passed_on_or_answered_with_an_error() {
    assert!(matches!(
        read(&query("x.", RecordType::TXT, None), false),
        Incoming::Other
    ));
    let mut response = query("x.", RecordType::A, None);
    response[2] |= 0x80;
    assert!(
        matches!(read(&response, false), Incoming::Malformed(None)),
        "a response was answered"
    );
    assert!(matches!(read(&[1, 2, 3], false), Incoming::Malformed(None)));
    let mut cut = query("x.example.com.", RecordType::A, None);
    cut.truncate(20);
    let Incoming::Malformed(Some(reply)) = read(&cut, false) else {
        panic!("not malformed")
    };
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(
        (reply.metadata.id, reply.metadata.response_code),
        (0x1234, ResponseCode::FormErr)
    );
}

#[test]
fn no_bytes_crash_the_reader() {
    let good = query("cart.shop.svc.cluster.local.", RecordType::A, Some(1232));
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..200_000 {
        let mut bytes = good.clone();
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        bytes.truncate(rng.usize(..=bytes.len()));
        match read(&bytes, false) {
            Incoming::Question(q) => drop(q.reply(&many(3)).map(|r| assert!(r.len() <= LARGE))),
            Incoming::Other => {}
            Incoming::Malformed(reply) => assert!(reply.is_none_or(|r| r.len() == 12)),
        }
    }
}
