//! Whether a step of a rotation may be taken: what this replica of the controller knows, and what the others say.
//!
//! Invariants: only a replica is told what was signed, and proves by its certificate that it is one; a replica that does
//! not answer is an error, because what it signed is not known then.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use mesh_api::warren::{
    SignedCertificate, SignedRequest, SignedResponse, replicas_client::ReplicasClient,
    replicas_server,
};
use mesh_model::name::TrustDomain;
use rcgen::KeyPair;
use tonic::{
    Request, Response, Status,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

use super::{Authority, Grant, Held, Hosted, Member, Signed, Usage};
use crate::{
    listen::{Peer, PeerName},
    view::View,
};

/// The Service, and the label, of a controller's pods; by the Service's name each certificate can be told.
const NAME: &str = "warren-controller";
/// What one replica may take to answer.
const DEADLINE: Duration = Duration::from_secs(4);
/// The largest answer, in bytes: of some 500,000 certificates.
const MAX_ANSWER: usize = 64 << 20;
/// How long the certificate is valid by which a replica proves what it is.
const PROOF_LIFE: Duration = Duration::from_secs(60);

/// What is needed to find out who uses a root.
pub struct Rotation {
    /// What signs here.
    pub authority: Arc<Authority>,
    /// Who is there.
    pub hosted: Arc<dyn Hosted>,
    /// The other replicas, in a cluster.
    pub replicas: Option<Replicas>,
}

/// Where the replicas of the controller are.
pub struct Replicas {
    /// The namespace of their pods.
    pub namespace: String,
    /// The port at which they serve nodes.
    pub port: u16,
    /// The objects.
    pub view: Arc<RwLock<View>>,
}

impl Rotation {
    /// Refuses `switch` while a replica does not trust the next root: it would tell nodes not to trust what the others
    /// sign by it.
    pub async fn is_prepared(&self) -> anyhow::Result<()> {
        let Some(replicas) = &self.replicas else {
            return Ok(());
        };
        let kept = self.authority.watch().borrow().clone();
        for (pod, answer) in replicas.answers(&self.authority).await? {
            let trusts = |root: &&str| answer.trusted.iter().any(|t| t == root);
            anyhow::ensure!(
                kept.roots().iter().all(trusts),
                "root rotation: {pod} has not read the next root from the Secret yet; it does so within seconds"
            );
        }
        Ok(())
    }

    /// Everything that is to be certified now, and what other replicas have signed.
    pub async fn usage(&self) -> anyhow::Result<Usage> {
        let signed = match &self.replicas {
            None => Vec::new(),
            Some(replicas) => {
                let all = replicas.answers(&self.authority).await?;
                let told = all.into_iter().map(|(_, answer)| told(answer));
                told.collect::<anyhow::Result<Vec<_>>>()?.concat()
            }
        };
        let own = self.authority.signed();
        let known = own.iter().chain(&signed).map(|(held, _)| held);
        let mut there: BTreeSet<Held> = known.filter(|h| self.is_member(h)).cloned().collect();
        let hosted = self.hosted.all().into_iter();
        there
            .extend(hosted.map(|(node, identity)| {
                Held::new(&Grant::Workload(identity), &Member::Node(node))
            }));
        Ok(Usage { there, signed })
    }

    /// Whether this is the own certificate of a node or a waypoint that there is, or the identity of such a waypoint.
    fn is_member(&self, held: &Held) -> bool {
        match Member::named(&held.holder) {
            Some(Member::Node(node)) => {
                let own = Grant::Node(self.authority.domain().clone(), node.clone());
                held.name == own.uri() && self.hosted.is_node(&node)
            }
            Some(Member::Waypoint(waypoint)) => self.hosted.is_waypoint(&waypoint),
            None => false,
        }
    }
}

impl Replicas {
    /// What each of them says; this one is among them.
    async fn answers(
        &self,
        authority: &Authority,
    ) -> anyhow::Result<Vec<(String, SignedResponse)>> {
        let asked = self.pods().into_iter().map(|(pod, address)| async move {
            let answer = tokio::time::timeout(DEADLINE, self.ask(authority, &address)).await;
            let answer = answer.context("it did not answer in time").flatten();
            let answer = answer.with_context(|| {
                format!("asking {pod} at {address} how far it is in the rotation")
            })?;
            anyhow::Ok((pod, answer))
        });
        futures_util::future::try_join_all(asked).await
    }

    /// The pods that serve nodes, with their addresses.
    fn pods(&self) -> Vec<(String, String)> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let pods = view.cluster().pods.values().map(|entry| &*entry.object);
        let ours = pods.filter(|pod| {
            let label = pod.metadata.labels.get("app.kubernetes.io/name");
            pod.metadata.namespace == self.namespace
                && label.is_some_and(|l| l == NAME)
                && pod.status.phase == "Running"
                && !pod.status.pod_ip.is_empty()
        });
        ours.map(|pod| (pod.metadata.name.clone(), pod.status.pod_ip.clone()))
            .collect()
    }

    /// Asks one replica.
    async fn ask(&self, authority: &Authority, address: &str) -> anyhow::Result<SignedResponse> {
        let host = match address.contains(':') {
            true => format!("[{address}]"),
            false => address.to_owned(),
        };
        let name = format!("{NAME}.{}.svc", self.namespace);
        let channel = Endpoint::from_shared(format!("https://{host}:{}", self.port))?
            .tls_config(proof(authority)?.domain_name(name))?
            .connect()
            .await?;
        let mut client = ReplicasClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        Ok(client.signed(SignedRequest {}).await?.into_inner())
    }
}

