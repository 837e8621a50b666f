//! The node's parsers, each as a function that takes whatever comes (`mesh_model::testing::noise`).
//!
//! Invariant: what it asserts is what whoever uses the parser relies on, so that a fuzzer finds more than panics.

use std::{net::IpAddr, time::Instant};

use bytes::Bytes;
use mesh_api::{
    convert::{decode, encode},
    resource::{Kind, Update},
};
use mesh_cni::{
    call::{Command, Configuration, versions},
    conflist, network,
};
use mesh_model::{
    mesh::{Change, MtlsMode},
    route::http::path,
    testing::{cast, noise::Target},
};

use crate::{
    capture::registration,
    dns::message::{self, Incoming},
    exchange::{server_name, spoken},
    wire::{
        Headers, Limits,
        conn::{Conn, Event, Role},
        frame, hpack,
        out::{CAPACITY, Outgoing, Protect},
    },
};

mod values;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "hbone-server",
        run: hbone_server,
        seeds: hbone_seeds,
    },
    Target {
        name: "hbone-client",
        run: hbone_client,
        seeds: hbone_seeds,
    },
    Target {
        name: "hpack",
        run: hpack,
        seeds: hpack_seeds,
    },
    Target {
        name: "dns",
        run: dns,
        seeds: dns_seeds,
    },
    Target {
        name: "sniff",
        run: sniff,
        seeds: sniff_seeds,
    },
    Target {
        name: "authority",
        run: values::authority_,
        seeds: values::authority_seeds,
    },
    Target {
        name: "origin",
        run: values::origin_,
        seeds: values::origin_seeds,
    },
    Target {
        name: "trace-context",
        run: values::trace_context,
        seeds: values::trace_seeds,
    },
    Target {
        name: "path",
        run: path_,
        seeds: path_seeds,
    },
    Target {
        name: "registration",
        run: registration_,
        seeds: registration_seeds,
    },
    Target {
        name: "cni",
        run: cni,
        seeds: cni_seeds,
    },
    Target {
        name: "xds",
        run: xds,
        seeds: xds_seeds,
    },
    Target {
        name: "grpc-messages",
        run: values::messages,
        seeds: values::message_seeds,
    },
    Target {
        name: "grpc-timeout",
        run: values::timeout,
        seeds: values::timeout_seeds,
    },
    Target {
        name: "session",
        run: values::session,
        seeds: values::session_seeds,
    },
    Target {
        name: "identity",
        run: values::identity,
        seeds: values::identity_seeds,
    },
    Target {
        name: "return-to",
        run: values::return_to,
        seeds: values::return_seeds,
    },
];

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// A connection that keeps within its bounds, however its bytes are cut.
fn hbone(role: Role, input: &[u8]) {
    let now = Instant::now();
    let out = Outgoing::new(Protect::Plain);
    let mut conn: Conn<()> = Conn::new(role, Limits::server(), out, now);
    let (cut, mut rest) = match input.split_first() {
        Some((cut, rest)) => (usize::from(*cut).max(1) * 16, rest),
        None => return,
    };
    let mut events = Vec::new();
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(cut.min(rest.len()));
        let done = conn.receive(now, piece, 0..piece.len(), &mut events);
        for event in events.drain(..) {
            match event {
                Event::Request { id, .. } => conn.respond(id, 200, &Headers::new(), id % 8 == 1),
                Event::Data { id, start, end } => {
                    assert!(start <= end && end <= piece.len());
                    conn.drained(id, end - start);
                }
                Event::End { id } => conn.finish(id),
                _ => {}
            }
        }
        assert!(conn.open_streams() <= conn.entries() && conn.entries() <= 400);
        assert!(conn.out.used() + conn.out.waiting() <= CAPACITY + (70 << 10));
        if done.is_err() {
            return;
        }
        rest = later;
    }
}

fn hbone_server(input: &[u8]) {
    hbone(Role::Server, input);
}

fn hbone_client(input: &[u8]) {
    hbone(Role::Client, input);
}

fn hbone_seeds() -> Vec<Vec<u8>> {
    let frame_of = |kind, flags, id, payload: &[u8]| {
        let mut all = frame::header(payload.len(), kind, flags, id).to_vec();
        all.extend_from_slice(payload);
        all
    };
    let mut block = Vec::new();
    hpack::encode_connect("10.0.0.1:80", &mut block);
    hpack::encode_field("forwarded", "for=\"10.0.0.2:80\"", &mut block);
    let mut talk = vec![255];
    talk.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    talk.extend(frame_of(frame::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]));
    let mut answered = vec![255];
    answered.extend(frame_of(frame::SETTINGS, 0, 0, &[]));
    for id in [1, 3] {
        talk.extend(frame_of(frame::HEADERS, frame::END_HEADERS, id, &block));
        talk.extend(frame_of(frame::DATA, 0, id, &[7; 40]));
        talk.extend(frame::number(frame::WINDOW_UPDATE, id, 1000));
        talk.extend(frame_of(frame::PING, 0, 0, &[1; 8]));
        talk.extend(frame_of(frame::DATA, frame::END_STREAM, id, b""));
        talk.extend(frame::number(frame::RST_STREAM, id, 8));
        let mut status = Vec::new();
        hpack::encode_status(200, &mut status);
        answered.extend(frame_of(frame::HEADERS, frame::END_HEADERS, id, &status));
    }
    vec![talk, answered]
}

