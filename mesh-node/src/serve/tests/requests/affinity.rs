//! Requests that belong together go to one endpoint.

use super::*;

fn hashing(key: AffinityKey, table: HashTable) -> TrafficPolicy {
    TrafficPolicy {
        balancing: LoadBalancing {
            weighing: Weighing::Consistent(Affinity { key, table }),
            ..LoadBalancing::default()
        },
        ..TrafficPolicy::default()
    }
}

fn cookie(ttl: Option<Duration>) -> AffinityKey {
    AffinityKey::Cookie {
        name: "sticky".into(),
        path: "/here".into(),
        ttl,
        attributes: Box::new([("SameSite".into(), Some("Strict".into()))]),
    }
}

fn with(name: &str, value: &str, path: &str) -> Request<Full<Bytes>> {
    let request = Request::get(path).header("host", "db").header(name, value);
    request.body(Full::default()).expect("a request")
}

/// Which endpoints answer requests of this kind, each asked thrice.
async fn settled(w: &World, asks: impl Fn(usize) -> Request<Full<Bytes>>) -> BTreeMap<Bytes, u32> {
    let mut all = BTreeMap::new();
    // With two endpoints, that all of 24 keys have the same happens once in eight million.
    for key in 0..24 {
        let first = w.ask(asks(key)).await.2;
        for _ in 0..2 {
            assert_eq!(w.ask(asks(key)).await.2, first, "key {key}");
        }
        *all.entry(first).or_default() += 1;
    }
    all
}

#[tokio::test]
async fn what_is_hashed_decides() {
    let w = world("73", AppProtocol::Http11).await;
    let header = || AffinityKey::Header("x-user".parse().expect("a name"));
    for table in [HashTable::Ring(1024), HashTable::Maglev(65_537)] {
        w.destination(hashing(header(), table));
        let by_header = settled(&w, |key| with("x-user", &format!("user-{key}"), "/")).await;
        assert_eq!(by_header.len(), 2, "{by_header:?}");
    }
    w.destination(hashing(
        AffinityKey::Query("u".into()),
        HashTable::Ring(1024),
    ));
    let by_query = settled(&w, |key| with("x-other", "1", &format!("/?a=b&u={key}"))).await;
    assert_eq!(by_query.len(), 2, "{by_query:?}");
    w.destination(hashing(cookie(None), HashTable::Ring(1024)));
    let by_cookie = settled(&w, |key| {
        with("cookie", &format!("a=b; sticky=c{key}"), "/")
    })
    .await;
    assert_eq!(by_cookie.len(), 2, "{by_cookie:?}");
    // Without a time to live nobody is given a cookie.
    assert!(!w.get("/").await.1.contains_key("set-cookie"));
    // Whoever has nothing that could be hashed is balanced.
    let mut any = BTreeMap::<Bytes, u32>::new();
    for _ in 0..24 {
        *any.entry(w.get("/").await.2).or_default() += 1;
    }
    assert_eq!(any.len(), 2, "{any:?}");
    w.destination(hashing(AffinityKey::Source, HashTable::Ring(1024)));
    let mut homes = Vec::new();
    for last in 20..44 {
        let ip = format!("127.7.73.{last}");
        let home = w
            .node
            .pod(&format!("client-{last}"), &ip, MtlsMode::Strict)
            .await;
        homes.push(home);
    }
    let mut answers = BTreeMap::<Bytes, u32>::new();
    for home in &homes {
        let mut first = None;
        for _ in 0..3 {
            let tcp = w.node.dial(home, w.vip).await;
            let handshake = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await;
            let (mut client, connection) = handshake.expect("HTTP");
            tokio::spawn(connection);
            let answer = client.send_request(get("/")).await.expect("an answer");
            let body = answer
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes();
            assert_eq!(first.get_or_insert(body.clone()), &body, "{}", home.ip);
        }
        *answers.entry(first.expect("three times")).or_default() += 1;
    }
    assert_eq!(answers.len(), 2, "{answers:?}");
    w.node.stop().await;
}

