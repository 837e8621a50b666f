//! Plain TCP from inside a pod.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use socket2::TcpKeepalive;
use tokio::net::{TcpSocket, TcpStream};

use super::DialError;
use crate::accept::{Family, Pod};

/// Idle time before a keepalive probe, and between probes.
const KEEPALIVE: Duration = Duration::from_secs(180);
/// Probes without an answer that end a connection.
const KEEPALIVE_PROBES: u32 = 9;

/// Connects from inside the pod. With `client`, the application sees that address as its peer.
pub async fn connect(
    pod: &Arc<Pod>,
    address: SocketAddr,
    client: Option<SocketAddr>,
) -> Result<TcpStream, DialError> {
    let socket = pod
        .sockets
        .tcp(Family::of(address.ip()), client)
        .map_err(DialError::Socket)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(KEEPALIVE_PROBES);
    let prepared = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_nonblocking(true));
    prepared.map_err(DialError::Socket)?;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    socket.connect(address).await.map_err(DialError::Tcp)
}
