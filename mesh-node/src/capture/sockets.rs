//! The proxy's sockets inside a pod: its listeners, and a stock of sockets ready to dial from.
//!
//! Invariants: every socket is non-blocking, belongs to the pod's namespace, and is marked as the proxy's
//! before anybody gets it; a stock is bounded and shrinks when it is not used; a closed stock gives nothing
//! and holds nothing, so that it does not keep the namespace of a deleted pod alive.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
};

use mesh_abi::ports;
use prometheus_client::metrics::counter::Counter;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{kernel::Kernel, netns::Netns};
use crate::accept::{Family, Kind, PodSockets};

/// How many connections may wait on a listener.
const BACKLOG: i32 = 4096;
/// The smallest and the largest stock of one family.
const STOCK: (usize, usize) = (2, 64);
/// How many requests to fill a stock may wait.
const REQUESTS: usize = 1024;

/// A TCP listener inside a pod.
#[derive(Debug)]
pub struct Listening {
    /// What it is for; `None` is DNS.
    pub kind: Option<Kind>,
    /// Its family.
    pub family: Family,
    /// Its port.
    pub port: u16,
    /// The socket.
    pub socket: TcpListener,
}

/// All the sockets through which the proxy is reached inside a pod.
#[derive(Debug, Default)]
pub struct Doors {
    /// TCP.
    pub tcp: Vec<Listening>,
    /// DNS over UDP, one socket for each address of the pod.
    pub udp: Vec<UdpSocket>,
}

/// Why the sockets could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Somebody listens on a port that the proxy needs.
    #[error(
        "port {0} is in use inside the pod: by the redirection of another mesh, or by the application"
    )]
    Taken(u16),
    /// Anything else.
    #[error("port {port} inside the pod: {source}")]
    Socket {
        /// The port.
        port: u16,
        /// The failure.
        source: io::Error,
    },
}

impl Doors {
    /// Opens what a pod with these addresses needs. Runs inside its namespace.
    pub fn open(addresses: &[IpAddr]) -> Result<Self, DoorError> {
        let mut doors = Self::default();
        for &family in families(addresses) {
            for (kind, port) in tcp_ports() {
                let socket = listener(family, port).map_err(|e| failed(port, e))?;
                doors.tcp.push(Listening {
                    kind,
                    family,
                    port,
                    socket,
                });
            }
        }
        for &ip in addresses {
            doors.udp.push(udp(ip).map_err(|e| failed(ports::DNS, e))?);
        }
        Ok(doors)
    }

    /// The same sockets once more, to give to another process.
    pub fn duplicate(&self) -> io::Result<Self> {
        let tcp = |d: &Listening| {
            Ok(Listening {
                socket: d.socket.try_clone()?,
                ..*d
            })
        };
        Ok(Self {
            tcp: self.tcp.iter().map(tcp).collect::<io::Result<_>>()?,
            udp: self
                .udp
                .iter()
                .map(UdpSocket::try_clone)
                .collect::<io::Result<_>>()?,
        })
    }
}

fn failed(port: u16, source: io::Error) -> DoorError {
    match source.kind() {
        io::ErrorKind::AddrInUse => DoorError::Taken(port),
        _ => DoorError::Socket { port, source },
    }
}

fn families(addresses: &[IpAddr]) -> &'static [Family] {
    match (
        addresses.iter().any(IpAddr::is_ipv4),
        addresses.iter().any(IpAddr::is_ipv6),
    ) {
        (true, true) => &[Family::V4, Family::V6],
        (false, true) => &[Family::V6],
        (true | false, false) => &[Family::V4],
    }
}

/// The TCP ports inside a pod and what they are for.
fn tcp_ports() -> impl Iterator<Item = (Option<Kind>, u16)> {
    let outbound = (0..ports::OUTBOUND_PORTS).map(|i| (Some(Kind::Outbound), ports::OUTBOUND + i));
    outbound.chain([
        (Some(Kind::Plaintext), ports::INBOUND),
        (Some(Kind::Hbone), ports::HBONE),
        (None, ports::DNS),
    ])
}

fn tcp(family: Family) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Accepted sockets inherit it from their listener.
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn listener(family: Family, port: u16) -> io::Result<TcpListener> {
    let socket = tcp(family)?;
    // A restarted proxy binds although connections of its predecessor linger.
    socket.set_reuse_address(true)?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(SocketAddr::new(any(family), port)))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn udp(ip: IpAddr) -> io::Result<UdpSocket> {
    let domain = if ip.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    // An IPv6 address may still be looking for duplicates of itself.
    match ip {
        IpAddr::V4(_) => socket.set_freebind_v4(true)?,
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.bind(&SockAddr::from(SocketAddr::new(ip, ports::DNS)))?;
    Ok(socket.into())
}

/// Sockets that are ready to dial from inside one pod.
pub struct SocketStock {
    kernel: Arc<dyn Kernel>,
    cookie: u64,
    refill: Refiller,
    late: Counter,
    me: Weak<SocketStock>,
    inside: Mutex<Option<Inside>>,
}

struct Inside {
    netns: Arc<Netns>,
    shelves: [Shelf; 2],
}

#[derive(Default)]
struct Shelf {
    ready: Vec<Socket>,
    target: usize,
    taken: bool,
    asked: bool,
}

impl std::fmt::Debug for SocketStock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketStock")
            .field("cookie", &self.cookie)
            .finish_non_exhaustive()
    }
}

