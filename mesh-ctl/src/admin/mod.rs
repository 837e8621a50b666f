//! The controller's admin socket, `<state>/admin.sock`: what changes a running controller, and what it knows.
//!
//! Invariants: only root and the controller's own user are answered; one line of JSON each way; requests are bounded
//! in size, time and number.

use std::{
    fs, io,
    os::{
        fd::AsRawFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    ca::{Authority, Given, Rotation, Step, Usage},
    publish::Handle,
};

/// The socket's name in the state directory.
const SOCKET: &str = "admin.sock";
const MAX_REQUEST: u64 = 64 * 1024;
const DEADLINE: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 16;

/// What is asked of a running controller.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum Command {
    /// How far a rotation is, and the roots.
    Show,
    /// A step of a rotation.
    Rotate {
        /// The step.
        step: Step,
        /// Whether to take it although a replica has not followed, or certificates of the old root are in use.
        force: bool,
        /// The next CA, for `prepare`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        given: Option<GivenText>,
    },
    /// Who is connected, and what was refused.
    Nodes,
}

/// A CA as texts.
#[derive(Debug, Serialize, Deserialize)]
pub struct GivenText {
    /// Issuer first, root last.
    pub chain: String,
    /// The issuer's key.
    pub key: String,
}

/// What commands act on.
pub struct Admin {
    /// The certificate authority.
    pub authority: Arc<Authority>,
    /// The longest life of a certificate.
    pub leaf_ttl: Duration,
    /// The publisher, and who uses roots, in a running controller.
    pub running: Option<(Handle, Rotation)>,
}

impl Admin {
    /// Does what is asked.
    pub async fn answer(&self, command: Command) -> anyhow::Result<Value> {
        match command {
            Command::Show => {}
            Command::Rotate { step, force, given } => {
                let given = given.map(|g| Given {
                    chain: g.chain,
                    key: g.key,
                });
                let usage = match (&self.running, step) {
                    (Some((_, rotation)), Step::Finish) if !force => rotation.usage().await?,
                    (Some((_, rotation)), Step::Switch) if !force => {
                        rotation.is_prepared().await?;
                        Usage::default()
                    }
                    _ => Usage::default(),
                };
                let now = SystemTime::now();
                self.authority
                    .rotate(step, given, force, &usage, now, self.leaf_ttl)?;
                info!(target: "audit", step = ?step, force, "root rotation step taken");
            }
            Command::Nodes => return Ok(self.nodes()),
        }
        Ok(
            json!({ "phase": self.authority.phase().to_string(), "roots": self.authority.watch().borrow().roots() }),
        )
    }

    fn nodes(&self) -> Value {
        let Some((publish, _)) = &self.running else {
            return json!({ "subscribers": [], "refusals": [], "outside": [] });
        };
        let refusal = |r: crate::publish::Refusal| json!({ "kind": r.kind.to_string(), "name": &*r.name, "node": r.node.as_str(), "message": r.message });
        let refusals: Vec<Value> = publish.refusals().into_iter().map(refusal).collect();
        let outside = publish.outside().into_iter();
        let outside: Vec<Value> = outside
            .map(|(node, pod)| json!({ "node": node.as_str(), "pod": pod.uid.as_str(), "reason": pod.reason }))
            .collect();
        json!({ "subscribers": publish.subscribers(), "refusals": refusals, "outside": outside })
    }
}

/// Listens in the state directory. What an earlier controller left is replaced; the directory's lock says it is gone.
pub fn listen(state: &Path) -> anyhow::Result<UnixListener> {
    let path = state.join(SOCKET);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("removing {}", path.display()));
        }
        Ok(()) | Err(_) => {}
    }
    let (_dir, short) = short(state)?;
    let listener =
        UnixListener::bind(&short).with_context(|| format!("listening on {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protecting {}", path.display()))?;
    Ok(listener)
}

/// A path to the socket that is short enough for one, whatever the directory is called.
fn short(state: &Path) -> anyhow::Result<(fs::File, PathBuf)> {
    let dir = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(state);
    let dir = dir.with_context(|| format!("opening {}", state.display()))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()));
    Ok((dir, path))
}

/// Answers commands. Never ends by itself.
pub async fn serve(listener: UnixListener, admin: Arc<Admin>) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let admin = admin.clone();
                tokio::spawn(async move {
                    if let Ok(Err(error)) | Err(error) = timeout(DEADLINE, one(stream, &admin))
                        .await
                        .map_err(anyhow::Error::from)
                    {
                        warn!(error = format!("{error:#}"), "an admin command failed");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                warn!(%error, "accepting an admin connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn one(mut stream: UnixStream, admin: &Admin) -> anyhow::Result<()> {
    let uid = stream.peer_cred()?.uid();
    anyhow::ensure!(
        uid == 0 || uid == nix::unistd::geteuid().as_raw(),
        "user {uid} may not command the controller"
    );
    let (read, mut write) = stream.split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_REQUEST))
        .read_line(&mut line)
        .await?;
    let answer = match serde_json::from_str(&line).context("not a command") {
        Ok(command) => admin.answer(command).await,
        Err(error) => Err(error),
    };
    let answer = match answer {
        Ok(value) => json!({ "ok": true, "answer": value }),
        Err(error) => json!({ "ok": false, "error": format!("{error:#}") }),
    };
    write.write_all(format!("{answer}\n").as_bytes()).await?;
    Ok(())
}

/// Asks the controller that runs on this state directory; `None` when none does.
pub async fn ask(state: &Path, command: &Command) -> anyhow::Result<Option<Value>> {
    let (_dir, path) = short(state)?;
    let mut stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(e) => {
            return Err(e).with_context(|| {
                format!(
                    "reaching the controller at {}",
                    state.join(SOCKET).display()
                )
            });
        }
    };
    let request = serde_json::to_string(command)?;
    let talk = async {
        stream.write_all(format!("{request}\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, io::Error>(text)
    };
    let text = timeout(DEADLINE, talk)
        .await
        .context("the controller did not answer in time")??;
    let answer: Value =
        serde_json::from_str(&text).context("the controller's answer cannot be read")?;
    match answer["error"].as_str() {
        Some(error) => anyhow::bail!("{error}"),
        None => Ok(Some(answer["answer"].clone())),
    }
}
