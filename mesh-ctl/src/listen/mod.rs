//! The TLS listeners: port 15012, which xDS and CA share, and that of the webhook; each connection comes out with who proved to be behind it.
//!
//! Invariants: TLS 1.3 only; a client certificate is optional here, because a joining node has none, and is verified
//! when there is one; handshakes are bounded in time and number; a certificate names exactly one thing or nothing.

mod credentials;
mod peer;

use std::{io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use mesh_model::name::TrustDomain;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

pub use credentials::{Clients, Credentials, Names, keep_fresh};
pub use peer::{Conn, Peer, PeerName};

/// A handshake takes no longer than this.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// So many handshakes are under way at once.
const HALF_OPEN: usize = 256;
/// So many finished ones wait to be served.
const BACKLOG: usize = 64;
/// After an error of `accept` itself, such as too many open files.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Accepts connections until the stream is dropped; each handshake uses the newest configuration.
pub fn accept(
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
    trust_domain: TrustDomain,
) -> ReceiverStream<io::Result<Conn>> {
    let (done, incoming) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let half_open = Arc::new(Semaphore::new(HALF_OPEN));
        loop {
            let Ok(permit) = half_open.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = done.closed() => return,
            };
            match accepted {
                Ok((socket, _)) => {
                    let (acceptor, done, trust_domain) = (
                        TlsAcceptor::from(config.load_full()),
                        done.clone(),
                        trust_domain.clone(),
                    );
                    tokio::spawn(async move {
                        // The permit is held until the connection is handed over: a full backlog stops accepting.
                        if let Some(conn) = handshake(acceptor, socket, &trust_domain).await {
                            let _ = done.send(Ok(conn)).await;
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(%error, "accepting a connection failed");
                    sleep(BACK_OFF).await;
                }
            }
        }
    });
    ReceiverStream::new(incoming)
}

async fn handshake(
    acceptor: TlsAcceptor,
    socket: TcpStream,
    trust_domain: &TrustDomain,
) -> Option<Conn> {
    let peer = socket.peer_addr().ok()?;
    socket.set_nodelay(true).ok()?;
    match timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(tls)) => Some(Conn::new(tls, peer, trust_domain)),
        Ok(Err(error)) => {
            warn!(%peer, %error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            debug!(%peer, "a TLS handshake took too long");
            None
        }
    }
}
