//! The cache of names: how long answers hold, what failures leave, and its bounds.

use std::sync::atomic::Ordering::SeqCst;

use hickory_proto::op::ResponseCode;

use super::*;
use crate::dns::resolve::tests::{Resolver, Script};

const SHORT: TtlBounds = TtlBounds {
    least: Duration::from_millis(20),
    most: Duration::from_millis(40),
};
const LONG: TtlBounds = TtlBounds {
    least: Duration::from_secs(60),
    most: Duration::from_secs(60),
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

async fn world(bounds: TtlBounds, addresses: &[&str]) -> (Resolver, Names, Metrics) {
    let resolver = Resolver::start(Script {
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        ttl: 1,
        ..Script::default()
    })
    .await;
    let metrics = Metrics::new();
    let (names, task) = Names::new(resolver.resolvers(), bounds, metrics.clone());
    tokio::spawn(task.run());
    (resolver, names, metrics)
}

fn host() -> Hostname {
    "db.example.com".into()
}

#[tokio::test]
async fn an_answer_is_shared_and_kept_for_its_time() {
    let (resolver, names, _) = world(LONG, &["192.0.2.1"]).await;
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let names = names.clone();
            tokio::spawn(async move { names.lookup(&host()).await })
        })
        .collect();
    for asked in asking {
        let found = asked.await.expect("no panic").expect("resolved");
        assert_eq!(&*found, [ip("192.0.2.1")]);
    }
    assert_eq!(
        resolver.asked.load(SeqCst),
        2,
        "one question for each family"
    );
}

#[tokio::test]
async fn a_new_answer_replaces_the_old_one_and_a_failure_does_not() {
    let (resolver, names, metrics) = world(SHORT, &["192.0.2.1"]).await;
    let becomes = async |expect: &[&str]| {
        let expect: Vec<IpAddr> = expect.iter().map(|a| ip(a)).collect();
        let look = async {
            loop {
                match names.lookup(&host()).await {
                    Ok(found) if *found == expect[..] => return,
                    Err(NameError::NoAddress(_)) if expect.is_empty() => return,
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        timeout(Duration::from_secs(10), look)
            .await
            .unwrap_or_else(|_| panic!("never {expect:?}"));
    };
    becomes(&["192.0.2.1"]).await;
    resolver.says(|s| s.addresses = vec![ip("192.0.2.2")]);
    becomes(&["192.0.2.2"]).await;
    resolver.says(|s| s.code = ResponseCode::ServFail);
    let failures = || {
        metrics
            .node()
            .name_lookups
            .get_or_create(&ResultLabel { result: "failed" })
            .get()
    };
    let failed_twice = async {
        while failures() < 2 {
            let found = names.lookup(&host()).await.expect("what was known");
            assert_eq!(&*found, [ip("192.0.2.2")]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), failed_twice)
        .await
        .expect("it is asked for again");
    // That there is none is an answer.
    resolver.says(|s| s.code = ResponseCode::NXDomain);
    resolver.says(|s| s.addresses.clear());
    becomes(&[]).await;
    resolver.says(|s| *s = Script::default());
    resolver.says(|s| s.addresses = vec![ip("192.0.2.3")]);
    becomes(&["192.0.2.3"]).await;
}

#[tokio::test]
async fn a_name_that_never_resolved_fails_with_why() {
    let (resolver, names, _) = world(LONG, &[]).await;
    resolver.says(|s| s.code = ResponseCode::ServFail);
    let error = names.lookup(&host()).await.expect_err("nothing is known");
    assert!(matches!(error, NameError::Failed(..)), "{error}");
    let asked = resolver.asked.load(SeqCst);
    names.lookup(&host()).await.expect_err("still nothing");
    assert_eq!(
        resolver.asked.load(SeqCst),
        asked,
        "not asked again before the pause is over"
    );
}

#[tokio::test]
async fn the_number_of_names_is_bounded() {
    let (_, names, _) = world(LONG, &["192.0.2.1"]).await;
    for n in 0..MOST + 10 {
        let name: Hostname = format!("h{n}.example.com").as_str().into();
        names.lookup(&name).await.expect("resolved");
    }
    let table = names.table();
    assert_eq!(table.len(), MOST);
    let first: Hostname = "h0.example.com".into();
    assert!(!table.contains_key(&first), "the oldest went first");
}
