//! Plain TCP from inside a pod.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use mesh_model::resilience::Keepalive;
use socket2::{SockRef, TcpKeepalive};
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
    let stream = socket.connect(address).await.map_err(DialError::Tcp)?;
    let at_home = pod.owns(address.ip()) && client.is_none_or(|c| pod.owns(c.ip()));
    if at_home && met_itself(&stream, address) {
        return Err(DialError::Tcp(io::ErrorKind::ConnectionRefused.into()));
    }
    Ok(stream)
}

/// Whether a connection is its own other end: where nobody listens it may be given that very port to come from.
fn met_itself(stream: &TcpStream, address: SocketAddr) -> bool {
    let own = stream.local_addr();
    let met = own.is_ok_and(|own| (own.ip(), own.port()) == (address.ip(), address.port()));
    if met {
        // At once, or the port would be taken for a minute. What cannot be set is no reason to go on.
        let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
    met
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
    use crate::accept::{PodSockets, PodUid};

    /// Sockets that are given the very port that will be dialed.
    #[derive(Debug)]
    struct Meeting(SocketAddr);

    impl PodSockets for Meeting {
        fn tcp(&self, _: Family, _: Option<SocketAddr>) -> io::Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&self.0.into())?;
            Ok(socket)
        }
    }

    #[tokio::test]
    async fn a_connection_is_never_its_own_other_end() {
        let free = std::net::TcpListener::bind("127.7.250.1:0").and_then(|l| l.local_addr());
        let address = free.expect("a free port");
        let workload = mesh_model::testing::cast::pod("shop", "web", "n1", "127.7.250.1");
        let pod = Arc::new(Pod {
            uid: PodUid::new("web"),
            workload: workload.uid,
            namespace: "shop".into(),
            name: "web".into(),
            service_account: "web".into(),
            identity: workload.identity,
            addresses: Box::new([address.ip()]),
            netns_cookie: 7,
            barred: None,
            sockets: Arc::new(Meeting(address)),
        });
        // Twice: the first one leaves nothing behind that would keep the port.
        for client in [None, Some(address)] {
            let met = connect(&pod, address, client, None).await;
            let error = met.expect_err("nobody listens");
            assert_eq!(
                error.reason(),
                mesh_model::reason::Reason::ConnectRefused,
                "{error}"
            );
        }
    }

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
