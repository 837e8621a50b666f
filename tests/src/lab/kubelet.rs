//! A node's kubelet, as far as the mesh can see it: it owns the kubelet's port and probes pods from the node.
//!
//! Invariant: it runs in the node's network namespace and in a cgroup of its own, so that its connections
//! are told apart from any other host process's.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::timeout,
};

/// The port by which a kubelet is known.
pub const PORT: u16 = 10250;

/// One probe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// The pod's address.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The path of an HTTP probe; a TCP probe without.
    pub path: Option<String>,
    /// The `Host` header of an HTTP probe.
    pub host: Option<String>,
    /// How long to wait.
    pub timeout_ms: u64,
}

/// What came of a probe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether it succeeded.
    pub ok: bool,
    /// Why not.
    pub why: String,
}

/// The socket on which a node's kubelet takes probes.
pub fn socket(node_run: &Path) -> PathBuf {
    node_run.join("kubelet.sock")
}

/// Asks a kubelet to probe.
pub async fn ask(socket: &Path, probe: &Probe) -> Verdict {
    let asked = async {
        let mut stream = UnixStream::connect(socket)
            .await
            .context("reaching the kubelet")?;
        let mut line = serde_json::to_string(probe)?;
        line.push('\n');
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        serde_json::from_str(&answer).context("reading the kubelet's answer")
    };
    let patience = Duration::from_millis(probe.timeout_ms) + Duration::from_secs(1);
    match timeout(patience, asked).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(e)) => Verdict {
            ok: false,
            why: format!("{e:#}"),
        },
        Err(_) => Verdict {
            ok: false,
            why: "the kubelet does not answer".into(),
        },
    }
}

/// Serves probes until it is ended.
pub async fn run(socket: &Path) -> Result<()> {
    let _ = std::fs::remove_file(socket);
    let listener =
        UnixListener::bind(socket).with_context(|| format!("listening on {}", socket.display()))?;
    let port = TcpListener::bind(("0.0.0.0", PORT))
        .await
        .context("taking the kubelet's port")?;
    loop {
        tokio::select! {
            asked = listener.accept() => {
                let (stream, _) = asked.context("accepting a probe")?;
                tokio::spawn(async move {
                    if let Err(e) = serve(stream).await {
                        eprintln!("probe: {e:#}");
                    }
                });
            }
            // The port is there to be found, not to be used.
            taken = port.accept() => drop(taken),
        }
    }
}

async fn serve(stream: UnixStream) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await?;
    let probe: Probe = serde_json::from_str(&line).context("reading the probe")?;
    let verdict = match timeout(Duration::from_millis(probe.timeout_ms), perform(&probe)).await {
        Ok(Ok(())) => Verdict {
            ok: true,
            why: String::new(),
        },
        Ok(Err(e)) => Verdict {
            ok: false,
            why: format!("{e:#}"),
        },
        Err(_) => Verdict {
            ok: false,
            why: format!("no answer within {} ms", probe.timeout_ms),
        },
    };
    write
        .write_all(serde_json::to_string(&verdict)?.as_bytes())
        .await?;
    Ok(())
}

async fn perform(probe: &Probe) -> Result<()> {
    let to = SocketAddr::new(probe.ip, probe.port);
    let mut stream = TcpStream::connect(to)
        .await
        .with_context(|| format!("connecting to {to}"))?;
    let Some(path) = &probe.path else {
        return Ok(());
    };
    let host = probe.host.clone().unwrap_or_else(|| to.to_string());
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut status = String::new();
    BufReader::new(stream)
        .read_line(&mut status)
        .await
        .with_context(|| format!("reading the answer of {to}"))?;
    let code: u16 = status
        .split(' ')
        .nth(1)
        .and_then(|c| c.parse().ok())
        .with_context(|| format!("{to} did not answer HTTP: {status:?}"))?;
    if !(200..400).contains(&code) {
        bail!("{to}{path} answered {code}");
    }
    Ok(())
}
