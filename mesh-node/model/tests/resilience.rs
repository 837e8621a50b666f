//! Retries, ejections and affinity, by tables and with time as an argument.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_model::{
    balance,
    resilience::{
        Affinity, AffinityKey, HashTable, Outlier, Retries, RetryOn, Share, TrafficPolicy,
        outlier::{Ejections, Failure},
        retry::Outcome,
        warmed,
    },
    testing::Rng,
};

fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |(n, v): &(&'static str, &'static str)| {
        (HeaderName::from_static(n), HeaderValue::from_static(v))
    };
    let mut map = HeaderMap::new();
    for (name, value) in list.iter().map(pair) {
        map.append(name, value);
    }
    map
}

#[test]
fn each_token_retries_what_it_says() {
    let none = HeaderMap::new();
    let limited = headers(&[("x-envoy-ratelimited", "true")]);
    let response = |status, grpc| Outcome::Response {
        status,
        headers: &none,
        grpc,
    };
    let outcomes = [
        ("200", response(200, None)),
        ("409", response(409, None)),
        ("429", response(429, None)),
        ("500", response(500, None)),
        ("502", response(502, None)),
        ("503", response(503, None)),
        ("504", response(504, None)),
        ("grpc 1", response(200, Some(1))),
        ("grpc 14", response(200, Some(14))),
        (
            "limited",
            Outcome::Response {
                status: 429,
                headers: &limited,
                grpc: None,
            },
        ),
        ("connect", Outcome::ConnectFailure),
        ("refused", Outcome::RefusedStream),
        (
            "before",
            Outcome::Reset {
                request_sent: false,
            },
        ),
        ("after", Outcome::Reset { request_sent: true }),
        ("timeout", Outcome::TimedOut),
    ];
    let check = |tokens: &str, expect: &str| {
        let (on, unknown) = RetryOn::parse(tokens);
        assert!(unknown.is_empty(), "{tokens}: {unknown:?}");
        let wanted: Vec<&str> = outcomes
            .iter()
            .filter(|(_, o)| on.wants(*o))
            .map(|(name, _)| *name)
            .collect();
        assert_eq!(wanted.join(" "), expect, "{tokens}");
    };
    let silent = "connect refused before after timeout";
    check("", "");
    check("5xx", &format!("500 502 503 504 {silent}"));
    check("gateway-error", &format!("502 503 504 {silent}"));
    check("reset", silent);
    check("reset-before-request", "connect before");
    check("connect-failure", "connect");
    check("refused-stream", "refused");
    check("retriable-4xx", "409");
    check("envoy-ratelimited", "limited");
    check("cancelled", "grpc 1");
    check(" unavailable , 429", "429 grpc 14");
    check("429,retriable-status-codes,retriable-headers", "429");
    check("http3-post-connect-failure", "");
    let default = Retries::default_of_istio();
    let wanted: Vec<&str> = outcomes
        .iter()
        .filter(|(_, o)| default.on.wants(*o))
        .map(|(name, _)| *name)
        .collect();
    assert_eq!(wanted.join(" "), "503 grpc 1 grpc 14 connect refused");
    assert_eq!((default.attempts, default.avoid_previous), (2, true));
}

#[test]
fn unknown_tokens_are_named_and_the_others_hold() {
    let (on, unknown) = RetryOn::parse("5xx,gateway-eror,99,600,-1,503,,503");
    assert!(on.server_error);
    assert_eq!(*on.statuses, [503]);
    assert_eq!(unknown, ["gateway-eror", "99", "600", "-1"]);
}

#[test]
fn a_response_that_asks_not_to_be_tried_again_is_final() {
    let (on, _) = RetryOn::parse("5xx,503");
    let check = |list: &[(&'static str, &'static str)], expect: bool| {
        let headers = headers(list);
        let outcome = Outcome::Response {
            status: 503,
            headers: &headers,
            grpc: None,
        };
        assert_eq!(on.wants(outcome), expect, "{list:?}");
    };
    check(&[], true);
    check(&[("x-envoy-overloaded", "true")], false);
    check(&[("x-envoy-ratelimited", "true")], false);
    let on = RetryOn {
        headers: [HeaderName::from_static("x-again")].into(),
        ..RetryOn::default()
    };
    let again = headers(&[("x-again", "")]);
    let outcome = |headers| Outcome::Response {
        status: 200,
        headers,
        grpc: None,
    };
    assert!(on.wants(outcome(&again)));
    assert!(!on.wants(outcome(&HeaderMap::new())));
}

