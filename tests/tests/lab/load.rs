//! The load generator inside a pod, and what it reports.

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::Lab;
use serde_json::Value;

/// Runs `warren-load` in a pod and returns its report, whether or not all went well.
pub async fn load(lab: &Lab, who: &str, args: &[&str]) -> Result<Value> {
    let mut program = vec![env!("CARGO_BIN_EXE_warren-load")];
    program.extend(args);
    let ran = lab.exec(who, &program).await?;
    serde_json::from_str(&ran.out)
        .with_context(|| format!("warren-load {args:?} in {who}: {ran:?}"))
}

/// Runs it and expects that nothing failed and something was done.
pub async fn flawless(lab: &Lab, who: &str, args: &[&str]) -> Result<Value> {
    let report = load(lab, who, args).await?;
    ensure!(
        report["failed"] == 0 && report["ok"].as_u64() > Some(0),
        "warren-load {args:?} in {who}: {report}"
    );
    Ok(report)
}
