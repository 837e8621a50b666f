//! The authority in a Secret, with replicas that race and rotate.

use std::time::SystemTime;

use super::*;
use crate::{
    apiserver::ApiServer,
    ca::{Authority, Phase, Step, Usage},
};

const SECRETS: &str = "/api/v1/secrets";
const TTL: Duration = Duration::from_secs(3600);

async fn authority(client: &Client, given: Option<Given>) -> Result<Authority, CaError> {
    let store = SecretStore::new(client.clone(), "warren-system");
    let dir = tempfile::tempdir().expect("a directory");
    Authority::open_in(store, dir.path(), given, "cluster.local".into()).await
}

async fn world() -> (ApiServer, Client) {
    let (server, client) = ApiServer::start().await;
    server.serve("/api/v1", "secrets", "Secret");
    (server, client)
}

#[tokio::test]
async fn replicas_that_start_together_have_one_root() {
    let (server, client) = world().await;
    let (one, other) = tokio::join!(authority(&client, None), authority(&client, None));
    let (one, other) = (one.expect("opens"), other.expect("opens"));
    assert_eq!(one.roots(), other.roots());
    let made = server
        .object(SECRETS, "warren-system/warren-ca")
        .expect("kept");
    let keys: Vec<&String> = made["data"].as_object().expect("data").keys().collect();
    assert_eq!(keys, ["tls.crt", "tls.key"]);
    let asked = server.requests();
    let other_secrets = asked.iter().filter(|r| r.contains("secrets")).filter(|r| {
        !r.contains("/namespaces/warren-system/secrets/warren-ca") && !r.starts_with("POST ")
    });
    assert_eq!(other_secrets.count(), 0, "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_goes_through_the_secret_and_replicas_follow() {
    let (_server, client) = world().await;
    let one = authority(&client, None).await.expect("opens");
    let other = authority(&client, None).await.expect("opens");
    let (first, now) = (one.roots(), SystemTime::now());
    let step = |of: &Authority, step| of.rotate(step, None, false, &Usage::default(), now, TTL);
    let prepared = step(&one, Step::Prepare).expect("is taken");
    // The other has not looked since: its step would undo the first.
    let error = step(&other, Step::Prepare)
        .expect_err("is refused")
        .to_string();
    assert!(error.contains("somebody else changed it"), "{error}");
    other.reload().await.expect("reads");
    assert_eq!((other.phase(), other.roots()), (Phase::Prepared, prepared));
    step(&other, Step::Switch).expect("is taken");
    let again = authority(&client, None).await.expect("opens");
    assert_eq!(again.phase(), Phase::Switched);
    assert!(!again.roots().starts_with(&first) && again.roots().contains(&first));
}

#[tokio::test]
async fn an_intermediate_from_elsewhere_signs() {
    let (server, client) = world().await;
    let root = generate(&"cluster.local".into()).expect("a root");
    let data = data_of(&steady(root.clone())).expect("data");
    let base64 = |text: &str| serde_json::to_value(ByteString(text.into())).expect("base64");
    let mut object = serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME, "namespace": "warren-system"},
        "data": {"tls.crt": base64(&root.chain[0]), "tls.key": base64(&root.key), "ca.crt": base64(&root.chain[0])}});
    assert_eq!(data.len(), 2);
    server.put(SECRETS, object.clone());
    let opened = authority(&client, None).await.expect("opens");
    assert_eq!(opened.roots(), root.chain[0]);
    // A key of something else is refused, and says which Secret.
    let other = generate(&"cluster.local".into()).expect("a root");
    object["data"]["tls.key"] = base64(&other.key);
    server.put(SECRETS, object.clone());
    let error = authority(&client, None).await.expect_err("is refused");
    assert!(error.to_string().contains("key does not belong"), "{error}");
    object["data"] = serde_json::json!({});
    server.put(SECRETS, object);
    let error = authority(&client, None).await.expect_err("is refused");
    assert!(
        error.to_string().contains("warren-ca has no tls.crt"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_wrote_around_the_key_stays() {
    let (server, client) = world().await;
    let root = generate(&"cluster.local".into()).expect("a root");
    let base64 = |text: &str| serde_json::to_value(ByteString(text.into())).expect("base64");
    server.put(SECRETS, serde_json::json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": NAME, "namespace": "warren-system", "uid": "u1", "labels": {"team": "a"}, "annotations": {"b": "c"}},
        "data": {"tls.crt": base64(&root.chain[0]), "tls.key": base64(&root.key)}}));
    let authority = authority(&client, None).await.expect("opens");
    let made = || {
        let found = server.object(SECRETS, "warren-system/warren-ca");
        found.expect("is there")
    };
    // Both steps: the second writes over what the first got back.
    for step in [Step::Prepare, Step::Switch] {
        let before = made()["data"].clone();
        authority
            .rotate(step, None, false, &Usage::default(), SystemTime::now(), TTL)
            .expect("is taken");
        let after = made();
        let metadata = &after["metadata"];
        assert_ne!(after["data"], before, "{step:?}");
        assert_eq!(after["type"], "Opaque", "{step:?}");
        assert_eq!(
            (&metadata["labels"]["team"], &metadata["annotations"]["b"]),
            (&"a".into(), &"c".into()),
            "{step:?}"
        );
    }
}
