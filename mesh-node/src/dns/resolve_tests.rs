//! The node's questions, against a resolver that says what a test wants.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use hickory_proto::rr::{Record, rdata};
use tokio::net::TcpListener;

use super::*;
use crate::dns::forward::{read_framed, write_framed};

/// What the resolver answers.
#[derive(Clone, Debug)]
pub(in crate::dns) struct Script {
    pub addresses: Vec<IpAddr>,
    pub ttl: u32,
    pub code: ResponseCode,
    /// Over UDP it says that the answer does not fit.
    pub cut: bool,
    /// It sends an answer to another question first.
    pub noise: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            ttl: 60,
            code: ResponseCode::NoError,
            cut: false,
            noise: false,
        }
    }
}

/// A resolver on loopback.
pub(in crate::dns) struct Resolver {
    pub at: SocketAddr,
    pub script: Arc<Mutex<Script>>,
    /// Queries so far.
    pub asked: Arc<AtomicUsize>,
}

impl Resolver {
    pub async fn start(script: Script) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
            let at = udp.local_addr().expect("bound");
            // The same port may be taken for TCP.
            if let Ok(tcp) = TcpListener::bind(at).await {
                break (udp, tcp);
            }
        };
        let resolver = Self {
            at: udp.local_addr().expect("bound"),
            script: Arc::new(Mutex::new(script)),
            asked: Arc::default(),
        };
        let (script, asked) = (resolver.script.clone(), resolver.asked.clone());
        tokio::spawn(async move {
            let mut packet = [0; 512];
            while let Ok((length, from)) = udp.recv_from(&mut packet).await {
                asked.fetch_add(1, SeqCst);
                let script = script.lock().expect("not poisoned").clone();
                if script.noise {
                    let mut other = packet[..length].to_vec();
                    other[0] ^= 1;
                    let _ = udp.send_to(&answer(&other, &script, false), from).await;
                }
                let _ = udp
                    .send_to(&answer(&packet[..length], &script, script.cut), from)
                    .await;
            }
        });
        let script = resolver.script.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                while let Ok(Some(query)) = read_framed(&mut stream).await {
                    let script = script.lock().expect("not poisoned").clone();
                    let _ = write_framed(&mut stream, &answer(&query, &script, false)).await;
                }
            }
        });
        resolver
    }

    pub fn resolvers(&self) -> Resolvers {
        Resolvers::Fixed(vec![self.at])
    }

    pub fn says(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().expect("not poisoned"));
    }
}

fn answer(query: &[u8], script: &Script, cut: bool) -> Vec<u8> {
    let query = Message::from_vec(query).expect("a query");
    let question = query.queries[0].clone();
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.response_code = script.code;
    reply.metadata.truncation = cut;
    let records = script.addresses.iter().filter_map(|ip| {
        let data = match (ip, question.query_type()) {
            (IpAddr::V4(ip), RecordType::A) => RData::A(rdata::A(*ip)),
            (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(rdata::AAAA(*ip)),
            _ => return None,
        };
        Some(Record::from_rdata(
            question.name().clone(),
            script.ttl,
            data,
        ))
    });
    if !cut {
        reply.insert_answers(records.collect());
    }
    reply.add_query(question);
    reply.to_vec().expect("small")
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts
        .iter()
        .map(|t| t.parse().expect("an address"))
        .collect()
}

#[tokio::test]
async fn both_families_are_asked_for_and_answers_are_checked() {
    let resolver = Resolver::start(Script::default()).await;
    let check = async |script: Script, expect: Result<(&[&str], u64), &str>| {
        resolver.says(|s| *s = script.clone());
        let found = resolver.resolvers().addresses("db.example.com").await;
        match (found, expect) {
            (Ok(found), Ok((addresses, ttl))) => {
                assert_eq!(found.addresses, ips(addresses), "{script:?}");
                assert_eq!(found.ttl, Duration::from_secs(ttl), "{script:?}");
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, expect) => panic!("{script:?}: {found:?}, not {expect:?}"),
        }
    };
    let both = Script {
        addresses: ips(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        ..Script::default()
    };
    let all: &[&str] = &["192.0.2.1", "192.0.2.2", "2001:db8::1"];
    check(both.clone(), Ok((all, 60))).await;
    let only_four = Script {
        addresses: ips(&["192.0.2.1"]),
        ..Script::default()
    };
    check(only_four, Ok((&["192.0.2.1"], 60))).await;
    let cut = Script {
        cut: true,
        ..both.clone()
    };
    check(cut, Ok((all, 60))).await;
    let noise = Script {
        noise: true,
        ..both
    };
    check(noise, Ok((all, 60))).await;
    let own = Script {
        addresses: ips(&["127.0.0.1", "0.0.0.0", "::1", "224.0.0.1"]),
        ..Script::default()
    };
    check(own, Ok((&[], 60))).await;
    let absent = Script {
        code: ResponseCode::NXDomain,
        ..Script::default()
    };
    check(absent, Ok((&[], 0))).await;
    let broken = Script {
        code: ResponseCode::ServFail,
        ..Script::default()
    };
    check(broken, Err("answered")).await;
}

#[tokio::test]
async fn a_resolver_that_fails_is_passed_over() {
    let broken = Resolver::start(Script {
        code: ResponseCode::Refused,
        ..Script::default()
    })
    .await;
    let good = Resolver::start(Script {
        addresses: ips(&["192.0.2.7"]),
        ..Script::default()
    })
    .await;
    let nobody = SocketAddr::new(broken.at.ip(), 1);
    let resolvers = Resolvers::Fixed(vec![nobody, broken.at, good.at]);
    let found = resolvers.addresses("db").await.expect("the third answers");
    assert_eq!(found.addresses, ips(&["192.0.2.7"]));
    let none = Resolvers::Fixed(Vec::new()).addresses("db").await;
    assert!(matches!(none, Err(ResolveError::NoResolver)), "{none:?}");
    let bad = good.resolvers().addresses("no..name").await;
    assert!(matches!(bad, Err(ResolveError::BadName(_))), "{bad:?}");
}

#[test]
fn the_systems_file_and_the_setting_are_read() {
    let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 10.0.0.53\n nameserver fd00::53 \nnameserver fe80::1%eth0\n";
    let expect = ["10.0.0.53:53", "[fd00::53]:53"].map(|t| t.parse().expect("an address"));
    assert_eq!(nameservers(text), expect);
    let set: Resolvers = "10.0.0.53, [fd00::53]:5353".parse().expect("two");
    let expect = ["10.0.0.53:53", "[fd00::53]:5353"].map(|t| t.parse().expect("an address"));
    assert_eq!(set, Resolvers::Fixed(expect.to_vec()));
    assert!("".parse::<Resolvers>().is_err());
}
