//! Passing a query on to the resolver that the application asked, from inside the pod.
//!
//! Invariants: every query has a socket of its own, connected to the resolver, so that nobody else can
//! answer it; bytes are passed on unchanged; every wait is bounded.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::message::id_of;
use crate::accept::{Family, Pod};

/// How long a resolver may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The longest UDP packet that is passed on.
pub const PACKET: usize = 4096;

/// Asks over UDP and gives the resolver's packet.
pub async fn over_udp(pod: &Pod, resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let (id, _) = id_of(query).ok_or(io::ErrorKind::InvalidData)?;
    let from = source(pod, resolver)?;
    let socket = UdpSocket::from_std(pod.sockets.udp(from)?)?;
    let asking = async {
        socket.connect(resolver).await?;
        socket.send(query).await?;
        let mut answer = vec![0; PACKET];
        loop {
            let length = socket.recv(&mut answer).await?;
            // What is not an answer to this query is somebody else's.
            if id_of(&answer[..length]) == Some((id, true)) {
                answer.truncate(length);
                return Ok(answer);
            }
        }
    };
    timeout(PATIENCE, asking).await?
}

fn source(pod: &Pod, resolver: SocketAddr) -> io::Result<IpAddr> {
    let same = |ip: &&IpAddr| ip.is_ipv4() == resolver.is_ipv4();
    let none = || {
        io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!("the pod has no address of the family of {resolver}"),
        )
    };
    pod.addresses.iter().find(same).copied().ok_or_else(none)
}

/// A connection to a resolver, from inside the pod.
pub async fn connect(pod: &Pod, resolver: SocketAddr) -> io::Result<TcpStream> {
    let socket = pod.sockets.tcp(Family::of(resolver.ip()), None)?;
    let started = socket.connect(&resolver.into());
    match started {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    timeout(PATIENCE, stream.writable()).await??;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// Reads one message with its length; `None` at the end of the stream.
pub async fn read_framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes one message with its length.
pub async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// Asks over a stream, as the next message on it.
pub async fn over_tcp(stream: &mut TcpStream, query: &[u8]) -> io::Result<Vec<u8>> {
    let (id, _) = id_of(query).ok_or(io::ErrorKind::InvalidData)?;
    let asking = async {
        write_framed(stream, query).await?;
        loop {
            let answer = read_framed(stream)
                .await?
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            if id_of(&answer) == Some((id, true)) {
                return Ok(answer);
            }
        }
    };
    timeout(PATIENCE, asking).await?
}
