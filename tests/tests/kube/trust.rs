//! The certificate authority of a cluster: its root is replaced by command while everything runs.
//!
//! Invariant: the CA that comes is a user's, an intermediate below a root whose key the cluster never sees.

use std::{
    fs,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::{SYSTEM, Space};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

use super::{
    webhook,
    workloads::{ENROLLED, STRICT},
};

/// New connections a second, and for how long: longer than the rotation takes.
const RATE: &str = "300";
const LOADED: Duration = Duration::from_secs(60);
/// Streams that are opened under the old root and end under the new one.
const STREAMS: &str = "100";

const CONTROLLERS: &str = "app.kubernetes.io/name=warren-controller";
/// gRPC's codes.
const PERMISSION_DENIED: &str = "7";
const UNAUTHENTICATED: &str = "16";

/// Prepare, switch, finish, each when the step before has reached every node: no connection fails, no stream is cut, and
/// afterwards only the new root is trusted, by pods that start then as well, and by the API server. Two replicas of the
/// controller sign, and neither knows all that is in use; a pod that is gone holds nothing up, and its token is worth
/// nothing.
pub async fn the_root_is_replaced_under_load() -> Result<()> {
    Space::with("rotated", ENROLLED, async |space| {
        space.cluster.controllers(2).await?;
        let outcome = rotated(space).await;
        space.cluster.controllers(1).await?;
        outcome
    })
    .await
}

async fn rotated(space: &Space) -> Result<()> {
    let nodes = space.cluster.nodes()?;
    space.apply(STRICT).await?;
    space.apply(&Space::echo("echo", &nodes[0])).await?;
    space.ready("echo").await?;
    let gone = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: gone}";
    space.apply(gone).await?;
    let spec = format!(
        "spec:\n  serviceAccountName: gone\n  nodeName: {}",
        nodes[1]
    );
    let gone = Space::asker("gone", &nodes[1], "http://echo:9000/")
        .replace(&format!("spec:\n  nodeName: {}", nodes[1]), &spec);
    space.apply(&gone).await?;
    space.ready("gone").await?;
    space.cluster.until_logged(&nodes[1], &["sa/gone"]).await?;
    let left = token(space, "gone", "gone", "warren.dev").await?;
    space.kubectl(&["delete", "pod", "gone"]).await?;
    tokens_are_looked_at(space, &left).await?;
    let old = roots(space).await?;
    ensure!(old.len() == 1, "{} roots before", old.len());
    reviewed(space).await?;
    let ca = Ca::below_a_root()?;
    let seconds = LOADED.as_secs().to_string();
    for (name, words) in [
        ("conns", ["conns", "echo:9000", "--rate", RATE]),
        ("streams", ["streams", "echo:9000", "--count", STREAMS]),
    ] {
        let args = [&["--seconds", &seconds][..], &words].concat();
        space.apply(&Space::load(name, &nodes[1], &args)).await?;
        space.ready(name).await?;
    }
    let begun = Instant::now();
    let given = ["--ca-cert", "-", "--ca-key", "-"];
    step(space, "prepare", &given, &ca.stream()).await?;
    trusted(space, 2).await?;
    ensure!(
        roots(space).await?.contains(&old[0]),
        "the old root was given up at once"
    );
    // Refused as long as the other replica has not read the next root.
    let switched = space
        .cluster
        .until("both replicas to know the next root", 20, async || {
            rotate(space, "switch").await
        });
    switched.await?;
    // Refused as long as somebody has a certificate of the old root.
    let finished = space
        .cluster
        .until("the old root to be out of use", 40, async || {
            rotate(space, "finish").await
        });
    finished.await?;
    trusted(space, 1).await?;
    let new = roots(space).await?;
    ensure!(
        new == [ca.root.as_str()],
        "{} roots, among them the old: {}",
        new.len(),
        new.contains(&old[0])
    );
    let took = begun.elapsed();
    ca.vouches_for(space, "echo").await?;
    reviewed(space).await?;
    ensure!(took < LOADED, "it took {took:?}, longer than the load");
    space.apply(&Space::server("web", &nodes[0])).await?;
    space.rolled_out("deployment/web").await?;
    space
        .apply(&Space::asker("late", &nodes[1], "http://web/status/200"))
        .await?;
    space.is_answered("late").await?;
    for name in ["conns", "streams"] {
        let report = space.flawless(name, 120).await?;
        println!(
            "a rotation of {took:?}, {name}: {} done, {} failed",
            report["ok"], report["failed"]
        );
    }
    Ok(())
}

async fn rotate(space: &Space, name: &str) -> Result<()> {
    step(space, name, &[], "").await
}

/// Takes a step, as one does it: in a pod of the controller, which is told by standard input what cannot be written
/// there.
async fn step(space: &Space, name: &str, more: &[&str], input: &str) -> Result<()> {
    let command = [
        "-n",
        SYSTEM,
        "exec",
        "-i",
        "deploy/warren-controller",
        "--",
        "/mesh-ctl",
        "ca",
        "rotate",
        "--step",
        name,
        "--state",
        "/var/lib/warren-controller",
    ];
    let command = [&command, more].concat();
    let said = space.cluster.kubectl_with(&command, input).await?;
    ensure!(said.ok, "{name}: {}{}", said.out, said.err);
    Ok(())
}

/// A CA that a user brings.
struct Ca {
    root: String,
    intermediate: String,
    key: String,
}

