//! One accepted connection, and the loop that accepts.
//!
//! Invariants: a connection is accepted only while there is room for its flow; when the process has no
//! descriptor or memory left, accepting pauses with growing pauses and live flows go on.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::{TcpListener, TcpStream};

use super::{Kind, Pod};

/// The pause after the first failure to accept.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest pause between attempts to accept.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection that was accepted inside a pod.
#[derive(Debug)]
pub struct Accepted {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What the listener is for.
    pub kind: Kind,
    /// The connection.
    pub tcp: TcpStream,
    /// The pod's side. On a plaintext connection this is what the client dialed.
    pub local: SocketAddr,
    /// The other side.
    pub peer: SocketAddr,
}

impl Accepted {
    /// Takes a connection in: without Nagle's delay, with canonical addresses.
    pub fn new(pod: Arc<Pod>, kind: Kind, tcp: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        let local = canonical(tcp.local_addr()?);
        Ok(Self {
            pod,
            kind,
            tcp,
            local,
            peer: canonical(peer),
        })
    }

    /// Ends the connection the way a network would: with a reset, not an orderly end.
    pub fn reset(self) {
        reset(self.tcp);
    }
}

/// Ends a connection with a reset.
pub fn reset(tcp: TcpStream) {
    // Without linger, close sends RST. When even that fails, an orderly close is all that is left.
    let _ = socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
}

/// Unwraps IPv4-mapped addresses.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Accepts one connection; waits out a lack of descriptors or memory, telling `backed_off` each time.
pub async fn next(
    listener: &TcpListener,
    mut backed_off: impl FnMut(&io::Error),
) -> io::Result<(TcpStream, SocketAddr)> {
    let mut pause = FIRST_PAUSE;
    loop {
        match listener.accept().await {
            Ok(accepted) => return Ok(accepted),
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) if is_of_the_process(&error) => {
                backed_off(&error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The connection was gone before it was accepted; the listener is fine.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EPROTO
                | libc::EINTR
                | libc::EPERM
                | libc::ENETDOWN
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
        )
    )
}

/// The process or the machine is out of something.
fn is_of_the_process(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