#[tokio::test]
async fn a_cookie_with_a_time_to_live_is_given_once_and_holds() {
    let w = world("74", AppProtocol::Http11).await;
    let all = Action::Forward(Box::new([backend(None, 1)]));
    let mut tried = rule("/", all);
    tried.retries = Some(Retries {
        attempts: 2,
        on: RetryOn::parse("5xx").0,
        backoff: Duration::from_millis(1),
        ..Retries::default_of_istio()
    });
    w.routes(vec![tried]);
    for (ttl, age) in [(3600, "; Max-Age=3600"), (0, "")] {
        w.destination(hashing(
            cookie(Some(Duration::from_secs(ttl))),
            HashTable::Ring(1024),
        ));
        for path in ["/", "/only-v2"] {
            // A request that is tried again gets one cookie as well, and that one means where it went.
            let (_, headers, _) = w.get(path).await;
            assert_eq!(headers.get_all("set-cookie").iter().count(), 1);
            let given = headers["set-cookie"].to_str().expect("text").to_owned();
            let (pair, rest) = given.split_once(';').expect("attributes");
            assert_eq!(
                rest,
                format!("{age}; Path=/here; SameSite=Strict; HttpOnly").trim_start_matches(';')
            );
            for _ in 0..5 {
                let (_, again, _) = w.ask(with("cookie", pair, "/")).await;
                assert_eq!(again["x-app"], headers["x-app"]);
                assert!(!again.contains_key("set-cookie"));
            }
        }
    }
    w.node.stop().await;
}

fn in_session(key: AffinityKey, action: Action) -> Rule {
    let mut rule = rule("/", action);
    rule.session = Some(Session {
        key,
        absolute: None,
        idle: None,
    });
    rule
}

#[tokio::test]
async fn a_session_ends_when_it_is_old_or_was_not_used() {
    let w = world("208", AppProtocol::Http11).await;
    let all = Action::Forward(Box::new([backend(None, 1)]));
    let mut timed = in_session(cookie(Some(Duration::from_secs(7200))), all);
    let session = timed.session.as_mut().expect("it has one");
    session.absolute = Some(Duration::from_secs(7200));
    session.idle = Some(Duration::from_secs(60));
    w.routes(vec![timed]);
    let endpoint = format!("sticky={:016x}", session_of(&testing::uid("shop", "db-1")));
    let since = SystemTime::UNIX_EPOCH.elapsed().expect("it is later");
    let ago = |seconds: u64| format!("{:012x}", (since.as_millis() as u64) - seconds * 1000);
    let given = |headers: &HeaderMap| {
        let value = headers.get("set-cookie")?.to_str().expect("text");
        let (pair, rest) = value.split_once("; Max-Age=").expect("attributes");
        let (left, _) = rest.split_once(';').expect("attributes");
        Some((pair.to_owned(), left.parse::<u64>().expect("seconds")))
    };
    // Used just now it stays as it is; a while ago, that it was used is said, but not that it is younger.
    for _ in 0..8 {
        let used = format!("{endpoint}{}{}", ago(3600), ago(0));
        let (_, headers, body) = w.ask(with("cookie", &used, "/")).await;
        assert_eq!(body, "v1");
        if since.as_millis() + 900 > SystemTime::UNIX_EPOCH.elapsed().expect("later").as_millis() {
            assert_eq!(given(&headers), None);
        }
        let used = format!("{endpoint}{}{}", ago(3600), ago(30));
        let (_, headers, body) = w.ask(with("cookie", &used, "/")).await;
        assert_eq!(body, "v1");
        let (again, left) = given(&headers).expect("it was used");
        assert!(
            again.starts_with(&format!("{endpoint}{}", ago(3600))),
            "{again}"
        );
        assert!(again > used, "{again}");
        assert!((3500..=3601).contains(&left), "{left}");
    }
    for over in [
        format!("{endpoint}{}{}", ago(3600), ago(61)),
        format!("{endpoint}{}{}", ago(7201), ago(1)),
        format!("{endpoint}{}{}", ago(1), ago(2)),
        endpoint.clone(),
    ] {
        // That none of 24 is answered by the other one of two happens once in 16 million.
        let mut others = 0;
        for _ in 0..24 {
            let (_, headers, body) = w.ask(with("cookie", &over, "/")).await;
            let (begun, left) = given(&headers).expect("a new session");
            assert!(begun[endpoint.len()..] > *ago(1), "{begun}");
            assert_eq!(left, 7200);
            others += u32::from(body == "v2");
        }
        assert!(others > 0, "{over}");
    }
    w.node.stop().await;
}

