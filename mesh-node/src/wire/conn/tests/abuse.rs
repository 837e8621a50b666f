//! Every known way to abuse HTTP/2 ends the connection with the right code, in bounded memory.

use super::*;

/// Sends a greeting and then `frame(i)` for i = 0, 1, ... until the server gives up; it must do so with
/// `code` within `most` frames, keeping little. The peer reads nothing.
fn check(name: &str, code: Code, most: u32, frame: impl Fn(u32) -> Vec<u8>) {
    let mut server = Side::server();
    server.receive(&greeting()).unwrap();
    let limits = Limits::server();
    for i in 0..most {
        let result = server.receive(&frame(i));
        let kept = server.conn.out.used() + server.conn.out.waiting();
        assert!(
            kept <= CAPACITY + limits.control_queue + 4096,
            "{name}: {kept} bytes wait after {i} frames"
        );
        assert!(
            server.conn.entries() <= 2 * limits.streams as usize,
            "{name}: too many streams"
        );
        if let Err(error) = result {
            assert_eq!(error.code, code, "{name}: {error}");
            return;
        }
    }
    panic!("{name}: {most} frames were not too many");
}

fn headers(id: u32, flags: u8) -> Vec<u8> {
    frame_of(
        frame::HEADERS,
        frame::END_HEADERS | flags,
        id,
        &connect_block(),
    )
}

#[test]
fn floods_end_the_connection() {
    let calm = Code::ENHANCE_YOUR_CALM;
    let odd = |i: u32| 2 * i + 1;
    check("rapid reset", calm, 701, |i| {
        [
            headers(odd(i), 0),
            frame::number(frame::RST_STREAM, odd(i), 8).to_vec(),
        ]
        .concat()
    });
    check("made-you-reset: empty window updates", calm, 201, |i| {
        [
            headers(odd(i), 0),
            frame::number(frame::WINDOW_UPDATE, odd(i), 0).to_vec(),
        ]
        .concat()
    });
    check("made-you-reset: data after the end", calm, 201, |i| {
        [
            headers(odd(i), frame::END_STREAM),
            frame_of(frame::DATA, 0, odd(i), b"x"),
        ]
        .concat()
    });
    check("made-you-reset: malformed requests", calm, 201, |i| {
        frame_of(frame::HEADERS, frame::END_HEADERS, odd(i), &[0x88])
    });
    check("streams beyond the limit", calm, 401, |i| {
        headers(odd(i), 0)
    });
    check("pings", calm, 1001, |_| {
        frame_of(frame::PING, 0, 0, b"12345678")
    });
    check("settings", calm, 101, |_| {
        frame_of(frame::SETTINGS, 0, 0, &[])
    });
    check("large settings", calm, 101, |_| {
        frame_of(frame::SETTINGS, 0, 0, &[0, 9, 0, 0, 0, 0].repeat(2000))
    });
    check("window updates", calm, 10_001, |_| {
        frame::number(frame::WINDOW_UPDATE, 0, 1).to_vec()
    });
    check("priorities", calm, 5_001, |_| {
        frame_of(frame::PRIORITY, 0, 1, b"12345")
    });
    check("unknown frames", calm, 5_001, |_| {
        frame_of(0x77, 0, 0, b"anything")
    });
    check("goaways", calm, 101, |_| {
        frame_of(frame::GOAWAY, 0, 0, &[0; 8])
    });
    check("data without content", calm, 1_002, |i| match i {
        0 => headers(1, 0),
        _ => frame_of(frame::DATA, 0, 1, b""),
    });
    check("padding only", calm, 1_002, |i| match i {
        0 => headers(1, 0),
        _ => frame_of(frame::DATA, frame::PADDED, 1, b"\x03\0\0\0"),
    });
}

#[test]
fn header_blocks_are_bounded() {
    let calm = Code::ENHANCE_YOUR_CALM;
    let begin = frame_of(frame::HEADERS, 0, 1, &connect_block());
    check("empty continuations", calm, 18, |i| match i {
        0 => begin.clone(),
        _ => frame_of(frame::CONTINUATION, 0, 1, b""),
    });
    check("long continuations", calm, 6, |i| match i {
        0 => begin.clone(),
        _ => frame_of(frame::CONTINUATION, 0, 1, &[0; 16_000]),
    });
    check("a long block", calm, 1, |_| {
        frame::header(70_000, frame::HEADERS, 0, 1).to_vec()
    });
    let mut bomb = vec![0x40, 1, b'a', 0x7f, 0x81, 0x1e];
    bomb.extend(std::iter::repeat_n(b'v', 3968));
    bomb.extend(std::iter::repeat_n(0xbe, 50_000));
    check("a bomb", calm, 1, |_| {
        frame_of(frame::HEADERS, frame::END_HEADERS, 1, &bomb)
    });
    check("garbage", Code::COMPRESSION_ERROR, 1, |_| {
        frame_of(frame::HEADERS, frame::END_HEADERS, 1, &[0xff; 20])
    });
    check("interrupted", Code::PROTOCOL_ERROR, 2, |i| match i {
        0 => begin.clone(),
        _ => frame_of(frame::PING, 0, 0, &[0; 8]),
    });
    check("another stream's", Code::PROTOCOL_ERROR, 2, |i| match i {
        0 => begin.clone(),
        _ => frame_of(frame::CONTINUATION, 0, 3, &[]),
    });
}

