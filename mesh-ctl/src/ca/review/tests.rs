//! Which tokens prove which node.

use serde_json::{Value, json};

use super::*;
use crate::apiserver::{ApiServer, status};

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ASKED: &str = "POST /apis/authentication.k8s.io/v1/tokenreviews";

/// A review's answer to this token, with some of what it says replaced.
fn review(change: impl Fn(&mut Value)) -> Value {
    let mut answer = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {},
        "status": {"authenticated": true, "audiences": ["warren.dev"], "user": {
            "username": "system:serviceaccount:warren-system:warren-node",
            "extra": {"authentication.kubernetes.io/node-name": ["n1"],
                "authentication.kubernetes.io/pod-name": ["warren-node-x"],
                "authentication.kubernetes.io/pod-uid": ["u1"]}}}});
    change(&mut answer["status"]);
    answer
}

async fn check(change: impl Fn(&mut Value), expect: Result<&str, &str>) {
    let (server, client) = ApiServer::start().await;
    server.serve("/api/v1", "pods", "Pod");
    server.put(
        "/api/v1/pods",
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "warren-node-x", "namespace": "warren-system", "uid": "u1"},
            "spec": {"nodeName": "n2", "containers": []}}),
    );
    let answer = review(change);
    server.answers(ASKED, move |asked| {
        assert_eq!(asked["spec"]["token"], "a-token");
        assert_eq!(asked["spec"]["audiences"], json!(["warren.dev"]));
        (201, answer.clone())
    });
    let reviews = Reviews::new(client, ("warren-system", "warren-node"));
    let got = reviews.member("a-token", Instant::now()).await;
    match (got, expect) {
        (Ok(member), Ok(expect)) => assert_eq!(member.to_string(), expect),
        (Err(MemberTokenError::Refused(why)), Err(expect)) => {
            assert!(why.contains(expect), "{why:?} does not say {expect:?}");
        }
        (got, expect) => panic!("{got:?}, expected {expect:?}"),
    }
}

#[tokio::test]
async fn only_a_bound_token_of_our_audience_proves_a_member() {
    check(|_| {}, Ok("n1")).await;
    check(
        |s| s["authenticated"] = false.into(),
        Err("does not know it"),
    )
    .await;
    check(
        |s| s["audiences"] = json!(["istio-ca"]),
        Err("not for audience"),
    )
    .await;
    check(|s| s["audiences"] = Value::Null, Err("not for audience")).await;
    // Any other service account's pod can only be a waypoint: whether it is one is not asked here.
    let other = "system:serviceaccount:shop:web";
    check(
        |s| s["user"]["username"] = other.into(),
        Ok("waypoint/shop/web/warren-node-x"),
    )
    .await;
    check(
        |s| s["user"]["username"] = "admin".into(),
        Err("no service account"),
    )
    .await;
    check(
        |s| s["user"]["username"] = "system:serviceaccount:shop:a/b".into(),
        Err("its names are none"),
    )
    .await;
    check(
        |s| s["user"]["extra"] = json!({}),
        Err("not bound to a pod"),
    )
    .await;
    let node = |s: &mut Value, node: Value| {
        s["user"]["extra"]["authentication.kubernetes.io/node-name"] = node;
    };
    check(|s| node(s, json!(["../n1"])), Err("no node's name")).await;
    // An older server does not say the node: its pod does, if it is the same one.
    check(|s| node(s, json!([])), Ok("n2")).await;
    let replaced = |s: &mut Value| {
        node(s, json!([]));
        s["user"]["extra"]["authentication.kubernetes.io/pod-uid"] = json!(["u2"]);
    };
    check(replaced, Err("runs nowhere")).await;
}

#[tokio::test]
async fn an_accepted_token_is_reviewed_again_after_a_while_and_a_refused_one_each_time() {
    let (server, client) = ApiServer::start().await;
    let reviews = Reviews::new(client, ("warren-system", "warren-node"));
    let asked = || {
        let of = |r: &&String| r.contains(REVIEWS);
        server.requests().iter().filter(of).count()
    };
    let now = Instant::now();
    server.answers(ASKED, |_| (201, review(|_| {})));
    for later in [0, 9] {
        let now = now + Duration::from_secs(later);
        assert_eq!(
            reviews.member("good", now).await,
            Ok(Member::Node("n1".into()))
        );
    }
    assert_eq!(asked(), 1);
    server.answers(ASKED, |_| {
        (201, review(|s| s["authenticated"] = false.into()))
    });
    let later = now + Duration::from_secs(11);
    assert!(reviews.member("good", later).await.is_err());
    assert!(reviews.member("good", later).await.is_err());
    assert_eq!(asked(), 3);
    server.answers(ASKED, |_| (500, status(500, "InternalError")));
    let got = reviews.member("good", later).await;
    assert!(
        matches!(got, Err(MemberTokenError::Unavailable(_))),
        "{got:?}"
    );
}
