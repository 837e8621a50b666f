//! TCP samples: an echo with half-close, a server that speaks first, and a sink.

use std::time::Duration;

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::web;

/// The usual port of the TCP samples.
pub const PORT: u16 = 9000;

/// What a TCP sample does with a connection.
#[derive(Clone, Debug)]
pub enum Manner {
    /// Sends back what it receives; after the client's FIN sends the rest, then its own FIN.
    Echo,
    /// Sends a banner before it reads anything, then echoes.
    Banner(String),
    /// Reads and discards; answers the count of bytes at FIN.
    Sink,
    /// Sends as much as the client takes.
    Source,
}

/// Serves every port of `ports` until SIGTERM.
pub async fn tcp_echo(ports: &[u16], manner: Manner) -> Result<()> {
    for &port in ports {
        let listener = web::listen(port)?;
        println!("listening on port {port}");
        let manner = manner.clone();
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(converse(stream, manner.clone()))),
                    Err(e) => {
                        eprintln!("accept: {e}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
    }
    let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    stop.recv().await;
    Ok(())
}

/// One conversation. An error is the client's going away and ends it.
async fn converse(mut stream: TcpStream, manner: Manner) {
    let _ = stream.set_nodelay(true);
    let _ = match manner {
        Manner::Echo => echo(&mut stream).await,
        Manner::Banner(banner) => match stream.write_all(banner.as_bytes()).await {
            Ok(()) => echo(&mut stream).await,
            Err(e) => Err(e),
        },
        Manner::Sink => sink(&mut stream).await,
        Manner::Source => source(&mut stream).await,
    };
}

async fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            n => stream.write_all(&buffer[..n]).await?,
        }
    }
}

async fn sink(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0u64;
    loop {
        match stream.read(&mut buffer).await? {
            0 => {
                stream.write_all(format!("{total}\n").as_bytes()).await?;
                return stream.shutdown().await;
            }
            n => total += n as u64,
        }
    }
}

async fn source(stream: &mut TcpStream) -> std::io::Result<()> {
    let block: Vec<u8> = (0..256 * 1024).map(|i| (i % 251) as u8).collect();
    loop {
        stream.write_all(&block).await?;
    }
}