#[test]
fn rules_of_the_protocol_are_kept() {
    let (protocol, size, flow) = (
        Code::PROTOCOL_ERROR,
        Code::FRAME_SIZE_ERROR,
        Code::FLOW_CONTROL_ERROR,
    );
    let once = |name, code, bytes: Vec<u8>| check(name, code, 1, |_| bytes.clone());
    once(
        "a window of 2^31",
        flow,
        frame::number(frame::WINDOW_UPDATE, 0, frame::MAX_WINDOW).to_vec(),
    );
    once(
        "a window update of nothing",
        protocol,
        frame::number(frame::WINDOW_UPDATE, 0, 0).to_vec(),
    );
    let window = [&[0, 4][..], &(1u32 << 31).to_be_bytes()].concat();
    once(
        "an initial window of 2^31",
        flow,
        frame_of(frame::SETTINGS, 0, 0, &window),
    );
    once(
        "a small maximal frame",
        protocol,
        frame_of(frame::SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]),
    );
    once(
        "push neither on nor off",
        protocol,
        frame_of(frame::SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]),
    );
    once(
        "an acknowledgement with content",
        size,
        frame_of(frame::SETTINGS, frame::ACK, 0, &[0; 6]),
    );
    once(
        "settings cut",
        size,
        frame_of(frame::SETTINGS, 0, 0, &[0; 5]),
    );
    once(
        "settings on a stream",
        protocol,
        frame_of(frame::SETTINGS, 0, 1, &[]),
    );
    once("a short ping", size, frame_of(frame::PING, 0, 0, &[0; 7]));
    once(
        "a ping on a stream",
        protocol,
        frame_of(frame::PING, 0, 1, &[0; 8]),
    );
    once(
        "a huge frame",
        size,
        frame::header((1 << 20) + 1, frame::DATA, 0, 1).to_vec(),
    );
    once("an even stream", protocol, headers(2, 0));
    once("headers on no stream", protocol, headers(0, 0));
    once(
        "a push",
        protocol,
        frame_of(frame::PUSH_PROMISE, 0, 1, &[0; 4]),
    );
    once(
        "data on an idle stream",
        protocol,
        frame_of(frame::DATA, 0, 1, b"x"),
    );
    once(
        "a reset of an idle stream",
        protocol,
        frame::number(frame::RST_STREAM, 1, 0).to_vec(),
    );
    once(
        "a continuation of nothing",
        protocol,
        frame_of(frame::CONTINUATION, 0, 1, &[]),
    );
    once(
        "too much padding",
        protocol,
        [
            headers(1, 0),
            frame_of(frame::DATA, frame::PADDED, 1, b"\x09x"),
        ]
        .concat(),
    );
    once(
        "padding without length",
        size,
        [headers(1, 0), frame_of(frame::DATA, frame::PADDED, 1, b"")].concat(),
    );
}

#[test]
fn a_greeting_is_demanded() {
    let check = |bytes: &[u8]| {
        let error = Side::server().receive(bytes).unwrap_err();
        assert_eq!(error.code, Code::PROTOCOL_ERROR);
    };
    check(b"GET / HTTP/1.1\r\n\r\n");
    check(
        &[
            frame::PREFACE.as_slice(),
            &frame_of(frame::PING, 0, 0, &[0; 8]),
        ]
        .concat(),
    );
    check(
        &[
            frame::PREFACE.as_slice(),
            &frame_of(frame::SETTINGS, frame::ACK, 0, &[]),
        ]
        .concat(),
    );
}

#[test]
fn a_stream_that_breaks_a_rule_ends_alone() {
    let check = |frames: Vec<u8>, expect: &str| {
        let mut server = Side::server();
        server.receive(&greeting()).unwrap();
        server
            .receive(&[headers(1, 0), headers(3, 0), frames].concat())
            .unwrap();
        let seen = server.seen();
        assert_eq!(seen.last().map(String::as_str), Some(expect));
        assert_eq!(server.conn.open_streams(), 1);
    };
    check(
        frame::number(frame::WINDOW_UPDATE, 1, frame::MAX_WINDOW).to_vec(),
        "1 reset FLOW_CONTROL_ERROR",
    );
    check(
        frame::number(frame::WINDOW_UPDATE, 1, 0).to_vec(),
        "1 reset PROTOCOL_ERROR",
    );
    check(headers(1, 0), "1 reset PROTOCOL_ERROR");
    let over: Vec<u8> = (0..257)
        .flat_map(|_| frame_of(frame::DATA, 0, 1, &[0; 16_384]))
        .collect();
    check(over, "1 reset FLOW_CONTROL_ERROR");
}

#[test]
fn a_hostile_server_is_contained() {
    let mut client = Side::new(Role::Client, Limits::client());
    client
        .receive(&frame_of(frame::SETTINGS, 0, 0, &[]))
        .unwrap();
    let ids: Vec<u32> = (0..3)
        .map(|_| client.conn.connect("10.0.0.1:80", &Headers::new(), ()))
        .collect();
    // GOAWAY for the first stream only, then a limit of no streams.
    let mut away = 1u32.to_be_bytes().to_vec();
    away.extend(0u32.to_be_bytes());
    client
        .receive(&frame_of(frame::GOAWAY, 0, 0, &away))
        .unwrap();
    client
        .receive(&frame_of(frame::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]))
        .unwrap();
    let mut seen = client.seen();
    seen.sort();
    assert_eq!(
        seen,
        [
            "3 reset REFUSED_STREAM",
            "5 reset REFUSED_STREAM",
            "away NO_ERROR"
        ]
    );
    assert_eq!((client.conn.capacity(), client.conn.open_streams()), (0, 1));
    client
        .receive(&frame_of(
            frame::HEADERS,
            frame::END_HEADERS,
            ids[0],
            &[0x88],
        ))
        .unwrap();
    assert_eq!(client.seen(), ["1 got 200"]);
    let own = client.receive(&frame_of(frame::HEADERS, frame::END_HEADERS, 2, &[0x88]));
    assert_eq!(own.unwrap_err().code, Code::PROTOCOL_ERROR);
}
