//! The codec against itself, against frames written by hand, against abuse and against noise.

use std::ops::Range;

use super::*;
use crate::wire::out::{CAPACITY, Protect};

/// One side, with everything that happened to it.
pub(super) struct Side {
    pub conn: Conn<()>,
    pub seen: Vec<String>,
    pub data: Vec<u8>,
    now: Instant,
}

impl Side {
    pub fn new(role: Role, limits: Limits) -> Self {
        let now = Instant::now();
        let conn = Conn::new(role, limits, Outgoing::new(Protect::Plain), now);
        Self {
            conn,
            seen: Vec::new(),
            data: Vec::new(),
            now,
        }
    }

    pub fn server() -> Self {
        Self::new(Role::Server, Limits::server())
    }

    /// What it wants to send.
    pub fn sent(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let bytes = self.conn.out.sendable().to_vec();
            if bytes.is_empty() {
                return all;
            }
            self.conn.out.sent(bytes.len());
            all.extend(bytes);
        }
    }

    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), ConnError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut events = Vec::new();
        let result = self
            .conn
            .receive(self.now, bytes, 0..bytes.len(), &mut events);
        for event in events {
            self.seen.push(match event {
                Event::Data { start, end, .. } => {
                    self.data.extend(&bytes[Range { start, end }]);
                    continue;
                }
                Event::Request { id, request } => format!("{id} asks for {}", request.authority),
                Event::Response { id, response } => format!("{id} got {}", response.status),
                Event::End { id } => format!("{id} ended"),
                Event::Reset { id, code } => format!("{id} reset {code:?}"),
                Event::Window { id } => format!("{id} window"),
                Event::Windows => continue,
                Event::Pong => "pong".into(),
                Event::GoAway { code } => format!("away {code:?}"),
            });
        }
        result
    }

    pub fn seen(&mut self) -> Vec<String> {
        std::mem::take(&mut self.seen)
    }

    fn send(&mut self, id: u32, data: &[u8]) -> usize {
        let fill = self.conn.fill(id, data.len(), |slices| {
            let mut at = 0;
            for slice in slices {
                let n = slice.len().min(data.len() - at);
                slice[..n].copy_from_slice(&data[at..at + n]);
                at += n;
            }
            Ok(at)
        });
        match fill {
            Fill::Taken(n) => n,
            Fill::NoWindow | Fill::NoRoom | Fill::Closed => 0,
            Fill::Failed(e) => panic!("{e}"),
        }
    }
}

/// Lets both sides talk until they are silent.
fn talk(a: &mut Side, b: &mut Side) {
    loop {
        let (to_b, to_a) = (a.sent(), b.sent());
        if to_a.is_empty() && to_b.is_empty() {
            return;
        }
        a.receive(&to_a).unwrap();
        b.receive(&to_b).unwrap();
    }
}

fn pair() -> (Side, Side) {
    let (mut client, mut server) = (Side::new(Role::Client, Limits::client()), Side::server());
    talk(&mut client, &mut server);
    (client, server)
}

/// A stream that was answered.
fn open(client: &mut Side, server: &mut Side) -> u32 {
    let id = client.conn.connect("10.0.0.1:80", &Headers::new(), ());
    talk(client, server);
    server.conn.respond(id, 200, &Headers::new(), false);
    talk(client, server);
    client.seen();
    server.seen();
    id
}

pub(super) fn frame_of(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = frame::header(payload.len(), kind, flags, id).to_vec();
    out.extend(payload);
    out
}

pub(super) fn connect_block() -> Vec<u8> {
    let mut block = Vec::new();
    hpack::encode_connect("10.0.0.1:80", &mut block);
    block
}

/// The preface and empty settings.
pub(super) fn greeting() -> Vec<u8> {
    [
        frame::PREFACE.as_slice(),
        &frame_of(frame::SETTINGS, 0, 0, &[]),
    ]
    .concat()
}

#[test]
fn a_stream_lives_from_request_to_both_ends() {
    let (mut client, mut server) = pair();
    let headers = Headers::new().with("baggage", "k8s.pod.name=a");
    let id = client.conn.connect("[fd00::1]:8080", &headers, ());
    assert_eq!(
        client.send(id, b"too early"),
        0,
        "nothing may be sent before the answer"
    );
    talk(&mut client, &mut server);
    assert_eq!(server.seen(), ["1 asks for [fd00::1]:8080"]);
    assert_eq!(server.send(id, b"too early"), 0);
    server.conn.respond(id, 200, &Headers::new(), false);
    talk(&mut client, &mut server);
    assert_eq!(client.seen(), ["1 got 200"]);
    assert_eq!(client.send(id, b"hello"), 5);
    client.conn.finish(id);
    talk(&mut client, &mut server);
    assert_eq!(
        (server.seen(), server.data.as_slice()),
        (vec!["1 ended".to_string()], b"hello".as_slice())
    );
    assert_eq!(server.send(id, b"world"), 5);
    server.conn.finish(id);
    talk(&mut client, &mut server);
    assert_eq!(
        (client.seen(), client.data.as_slice()),
        (vec!["1 ended".to_string()], b"world".as_slice())
    );
    assert_eq!(
        (client.conn.open_streams(), server.conn.open_streams()),
        (0, 0)
    );
}

