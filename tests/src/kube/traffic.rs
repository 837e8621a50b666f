//! Traffic that goes on while something happens to the mesh, and what became of it.
//!
//! Invariants: nothing is retried; each request is a line of its pod's log, which is read from the node's disk, so that
//! it is seen also while nobody answers for the cluster; a request without an answer is one that failed.

use std::fmt;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{SAMPLES, Space};

/// What a pod's requests came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many were answered well.
    pub ok: usize,
    /// The others: when, and what curl said.
    pub failed: Vec<String>,
}

impl Tally {
    /// Of the lines of an asker's log, each with its time.
    fn of(lines: &[(String, String)]) -> Self {
        let mut tally = Self::default();
        let mut said: Vec<&str> = Vec::new();
        for (time, text) in lines {
            match text.strip_prefix("answer ") {
                None => said.push(text),
                Some("200") => {
                    tally.ok += 1;
                    said.clear();
                }
                Some(code) => {
                    let said = std::mem::take(&mut said).join(" ");
                    tally.failed.push(format!("{time} {code} {said}"));
                }
            }
        }
        tally
    }

    /// What came after an earlier tally of the same pod.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            ok: self.ok - earlier.ok,
            failed: self.failed[earlier.failed.len()..].to_vec(),
        }
    }

    /// An error unless nothing failed and at least so many went well.
    pub fn flawless(&self, least: usize) -> Result<()> {
        ensure!(self.failed.is_empty(), "{self}");
        ensure!(self.ok >= least, "only {self}; {least} were to be");
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ok, failed } = self;
        write!(
            f,
            "{} of {} requests failed",
            failed.len(),
            ok + failed.len()
        )?;
        for one in failed.iter().take(5) {
            write!(f, "\n  {one}")?;
        }
        Ok(())
    }
}

impl Space {
    /// A pod that asks a URL again and again, each time over a connection of its own, with a name to resolve.
    pub fn asker(name: &str, node: &str, url: &str) -> String {
        let ask = "curl -sS -m 10 -o /dev/null -w 'answer %{http_code}\\n'";
        Self::client(name, node).replace(
            "args: [-c, 'sleep 100000']",
            &format!("args: [-c, \"while :; do {ask} {url} 2>&1; sleep 0.02; done\"]"),
        )
    }

    /// What the requests of an asker have come to so far.
    pub fn tally(&self, pod: &str) -> Result<Tally> {
        Ok(Tally::of(&self.cluster.log_of(&self.name, pod)?))
    }

    /// Waits until an asker has been answered.
    pub async fn is_answered(&self, pod: &str) -> Result<Tally> {
        let what = format!("an answer to {pod}");
        self.cluster
            .until(&what, 30, async || {
                let tally = self.tally(pod)?;
                ensure!(tally.ok > 0, "{tally}");
                Ok(tally)
            })
            .await
    }

    /// A TCP echo server with a service of the same name on port 9000.
    pub fn echo(name: &str, node: &str) -> String {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: tcp, port: 9000}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: echo, image: '{SAMPLES}', args: [tcp-echo, --port, '9000'], readinessProbe: {{tcpSocket: {{port: 9000}}, periodSeconds: 1}}}}
"
        )
    }

    /// A pod in which the load generator runs once.
    pub fn load(name: &str, node: &str, args: &[&str]) -> String {
        let args = args
            .iter()
            .map(|a| format!("'{a}'"))
            .collect::<Vec<_>>()
            .join(", ");
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: load, image: '{SAMPLES}', command: [/warren-load], args: [{args}]}}
"
        )
    }

    /// Waits until the load generator in a pod has ended, and gives its report.
    pub async fn report(&self, pod: &str, seconds: u64) -> Result<Value> {
        let what = format!("the report of {pod}");
        self.cluster
            .until(&what, seconds, async || {
                let lines = self.cluster.log_of(&self.name, pod)?;
                let (_, last) = lines.last().context("it has said nothing")?;
                serde_json::from_str(last).with_context(|| last.clone())
            })
            .await
    }

    /// The same, and an error unless nothing failed and something was done.
    pub async fn flawless(&self, pod: &str, seconds: u64) -> Result<Value> {
        let report = self.report(pod, seconds).await?;
        let done = report["ok"].as_u64() > Some(0);
        ensure!(report["failed"] == 0 && done, "{pod}: {report}");
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_a_good_answer_has_failed() {
        let lines: Vec<(String, String)> = [
            ("1", "answer 200"),
            ("2", "curl: (7) Failed to connect"),
            ("3", "answer 000"),
            ("4", "answer 200"),
            ("5", "answer 503"),
        ]
        .map(|(time, text)| (time.to_owned(), text.to_owned()))
        .to_vec();
        let all = Tally::of(&lines);
        assert_eq!(all.ok, 2);
        assert_eq!(all.failed, ["3 000 curl: (7) Failed to connect", "5 503 "]);
        let first = Tally::of(&lines[..3]);
        assert_eq!(all.since(&first).failed, ["5 503 "]);
        assert!(all.flawless(0).is_err());
        let good = Tally::of(&lines[..1]);
        assert!(good.flawless(1).is_ok() && good.flawless(2).is_err());
    }
}
