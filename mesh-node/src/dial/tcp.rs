//! Plain TCP from inside a pod.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_model::resilience::Keepalive;
use socket2::TcpKeepalive;
use tokio::net::{TcpSocket, TcpStream};

use super::DialError;
use crate::accept::{Family, Pod};

/// Idle time before a keepalive probe, and between probes.
const KEEPALIVE: Duration = Duration::from_secs(180);
/// Probes without an answer that end a connection.
const KEEPALIVE_PROBES: u32 = 9;

/// The longest times and the most probes that the kernel takes.
const LONGEST: Duration = Duration::from_secs(32_767);
const MOST_PROBES: u32 = 127;

/// Connects from inside the pod. With `client`, the application sees that address as its peer; with `keepalive` the
/// connection has that one instead of the proxy's own.
pub async fn connect(
    pod: &Arc<Pod>,
    address: SocketAddr,
    client: Option<SocketAddr>,
    keepalive: Option<Keepalive>,
) -> Result<TcpStream, DialError> {
    let socket = pod
        .sockets
        .tcp(Family::of(address.ip()), client)
        .map_err(DialError::Socket)?;
    let keepalive = keepalive.map_or_else(own, settings);
    let prepared = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_nonblocking(true));
    prepared.map_err(DialError::Socket)?;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    socket.connect(address).await.map_err(DialError::Tcp)
}

/// The proxy's own.
fn own() -> TcpKeepalive {
    settings((Some(KEEPALIVE_PROBES), Some(KEEPALIVE), Some(KEEPALIVE)))
}

/// Within what the kernel takes: whole seconds, one at least.
fn settings((probes, idle, interval): Keepalive) -> TcpKeepalive {
    let seconds = |time: Duration| {
        let up = Duration::from_secs(time.as_secs() + u64::from(time.subsec_nanos() > 0));
        up.clamp(Duration::from_secs(1), LONGEST)
    };
    let mut settings = TcpKeepalive::new();
    if let Some(idle) = idle {
        settings = settings.with_time(seconds(idle));
    }
    if let Some(interval) = interval {
        settings = settings.with_interval(seconds(interval));
    }
    if let Some(probes) = probes {
        settings = settings.with_retries(probes.clamp(1, MOST_PROBES));
    }
    settings
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn the_kernel_takes_whatever_is_written() {
        let ms = Duration::from_millis;
        for (given, expect) in [
            ((Some(3), Some(ms(7_000)), Some(ms(75_000))), (3, 7, 75)),
            ((Some(0), Some(ms(0)), Some(ms(1))), (1, 1, 1)),
            ((Some(9), Some(ms(1_001)), Some(ms(2_000))), (9, 2, 2)),
            (
                (Some(u32::MAX), Some(Duration::MAX / 2), Some(ms(1_000))),
                (127, 32_767, 1),
            ),
        ] {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            let set = socket.set_tcp_keepalive(&settings(given));
            set.unwrap_or_else(|e| panic!("{given:?}: {e}"));
            assert!(socket.keepalive().expect("readable"));
            let seen = (
                socket.tcp_keepalive_retries().expect("readable"),
                socket.tcp_keepalive_time().expect("readable").as_secs(),
                socket.tcp_keepalive_interval().expect("readable").as_secs(),
            );
            assert_eq!(seen, expect, "{given:?}");
        }
    }
}
