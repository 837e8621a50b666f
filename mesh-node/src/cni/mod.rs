//! The CNI plugin on this node: installed, kept in the runtime's configuration whoever rewrites it, and taken out when
//! that is asked for.
//!
//! Invariants: an ordinary end of the process leaves the plugin where it is, so that no pod starts uncaptured while
//! nobody is there; what was taken out is not put back by the same process; blocking work runs beside the runtime, and
//! against somebody who keeps taking the plugin out less and less often.

pub mod command;
pub mod places;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex as StdMutex, MutexGuard},
    time::Duration,
};

use mesh_cni::{
    PLUGIN,
    install::{InstallError, Node},
};
use serde_json::{Value, json};
use tokio::{sync::Mutex, time::sleep};

use crate::{config::Config, observe::Metrics, watch::Watch};

/// How long changes are gathered before the configuration is looked at; each time in a row that it had to be mended,
/// twice as long, at most `SLOWEST`.
const GATHER: Duration = Duration::from_millis(100);
const SLOWEST: Duration = Duration::from_secs(30);
/// How often it is looked at when nothing changes, and when it could not be mended.
const EVERY: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(5);

/// What is installed, and where.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// The node's directories.
    pub node: Node,
    /// Whose directories these are.
    pub whose: String,
    /// The program to install.
    pub program: PathBuf,
    /// Its entry in the configuration.
    pub entry: Value,
}

impl Plugin {
    /// As configured. The entry names the node proxy's socket and list by the paths that this process knows them by:
    /// in a container they have to be the node's.
    pub fn new(config: &Config) -> Self {
        let cni = &config.cni;
        let found = places::find(cni.conf_dir.as_deref(), cni.bin_dir.as_deref());
        Self {
            node: found.node,
            whose: found.whose,
            program: cni.plugin.clone(),
            entry: json!({
                "type": PLUGIN,
                "socket": config.run_dir.join("pods.sock"),
                "enrolled": config.state_dir.join("enrolled"),
                "failOpen": cni.fail_open,
            }),
        }
    }

    /// Installs it and chains it, where that is not done. Says whether anything was changed.
    pub fn install(&self) -> Result<bool, InstallError> {
        self.node.install(&self.program, &self.entry)
    }
}

/// How the plugin stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// Not looked at yet.
    Unknown,
    /// Chained.
    Kept,
    /// It cannot be; why.
    Waits(String),
    /// Taken out.
    Removed,
}

/// Keeps the plugin in its place. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Cni {
    plugin: Arc<Plugin>,
    standing: Arc<StdMutex<Standing>>,
    /// Held while files are worked on; false from when the plugin was taken out.
    keeps: Arc<Mutex<bool>>,
}

/// Why the plugin could not be taken out.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The files.
    #[error(transparent)]
    Files(#[from] InstallError),
    /// The work itself.
    #[error("the work on the files ended early: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

impl Cni {
    /// Will keep it once it runs.
    pub fn new(plugin: Plugin) -> Self {
        Self {
            plugin: Arc::new(plugin),
            standing: Arc::new(StdMutex::new(Standing::Unknown)),
            keeps: Arc::new(Mutex::new(true)),
        }
    }

    /// Keeps it for ever, or until it is taken out.
    pub async fn run(self, metrics: Metrics) {
        let node = &self.plugin.node;
        tracing::info!(conf = %node.conf_dir.display(), bin = %node.bin_dir.display(), of = self.plugin.whose,
            "the CNI plugin is kept in the container runtime's configuration");
        let dirs = [node.conf_dir.clone(), node.bin_dir.clone()];
        let mut watch = Watch::on(&dirs).inspect_err(|error| {
            tracing::warn!(%error, "the runtime's configuration cannot be watched; it is looked at from time to time");
        }).ok();
        let mut gather = GATHER;
        loop {
            let keeps = self.keeps.lock().await;
            if !*keeps {
                metrics.node().cni_chained.set(0);
                drop(keeps);
                return std::future::pending().await;
            }
            let plugin = self.plugin.clone();
            let done = tokio::task::spawn_blocking(move || plugin.install()).await;
            let done = done.map_err(io::Error::other);
            drop(keeps);
            let (standing, mended) = match done {
                Ok(Ok(changed)) => (Standing::Kept, changed),
                Ok(Err(error)) => (Standing::Waits(error.to_string()), false),
                Err(error) => (Standing::Waits(error.to_string()), false),
            };
            let kept = standing == Standing::Kept;
            metrics.node().cni_chained.set(i64::from(kept));
            if mended {
                metrics.node().cni_mended.inc();
            }
            self.tell(standing, mended);
            gather = if mended {
                (gather * 2).min(SLOWEST)
            } else {
                GATHER
            };
            let pause = if kept { EVERY } else { AGAIN };
            tokio::select! {
                () = changed(&mut watch) => {}
                () = sleep(pause) => {}
            }
            sleep(gather).await;
        }
    }

    /// Takes the plugin out, configuration first, and does not put it back. Says whether there was anything to do.
    pub async fn remove(&self) -> Result<bool, RemoveError> {
        let mut keeps = self.keeps.lock().await;
        *keeps = false;
        let plugin = self.plugin.clone();
        let changed = tokio::task::spawn_blocking(move || plugin.node.uninstall()).await??;
        self.tell(Standing::Removed, changed);
        Ok(changed)
    }

    /// For the configuration dump.
    pub fn describe(&self) -> Value {
        let (state, why) = match &*self.lock() {
            Standing::Unknown => ("unknown", None),
            Standing::Kept => ("chained", None),
            Standing::Waits(why) => ("waiting", Some(why.clone())),
            Standing::Removed => ("removed", None),
        };
        let Plugin { node, whose, .. } = &*self.plugin;
        json!({"state": state, "reason": why, "of": whose, "confDir": node.conf_dir, "binDir": node.bin_dir})
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing
            .lock()
            .expect("no code panics while it holds how the plugin stands")
    }

    fn tell(&self, now: Standing, changed: bool) {
        let mut last = self.lock();
        match &now {
            Standing::Kept if changed && *last == Standing::Kept => tracing::warn!(
                "the CNI plugin was out of its place in the runtime's configuration and is back in it"
            ),
            Standing::Kept if *last != Standing::Kept => {
                tracing::info!(changed, "the CNI plugin is in its place")
            }
            Standing::Waits(why) if now != *last => {
                tracing::warn!(
                    why,
                    "the CNI plugin is not in its place; new pods are found by the search only"
                )
            }
            Standing::Removed => tracing::info!(changed, "the CNI plugin is taken out"),
            Standing::Unknown | Standing::Kept | Standing::Waits(_) => {}
        }
        *last = now;
    }
}

/// Without a watch, never.
async fn changed(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}