#[test]
fn pauses_grow_within_their_bounds() {
    let retries = Retries::default_of_istio();
    let mut rng = Rng::with_seed(1);
    for (attempt, most) in [(1, 25), (2, 75), (3, 175), (4, 250), (31, 250), (99, 250)] {
        let most = Duration::from_millis(most);
        assert_eq!(retries.pause(attempt, 0), Duration::ZERO);
        assert!(retries.pause(attempt, u64::MAX) < most);
        assert!(retries.pause(attempt, u64::MAX) > most * 999 / 1000);
        let sum: Duration = (0..10_000)
            .map(|_| retries.pause(attempt, rng.u64(..)))
            .sum();
        let mean = sum / 10_000;
        assert!(
            mean > most * 48 / 100 && mean < most * 52 / 100,
            "{attempt}: {mean:?}"
        );
    }
    assert_eq!(retries.pause(0, u64::MAX), Duration::ZERO);
}

#[test]
fn retries_are_bounded_by_a_budget_or_a_number() {
    let most = |budget, max_retries, requests| {
        let mut policy = TrafficPolicy {
            retry_budget: budget,
            ..TrafficPolicy::default()
        };
        policy.pool.max_retries = max_retries;
        policy.most_retries(requests)
    };
    let fifth = Share::percent(20.0).expect("a share");
    assert_eq!(most(None, None, 0), None);
    assert_eq!(most(None, Some(3), 1_000), Some(3));
    assert_eq!(most(None, Some(0), 1_000), Some(0));
    assert_eq!(most(Some((fifth, 3)), Some(0), 10), Some(3));
    assert_eq!(most(Some((fifth, 3)), None, 100), Some(20));
    assert_eq!(most(Some((Share::NONE, 0)), None, 100), Some(0));
    assert_eq!(most(Some((Share::ALL, 0)), None, u32::MAX), Some(u32::MAX));
}

/// A service of so many endpoints, from now on.
fn ejections(rules: Outlier, members: usize) -> (Ejections<usize>, Instant) {
    let now = Instant::now();
    let mut ejections = Ejections::new(rules, now);
    ejections.set_members(&(0..members).collect::<Vec<_>>());
    (ejections, now)
}

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

const BAD: Failure = Failure::Status(500);

#[test]
fn five_errors_in_a_row_eject_for_the_base_time() {
    let (mut e, t) = ejections(Outlier::default(), 10);
    for _ in 0..3 {
        (0..4).for_each(|_| assert!(!e.failed(&1, BAD, t)));
        assert!(!e.answered(&1, 200, t));
    }
    (0..4).for_each(|_| assert!(!e.answered(&1, 503, t)));
    assert!(e.answered(&1, 500, t));
    assert!(e.is_ejected(&1, t) && !e.is_ejected(&2, t));
    assert!(e.is_ejected(&1, t + secs(29)));
    assert!(!e.is_ejected(&1, t + secs(30)));
    // The second time it is twice as long, also when it did well for less than an interval.
    let t2 = t + secs(35);
    for _ in 0..5 {
        e.failed(&1, BAD, t2);
    }
    assert!(e.is_ejected(&1, t2 + secs(60)));
    // Ends are looked at every ten seconds.
    assert!(e.is_ejected(&1, t + secs(99)) && !e.is_ejected(&1, t + secs(100)));
    // Each interval of doing well takes one off again.
    let t3 = t + secs(100) + secs(200);
    for _ in 0..5 {
        e.failed(&1, BAD, t3);
    }
    assert!(e.is_ejected(&1, t3 + secs(29)) && !e.is_ejected(&1, t3 + secs(30)));
}

