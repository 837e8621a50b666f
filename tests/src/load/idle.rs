//! Connections that are opened, used once and then kept: what does an idle one cost?

use std::{io, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// Connections that are opened at once.
const AT_ONCE: usize = 32;
/// Descriptors for everything besides the connections.
const SPARE: u64 = 64;

/// Opens `count` connections to an echo server; each has carried one byte there and back.
pub async fn open(to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    raise_limit(count as u64 + SPARE)?;
    let (mut kept, mut opening) = (Vec::with_capacity(count), JoinSet::new());
    while kept.len() < count {
        while opening.len() < AT_ONCE && kept.len() + opening.len() < count {
            opening.spawn(one(to));
        }
        let opened = opening.join_next().await.context("one is being opened")?;
        kept.push(opened.context("a task does not panic")??);
    }
    Ok(kept)
}

/// Allows this process as many descriptors as it may have, and fails when that is less than `needed`.
pub fn raise_limit(needed: u64) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(
        most >= needed,
        "{needed} descriptors are needed, and the limit is {most} (ulimit -Hn)"
    );
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of descriptors")
}

async fn one(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(b"w").await?;
    let mut back = [0];
    stream.read_exact(&mut back).await?;
    if back == *b"w" {
        Ok(stream)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "wrong byte"))
    }
}
