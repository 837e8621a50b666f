//! Reviews over real TLS.

use std::{net::SocketAddr, time::SystemTime};

use arc_swap::ArcSwap;
use hyper::{body::Incoming, client::conn};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::{
    ca::Authority,
    listen::{self, Clients, Credentials, Names},
    watch::Delta,
};

const NAME: &str = "warren-controller.warren-system.svc";

struct World {
    address: SocketAddr,
    roots: RootCertStore,
    metrics: Arc<Metrics>,
}

async fn world() -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::open(dir.path(), None, "cluster.local".into()).expect("opens");
    let names = Names {
        dns: vec![NAME.to_owned()],
        addresses: Vec::new(),
        ttl: Duration::from_secs(3600),
    };
    let credentials = Credentials::issue(&authority, &names, Clients::ApiServer, SystemTime::now());
    let config = credentials.expect("a certificate").config;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let domain = authority.domain().clone();
    let incoming = listen::accept(listener, Arc::new(ArcSwap::new(config)), domain);
    let mut view = View::default();
    view.apply(Vec::<Delta>::new());
    view.refresh();
    let metrics = Arc::new(Metrics::default());
    let view = Arc::new(RwLock::new(view));
    let reviewer = Arc::new(Reviewer::new(view, metrics.clone()));
    tokio::spawn(serve(incoming, reviewer));
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.roots().as_bytes()).expect("a root");
    roots.add(root).expect("is one");
    World {
        address,
        roots,
        metrics,
    }
}

impl World {
    async fn connect(
        &self,
        alpn: &str,
        name: &'static str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("there are some")
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let socket = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from(name).expect("is a name");
        TlsConnector::from(Arc::new(config))
            .connect(name, socket)
            .await
    }

    async fn send(&self, alpn: &str, request: Request<Full<Bytes>>) -> (u16, Value) {
        let io = TokioIo::new(self.connect(alpn, NAME).await.expect("connects"));
        let response: Response<Incoming> = if alpn == "h2" {
            let (mut sender, driver) = conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .expect("speaks");
            tokio::spawn(driver);
            sender.send_request(request).await.expect("an answer")
        } else {
            let (mut sender, driver) = conn::http1::handshake(io).await.expect("speaks");
            tokio::spawn(driver);
            sender.send_request(request).await.expect("an answer")
        };
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body");
        let body = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
        (status, body)
    }

    async fn post(&self, alpn: &str, body: impl Into<Bytes>) -> (u16, Value) {
        let request = Request::post(format!("https://{NAME}/validate?timeout=2s"));
        let request = request.body(Full::new(body.into())).expect("is one");
        self.send(alpn, request).await
    }
}

fn review_of(spec: &Value) -> String {
    let object = json!({"apiVersion": "warren.dev/v1alpha1", "kind": "MeshConfig",
        "metadata": {"name": "mesh", "namespace": "warren-system"}, "spec": spec});
    // As an API server sends it, with much that is not looked at.
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "705ab4f5", "kind": {"group": "warren.dev", "version": "v1alpha1", "kind": "MeshConfig"},
        "resource": {"group": "warren.dev", "version": "v1alpha1", "resource": "meshconfigs"},
        "name": "mesh", "namespace": "warren-system", "operation": "CREATE", "dryRun": false,
        "userInfo": {"username": "admin"}, "options": null, "object": object, "oldObject": null}})
    .to_string()
}

#[tokio::test]
async fn reviews_are_answered_over_either_http() {
    let world = world().await;
    for alpn in ["h2", "http/1.1"] {
        let (status, answer) = world.post(alpn, review_of(&json!({"sameNode": "x"}))).await;
        assert_eq!(
            (status, &answer["kind"]),
            (200, &json!("AdmissionReview")),
            "{answer}"
        );
        let response = &answer["response"];
        assert_eq!(
            (
                &response["uid"],
                &response["allowed"],
                &response["status"]["code"]
            ),
            (&json!("705ab4f5"), &json!(false), &json!(422)),
            "{answer}"
        );
        let message = response["status"]["message"].as_str().expect("a message");
        assert!(message.contains("spec.sameNode"), "{message}");
        let (_, answer) = world.post(alpn, review_of(&json!({"newWork": 1}))).await;
        assert_eq!(
            answer["response"],
            json!({"uid": "705ab4f5", "allowed": true, "warnings": ["spec.newWork: is not known to this version and not honoured"]})
        );
        let (_, answer) = world.post(alpn, review_of(&json!({}))).await;
        assert_eq!(
            answer["response"],
            json!({"uid": "705ab4f5", "allowed": true})
        );
    }
    for outcome in ["refused", "warned", "allowed"] {
        let line = format!("warren_ctl_reviews_total{{outcome=\"{outcome}\"}} 2");
        assert!(world.metrics.text().contains(&line), "{outcome}");
    }
}

#[tokio::test]
async fn what_is_no_review_is_an_error_and_never_a_refusal() {
    let world = world().await;
    assert_eq!(world.post("h2", "no JSON").await.0, 400);
    let other = review_of(&json!({})).replace("admission.k8s.io/v1", "admission.k8s.io/v2");
    assert_eq!(world.post("h2", other).await.0, 400);
    let large = vec![b' '; MAX_BODY + 1];
    for alpn in ["h2", "http/1.1"] {
        assert_eq!(world.post(alpn, large.clone()).await.0, 413, "{alpn}");
    }
    let get = Request::get(format!("https://{NAME}/validate"));
    let get = get.body(Full::default()).expect("is one");
    assert_eq!(world.send("h2", get).await.0, 405);
    let elsewhere = Request::post(format!("https://{NAME}/mutate"));
    let elsewhere = elsewhere.body(Full::default()).expect("is one");
    assert_eq!(world.send("h2", elsewhere).await.0, 404);
    // It still answers.
    assert_eq!(world.post("h2", review_of(&json!({}))).await.0, 200);
}

#[tokio::test]
async fn no_more_than_a_few_are_under_way_and_the_rest_do_not_wait_long() {
    let mut view = View::default();
    view.apply(Vec::<Delta>::new());
    let reviewer = Reviewer::new(Arc::new(RwLock::new(view)), Arc::default());
    let slots = reviewer.slots.clone();
    let all = u32::try_from(AT_ONCE).expect("are few");
    let held = slots.acquire_many_owned(all).await.expect("all of them");
    let request = || {
        let body = Full::new(Bytes::from(review_of(&json!({}))));
        Request::post("https://x/validate")
            .body(body)
            .expect("is one")
    };
    assert_eq!(reviewer.answer(request()).await.status().as_u16(), 503);
    drop(held);
    assert_eq!(reviewer.answer(request()).await.status().as_u16(), 200);
}

#[tokio::test]
async fn the_certificate_has_the_name_that_the_api_server_asks_for() {
    let mut world = world().await;
    assert!(world.connect("h2", NAME).await.is_ok());
    assert!(
        world
            .connect("h2", "other.warren-system.svc")
            .await
            .is_err()
    );
    world.roots = RootCertStore::empty();
    assert!(world.connect("h2", NAME).await.is_err());
}
