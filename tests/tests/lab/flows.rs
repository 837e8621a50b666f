//! The access log as values: which flows there were, by which path, with how many bytes.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use mesh_tests::lab::Lab;

use super::tunnel::until;

/// One line of a node's access log.
#[derive(Clone, Debug)]
pub struct Flow(BTreeMap<String, String>);

impl Flow {
    fn parse(line: &str) -> Self {
        let pairs = line.split(' ').filter_map(|word| word.split_once('='));
        Self(
            pairs
                .map(|(k, v)| (k.to_owned(), v.trim_matches('"').to_owned()))
                .collect(),
        )
    }

    /// The value of a key; empty when the line does not have it.
    pub fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// Bytes in both directions.
    pub fn bytes(&self) -> u64 {
        let number = |key| self.get(key).parse::<u64>().unwrap_or(0);
        number("bytes_sent") + number("bytes_recv")
    }

    fn is(&self, wanted: &[(&str, &str)]) -> bool {
        wanted.iter().all(|(k, v)| self.get(k) == *v)
    }
}

/// The ended flows that `node` logged with all these values.
pub async fn flows(lab: &Lab, node: &str, wanted: &[(&str, &str)]) -> Result<Vec<Flow>> {
    let lines = lab.node(node).access_log().await?;
    let parsed = lines.iter().map(|l| Flow::parse(l));
    Ok(parsed.filter(|f| f.is(wanted)).collect())
}

/// Waits until `node` has logged flows with all these values that `enough` says are enough; returns them.
pub async fn logged(
    lab: &Lab,
    node: &str,
    wanted: &[(&str, &str)],
    enough: impl Fn(&[Flow]) -> bool,
) -> Result<Vec<Flow>> {
    let mut found = Vec::new();
    until("the access log", async || {
        found = flows(lab, node, wanted).await?;
        let lines = lab.node(node).access_log().await?;
        ensure!(
            enough(&found),
            "{node} logged {} flows with {wanted:?}, {} bytes; the last of {} lines:\n{}",
            found.len(),
            found.iter().map(Flow::bytes).sum::<u64>(),
            lines.len(),
            lines[lines.len().saturating_sub(10)..].join("\n")
        );
        Ok(())
    })
    .await?;
    Ok(found)
}
