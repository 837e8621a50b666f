//! The authority in a Secret, with replicas that race and rotate.

use std::time::SystemTime;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::*;
use crate::{
    apiserver::ApiServer,
    ca::{Authority, Grant, Phase, Step, Usage, replaced::HOLD},
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
    other.reload(now, TTL).await.expect("reads");
    assert_eq!((other.phase(), other.roots()), (Phase::Prepared, prepared));
    step(&other, Step::Switch).expect("is taken");
    let again = authority(&client, None).await.expect("opens");
    assert_eq!(again.phase(), Phase::Switched);
    assert!(!again.roots().starts_with(&first) && again.roots().contains(&first));
}

fn base64(text: &str) -> serde_json::Value {
    serde_json::to_value(ByteString(text.into())).expect("base64")
}

fn root() -> Signer {
    generate(&"cluster.local".into()).expect("a root")
}

/// A CA below a root, as an issuer of a company's gives it.
fn below(root: &Signer) -> Signer {
    let key = KeyPair::from_pem(&root.key).expect("a key");
    let issuer = Issuer::from_ca_cert_pem(&root.chain[0], key).expect("an issuer");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let name = "intermediate";
    params.distinguished_name.push(DnType::CommonName, name);
    let signed = params.signed_by(&key, &issuer).expect("is signed");
    Signer {
        chain: vec![signed.pem(), root.chain[0].clone()],
        key: key.serialize_pem(),
    }
}

/// The Secret as cert-manager writes it: the issuer's chain without its root, and that apart.
fn from_cert_manager(signer: &Signer) -> serde_json::Value {
    let (root, chain) = signer.chain.split_last().expect("a chain");
    let chain = match chain {
        [] => root.clone(),
        chain => chain.concat(),
    };
    serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME, "namespace": "warren-system"},
        "data": {"tls.crt": base64(&chain), "tls.key": base64(&signer.key), "ca.crt": base64(root)}})
}

fn grant() -> Grant {
    Grant::Controller("cluster.local".into(), Vec::new(), Vec::new())
}

/// The chain of a certificate that is signed now, leaf and roots left out.
fn signs_through(authority: &Authority) -> Vec<String> {
    let key = KeyPair::generate().expect("a key");
    let chain = authority.sign_key(&key, &grant(), SystemTime::now(), TTL);
    let mut chain = chain.expect("signs");
    let roots = authority.watch().borrow().roots().len();
    chain.truncate(chain.len() - roots);
    chain.remove(0);
    chain
}

#[tokio::test]
async fn an_intermediate_from_elsewhere_signs() {
    let (server, client) = world().await;
    let signer = below(&root());
    let mut object = from_cert_manager(&signer);
    server.put(SECRETS, object.clone());
    let opened = authority(&client, None).await.expect("opens");
    // The root alone is trusted, and what leads to it is shown with each certificate.
    assert_eq!(opened.roots(), signer.chain[1]);
    assert_eq!(signs_through(&opened), [signer.chain[0].clone()]);
    // A key of something else is refused, and says which Secret.
    let other = root();
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

#[tokio::test]
async fn a_ca_that_is_put_in_its_place_is_trusted_first_and_signs_later() {
    let (server, client) = world().await;
    let one = authority(&client, None).await.expect("opens");
    let other = authority(&client, None).await.expect("opens");
    let (first, now) = (one.roots(), SystemTime::now());
    let signer = below(&root());
    let second = signer.chain[1].clone();
    server.put(SECRETS, from_cert_manager(&signer));
    // Both replicas go on with the old one and trust the new one; one of them notes the old root in the Secret.
    let _conflict = tokio::join!(one.reload(now, TTL), other.reload(now, TTL));
    for replica in [&one, &other] {
        replica.reload(now + HOLD / 2, TTL).await.expect("reads");
        assert_eq!(replica.phase(), Phase::Prepared);
        assert_eq!(replica.roots(), format!("{first}{second}"));
        assert_eq!(signs_through(replica), Vec::<String>::new());
    }
    let kept = server.object(SECRETS, "warren-system/warren-ca");
    let data = kept.expect("kept")["data"].clone();
    let given = from_cert_manager(&signer)["data"].clone();
    for key in ["tls.crt", "tls.key", "ca.crt"] {
        assert_eq!(data[key], given[key], "{key} is as it was written");
    }
    // One that begins now knows the old root from there.
    let third = authority(&client, None).await.expect("opens");
    assert_eq!(third.roots(), format!("{second}{first}"));
    // When nodes have heard of it, it signs; the old root goes by the step that anybody may take.
    one.reload(now + HOLD, TTL).await.expect("reads");
    assert_eq!(one.phase(), Phase::Switched);
    assert_eq!(one.roots(), format!("{second}{first}"));
    assert_eq!(signs_through(&one), [signer.chain[0].clone()]);
}

#[tokio::test]
async fn a_ca_that_is_renewed_under_its_root_signs_at_once() {
    let (server, client) = world().await;
    let root = root();
    server.put(SECRETS, from_cert_manager(&below(&root)));
    let opened = authority(&client, None).await.expect("opens");
    let renewed = below(&root);
    server.put(SECRETS, from_cert_manager(&renewed));
    opened.reload(SystemTime::now(), TTL).await.expect("reads");
    assert_eq!(opened.phase(), Phase::Steady);
    assert_eq!(signs_through(&opened), [renewed.chain[0].clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_wrote_around_the_key_stays() {
    let (server, client) = world().await;
    let root = root();
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
