//! The cluster's API without kubectl: for thousands of objects, and for changes whose time counts.
//!
//! Invariants: one HTTP/2 connection, the administrator's certificate, the cluster's own root; every request has a
//! deadline; an answer that is no success is an error with what the API server said.

use std::{net::TcpStream, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::Value;
use tokio_rustls::TlsConnector;

use super::Cluster;
use crate::lab::enter::in_netns;

/// The network that connects the nodes, where the API server is reached; as the cluster's scripts call it.
pub(super) const NETWORK: &str = "/run/netns/wk-cp";
const HOST: &str = "10.99.0.1";
const PORT: u16 = 6443;
/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A connection to the API server. Cloning shares it.
#[derive(Clone)]
pub struct Api(SendRequest<Full<Bytes>>);

impl Api {
    /// Connects as the cluster's administrator.
    pub async fn connect(cluster: &Cluster) -> Result<Self> {
        let connector = TlsConnector::from(Arc::new(config(&cluster.state().join("pki"))?));
        let stream = in_netns(Path::new(NETWORK), || {
            let stream =
                TcpStream::connect((HOST, PORT)).context("connecting to the API server")?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })?;
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let name = ServerName::try_from(HOST)?;
        let tls = connector
            .connect(name, stream)
            .await
            .context("TLS with the API server")?;
        let (send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("the connection to the API server ended: {error}");
            }
        });
        Ok(Self(send))
    }

    /// Creates an object in the collection at `path`.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.ask(Method::POST, path, "application/json", Some(object))
            .await
    }

    /// Merges into the object at `path`.
    pub async fn patch(&self, path: &str, change: &Value) -> Result<Value> {
        let kind = "application/merge-patch+json";
        self.ask(Method::PATCH, path, kind, Some(change)).await
    }

    /// Deletes the object at `path`.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        self.ask(Method::DELETE, path, "application/json", None)
            .await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let about = format!("{method} {path}");
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{HOST}:{PORT}{path}"))
            .header(CONTENT_TYPE, kind)
            .body(Full::from(body))?;
        let mut send = self.0.clone();
        let exchange = async {
            send.ready().await?;
            let (head, body) = send.send_request(request).await?.into_parts();
            Ok::<_, hyper::Error>((head.status, body.collect().await?.to_bytes()))
        };
        let answered = tokio::time::timeout(LIMIT, exchange).await;
        let (status, body) = answered
            .with_context(|| format!("{about}: no answer within {LIMIT:?}"))?
            .with_context(|| about.clone())?;
        if !status.is_success() {
            bail!("{about}: {status}: {}", String::from_utf8_lossy(&body));
        }
        serde_json::from_slice(&body).with_context(|| about)
    }
}

fn config(pki: &Path) -> Result<ClientConfig> {
    let of = |name: &str| pki.join(name);
    let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>> {
        let all = CertificateDer::pem_file_iter(of(name)).and_then(|all| all.collect());
        all.with_context(|| format!("reading {}", of(name).display()))
    };
    let mut roots = RootCertStore::empty();
    for root in certificates("ca.crt")? {
        roots.add(root)?;
    }
    let key = PrivateKeyDer::from_pem_file(of("admin.key")).context("the administrator's key")?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates("admin.crt")?, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