#[test]
fn one_error_ejects_for_three_minutes_where_that_is_asked() {
    let rules = Outlier {
        consecutive_5xx: 1,
        interval: secs(1),
        base_ejection: secs(180),
        max_ejected: 100,
        ..Outlier::default()
    };
    let (mut e, t) = ejections(rules, 2);
    assert!(e.answered(&0, 500, t));
    assert!(e.is_ejected(&0, t + secs(179)) && !e.is_ejected(&0, t + secs(180)));
    assert!(e.answered(&1, 500, t + secs(1)), "all of them may go");
    assert_eq!(e.ejected(t + secs(2)), 2);
    // Never longer than five minutes, unless the first time is.
    let later = t + secs(180);
    assert!(e.answered(&0, 500, later));
    assert!(e.is_ejected(&0, later + secs(299)) && !e.is_ejected(&0, later + secs(300)));
}

#[test]
fn no_more_than_the_allowed_share_is_ejected_but_always_one() {
    let check = |members: usize, max_ejected, expect: usize| {
        let rules = Outlier {
            consecutive_5xx: 1,
            max_ejected,
            ..Outlier::default()
        };
        let (mut e, t) = ejections(rules, members);
        for i in 0..members {
            e.failed(&i, BAD, t);
        }
        assert_eq!(e.ejected(t), expect, "{members} with {max_ejected} %");
        let out = (0..members).filter(|i| e.is_ejected(i, t)).count();
        assert_eq!(out, expect);
    };
    check(10, 10, 1);
    check(3, 10, 1);
    check(1, 10, 1);
    check(10, 0, 1);
    check(10, 39, 3);
    check(10, 40, 4);
    check(4, 50, 2);
    check(10, 100, 10);
}

#[test]
fn nobody_is_left_out_while_too_few_are_healthy() {
    let rules = Outlier {
        consecutive_5xx: 1,
        max_ejected: 100,
        min_healthy: 50,
        ..Outlier::default()
    };
    let (mut e, t) = ejections(rules, 4);
    assert!(e.failed(&0, BAD, t) && e.failed(&1, BAD, t));
    assert!(e.is_ejected(&0, t), "half are healthy");
    assert!(e.failed(&2, BAD, t), "half were healthy");
    assert!(e.is_suspended(t) && !e.is_ejected(&0, t) && !e.is_ejected(&2, t));
    assert!(!e.failed(&3, BAD, t), "too few were healthy");
    // Endpoints that come and go count at once.
    e.set_members(&[0, 1, 2, 3, 4, 5]);
    assert!(e.is_ejected(&0, t));
    e.set_members(&[3, 4]);
    e.set_members(&[0, 3, 4]);
    assert!(!e.is_ejected(&0, t), "one that was gone is new");
    assert!(!e.is_ejected(&0, t + secs(3600)));
}

#[test]
fn failures_of_our_own_count_apart_only_where_that_is_asked() {
    let eject = |rules: Outlier, what: &[Failure]| {
        let (mut e, t) = ejections(rules, 1);
        what.iter()
            .position(|w| e.failed(&0, *w, t))
            .map(|at| at + 1)
    };
    let (local, gateway) = (Failure::Local, Failure::Status(502));
    let rules = |c5xx, gateway, local, split_local| Outlier {
        consecutive_5xx: c5xx,
        consecutive_gateway: gateway,
        consecutive_local: local,
        split_local,
        ..Outlier::default()
    };
    assert_eq!(eject(rules(3, 0, 1, false), &[local; 5]), Some(3));
    assert_eq!(eject(rules(0, 2, 0, false), &[local, gateway]), Some(2));
    assert_eq!(
        eject(rules(0, 2, 0, false), &[gateway, BAD, gateway, gateway]),
        Some(4)
    );
    assert_eq!(eject(rules(3, 1, 2, true), &[local; 5]), Some(2));
    assert_eq!(
        eject(rules(3, 0, 2, true), &[local, BAD, local, local]),
        Some(4)
    );
    assert_eq!(
        eject(rules(0, 0, 0, true), &[local, BAD, gateway, local, BAD]),
        None
    );
    let rules = Outlier {
        consecutive_5xx: 1,
        statuses: [429].into(),
        ..Outlier::default()
    };
    let (mut e, t) = ejections(rules, 1);
    assert!(!e.answered(&0, 404, t) && e.answered(&0, 429, t));
}