impl SocketStock {
    /// A stock for a pod; empty until somebody asks. `late` counts sockets made while a flow waited.
    pub fn new(
        kernel: Arc<dyn Kernel>,
        netns: Arc<Netns>,
        refill: Refiller,
        late: Counter,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            kernel,
            cookie: netns.cookie(),
            refill,
            late,
            me: me.clone(),
            inside: Mutex::new(Some(Inside {
                netns,
                shelves: Default::default(),
            })),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Inside>> {
        self.inside
            .lock()
            .expect("no code panics while it holds a stock")
    }

    /// Lets go of every socket and of the namespace. Afterwards nobody gets a socket.
    pub fn close(&self) {
        drop(self.lock().take());
    }

    /// Shrinks a stock that nobody took from since the last call.
    pub fn rest(&self) {
        let mut surplus = Vec::new();
        if let Some(inside) = self.lock().as_mut() {
            for shelf in &mut inside.shelves {
                if !std::mem::take(&mut shelf.taken) && shelf.target > 0 {
                    shelf.target = if shelf.target > STOCK.0 { STOCK.0 } else { 0 };
                    surplus.extend(shelf.ready.drain(shelf.target.min(shelf.ready.len())..));
                }
            }
        }
    }

    fn netns(&self) -> io::Result<Arc<Netns>> {
        self.lock()
            .as_ref()
            .map(|i| i.netns.clone())
            .ok_or_else(gone)
    }

    /// Makes `count` sockets and puts them on the shelf.
    fn fill(&self, family: Family) -> io::Result<()> {
        let missing = match self.lock().as_mut() {
            None => return Ok(()),
            Some(inside) => {
                let shelf = &mut inside.shelves[family as usize];
                shelf.asked = false;
                shelf.target.saturating_sub(shelf.ready.len())
            }
        };
        let made = self.make(family, missing)?;
        if let Some(inside) = self.lock().as_mut() {
            inside.shelves[family as usize].ready.extend(made);
        }
        Ok(())
    }

    fn make(&self, family: Family, count: usize) -> io::Result<Vec<Socket>> {
        let netns = self.netns()?;
        let made = netns.enter(|| {
            (0..count)
                .map(|_| tcp(family))
                .collect::<io::Result<Vec<_>>>()
        })?;
        made.iter()
            .try_for_each(|s| self.kernel.mark(s.as_fd(), None))?;
        Ok(made)
    }
}

impl PodSockets for SocketStock {
    fn tcp(&self, family: Family, client: Option<SocketAddr>) -> io::Result<Socket> {
        let (found, ask) = {
            let mut inside = self.lock();
            let shelf = &mut inside.as_mut().ok_or_else(gone)?.shelves[family as usize];
            shelf.taken = true;
            let found = shelf.ready.pop();
            if found.is_none() {
                shelf.target = (shelf.target * 2).clamp(STOCK.0, STOCK.1);
            }
            let ask = !shelf.asked && shelf.ready.len() * 2 <= shelf.target;
            shelf.asked |= ask;
            (found, ask)
        };
        if ask
            && !self.refill.ask(self.me.clone(), family)
            && let Some(inside) = self.lock().as_mut()
        {
            inside.shelves[family as usize].asked = false;
        }
        let socket = match found {
            Some(socket) => socket,
            None => {
                self.late.inc();
                self.make(family, 1)?.pop().ok_or_else(gone)?
            }
        };
        if client.is_some() {
            self.kernel.mark(socket.as_fd(), client)?;
        }
        Ok(socket)
    }

    fn udp(&self, ip: IpAddr) -> io::Result<UdpSocket> {
        let netns = self.netns()?;
        let socket = netns.enter(|| {
            let domain = if ip.is_ipv4() {
                Domain::IPV4
            } else {
                Domain::IPV6
            };
            let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
            socket.bind(&SockAddr::from(SocketAddr::new(ip, 0)))?;
            Ok(socket)
        })?;
        self.kernel.mark(socket.as_fd(), None)?;
        Ok(socket.into())
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the pod is no longer captured")
}

/// The thread that fills stocks. It ends with the last handle.
#[derive(Clone, Debug)]
pub struct Refiller {
    requests: SyncSender<(Weak<SocketStock>, Family)>,
}

impl Refiller {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (requests, waiting) = sync_channel::<(Weak<SocketStock>, Family)>(REQUESTS);
        std::thread::Builder::new().name("pod-sockets".into()).stack_size(128 << 10).spawn(move || {
            while let Ok((stock, family)) = waiting.recv() {
                if let Some(stock) = stock.upgrade()
                    && let Err(error) = stock.fill(family)
                    && error.kind() != io::ErrorKind::NotConnected
                {
                    tracing::warn!(%error, "sockets inside a pod could not be made ahead; its flows make them one by one");
                }
            }
        })?;
        Ok(Self { requests })
    }

    /// Asks for a fill; false when too many wait already, and the flow that misses a socket makes its own.
    fn ask(&self, stock: Weak<SocketStock>, family: Family) -> bool {
        match self.requests.try_send((stock, family)) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}
