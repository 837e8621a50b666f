//! The pair of Envoys: certificates, configuration, and the two processes inside the pods.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use serde_json::{Value, json};

use super::app;
use crate::{
    lab::Lab,
    peers::envoy::{self, Files},
};

/// The client's Envoy listens here for its application.
pub const OUTBOUND: u16 = 15001;
/// The server's Envoy listens here for tunnels.
pub const TUNNEL: u16 = 15008;

/// What the pair is made of.
#[derive(Debug)]
pub struct Pair {
    /// The binary.
    pub binary: PathBuf,
    /// Where its files are.
    pub dir: PathBuf,
    /// Worker threads of each.
    pub threads: usize,
    /// Whether one line a connection is written.
    pub log: bool,
}

/// Both processes.
#[derive(Debug)]
pub struct Running {
    /// The client's, then the server's. They end with their pods, through the pods' cgroups.
    children: [Child; 2],
}

impl Running {
    /// The client's, then the server's.
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// Ends both.
    pub fn stop(mut self) -> Result<()> {
        for child in &mut self.children {
            child
                .kill()
                .and_then(|()| child.wait())
                .context("ending Envoy")?;
        }
        Ok(())
    }
}

impl Pair {
    /// A file with the client's chain and key, for a load that dials the tunnel itself.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("client.pem")
    }

    /// Makes certificates; both ends trust one root.
    pub fn certify(&self) -> Result<()> {
        let mut root = CertificateParams::new(Vec::<String>::new())?;
        // Names that differ, or a leaf would look as if it had signed itself.
        root.distinguished_name
            .push(DnType::CommonName, "bench root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
        fs::write(self.dir.join("roots.pem"), root.pem())?;
        for name in ["client", "server"] {
            let mut leaf = CertificateParams::new(Vec::<String>::new())?;
            leaf.distinguished_name.push(DnType::CommonName, name);
            leaf.use_authority_key_identifier_extension = true;
            let uri = format!("spiffe://cluster.local/ns/plain/sa/{name}");
            leaf.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
            let key = KeyPair::generate()?;
            let cert = leaf.signed_by(&key, &root)?;
            let bundle = format!("{}{}", cert.pem(), key.serialize_pem());
            fs::write(self.dir.join(format!("{name}.pem")), bundle)?;
        }
        Ok(())
    }

    /// Starts both; they listen a moment later.
    pub async fn start(&self, lab: &Lab, client: &str, server: &str) -> Result<Running> {
        let to = IpAddr::V4(lab.status().await?.pod(server)?.ip);
        let any = IpAddr::from([0, 0, 0, 0]);
        let outbound = envoy::client(
            SocketAddr::new(IpAddr::from([127, 0, 0, 1]), OUTBOUND),
            SocketAddr::new(to, TUNNEL),
            &format!("{to}:{}", app::PORT),
            &self.files("client"),
        );
        let inbound = envoy::server(
            SocketAddr::new(any, TUNNEL),
            SocketAddr::new(IpAddr::from([127, 0, 0, 1]), app::PORT),
            &self.files("server"),
        );
        let children = [
            self.launch(lab, client, "client", outbound).await?,
            self.launch(lab, server, "server", inbound).await?,
        ];
        Ok(Running { children })
    }

    /// The last lines that both processes wrote.
    pub fn said(&self) -> String {
        let of = |name| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        let last = |text: String| {
            let from = text.lines().count().saturating_sub(5);
            text.lines().skip(from).collect::<Vec<_>>().join("\n")
        };
        [of("client.log"), of("server.log")].map(last).join("\n")
    }

    fn files(&self, name: &str) -> Files {
        let bundle = self.dir.join(format!("{name}.pem"));
        Files {
            chain: bundle.clone(),
            key: bundle,
            roots: self.dir.join("roots.pem"),
        }
    }

    async fn launch(&self, lab: &Lab, who: &str, name: &str, config: Value) -> Result<Child> {
        let of = |end: &str| self.dir.join(format!("{name}.{end}"));
        let config = if self.log {
            logged(config, &of("access.log"))
        } else {
            config
        };
        fs::write(of("json"), config.to_string())?;
        let text = |p: &Path| p.display().to_string();
        let words = [
            text(&self.binary),
            "-c".into(),
            text(&of("json")),
            "-l".into(),
            "warning".into(),
            "--concurrency".into(),
            self.threads.to_string(),
            "--disable-hot-restart".into(),
        ];
        let log = fs::File::create(of("log"))?;
        let mut command = lab.command(who, &words).await?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        command
            .spawn()
            .with_context(|| format!("starting Envoy in {who}"))
    }
}

/// The same with a line for each connection, as ours writes.
fn logged(mut config: Value, to: &Path) -> Value {
    let listener = &mut config["static_resources"]["listeners"][0];
    listener["filter_chains"][0]["filters"][0]["typed_config"]["access_log"] = json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": to},
    }]);
    config
}
