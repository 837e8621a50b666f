//! Asking the CA: Istio's certificate service over TLS, with a token first and the node's certificate afterwards.
//!
//! Invariants: the controller must chain to the configured roots, whoever asks; every call has a deadline;
//! the token is read afresh for each call, because projected tokens are replaced on disk.

use std::{collections::BTreeMap, future::Future, path::PathBuf, sync::Arc, time::Duration};

use mesh_api::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use mesh_model::name::{ClusterId, Identity};
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use super::NodeCertificate;

/// What proves this node to the controller.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A join token or a projected token.
    Token,
    /// The node's certificate.
    Certificate(Arc<NodeCertificate>),
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A file that is needed cannot be read.
    #[error("{0} cannot be read: {1}; check the mount and its permissions")]
    File(PathBuf, std::io::Error),
    /// The controller cannot be reached, or is not whom it should be.
    #[error("the controller at {0} cannot be reached: {1}")]
    Connect(String, String),
    /// The controller refused.
    #[error("the controller refused to sign: {0}")]
    Refused(String),
}

/// Signs certificate requests.
pub trait Signer: Send + Sync + 'static {
    /// Has a request signed: for the node itself, or for the workload `identity`.
    fn sign(
        &self,
        csr_pem: &str,
        identity: Option<&Identity>,
        credential: &Credential,
    ) -> impl Future<Output = Result<Vec<String>, SignError>> + Send;
}

/// How the controller is reached; shared by certificates and configuration.
#[derive(Clone, Debug)]
pub struct Controller {
    /// Its URL.
    pub url: String,
    /// The PEM roots that it must chain to.
    pub ca: PathBuf,
    /// How long connecting may take.
    pub timeout: Duration,
}

impl Controller {
    /// Connects; with a certificate, mutually authenticated.
    pub async fn connect(
        &self,
        certificate: Option<&NodeCertificate>,
    ) -> Result<Channel, SignError> {
        let roots = tokio::fs::read(&self.ca)
            .await
            .map_err(|e| SignError::File(self.ca.clone(), e))?;
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots));
        if let Some(certificate) = certificate {
            let pem = certificate.bundle.pem();
            tls = tls.identity(tonic::transport::Identity::from_pem(pem, pem));
        }
        let endpoint = Endpoint::from_shared(self.url.clone())
            .and_then(|e| e.tls_config(tls))
            .map_err(|e| self.failed(&e))?;
        let endpoint = endpoint
            .connect_timeout(self.timeout)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20);
        let connected = tokio::time::timeout(self.timeout * 2, endpoint.connect()).await;
        connected
            .map_err(|e| self.failed(&e))?
            .map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &dyn std::error::Error) -> SignError {
        // tonic's own text says only "transport error"; what happened is further down.
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(e) = next {
            text = format!("{text}: {e}");
            next = e.source();
        }
        SignError::Connect(self.url.clone(), text)
    }
}

/// The CA behind the controller.
#[derive(Clone, Debug)]
pub struct CaClient {
    /// How to reach it.
    pub controller: Controller,
    /// The token's file.
    pub token: PathBuf,
    /// The node's cluster.
    pub cluster: ClusterId,
    /// How long a certificate is asked to be valid.
    pub lifetime: Duration,
}

impl Signer for CaClient {
    async fn sign(
        &self,
        csr_pem: &str,
        identity: Option<&Identity>,
        credential: &Credential,
    ) -> Result<Vec<String>, SignError> {
        let metadata = identity.map(|id| {
            let value = prost_types::Value {
                kind: Some(prost_types::value::Kind::StringValue(id.to_string())),
            };
            prost_types::Struct {
                fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), value)]),
            }
        });
        let body = IstioCertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata,
        };
        let mut request = Request::new(body);
        request.set_timeout(self.controller.timeout * 2);
        let refused = |what: &str| SignError::Refused(what.to_owned());
        let cluster = self
            .cluster
            .as_str()
            .parse::<MetadataValue<_>>()
            .map_err(|_| refused("the cluster's name cannot be sent"))?;
        request.metadata_mut().insert("clusterid", cluster);
        let channel = match credential {
            Credential::Certificate(certificate) => {
                self.controller.connect(Some(certificate)).await?
            }
            Credential::Token => {
                let token = tokio::fs::read_to_string(&self.token)
                    .await
                    .map_err(|e| SignError::File(self.token.clone(), e))?;
                let bearer = format!("Bearer {}", token.trim())
                    .parse::<MetadataValue<_>>()
                    .map_err(|_| refused("the token is not text that can be sent"))?;
                request.metadata_mut().insert("authorization", bearer);
                self.controller.connect(None).await?
            }
        };
        let call = async {
            IstioCertificateServiceClient::new(channel)
                .create_certificate(request)
                .await
        };
        let answer = tokio::time::timeout(self.controller.timeout * 3, call)
            .await
            .map_err(|_| refused("no answer in time"))?;
        answer.map(|r| r.into_inner().cert_chain).map_err(|status| {
            SignError::Refused(format!("{}: {}", status.code(), status.message()))
        })
    }
}