/// A header block, read twice by one decoder: what the first leaves in the table is bounded.
fn hpack(input: &[u8]) {
    const LIMIT: usize = 16 << 10;
    let mut decoder = hpack::Decoder::default();
    for _ in 0..2 {
        let mut total = 0;
        let done = decoder.decode(input, LIMIT, |name, value| {
            total += name.len() + value.len()
        });
        assert!(total <= LIMIT);
        if done.is_err() {
            return;
        }
    }
}

fn hpack_seeds() -> Vec<Vec<u8>> {
    let mut block = Vec::new();
    hpack::encode_connect("10.0.0.1:80", &mut block);
    hpack::encode_field("x-own", "a value", &mut block);
    // RFC 7541, C.3.1 and C.4.1.
    let plain = b"\x82\x86\x84\x41\x0fwww.example.com".to_vec();
    let huffman = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff".to_vec();
    vec![block, plain, huffman]
}

/// A query and what is answered to it, and a packet as a resolver's answer.
fn dns(input: &[u8]) {
    use hickory_proto::op::ResponseCode;
    let addresses: [IpAddr; 2] = [
        [10, 0, 0, 1].into(),
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 5u16]),
    ];
    for stream in [false, true] {
        let Incoming::Question(question) = message::read(input, stream) else {
            continue;
        };
        let room = if stream { usize::from(u16::MAX) } else { 4096 };
        let replies = [
            question.reply(&addresses),
            question.reply(&addresses.repeat(100)),
            question.reply_alias("db.shop.svc.cluster.local", &addresses),
            question.fail(ResponseCode::NXDomain),
            question.about("db.shop.svc.cluster.local", 7),
        ];
        for reply in replies.into_iter().flatten() {
            assert!(reply.len() <= room, "{} bytes", reply.len());
        }
        message::addresses_in(input, question.asked);
    }
    if let Some(reply) = message::header_only(input, ResponseCode::ServFail) {
        assert_eq!((reply.len(), &reply[..2]), (12, &input[..2]));
    }
}

fn dns_seeds() -> Vec<Vec<u8>> {
    let query = |kind: u8, edns: &[u8]| {
        let mut packet = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00".to_vec();
        packet.push(u8::from(!edns.is_empty()));
        packet.extend_from_slice(b"\x02db\x04shop\x00\x00");
        packet.extend_from_slice(&[kind, 0, 1]);
        packet.extend_from_slice(edns);
        packet
    };
    let mut answer =
        b"\x12\x34\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\x02db\x04shop\x00\x00\x01\x00\x01"
            .to_vec();
    answer.extend_from_slice(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x1e\x00\x04\x0a\x00\x00\x01");
    vec![
        query(1, b""),
        query(28, b"\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00"),
        answer,
    ]
}

/// What is known once does not change when more comes, and something is known in the end.
fn sniff(input: &[u8]) {
    let (mut known, mut named) = (None, None);
    for end in 0..=input.len().min(2048) {
        let now = spoken(&input[..end]);
        assert!(known.is_none() || now == known, "{known:?}, then {now:?}");
        known = now;
        let now = server_name(&input[..end]);
        assert!(named.is_none() || now == named, "{named:?}, then {now:?}");
        named = now;
    }
    if let Some(Some(name)) = named {
        assert!(name.len() <= 1024, "{} bytes", name.len());
    }
}

fn sniff_seeds() -> Vec<Vec<u8>> {
    let mut all = texts(&[
        "GET /a HTTP/1.1\r\nhost: a\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "SSH-2.0-x\r\n",
        "OPTIONS * HTTP/1.0\r\n",
    ]);
    // A ClientHello with one extension, the name `db.shop`.
    let name = b"db.shop";
    let mut list = vec![0];
    list.extend_from_slice(&(name.len() as u16).to_be_bytes());
    list.extend_from_slice(name);
    let counted = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let extension = [&[0, 0][..], &counted(&counted(&list))].concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &counted(&[0x13, 1]),
        &[1, 0],
        &counted(&extension),
    ]
    .concat();
    let hello = [&[1, 0][..], &counted(&body)].concat();
    all.push([&[22, 3, 1][..], &counted(&hello)].concat());
    all
}

/// One form, that no server reads as going up.
fn path_(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(once) = path::normalise(text) else {
        return;
    };
    assert_eq!(path::normalise(&once).as_deref(), Ok(&*once), "{text:?}");
    let mut segments = once.split('/');
    assert!(
        segments.all(|s| s != ".." && s != "."),
        "{text:?} became {once:?}"
    );
}

