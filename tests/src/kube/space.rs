//! A namespace that a test has to itself.

use std::ops::AsyncFnOnce;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{CLIENT, Cluster, SAMPLES, Said};

/// A namespace with its cluster.
#[derive(Clone, Debug)]
pub struct Space {
    /// The cluster.
    pub cluster: Cluster,
    /// The namespace's name.
    pub name: String,
}

impl Space {
    /// Makes a namespace, runs a test in it, and removes it, whatever becomes of the test. An error gets the state of
    /// its pods and what was said about them.
    pub async fn with(
        name: &str,
        labels: &str,
        test: impl AsyncFnOnce(&Space) -> Result<()>,
    ) -> Result<()> {
        let cluster = Cluster::running()?;
        let space = Self {
            cluster,
            name: name.to_owned(),
        };
        let yaml = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n"
        );
        space.cluster.apply(&yaml).await?;
        let outcome = test(&space).await;
        let story = match outcome {
            Ok(()) => String::new(),
            Err(_) => space.story().await,
        };
        let gone = space
            .cluster
            .kubectl(&["delete", "namespace", name, "--wait=false"])
            .await;
        outcome.with_context(|| format!("in namespace {name}:\n{story}"))?;
        gone.map(drop)
    }

    async fn story(&self) -> String {
        let mut story = String::new();
        for args in [&["get", "pods", "-o", "wide"][..], &["get", "events"]] {
            let said = self.kubectl(args).await;
            story.push_str(&said.unwrap_or_else(|e| format!("{e:#}\n")));
        }
        for node in self.cluster.nodes().unwrap_or_default() {
            let lines = self.cluster.log(&node, "warren-node").unwrap_or_default();
            let refused = lines
                .iter()
                .filter(|l| l.contains("connection refused") && l.contains(&self.name));
            let refused: Vec<&str> = refused.map(String::as_str).collect();
            let last = &lines[lines.len().saturating_sub(15)..];
            story.push_str(&format!(
                "-- refused on {node}, the first of {} --\n{}\n-- log of {node} --\n{}\n",
                refused.len(),
                refused[..refused.len().min(10)].join("\n"),
                last.join("\n")
            ));
        }
        story
    }

    /// kubectl in this namespace.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster
            .kubectl(&[&["-n", self.name.as_str()], args].concat())
            .await
    }

    /// What kubectl says as JSON, in this namespace.
    pub async fn json(&self, args: &[&str]) -> Result<Value> {
        self.cluster
            .json(&[&["-n", self.name.as_str()], args].concat())
            .await
    }

    /// Applies manifests, each of which names no namespace.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        let documents: Vec<String> = yaml
            .split("\n---\n")
            .map(|d| {
                d.replacen(
                    "metadata: {",
                    &format!("metadata: {{namespace: {}, ", self.name),
                    1,
                )
            })
            .collect();
        self.cluster.apply(&documents.join("\n---\n")).await
    }

    /// Waits until a workload, e.g. `deployment/web`, has rolled out.
    pub async fn rolled_out(&self, workload: &str) -> Result<()> {
        self.kubectl(&["rollout", "status", workload, "--timeout=60s"])
            .await
            .map(drop)
    }

    /// Waits until a pod is ready.
    pub async fn ready(&self, pod: &str) -> Result<()> {
        self.kubectl(&[
            "wait",
            "--for=condition=Ready",
            &format!("pod/{pod}"),
            "--timeout=60s",
        ])
        .await
        .map(drop)
    }

    /// The node of a pod and the id of its first container, as the API has it.
    pub async fn container(&self, pod: &str) -> Result<(String, String)> {
        let found = self.json(&["get", "pod", pod]).await?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let node = text(&found["spec"]["nodeName"]);
        let id = text(&found["status"]["containerStatuses"][0]["containerID"]);
        node.zip(id)
            .with_context(|| format!("pod {pod} has no container"))
    }

    /// Runs a command in a pod.
    pub async fn exec(&self, pod: &str, command: &[&str]) -> Result<Said> {
        self.cluster.exec(&self.name, pod, command).await
    }

    /// One HTTP request from a client's pod; the body, or an error with what curl said.
    pub async fn get(&self, pod: &str, url: &str) -> Result<String> {
        let said = self.exec(pod, &["curl", "-sSf", "-m", "5", url]).await?;
        anyhow::ensure!(said.ok, "curl {url} in {pod}: {}{}", said.out, said.err);
        Ok(said.out)
    }

    /// Waits for the first answer outside the mesh: a service's address is kube-proxy's there, which is told of its pods a
    /// moment after they are ready.
    pub async fn answers_outside(&self, pod: &str, url: &str) -> Result<()> {
        self.cluster
            .until("an answer past the mesh", 20, async || {
                self.get(pod, url).await.map(drop)
            })
            .await
    }

    /// An HTTP server with a service of the same name on port 80, on a node.
    pub fn server(name: &str, node: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports: [{{name: http, port: 80, targetPort: 8080}}]\n---\n{}",
            Self::deployment(name, node)
        )
    }

    /// The same without a readiness probe: it is ready as soon as it runs, which may be before it listens.
    pub fn server_without_probe(name: &str, node: &str) -> String {
        let probed = Self::server(name, node);
        let lines = probed.lines().filter(|l| !l.contains("readinessProbe"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// An HTTP server without a service.
    pub fn deployment(name: &str, node: &str) -> String {
        format!(
            "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      nodeName: {node}
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: {SAMPLES}
        args: [httpbin, --port, '8080']
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /status/200, port: 8080}}, periodSeconds: 1}}
"
        )
    }

    /// An idle pod with a shell, on a node.
    pub fn client(name: &str, node: &str) -> String {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: shell, image: '{CLIENT}', args: [-c, 'sleep 100000']}}
"
        )
    }
}
