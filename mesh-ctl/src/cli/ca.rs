//! `mesh-ctl ca`: shows the roots, and replaces the root in three steps.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::Subcommand;
use serde_json::Value;

use crate::{
    admin::{self, Admin, Command as Asked, GivenText},
    ca::{Authority, Step, lock},
};

/// What to do with the certificate authority.
#[derive(Subcommand)]
pub enum Command {
    /// Show the roots that nodes trust and how far a rotation is.
    Show {
        /// The controller's state directory.
        #[arg(long, value_name = "DIR", env = "WARREN_CTL_STATE")]
        state: PathBuf,
    },
    /// Take one step of replacing the root: prepare, switch, finish. Give nodes time between them.
    Rotate {
        /// The step.
        #[arg(long, value_enum)]
        step: Step,
        /// The controller's state directory; a running controller takes the step itself.
        #[arg(long, value_name = "DIR", env = "WARREN_CTL_STATE")]
        state: PathBuf,
        /// With `prepare`: the next CA's certificate, followed by those up to its root. Without it one is made.
        #[arg(long, value_name = "FILE", requires = "ca_key")]
        ca_cert: Option<PathBuf>,
        /// With `prepare`: its key.
        #[arg(long, value_name = "FILE", requires = "ca_cert")]
        ca_key: Option<PathBuf>,
        /// With `switch`: also when a replica of the controller does not know the next root yet; with `finish`: also when
        /// certificates of the old root are in use.
        #[arg(long)]
        force: bool,
        /// Without a running controller: the longest life of the certificates it signed.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = super::duration)]
        leaf_ttl: Duration,
    },
}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    let (state, asked, leaf_ttl) = match command {
        Command::Show { state } => (state, Asked::Show, Duration::ZERO),
        Command::Rotate {
            step,
            state,
            ca_cert,
            ca_key,
            force,
            leaf_ttl,
        } => {
            anyhow::ensure!(
                ca_cert.is_none() || step == Step::Prepare,
                "--ca-cert and --ca-key belong to step prepare"
            );
            let given = ca_cert
                .zip(ca_key)
                .map(|(cert, key)| given(&cert, &key))
                .transpose()?;
            (state, Asked::Rotate { step, force, given }, leaf_ttl)
        }
    };
    anyhow::ensure!(
        state.join("ca.json").exists() || state.join("admin.sock").exists(),
        "{} is not the state directory of a controller",
        state.display()
    );
    let answer = match super::at_hand(admin::ask(&state, &asked))? {
        Some(answer) => answer,
        None => alone(&state, asked, leaf_ttl)?,
    };
    show(&answer);
    Ok(())
}

/// Acts on the state directory while no controller does.
fn alone(state: &Path, asked: Asked, leaf_ttl: Duration) -> anyhow::Result<Value> {
    anyhow::ensure!(
        state.join("ca.json").exists(),
        "the keys are in the cluster's Secret warren-ca and no controller runs here; run this in a pod of the controller"
    );
    let _lock = lock(state)?;
    // The domain only matters when a root is made: it stands in its name.
    let authority = Arc::new(Authority::open(state, None, "cluster.local".into())?);
    let admin = Admin {
        authority,
        leaf_ttl,
        running: None,
    };
    super::at_hand(admin.answer(asked))
}

fn given(cert: &Path, key: &Path) -> anyhow::Result<GivenText> {
    let read = |path: &Path| {
        fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
    };
    Ok(GivenText {
        chain: read(cert)?,
        key: read(key)?,
    })
}

fn show(answer: &Value) {
    println!("{}", answer["phase"].as_str().unwrap_or_default());
    for (i, root) in answer["roots"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .enumerate()
    {
        let signs = if i == 0 { "signs" } else { "trusted" };
        match describe(root) {
            Ok(text) => println!("{signs:8} {text}"),
            Err(e) => println!("{signs:8} (cannot be read: {e})"),
        }
    }
}

fn describe(pem: &str) -> anyhow::Result<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes())?;
    let cert = pem.parse_x509()?;
    Ok(format!(
        "{}, valid until {}, serial {}",
        cert.subject(),
        cert.validity().not_after,
        cert.raw_serial_as_string()
    ))
}