#[test]
fn the_hash_is_of_the_part_that_is_named() {
    let client: IpAddr = "10.0.0.1".parse().expect("one");
    let hash = |key: AffinityKey, list: &[(&'static str, &'static str)], query| {
        let table = HashTable::Ring(1024);
        Affinity { key, table }.hash(&headers(list), query, client)
    };
    let of = |text: &str| Some(balance::hash(text.as_bytes()));
    let header = || AffinityKey::Header(HeaderName::from_static("x-user"));
    assert_eq!(hash(header(), &[("x-user", "ann")], None), of("ann"));
    assert_eq!(hash(header(), &[("x-other", "ann")], None), None);
    let cookie = || AffinityKey::Cookie {
        name: "sid".into(),
        path: "/".into(),
        ttl: Some(secs(60)),
        attributes: [
            ("SameSite".into(), Some("Strict".into())),
            ("Secure".into(), None),
        ]
        .into(),
    };
    assert_eq!(
        hash(cookie(), &[("cookie", "a=1; sid=x=y;b=2")], None),
        of("x=y")
    );
    assert_eq!(
        hash(
            cookie(),
            &[("cookie", "a=1"), ("cookie", "sid=\"q\"")],
            None
        ),
        of("q")
    );
    assert_eq!(hash(cookie(), &[("cookie", "asid=1; sidx=2")], None), None);
    let query = || AffinityKey::Query("u".into());
    assert_eq!(hash(query(), &[], Some("a=1&u=%61nn&u=x")), of("ann"));
    assert_eq!(hash(query(), &[], Some("a=1")), None);
    assert_eq!(hash(query(), &[], None), None);
    let mapped: IpAddr = "::ffff:10.0.0.1".parse().expect("one");
    let source = Affinity {
        key: AffinityKey::Source,
        table: HashTable::Maglev(65_537),
    };
    let from = |ip| source.hash(&HeaderMap::new(), None, ip);
    assert_eq!(from(client), from(mapped));
    assert!(from(client).is_some() && source.new_cookie(1).is_none());
    // A cookie that is made belongs to the endpoint that the next request with it goes to.
    let made = Affinity {
        key: cookie(),
        table: HashTable::Ring(1024),
    };
    let (hash, text) = made.new_cookie(77).expect("is made");
    assert_eq!(
        text,
        "sid=000000000000004d; Max-Age=60; Path=/; SameSite=Strict; Secure; HttpOnly"
    );
    let value = text.split(';').next().expect("the pair").to_owned();
    let mut next = HeaderMap::new();
    next.insert("cookie", value.parse().expect("a value"));
    assert_eq!(made.hash(&next, None, client), Some(hash));
}

#[test]
fn warming_weights_keep_their_proportions_and_fit() {
    let check = |weights: &[u32], parts: &[u32], expect: &[u32]| {
        let got = warmed(weights, |at| Share::per_million(parts[at]));
        assert_eq!(got, expect, "{weights:?} {parts:?}");
    };
    check(&[], &[], &[]);
    check(&[1, 1], &[1_000_000, 100_000], &[1_000, 100]);
    check(
        &[3, 0, 1],
        &[1_000_000, 1_000_000, 500_000],
        &[3_000, 0, 500],
    );
    // One that has weight keeps some, one without gets none.
    check(&[1, 1, 0], &[1_000_000, 0, 0], &[1_000, 1, 0]);
    let most = warmed(&[u32::MAX; 3], |_| Share::ALL);
    assert!(most.iter().map(|w| u64::from(*w)).sum::<u64>() <= u32::MAX.into());
    assert!(most.iter().all(|w| *w == most[0] && *w > 0));
}