#[test]
fn bytes_may_be_cut_anywhere() {
    let (mut client, mut whole) = (Side::new(Role::Client, Limits::client()), Side::server());
    let headers = Headers::new().with("baggage", "x".repeat(40_000));
    let id = client.conn.connect("10.0.0.1:80", &headers, ());
    let mut bytes = client.sent();
    bytes.extend(frame_of(frame::DATA, frame::PADDED, id, b"\x03data\0\0\0"));
    bytes.extend(frame_of(0xee, 0, 7, b"unknown"));
    bytes.extend(frame_of(frame::PRIORITY, 0, id, b"12345"));
    bytes.extend(frame_of(frame::DATA, frame::END_STREAM, id, b"more"));
    bytes.extend(frame_of(frame::RST_STREAM, 0, id, &[0, 0, 0, 10]));
    whole.receive(&bytes).unwrap();
    let expect = (whole.seen(), whole.data.clone(), whole.sent());
    assert_eq!(
        expect.0,
        ["1 asks for 10.0.0.1:80", "1 ended", "1 reset CONNECT_ERROR"]
    );
    assert_eq!(expect.1, b"datamore");
    for size in [1, 2, 3, 7, 8, 9, 10, 1000] {
        let mut cut = Side::server();
        bytes
            .chunks(size)
            .for_each(|part| cut.receive(part).unwrap());
        assert_eq!(
            (cut.seen(), cut.data.clone(), cut.sent()),
            expect,
            "in pieces of {size}"
        );
    }
}

#[test]
fn content_before_the_answer_is_never_delivered() {
    let mut client = Side::new(Role::Client, Limits::client());
    client
        .receive(&frame_of(frame::SETTINGS, 0, 0, &[]))
        .unwrap();
    let id = client.conn.connect("10.0.0.1:80", &Headers::new(), ());
    client
        .receive(&frame_of(frame::DATA, 0, id, b"smuggled"))
        .unwrap();
    assert_eq!(client.seen(), ["1 reset PROTOCOL_ERROR"]);
    assert!(client.data.is_empty());
}

#[test]
fn windows_stop_the_sender_and_may_shrink_below_zero() {
    let (mut client, mut server) = pair();
    let id = open(&mut client, &mut server);
    let big = vec![1; 100_000];
    let mut sent = 0;
    while let n @ 1.. = client.send(id, &big) {
        sent += n;
        talk(&mut client, &mut server);
    }
    assert_eq!(sent, 4 << 20, "the stream's window");
    let other = open(&mut client, &mut server);
    assert!(
        client.send(other, b"x") == 1,
        "the connection's window is credited when received"
    );
    server.conn.drained(id, 1 << 20);
    talk(&mut client, &mut server);
    assert_eq!(client.seen(), [format!("{id} window")]);
    // The peer takes three of its four megabytes back: the window is below zero until it gives more.
    let shrink = [&[0, 4][..], &(1u32 << 20).to_be_bytes()].concat();
    client
        .receive(&frame_of(frame::SETTINGS, 0, 0, &shrink))
        .unwrap();
    assert_eq!(client.send(id, &big), 0);
    client
        .receive(&frame::number(frame::WINDOW_UPDATE, id, 2 << 20))
        .unwrap();
    assert_eq!(client.send(id, &big), 0, "exactly at zero");
    client
        .receive(&frame::number(frame::WINDOW_UPDATE, id, 10))
        .unwrap();
    assert_eq!(client.send(id, &big), 10);
}

#[test]
fn streams_beyond_the_limit_are_refused_and_the_client_knows_its_own() {
    let (mut client, mut server) = pair();
    for _ in 0..100 {
        assert!(client.conn.capacity() > 0);
        client.conn.connect("10.0.0.1:80", &Headers::new(), ());
    }
    assert_eq!(client.conn.capacity(), 0);
    talk(&mut client, &mut server);
    let mut id = 201;
    for _ in 0..101 {
        server
            .receive(&frame_of(
                frame::HEADERS,
                frame::END_HEADERS,
                id,
                &connect_block(),
            ))
            .unwrap();
        id += 2;
    }
    assert_eq!(server.conn.open_streams(), 200);
    let refused = frame::number(frame::RST_STREAM, 401, Code::REFUSED_STREAM.0);
    assert_eq!(server.sent(), refused);
}

#[test]
fn draining_tells_the_peer_first_and_refuses_later() {
    let (mut client, mut server) = pair();
    let id = open(&mut client, &mut server);
    server.conn.drain();
    assert!(
        !server.conn.is_finished(),
        "streams under way may still arrive"
    );
    talk(&mut client, &mut server);
    assert_eq!(
        (client.conn.capacity(), server.conn.is_finished()),
        (0, true)
    );
    assert_eq!(client.seen(), ["away NO_ERROR", "away NO_ERROR"]);
    assert_eq!(client.send(id, b"goes on"), 7);
    talk(&mut client, &mut server);
    assert_eq!(server.data, b"goes on");
    server
        .receive(&frame_of(
            frame::HEADERS,
            frame::END_HEADERS,
            id + 2,
            &connect_block(),
        ))
        .unwrap();
    assert_eq!(
        server.conn.entries(),
        1,
        "a stream behind GOAWAY does not exist"
    );
}

#[test]
fn what_is_not_a_connect_is_answered_without_the_owner() {
    let mut server = Side::server();
    server.receive(&greeting()).unwrap();
    server.sent();
    // GET / over http, by the static table.
    let get = [0x82, 0x84, 0x86, 0x41, 1, b'a'];
    server
        .receive(&frame_of(
            frame::HEADERS,
            frame::END_HEADERS | frame::END_STREAM,
            1,
            &get,
        ))
        .unwrap();
    let answer = frame_of(
        frame::HEADERS,
        frame::END_HEADERS | frame::END_STREAM,
        1,
        &[0x20, 8, 3, b'4', b'0', b'0'],
    );
    assert_eq!(server.sent(), answer);
    assert_eq!((server.seen(), server.conn.entries()), (vec![], 0));
}

mod abuse;
mod noise;
