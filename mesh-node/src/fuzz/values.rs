//! Values that peers and clients bring in headers, and the frames of gRPC: small parsers, what is read by which is
//! written again, or read in another way, and compared.
//!
//! Invariant: no input may make a session last longer than its rule says.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, header::COOKIE};
use mesh_model::{
    name::{Identity, NodeIdentity, WorkloadUid},
    resilience::{Affinity, AffinityKey, HashTable, Session, session_of},
};

use super::texts;
use crate::{
    accept::{authority, origin},
    exchange::{Messages, patience},
    observe::{Decision, decide},
    wire::Headers,
};

/// What is an address says the same when it is written again.
pub(super) fn authority_(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Some(address) = authority::parse(text) {
        assert_eq!(authority::parse(&address.to_string()), Some(address));
    }
}

pub(super) fn authority_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "10.0.0.1:80",
        "[fd00::5]:15008",
        "[::ffff:10.0.0.1]:1",
        "db.shop:80",
        "[fe80::1%eth0]:1",
    ])
}

/// Lines of `name: value`, as headers.
fn lines(input: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    let text = std::str::from_utf8(input).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(": "))
        .take(32)
}

pub(super) fn origin_(input: &[u8]) {
    let mut headers = Headers::new();
    for (name, value) in lines(input) {
        headers.push(name, value);
    }
    if let Ok(Some(named)) = origin::origin(&headers) {
        // Who says who the client is says one, and where.
        assert_eq!(headers.all(origin::SOURCE_HEADER).count(), 1);
        assert_eq!(origin::client(&headers), Some(named.address));
    }
}

pub(super) fn origin_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "forwarded: for=\"10.0.0.1:80\"\nx-warren-source: spiffe://cluster.local/ns/shop/sa/client",
        "forwarded: for=\"[fd00::1]:80\";host=db.shop;proto=http",
        "x-warren-source: spiffe://a/ns/b/sa/c\nx-warren-source: spiffe://a/ns/b/sa/c",
    ])
}

/// What goes on is read again as what was decided.
pub(super) fn trace_context(input: &[u8]) {
    let mut headers = HeaderMap::new();
    for (name, value) in lines(input) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    }
    for sampled in [true, false] {
        let mut headers = headers.clone();
        let (Decision::Traced(mark) | Decision::Silent(mark)) = decide(&headers, || sampled, || 77)
        else {
            continue;
        };
        mark.put(&mut headers);
        match decide(&headers, || !mark.sampled, || 78) {
            Decision::Traced(next) => {
                assert!(mark.sampled);
                assert_eq!((next.trace, next.parent), (mark.trace, mark.span));
            }
            Decision::Leave => assert!(!mark.sampled),
            Decision::Silent(_) => panic!("{headers:?} is no context"),
        }
    }
}

pub(super) fn trace_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\ntracestate: a=1,b=2",
        "b3: a3ce929d0e0e4736-00f067aa0ba902b7-d-00f067aa0ba902b8",
        "b3: 0",
        "x-b3-traceid: 4bf92f3577b34da6a3ce929d0e0e4736\nx-b3-spanid: 00f067aa0ba902b7\nx-b3-parentspanid: 00f067aa0ba902b8\nx-b3-sampled: 1",
        "x-b3-flags: 1\nx-b3-sampled: true",
    ])
}

/// A body that comes in pieces has as many messages as when it is read at once.
pub(super) fn messages(input: &[u8]) {
    let Some((cut, body)) = input.split_first() else {
        return;
    };
    let mut pieces = Messages::default();
    let cut = usize::from(*cut).max(1);
    body.chunks(cut).for_each(|piece| pieces.read(piece));
    let (mut rest, mut whole) = (body, 0);
    while let Some((&[_, a, b, c, d], more)) = rest.split_first_chunk() {
        let length = u32::from_be_bytes([a, b, c, d]);
        let Some(more) = more.get(length as usize..) else {
            break;
        };
        (rest, whole) = (more, whole + 1);
    }
    assert_eq!(pieces.whole(), whole, "in pieces of {cut}");
}

pub(super) fn message_seeds() -> Vec<Vec<u8>> {
    [1, 3, 255]
        .map(|cut| {
            let mut body = vec![cut];
            for length in [0u8, 3, 0, 40, 1] {
                body.extend([0, 0, 0, 0, length]);
                body.extend(vec![7; usize::from(length)]);
            }
            body
        })
        .to_vec()
}

