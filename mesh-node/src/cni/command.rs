//! `mesh-node cni install|uninstall|status`, `mesh-node leave` and `mesh-node uninstall`: the plugin and the node, by hand.
//!
//! Invariants: a node proxy that runs here is asked to stop keeping the plugin before its files are touched; nothing
//! of the kernel is removed while one runs, which would put it back.

use std::{
    io::{self, ErrorKind},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use http::Method;
use mesh_cni::conflist;
use mesh_loader::Leave;
use serde_json::json;
use tokio::{net::UnixStream, time::Instant};

use super::Plugin;
use crate::{admin::client, config::Config};

/// How often it is looked whether a running node proxy has ended.
const LOOK: Duration = Duration::from_millis(20);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put the plugin in its place, once.
    Install,
    /// Take it out; a running node proxy stops keeping it.
    Uninstall,
    /// Show where it is.
    Status,
}

impl Action {
    /// Every action, in the order of help.
    pub const ALL: [Action; 3] = [Self::Install, Self::Uninstall, Self::Status];

    /// Its subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Uninstall => "uninstall",
            Self::Status => "status",
        }
    }

    /// What a person reads about it.
    pub fn about(self) -> &'static str {
        match self {
            Self::Install => {
                "Install the plugin and chain it into the container runtime's configuration, once"
            }
            Self::Uninstall => {
                "Take it out, the configuration first; a node proxy that runs here does not put it back"
            }
            Self::Status => "Show where it is to be and whether it is there; fails when it is not",
        }
    }
}

/// Does it, and prints what was done.
pub async fn run(action: Action, config: &Config) -> Result<()> {
    let plugin = Plugin::new(config);
    match action {
        Action::Install => {
            let changed = plugin.install()?;
            println!(
                "{}: {}",
                place(&plugin),
                said(changed, "installed", "was installed already")
            );
            Ok(())
        }
        Action::Uninstall => remove(config, &plugin).await,
        Action::Status => status(&plugin),
    }
}

/// Takes one step of taking the node's pods out of the mesh, whether or not a node proxy runs here. The plugin goes with
/// the second, so that a pod that starts then asks nobody.
pub async fn leave(config: &Config, step: Leave) -> Result<()> {
    if step == Leave::Release {
        remove(config, &Plugin::new(config)).await?;
    }
    let bpffs = Path::new(mesh_loader::BPFFS);
    let told = mesh_loader::Datapath::leave(bpffs, &config.instance, step);
    let told = told.with_context(|| {
        format!(
            "telling the kernel programs of instance {}",
            config.instance
        )
    })?;
    let done = match step {
        Leave::Open => "everybody reaches the pods, which are still captured",
        Leave::Release => "nothing is captured any more",
    };
    println!(
        "instance {}: {}",
        config.instance,
        said(told, done, "has no kernel programs here")
    );
    Ok(())
}

/// Restores the node: no plugin, no kernel programs, so that its pods talk as if there were no mesh. Waits at most
/// `patience` for a running node proxy to end, whose pods are captured until then.
pub async fn restore(config: &Config, patience: Duration) -> Result<()> {
    remove(config, &Plugin::new(config)).await?;
    let socket = config.run_dir.join("admin.sock");
    let deadline = Instant::now() + patience;
    while is_running(&socket).await? {
        if Instant::now() > deadline {
            bail!(
                "a node proxy still runs here ({}): stop it (delete the DaemonSet) and repeat this, its pods stay captured until then",
                socket.display()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
    let bpffs = Path::new(mesh_loader::BPFFS);
    mesh_loader::Datapath::purge(bpffs, &config.instance).with_context(|| {
        format!(
            "removing the kernel programs of instance {}",
            config.instance
        )
    })?;
    for dir in [&config.run_dir, &config.state_dir] {
        match std::fs::remove_dir_all(dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("removing {}", dir.display()));
            }
            _ => {}
        }
    }
    println!(
        "the node is as it was: no kernel programs, no plugin, no files of instance {}",
        config.instance
    );
    Ok(())
}

async fn remove(config: &Config, plugin: &Plugin) -> Result<()> {
    let socket = config.run_dir.join("admin.sock");
    if is_running(&socket).await? {
        let (code, text) = client::call(&socket, Method::POST, "/cni/remove").await?;
        match code {
            200 => {
                println!("by the running node proxy: {}", text.trim());
                return Ok(());
            }
            // It does not keep the plugin.
            404 | 409 => {}
            _ => bail!("the running node proxy answers {code}: {}", text.trim()),
        }
    }
    let changed = plugin.node.uninstall()?;
    println!(
        "{}: {}",
        place(plugin),
        said(changed, "taken out", "was not there")
    );
    Ok(())
}

/// Whether somebody listens on the socket.
async fn is_running(socket: &Path) -> io::Result<bool> {
    match UnixStream::connect(socket).await {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

fn status(plugin: &Plugin) -> Result<()> {
    let node = &plugin.node;
    let program = node.bin_dir.join(mesh_cni::PLUGIN);
    let file = node.in_use()?;
    let chained = file
        .as_ref()
        .is_some_and(|(_, list)| conflist::is_chained(list));
    let shown = json!({
        "of": plugin.whose,
        "configuration": file.as_ref().map(|(path, _)| path),
        "chained": chained,
        "program": program,
        "installed": program.is_file(),
    });
    println!("{shown:#}");
    if !chained || !program.is_file() {
        bail!("the plugin is not in its place");
    }
    Ok(())
}

fn place(plugin: &Plugin) -> String {
    format!(
        "{} and {} ({})",
        plugin.node.conf_dir.display(),
        plugin.node.bin_dir.display(),
        plugin.whose
    )
}

fn said(changed: bool, yes: &'static str, no: &'static str) -> &'static str {
    if changed { yes } else { no }
}
