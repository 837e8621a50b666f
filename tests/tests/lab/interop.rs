//! Peers of other make against captured pods, in both directions: OpenSSL with hyper-h2, and Envoy.
//!
//! The controller signs with a root of the test's own, so that the test can make the foreign peers' certificates.
//! The foreign pod is not captured; by Istio's label it says that it ends tunnels itself.

mod envoys;
mod openssl;

use std::{fs, net::IpAddr, path::PathBuf, process::Child};

use anyhow::{Result, ensure};
use mesh_tests::{
    lab::{Lab, suite, supervisor::Spec},
    peers::ca::Ca,
};
use serde_json::Value;
use tempfile::TempDir;

use super::tunnel::{SOON, pair_in, until};

pub use envoys::{a_captured_pod_reaches_envoy, envoy_reaches_a_captured_pod};
pub use openssl::{
    a_captured_pod_reaches_openssl_and_hyper_h2, openssl_and_hyper_h2_reach_a_captured_pod,
};

/// Who the foreign peer is.
const FOREIGN: &str = "spiffe://cluster.local/ns/partner/sa/peer";
const ECHO: &str = "spiffe://cluster.local/ns/shop/sa/echo";
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

const PARTNER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: partner}
---
apiVersion: v1
kind: Service
metadata: {name: foreign, namespace: partner}
spec: {selector: {app: foreign}, ports: [{name: tcp, port: 9000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: foreign, namespace: partner, labels: {app: foreign, networking.istio.io/tunnel: http}}
spec: {nodeName: n2, serviceAccountName: peer, containers: [{name: c, image: idle}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop}
spec: {nodeName: n1, serviceAccountName: other, containers: [{name: c, image: idle}]}
"#;

const DENY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-peer, namespace: shop}
spec:
  selector: {matchLabels: {app: echo}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/partner/sa/peer]}}]}]
"#;

const SAMPLE: &str = env!("CARGO_BIN_EXE_warren-sample");

struct World {
    lab: Lab,
    ca: Ca,
    dir: TempDir,
}

impl World {
    async fn up() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ca = Ca::new(dir.path())?;
        let spec = Spec {
            controller_args: ca.controller_args(),
            ..suite::spec()
        };
        let lab = pair_in(spec).await?;
        lab.apply(PARTNER).await?;
        lab.wait_ready(SOON).await?;
        Ok(Self { lab, ca, dir })
    }

    async fn ip(&self, who: &str) -> Result<IpAddr> {
        Ok(IpAddr::V4(self.lab.status().await?.pod(who)?.ip))
    }

    /// A program that runs until its handle is dropped, with its output in a file.
    async fn start(&self, who: &str, program: &[impl AsRef<str>]) -> Result<Running> {
        let log = self.dir.path().join(format!("{}.out", fastrand::u64(..)));
        let out = fs::File::create(&log)?;
        let mut command = self.lab.command(who, program).await?;
        command.stdout(out.try_clone()?).stderr(out);
        let child = command.spawn()?;
        Ok(Running { child, log })
    }
}

/// A foreign program, and what it has said.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn said(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// Waits until it has said something with all of `words` on one line.
    async fn says(&self, words: &[&str]) -> Result<()> {
        until("the foreign program", async || {
            let said = self.said()?;
            let found = said.lines().any(|l| words.iter().all(|w| l.contains(w)));
            ensure!(found, "no line with {words:?}:\n{said}");
            Ok(())
        })
        .await
    }

    /// The JSON lines it has written.
    fn lines(&self) -> Result<Vec<Value>> {
        let said = self.said()?;
        Ok(said
            .lines()
            .filter_map(|l| serde_json::from_str(l).ok())
            .collect())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the node proxy of n1 carries so many flows inbound.
async fn streams_open(lab: &Lab, count: f64) -> Result<()> {
    until("the streams", async || {
        let gauge = [("direction", "inbound")];
        let open = lab.node("n1").metric("warren_sessions", &gauge).await?;
        ensure!(open >= count, "{open} streams are open");
        Ok(())
    })
    .await
}

/// A program's words, with more behind them.
fn words(program: &[String], more: &[&str]) -> Vec<String> {
    let more = more.iter().map(|w| (*w).to_owned());
    program.iter().cloned().chain(more).collect()
}