/// Digits and a unit are as long as they say; nothing else is.
pub(super) fn timeout(input: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(input) else {
        return;
    };
    let headers = HeaderMap::from_iter([(HeaderName::from_static("grpc-timeout"), value)]);
    let expect = input.split_last().and_then(|(unit, digits)| {
        let unit = match unit {
            b'H' => 3_600_000_000_000,
            b'M' => 60_000_000_000,
            b'S' => 1_000_000_000,
            b'm' => 1_000_000,
            b'u' => 1_000,
            b'n' => 1,
            _ => return None,
        };
        let good = (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
        let value = |n: u128, digit: &u8| n * 10 + u128::from(digit - b'0');
        good.then(|| digits.iter().fold(0, value) * unit)
    });
    assert_eq!(patience(&headers).map(|time| time.as_nanos()), expect);
}

pub(super) fn timeout_seeds() -> Vec<Vec<u8>> {
    texts(&["99999999H", "1M", "30S", "200m", "5u", "0n", "123456789S"])
}

/// What a client brings is a session for as long as its rule says at most, and what it is given is one.
pub(super) fn session(input: &[u8]) {
    const BOUND: Duration = Duration::from_secs(60);
    /// How far another proxy's clock may be ahead.
    const AHEAD: Duration = Duration::from_secs(60);
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    let bound = |bit| (kind & bit != 0).then_some(BOUND);
    let key = match kind & 1 {
        0 => AffinityKey::Header(HeaderName::from_static("x-session")),
        _ => AffinityKey::Cookie {
            name: "session".into(),
            path: "/".into(),
            ttl: Some(bound(8).unwrap_or_default()),
            attributes: Box::default(),
        },
    };
    let session = Session {
        key: key.clone(),
        absolute: bound(2),
        idle: bound(4),
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let headers: HeaderMap = lines_of_bytes(rest).collect();
    let held = session.held(&headers, now);
    let is_timed = kind & 6 != 0;
    let ends = |headers: &HeaderMap| {
        let later = now + BOUND + AHEAD + Duration::from_secs(1);
        assert_eq!(is_timed, session.held(headers, later).is_none());
    };
    if held.is_some() {
        ends(&headers);
    }
    let endpoint = WorkloadUid::from("Kubernetes//Pod/shop/db");
    match session.given(&endpoint, held, now) {
        None => assert_eq!(held.map(|held| held.endpoint), Some(session_of(&endpoint))),
        Some((_, value)) => {
            let next = brought(&key, &value);
            let again = session.held(&next, now).map(|held| held.endpoint);
            assert_eq!(again, Some(session_of(&endpoint)), "{value:?}");
            ends(&next);
        }
    }
    // The same key as a consistent hash: a cookie that is made has the hash that it is said to have.
    let affinity = Affinity {
        key: key.clone(),
        table: HashTable::Ring(1),
    };
    let client = [10, 0, 0, 1].into();
    let hash = affinity.hash(&headers, None, client);
    if let Some((made, text)) = affinity.new_cookie(hash.unwrap_or(7)) {
        let value = HeaderValue::try_from(text).unwrap_or_else(|e| panic!("no value: {e}"));
        let next = brought(&key, &value);
        assert_eq!(affinity.hash(&next, None, client), Some(made), "{value:?}");
    }
}

/// Lines of `name: value`, whose values need be no text.
fn lines_of_bytes(input: &[u8]) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let lines = input.split(|b| *b == b'\n').take(32);
    lines.filter_map(|line| {
        let at = line.windows(2).position(|two| two == b": ")?;
        let name = HeaderName::from_bytes(&line[..at]).ok()?;
        Some((name, HeaderValue::from_bytes(&line[at + 2..]).ok()?))
    })
}

/// What a client that was given this brings with its next request.
fn brought(key: &AffinityKey, given: &HeaderValue) -> HeaderMap {
    let name = match key {
        AffinityKey::Header(name) => name.clone(),
        _ => COOKIE,
    };
    let given = given.as_bytes();
    let value = given.split(|b| *b == b';').next().unwrap_or_default();
    let value = HeaderValue::from_bytes(value).unwrap_or_else(|e| panic!("{given:?}: {e}"));
    HeaderMap::from_iter([(name, value)])
}

pub(super) fn session_seeds() -> Vec<Vec<u8>> {
    let own = session_of(&WorkloadUid::from("Kubernetes//Pod/shop/db"));
    // 1,700,000,000 seconds, in milliseconds.
    let time = "018bcfe56800";
    let values = [
        format!("{own:016x}"),
        format!("{own:016x}{time}{time}"),
        format!("0123456789abcdef{time}{time}"),
    ];
    let mut all = Vec::new();
    for kind in 0..16u8 {
        for value in &values {
            let text = match kind & 1 {
                0 => format!("x-session: {value}"),
                _ => format!("cookie: a=b; session=\"{value}\"; c\ncookie: session={value}"),
            };
            all.push([&[kind], text.as_bytes()].concat());
        }
    }
    all
}

/// A text is somebody's in one way at most, and is what is written of who it is; what is said of another one can be shown.
pub(super) fn identity(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let harmless = |said: String| {
        assert!(!said.contains(char::is_control), "{said:?}");
    };
    let (workload, node) = (text.parse::<Identity>(), text.parse::<NodeIdentity>());
    assert!(workload.is_err() || node.is_err(), "{text:?} is both");
    match workload {
        Ok(identity) => assert_eq!(identity.to_string(), text),
        Err(error) => harmless(error.to_string()),
    }
    match node {
        Ok(identity) => assert_eq!(identity.to_string(), text),
        Err(error) => harmless(error.to_string()),
    }
}

pub(super) fn identity_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "spiffe://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/warren/node/n1",
        "spiffe://a/ns/warren/sa/node",
        "spiffe://a/warren/node/../sa/b",
        "spiffe://a/ns/%2e/sa/b\0",
    ])
}

/// Where a connection arrived is said once, and is the same when it is written again.
pub(super) fn return_to(input: &[u8]) {
    let mut headers = Headers::new();
    for (name, value) in lines(input) {
        headers.push(name, value);
    }
    let said = headers.all(origin::RETURN_HEADER).count();
    match origin::return_to(&headers) {
        Ok(Some(address)) => {
            assert_eq!(said, 1);
            let written = address.to_string();
            assert_eq!(authority::parse(&written), Some(address));
            let again = Headers::new().with(origin::RETURN_HEADER, &*written);
            assert_eq!(origin::return_to(&again), Ok(Some(address)));
        }
        // Nothing is nothing only where nothing was said.
        Ok(None) => assert_eq!(said, 0),
        Err(origin::Unreadable) => assert!(said > 0),
    }
}

pub(super) fn return_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "x-warren-return-to: 10.0.0.1:8080",
        "x-warren-return-to: [fd00::1]:8080\nforwarded: for=\"10.0.0.2:80\"",
        "x-warren-return-to: [::ffff:10.0.0.1]:1",
        "x-warren-return-to: 10.0.0.1:80\nx-warren-return-to: 10.0.0.1:80",
    ])
}
