//! Watching an API server that does what API servers do on bad days.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::apiserver::{ApiServer, status};

const SOON: Duration = Duration::from_secs(30);
const PODS: &str = "/api/v1/pods";
const POLICIES: &str = "/apis/security.istio.io/v1/authorizationpolicies";

fn kinds() -> Vec<KindInfo> {
    let wanted = ["Pod", "AuthorizationPolicy"];
    let kinds = KINDS.iter().filter(|kind| wanted.contains(&kind.kind));
    kinds.copied().collect()
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "managedFields": [{"manager": "kubelet"}]},
        "spec": {"nodeName": "n1", "newerThanThisBuild": 1}, "status": {"phase": "Running"}})
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

/// What a batch says, one word an object.
fn said(batch: &[Delta]) -> Vec<String> {
    let mut said: Vec<String> = batch
        .iter()
        .map(|delta| match delta {
            Delta::Applied {
                object, unknown, ..
            } => {
                format!("+{}{}", object.metadata().name, unknown.concat())
            }
            Delta::Removed(object) => format!("-{}", object.name),
            Delta::Bad(object, broken) => format!("!{} {}", object.name, broken.field),
        })
        .collect();
    said.sort();
    said
}

async fn next(cluster: &mut Cluster) -> Vec<String> {
    let batch = timeout(SOON, cluster.next())
        .await
        .expect("a batch in time");
    said(&batch.expect("the watches run"))
}

/// Gathers batches until this was said.
async fn until(cluster: &mut Cluster, wanted: &str) -> Vec<String> {
    let mut all = Vec::new();
    while !all.iter().any(|said| said == wanted) {
        all.extend(next(cluster).await);
    }
    all
}