#[tokio::test]
async fn a_session_stays_where_it_began_across_shares_and_changes() {
    let w = world("86", AppProtocol::Http11).await;
    w.destination(TrafficPolicy::default());
    let split = || Action::Forward(Box::new([backend(Some("v1"), 50), backend(Some("v2"), 50)]));
    let all = || Action::Forward(Box::new([backend(None, 1)]));
    let header = || AffinityKey::Header("x-session".parse().expect("a name"));
    let given = |headers: &HeaderMap, by_header: bool| {
        let name = if by_header { "x-session" } else { "set-cookie" };
        let value = headers.get(name)?.to_str().expect("text").to_owned();
        Some(match value.split_once(';') {
            Some((pair, rest)) => {
                assert_eq!(rest, " Path=/here; SameSite=Strict; HttpOnly");
                pair.to_owned()
            }
            None => value,
        })
    };
    for (key, by_header, action) in [
        (cookie(None), false, split()),
        (cookie(None), false, all()),
        (header(), true, split()),
        (header(), true, all()),
    ] {
        w.routes(vec![in_session(key, action)]);
        let name = if by_header { "x-session" } else { "cookie" };
        let mut begun = BTreeMap::<Bytes, String>::new();
        // That one of two is not among 24 happens once in eight million.
        for _ in 0..24 {
            let (_, headers, body) = w.get("/").await;
            begun.insert(body, given(&headers, by_header).expect("a new session"));
        }
        assert_eq!(begun.len(), 2, "{begun:?}");
        for (body, session) in &begun {
            for _ in 0..12 {
                let (_, headers, again) = w.ask(with(name, session, "/")).await;
                assert_eq!(again, body);
                assert_eq!(given(&headers, by_header), None, "a session is given once");
            }
        }
        // What means no endpoint begins another session.
        for wrong in [
            "sticky=0000000000000000",
            "sticky=what",
            "ffffffffffffffff",
            "",
        ] {
            let (_, headers, _) = w.ask(with(name, wrong, "/")).await;
            assert!(given(&headers, by_header).is_some(), "{wrong}");
        }
    }
    // A backend that has no share any more has no sessions either.
    w.routes(vec![in_session(header(), split())]);
    let session = loop {
        let (_, headers, body) = w.get("/").await;
        if body == "v1" {
            break given(&headers, true).expect("a new session");
        }
    };
    let only = Action::Forward(Box::new([backend(Some("v1"), 0), backend(Some("v2"), 1)]));
    w.routes(vec![in_session(header(), only)]);
    assert_eq!(w.ask(with("x-session", &session, "/")).await.2, "v2");
    // An endpoint that failed is left for a retry, and the session with it.
    let mut tried = in_session(header(), all());
    tried.retries = Some(Retries {
        attempts: 1,
        on: RetryOn::parse("5xx").0,
        ..Retries::default_of_istio()
    });
    w.routes(vec![tried]);
    let (_, headers, body) = w.ask(with("x-session", &session, "/only-v2")).await;
    assert_eq!(body, "v2");
    assert!(given(&headers, true).is_some_and(|new| new != session));
    w.node.stop().await;
}

#[tokio::test]
async fn a_retry_leaves_the_hash_only_when_it_is_told_to() {
    let w = world("150", AppProtocol::Http11).await;
    let header = AffinityKey::Header("x-user".parse().expect("a name"));
    w.destination(hashing(header, HashTable::Maglev(65_537)));
    w.v1.stop().await;
    let with_retries = |leave: bool| {
        let mut tried = rule("/", Action::Forward(Box::new([backend(None, 1)])));
        let retries = Retries {
            attempts: 2,
            avoid_hashed: leave,
            ..Retries::default_of_istio()
        };
        tried.retries = Some(retries);
        w.routes(vec![tried]);
    };
    // With two endpoints, that all of 24 keys have the same happens once in eight million.
    for (leave, expect) in [(false, 2), (true, 1)] {
        with_retries(leave);
        let mut statuses = BTreeMap::<u16, u32>::new();
        for key in 0..24 {
            let asked = w.ask(with("x-user", &format!("user-{key}"), "/")).await;
            *statuses.entry(asked.0.as_u16()).or_default() += 1;
        }
        assert_eq!(statuses.len(), expect, "{leave}: {statuses:?}");
        assert!(statuses[&200] > 0, "{leave}: {statuses:?}");
    }
    w.node.stop().await;
}
