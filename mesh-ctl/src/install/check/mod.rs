//! What is well and what is not: before an installation, and of one.
//!
//! Invariants: nothing is changed; a check that cannot be made is a warning that says why, never a pass; whatever is
//! not well has a hint to what to do.

mod after;
mod before;
mod certificates;
mod directories;
mod nodes;
mod rights;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{Values, cluster::Cluster};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is well.
    Ok,
    /// It works, or may; somebody should look.
    Warning,
    /// It does not work.
    Failed,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub outcome: Outcome,
    /// What was seen.
    pub said: String,
    /// What to do; empty when it is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl Finding {
    fn ok(check: &'static str, said: impl Into<String>) -> Self {
        Self::new(check, Outcome::Ok, said, "")
    }

    fn warning(check: &'static str, said: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(check, Outcome::Warning, said, hint)
    }

    fn failed(check: &'static str, said: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(check, Outcome::Failed, said, hint)
    }

    fn new(
        check: &'static str,
        outcome: Outcome,
        said: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let (said, hint) = (said.into(), hint.into());
        Self {
            check,
            outcome,
            said,
            hint,
        }
    }

    /// A check that could not be made.
    fn unknown(check: &'static str, error: &anyhow::Error) -> Self {
        Self::warning(
            check,
            format!("could not be looked at: {error:#}"),
            "give the account that runs this the right to read it, or see to the API server",
        )
    }
}

/// Whether the cluster is fit for an installation with these values.
pub async fn before(cluster: &Cluster, values: &Values) -> Vec<Finding> {
    let mut found = before::look(cluster).await;
    found.push(directories::look(cluster, values).await);
    found.push(rights::look(cluster, values).await);
    found
}

/// How an installation is.
pub async fn after(cluster: &Cluster) -> Vec<Finding> {
    let mut found = before::look(cluster).await;
    found.extend(after::look(cluster).await);
    found.push(rights::of_the_controller(cluster).await);
    found.extend(nodes::look(cluster).await);
    found.extend(certificates::look(cluster).await);
    found
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Whether nothing failed.
pub fn passed(findings: &[Finding]) -> bool {
    findings.iter().all(|f| f.outcome != Outcome::Failed)
}

/// The findings as lines for people.
pub fn table(findings: &[Finding]) -> String {
    let wide = findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding {
        check,
        outcome,
        said,
        hint,
    } in findings
    {
        let mark = match outcome {
            Outcome::Ok => "ok",
            Outcome::Warning => "warning",
            Outcome::Failed => "FAILED",
        };
        text.push_str(&format!("{mark:8} {check:wide$}  {said}\n"));
        if !hint.is_empty() {
            text.push_str(&format!("{:8} {:wide$}  -> {hint}\n", "", ""));
        }
    }
    text
}