/// Waits until a collection is watched for the `n`th time.
async fn watched(server: &ApiServer, collection: &str, n: usize) {
    let of = |r: &&String| r.contains(collection) && r.contains("watch=true");
    let come = async {
        while server.requests().iter().filter(of).count() < n {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, come).await.expect("it is watched");
}

/// A server with pods and policies, and the source over it.
async fn world() -> (ApiServer, Cluster) {
    let (server, client) = ApiServer::start().await;
    server.serve("/api/v1", "pods", "Pod");
    server.serve(
        "/apis/security.istio.io/v1",
        "authorizationpolicies",
        "AuthorizationPolicy",
    );
    server.put(PODS, pod("a"));
    server.put(PODS, pod("b"));
    server.put(POLICIES, policy("allow", json!({})));
    (server, Cluster::of(&client, &kinds(), &[]))
}

#[tokio::test]
async fn the_first_batch_is_everything_and_changes_follow() {
    let (server, mut cluster) = world().await;
    assert_eq!(next(&mut cluster).await, ["+a", "+allow", "+b"]);
    server.put(PODS, pod("c"));
    assert_eq!(next(&mut cluster).await, ["+c"]);
    server.delete(PODS, "shop/c", true);
    assert_eq!(next(&mut cluster).await, ["-c"]);
    server.put(POLICIES, policy("typo", json!({"rulez": []})));
    assert_eq!(next(&mut cluster).await, ["+typospec.rulez"]);
    assert!(
        !server.requests().iter().any(|r| r.contains("secrets")),
        "a secret was asked for"
    );
}

#[tokio::test]
async fn a_malformed_object_is_named_and_the_watch_goes_on() {
    let (server, mut cluster) = world().await;
    server.put(POLICIES, policy("bad", json!({"rules": 7})));
    let first = until(&mut cluster, "!bad spec.rules").await;
    assert!(first.contains(&"+allow".to_owned()), "{first:?}");
    server.put(POLICIES, policy("worse", json!({"action": [1]})));
    assert_eq!(next(&mut cluster).await, ["!worse spec.action"]);
    server.send(POLICIES, "this is { not JSON");
    server.send(POLICIES, r#"{"type":"ADDED","object":"not an object"}"#);
    server.put(POLICIES, policy("good", json!({})));
    until(&mut cluster, "+good").await;
    server.put(POLICIES, policy("bad", json!({"rules": []})));
    until(&mut cluster, "+bad").await;
}

#[tokio::test]
async fn a_new_list_says_in_one_batch_what_vanished_meanwhile() {
    let (server, mut cluster) = world().await;
    next(&mut cluster).await;
    server.delete(PODS, "shop/a", false);
    server.put_unseen(PODS, pod("d"));
    let gone = json!({"type": "ERROR", "object": status(410, "Expired")});
    watched(&server, PODS, 1).await;
    server.send(PODS, &gone.to_string());
    assert_eq!(next(&mut cluster).await, ["+b", "+d", "-a"]);
}

#[tokio::test]
async fn a_cut_connection_is_taken_up_again() {
    let (server, mut cluster) = world().await;
    next(&mut cluster).await;
    watched(&server, PODS, 1).await;
    server.cut(PODS);
    watched(&server, PODS, 2).await;
    server.put(PODS, pod("c"));
    until(&mut cluster, "+c").await;
}

#[tokio::test]
async fn what_a_restored_server_does_not_tell_of_comes_with_a_new_list() {
    let (server, mut cluster) = world().await;
    next(&mut cluster).await;
    watched(&server, PODS, 1).await;
    server.delete(PODS, "shop/a", false);
    server.put_unseen(PODS, pod("d"));
    // It does not know so high a version yet, and soon will: the watch must not go on from there.
    let ahead = json!({"type": "ERROR", "object": status(504, "Timeout")});
    server.send(PODS, &ahead.to_string());
    assert_eq!(next(&mut cluster).await, ["+b", "+d", "-a"]);
}

#[tokio::test]
async fn an_absent_kind_is_known_to_be_and_picked_up_when_it_comes() {
    let (server, client) = ApiServer::start().await;
    server.serve("/api/v1", "pods", "Pod");
    server.put(PODS, pod("a"));
    let mut cluster = Cluster::of(&client, &kinds(), &[]);
    assert_eq!(next(&mut cluster).await, ["+a"]);
    // An older version than the preferred one does too.
    server.serve(
        "/apis/security.istio.io/v1beta1",
        "authorizationpolicies",
        "AuthorizationPolicy",
    );
    server.put(
        "/apis/security.istio.io/v1beta1/authorizationpolicies",
        policy("allow", json!({})),
    );
    assert_eq!(next(&mut cluster).await, ["+allow"]);
}

#[tokio::test]
async fn a_forbidden_kind_holds_everything_back() {
    let (server, mut cluster) = world().await;
    let list = format!("GET {POLICIES}");
    server.answers(&list, |_| (403, status(403, "Forbidden")));
    let asked = async {
        let of = |r: &String| r.starts_with(&list);
        while !server.requests().iter().any(of) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        batch = next(&mut cluster) => panic!("told without its policies: {batch:?}"),
        asked = timeout(SOON, asked) => asked.expect("the policies are asked for"),
    }
    let mut task = std::pin::pin!(next(&mut cluster));
    assert!(
        timeout(Duration::from_millis(100), &mut task)
            .await
            .is_err()
    );
    server.forget(&list);
    assert_eq!(task.await, ["+a", "+allow", "+b"]);
}

#[tokio::test]
async fn a_kind_that_nobody_obeys_is_told_of_and_holds_nothing_back() {
    const TOKENS: &str = "/apis/security.istio.io/v1/requestauthentications";
    let (server, client) = ApiServer::start().await;
    server.serve("/api/v1", "pods", "Pod");
    server.put(PODS, pod("a"));
    server.serve(
        "/apis/security.istio.io/v1",
        "requestauthentications",
        "RequestAuthentication",
    );
    let mut tokens = policy("jwt", json!({"jwtRules": [{"issuer": "me"}]}));
    tokens["kind"] = json!("RequestAuthentication");
    server.put(TOKENS, tokens);
    let list = format!("GET {TOKENS}");
    server.answers(&list, |_| (403, status(403, "Forbidden")));
    let mut cluster = Cluster::of(&client, &kinds(), UNHONOURED);
    assert_eq!(next(&mut cluster).await, ["+a"]);
    server.forget(&list);
    assert_eq!(next(&mut cluster).await, ["+jwt"]);
    server.delete(TOKENS, "shop/jwt", true);
    assert_eq!(next(&mut cluster).await, ["-jwt"]);
}

#[test]
fn what_is_forbidden_is_named() {
    let answer = serde_json::from_value(status(403, "Forbidden")).expect("is one");
    let trouble = Trouble::answered(&answer, "list", "authorizationpolicies.security.istio.io");
    assert_eq!(
        trouble.to_string(),
        "the ClusterRole of warren-controller lacks list on authorizationpolicies.security.istio.io: told to fail: Forbidden"
    );
}

#[tokio::test]
async fn a_kind_that_goes_away_takes_its_objects_along() {
    let (server, mut cluster) = world().await;
    next(&mut cluster).await;
    watched(&server, POLICIES, 1).await;
    server.unserve("/apis/security.istio.io/v1");
    assert_eq!(next(&mut cluster).await, ["-allow"]);
}
