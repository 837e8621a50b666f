//! What the tests share: the sample applications, the lab, and a cluster.

pub mod apps;
pub mod bench;
pub mod demo;
pub mod interrupt;
pub mod kube;
pub mod lab;
pub mod load;
pub mod out;
pub mod peers;

use std::path::PathBuf;

use anyhow::{Context, Result};

/// A program of the workspace: beside the running program, or one directory up for a test.
pub(crate) fn built(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|d| d.join(name))
        .find(|p| p.exists());
    found.with_context(|| {
        format!(
            "no `{name}` near {}: build it by `cargo build --workspace --bins`",
            own.display()
        )
    })
}