fn path_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "/",
        "/a/../b",
        "/a//b/./c",
        "/%61/%2e%2E/b",
        "/a%2fb",
        "/a%5cb",
        "*",
        "/a;x/..;/b",
        "/%zz",
        "/a\\b",
    ])
}

/// What is understood is within its bounds, and is understood again when it is written.
fn registration_(input: &[u8]) {
    let Ok(request) = registration::parse(input) else {
        return;
    };
    if let registration::Request::Add { pod, timeout_ms } = request {
        registration::patience(timeout_ms);
        let again = serde_json::to_value(&pod).map(|pod| {
            serde_json::json!({"op": "add", "pod": pod, "timeoutMs": timeout_ms}).to_string()
        });
        let again = again.unwrap_or_else(|e| panic!("{pod:?}: {e}"));
        registration::parse(again.as_bytes()).unwrap_or_else(|e| panic!("{again}: {e}"));
    }
}

fn registration_seeds() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"op":"add","pod":{"uid":"u-1","namespace":"shop","name":"web-1","serviceAccount":"web","addresses":["10.1.1.5","fd00::5"],"vethIfindex":7,"cgroup":"/sys/fs/cgroup/podu-1","probePorts":[8080]},"timeoutMs":10000}"#,
        r#"{"op":"del","uid":"u-1"}"#,
        r#"{"op":"list","after":"u-1"}"#,
    ])
}

/// A runtime's configuration on standard input, and as a file.
fn cni(input: &[u8]) {
    versions(input);
    for command in ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"] {
        if let Some(command) = Command::named(command)
            && let Ok(call) = Configuration::read(input, command)
        {
            call.patience();
            assert!(!call.version().is_empty());
        }
    }
    let Ok(value) = serde_json::from_slice(input) else {
        return;
    };
    network::addresses(&value);
    let plugin = serde_json::json!({"type": "warren-cni", "socket": "/run/pods.sock"});
    let list = match conflist::from_single(&value) {
        Ok(list) => list,
        Err(_) => value,
    };
    if let Ok(chained) = conflist::chain(&list, &plugin) {
        assert!(conflist::is_chained(&chained), "{chained}");
        let again = conflist::chain(&chained, &plugin);
        assert_eq!(
            again.as_ref().ok(),
            Some(&chained),
            "twice is as good as once"
        );
        let freed = conflist::unchain(&chained).unwrap_or_else(|e| panic!("{chained}: {e:?}"));
        assert!(!conflist::is_chained(&freed), "{freed}");
    }
}

fn cni_seeds() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap"}]}"#,
        r#"{"cniVersion":"0.4.0","name":"net","type":"bridge"}"#,
        r#"{"cniVersion":"1.1.0","name":"net","type":"warren-cni","socket":"/run/warren/n1/pods.sock","enrolled":"/var/lib/warren/n1/enrolled","failOpen":false,"timeoutMs":10000,"prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/var/run/netns/a"}],"ips":[{"address":"10.1.1.5/24","interface":0}]}}"#,
    ])
}

/// A resource: its kind, the length of its name, its name, its body. What is understood is written and read again as
/// what it was.
fn xds(input: &[u8]) {
    let [kind, length, rest @ ..] = input else {
        return;
    };
    let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
    let Some((name, body)) = rest.split_at_checked(usize::from(*length)) else {
        return;
    };
    let Ok(name) = std::str::from_utf8(name) else {
        return;
    };
    let Ok(changes) = decode(kind.url(), name, body) else {
        return;
    };
    for change in changes {
        for update in encode(&change) {
            if let Update::Set(resource) = update {
                let again = decode(resource.kind.url(), &resource.name, &resource.body);
                let again = again.unwrap_or_else(|e| panic!("{change:?} is not read again: {e}"));
                assert_eq!(&again[..], std::slice::from_ref(&change));
            }
        }
    }
}

fn xds_seeds() -> Vec<Vec<u8>> {
    let pod = cast::serving(cast::pod("shop", "web", "n1", "10.0.0.1"), "shop", "db");
    let mut config = cast::config();
    config.enrolled_namespaces = Box::new(["shop".into()]);
    let changes = [
        Change::WorkloadExtra(pod.uid.clone(), cast::extra(MtlsMode::Strict)),
        Change::Workload(pod),
        Change::Service(cast::service("shop", "db", "10.0.0.9", 80, 8080)),
        Change::Config(config),
    ];
    let updates = changes.iter().flat_map(encode);
    let seed = |update| match update {
        Update::Set(resource) => {
            let at = Kind::ALL.iter().position(|k| *k == resource.kind)?;
            let body: &Bytes = &resource.body;
            let length = u8::try_from(resource.name.len()).ok()?;
            Some([&[at as u8, length][..], resource.name.as_bytes(), body].concat())
        }
        Update::Remove { .. } => None,
    };
    updates.filter_map(seed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsers_withstand_whatever_comes() {
        TARGETS.iter().for_each(|target| target.withstands(20_000));
    }
}