impl Ca {
    fn below_a_root() -> Result<Self> {
        let params = |name: &str| -> Result<CertificateParams> {
            let mut params = CertificateParams::new(Vec::<String>::new())?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.distinguished_name.push(DnType::CommonName, name);
            Ok(params)
        };
        let root = CertifiedIssuer::self_signed(params("a company's root")?, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let intermediate = params("a cluster's CA")?.signed_by(&key, &root)?;
        Ok(Self {
            root: root.pem(),
            intermediate: intermediate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// All that the controller is given.
    fn stream(&self) -> String {
        [&*self.intermediate, &self.root, &self.key].concat()
    }

    /// What a pod's node shows for it leads over the intermediate to the root.
    async fn vouches_for(&self, space: &Space, pod: &str) -> Result<()> {
        let found = space.json(&["get", "pod", pod]).await?;
        let ip = found["status"]["podIP"].as_str().context("no address")?;
        let chain = space.cluster.proof_of(ip.parse()?).await?;
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes());
        let (leaf, above) = chain.split_first().context("no certificate")?;
        ensure!(
            above == [der(&self.intermediate)?],
            "{} certificates above the leaf",
            above.len()
        );
        let name = format!("spiffe://cluster.local/ns/{}/sa/default", space.name);
        let named = leaf.windows(name.len()).any(|w| w == name.as_bytes());
        ensure!(named, "{name} is not in {leaf:?}");
        let mut roots = RootCertStore::empty();
        roots.add(der(&self.root)?)?;
        let known = default_provider().signature_verification_algorithms.all;
        let now =
            UnixTime::since_unix_epoch(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?);
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &roots, above, now, known)
            .context("the chain that is shown")
    }
}

/// The API server asks the reviewer, whose certificate is the CA's too: it would admit what it is not told of.
async fn reviewed(space: &Space) -> Result<()> {
    let refused = async || webhook::is_refused(space).await;
    space.cluster.until("a refusal", 20, refused).await
}

/// A token for an account, bound to a pod.
async fn token(space: &Space, account: &str, pod: &str, audience: &str) -> Result<String> {
    let words = [
        "create",
        "token",
        account,
        "--audience",
        audience,
        "--bound-object-kind=Pod",
        "--bound-object-name",
        pod,
    ];
    Ok(space.kubectl(&words).await?.trim().to_owned())
}

/// The CA knows who brings a token by what the API server says of it: one of a pod that is gone, or for somebody else, is
/// nobody's.
async fn tokens_are_looked_at(space: &Space, gone: &str) -> Result<()> {
    let pods = ["-n", SYSTEM, "get", "pods", "-l", CONTROLLERS];
    let pods = space.cluster.json(&pods).await?;
    let ip = pods["items"][0]["status"]["podIP"].as_str();
    let url = format!(
        "https://{}:15012/istio.v1.auth.IstioCertificateService/CreateCertificate",
        ip.context("no address")?
    );
    // A message of gRPC that is empty.
    let message = tempfile::NamedTempFile::new()?;
    fs::write(message.path(), [0; 5])?;
    let message = format!("@{}", message.path().display());
    let theirs = token(space, "default", "echo", "somebody").await?;
    let ours = token(space, "default", "echo", "warren.dev").await?;
    for (whose, token, expect) in [
        ("no waypoint", &*ours, PERMISSION_DENIED),
        ("another audience", &theirs, UNAUTHENTICATED),
        ("a pod that is gone", gone, UNAUTHENTICATED),
    ] {
        let bearer = format!("authorization: Bearer {token}");
        let ask = [
            "curl",
            "-sSk",
            "--http2",
            "-m",
            "10",
            "-D",
            "-",
            "-o",
            "/dev/null",
        ];
        let kind = ["-H", "content-type: application/grpc", "-H", "te: trailers"];
        let what = ["-H", &bearer, "--data-binary", &message, &url];
        let said = space
            .cluster
            .outside(&[&ask[..], &kind, &what].concat())
            .await?;
        let code = said
            .out
            .lines()
            .find_map(|l| l.strip_prefix("grpc-status: "));
        ensure!(code == Some(expect), "{whose}: {}{}", said.out, said.err);
    }
    Ok(())
}

/// The roots that are published.
async fn roots(space: &Space) -> Result<Vec<String>> {
    let found = space
        .cluster
        .json(&["-n", SYSTEM, "get", "configmap", "warren-root"])
        .await?;
    let text = found["data"]["root.pem"]
        .as_str()
        .context("the ConfigMap holds roots")?;
    Ok(text
        .split_inclusive("-----END CERTIFICATE-----\n")
        .map(str::to_owned)
        .collect())
}

/// Waits until every node has received so many roots: its copy on disk has them.
async fn trusted(space: &Space, count: usize) -> Result<()> {
    for node in space.cluster.nodes()? {
        let look =
            format!("grep -ao 'BEGIN CERTIFICATE' /var/lib/warren/{node}/config.bin | wc -l");
        let what = format!("{count} roots on {node}");
        let there = space.cluster.until(&what, 20, async || {
            let said = space.cluster.on_node(&node, &["sh", "-c", &look]).await?;
            ensure!(
                said.out.trim() == count.to_string(),
                "{}{}",
                said.out,
                said.err
            );
            Ok(())
        });
        there.await?;
    }
    Ok(())
}