/// What proves to another replica that this is one.
fn proof(authority: &Authority) -> anyhow::Result<ClientTlsConfig> {
    let key = KeyPair::generate()?;
    let grant = Grant::Controller(authority.domain().clone(), Vec::new(), Vec::new());
    let chain = authority.sign_key(&key, &grant, SystemTime::now(), PROOF_LIFE)?;
    let trusted = authority.watch().borrow().roots().len();
    let chain = chain[..chain.len() - trusted].concat();
    Ok(ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority.roots()))
        .identity(Identity::from_pem(chain, key.serialize_pem())))
}

/// Answers other replicas.
pub struct Answers(pub Arc<Authority>);

#[tonic::async_trait]
impl replicas_server::Replicas for Answers {
    async fn signed(
        &self,
        request: Request<SignedRequest>,
    ) -> Result<Response<SignedResponse>, Status> {
        let peer = request.extensions().get::<Peer>().map(|p| &p.name);
        if !is_controller(peer, self.0.domain()) {
            return Err(Status::permission_denied(
                "only replicas of the controller are told what was signed",
            ));
        }
        let kept = self.0.watch().borrow().clone();
        let trusted = kept.roots().into_iter().map(str::to_owned).collect();
        Ok(Response::new(SignedResponse {
            trusted,
            ..tell(self.0.signed())
        }))
    }
}

fn is_controller(peer: Option<&PeerName>, domain: &TrustDomain) -> bool {
    let name = Grant::Controller(domain.clone(), Vec::new(), Vec::new()).uri();
    matches!(peer, Some(PeerName::Other(uri)) if *uri == name)
}

fn tell(signed: Vec<(Held, Signed)>) -> SignedResponse {
    let mut roots: Vec<Arc<str>> = Vec::new();
    let mut places: HashMap<Arc<str>, u32> = HashMap::new();
    let certificates = signed.into_iter().map(|(held, signed)| {
        let root = *places.entry(signed.root.clone()).or_insert_with(|| {
            roots.push(signed.root.clone());
            u32::try_from(roots.len() - 1).expect("few roots")
        });
        SignedCertificate {
            name: held.name,
            holder: held.holder,
            root,
            signed_at: milliseconds(signed.at),
        }
    });
    let certificates = certificates.collect();
    let roots = roots.iter().map(|r| r.to_string()).collect();
    SignedResponse {
        roots,
        certificates,
        trusted: Vec::new(),
    }
}

fn told(answer: SignedResponse) -> anyhow::Result<Vec<(Held, Signed)>> {
    let roots: Vec<Arc<str>> = answer.roots.into_iter().map(Arc::from).collect();
    let read = |c: SignedCertificate| {
        let root = usize::try_from(c.root).ok().and_then(|i| roots.get(i));
        let root = root.context("its answer names a root that it does not tell")?;
        let signed = Signed {
            root: root.clone(),
            at: UNIX_EPOCH + Duration::from_millis(c.signed_at),
        };
        let (name, holder) = (c.name, c.holder);
        Ok((Held { name, holder }, signed))
    };
    answer.certificates.into_iter().map(read).collect()
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_signed_is_told_as_it_is() {
        let at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let signed = |name: &str, root: &str| {
            let held = Held {
                name: name.to_owned(),
                holder: "n1".to_owned(),
            };
            let signed = Signed {
                root: root.into(),
                at,
            };
            (held, signed)
        };
        let all = vec![signed("a", "one"), signed("b", "two"), signed("c", "one")];
        let answer = tell(all.clone());
        assert_eq!(answer.roots, ["one", "two"]);
        assert_eq!(told(answer).expect("is read"), all);
        let bad = SignedResponse {
            roots: Vec::new(),
            certificates: vec![SignedCertificate::default()],
            trusted: Vec::new(),
        };
        assert!(told(bad).is_err());
    }

    #[test]
    fn only_a_controller_is_told() {
        let domain = TrustDomain::from("cluster.local");
        let other = |uri: &str| PeerName::Other(uri.to_owned());
        for (peer, is) in [
            (
                Some(other("spiffe://cluster.local/warren/controller")),
                true,
            ),
            (Some(other("spiffe://other/warren/controller")), false),
            (
                Some(other(
                    "spiffe://cluster.local/ns/warren-system/sa/warren-controller",
                )),
                false,
            ),
            (Some(PeerName::Member(Member::Node("n1".into()))), false),
            (Some(PeerName::Nobody), false),
            (None, false),
        ] {
            assert_eq!(is_controller(peer.as_ref(), &domain), is, "{peer:?}");
        }
    }
}
