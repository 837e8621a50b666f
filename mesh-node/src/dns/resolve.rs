//! The node's own questions: which addresses a host name has, by the resolvers of the node.
//!
//! Invariants: every wait is bounded; each query has a socket and an id of its own; what the resolvers do not
//! answer is a failure, which is told apart from a name that does not exist.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{
    forward::{PACKET, over_tcp},
    message::id_of,
};

/// Where the system says which resolvers it has.
const SYSTEM: &str = "/etc/resolv.conf";
/// How long one resolver may take for one question.
const PATIENCE: Duration = Duration::from_secs(2);
/// Resolvers that are tried, as the C library does.
const SERVERS: usize = 3;
/// The port of DNS.
const PORT: u16 = 53;

/// Which resolvers are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolvers {
    /// Those of the system, as its file says at the time of asking.
    System,
    /// These.
    Fixed(Vec<SocketAddr>),
}

/// The addresses of a name; none: it does not exist, or has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// How long they may be kept.
    pub ttl: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is nobody to ask.
    #[error("the node has no resolver (see {SYSTEM}, or pass --resolvers)")]
    NoResolver,
    /// It is not a name.
    #[error("{0:?} is not a host name")]
    BadName(String),
    /// A resolver could not be reached.
    #[error("the resolver {0}: {1}")]
    Io(SocketAddr, io::Error),
    /// A resolver failed.
    #[error("the resolver {0} answered {1}")]
    Answer(SocketAddr, ResponseCode),
}

impl Resolvers {
    /// Asks for a name's addresses of both families.
    pub async fn addresses(&self, host: &str) -> Result<Found, ResolveError> {
        let servers = self.servers();
        let name = Name::from_str(&format!("{host}."))
            .map_err(|_| ResolveError::BadName(host.to_owned()))?;
        let (four, six) = tokio::join!(
            ask_each(&servers, &name, RecordType::A),
            ask_each(&servers, &name, RecordType::AAAA)
        );
        match (four, six) {
            (Ok(four), Ok(six)) => Ok(four.and(six)),
            // Half an answer is better than none, as long as it has addresses.
            (Ok(half), Err(_)) | (Err(_), Ok(half)) if !half.addresses.is_empty() => Ok(half),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        match self {
            Self::Fixed(servers) => servers.clone(),
            Self::System => std::fs::read_to_string(SYSTEM)
                .map(|text| nameservers(&text))
                .unwrap_or_default(),
        }
    }
}

impl FromStr for Resolvers {
    type Err = String;

    /// `IP` or `IP:PORT`, several of them with commas between.
    fn from_str(text: &str) -> Result<Self, String> {
        let one = |part: &str| {
            let bare = part.parse().map(|ip| SocketAddr::new(ip, PORT));
            bare.or_else(|_| part.parse::<SocketAddr>())
                .map_err(|_| format!("{part:?} is not an IP or IP:PORT"))
        };
        let servers: Result<Vec<_>, _> = text.split(',').map(str::trim).map(one).collect();
        servers.map(Self::Fixed)
    }
}

impl Found {
    fn and(mut self, other: Self) -> Self {
        // A family that has no addresses says nothing about how long those of the other hold.
        self.ttl = match (self.addresses.is_empty(), other.addresses.is_empty()) {
            (true, false) => other.ttl,
            (false, true) => self.ttl,
            (true, true) | (false, false) => self.ttl.min(other.ttl),
        };
        self.addresses.extend(other.addresses);
        self
    }
}

fn nameservers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else {
            return None;
        };
        // A zone names an interface, which only link-local addresses need; those are not supported.
        address.parse().ok().map(|ip| SocketAddr::new(ip, PORT))
    };
    text.lines().filter_map(server).collect()
}

/// Asks one resolver after another until one answers.
async fn ask_each(
    servers: &[SocketAddr],
    name: &Name,
    kind: RecordType,
) -> Result<Found, ResolveError> {
    let mut last = ResolveError::NoResolver;
    for &server in servers.iter().take(SERVERS) {
        match ask(server, name, kind).await {
            Ok(found) => return Ok(found),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Found, ResolveError> {
    let mut query = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.clone(), kind));
    let bytes = query
        .to_vec()
        .map_err(|_| ResolveError::BadName(name.to_ascii()))?;
    let failed = |e: io::Error| ResolveError::Io(server, e);
    let mut answer = over_udp(server, &bytes).await.map_err(failed)?;
    if answer.metadata.truncation {
        answer = whole(server, &bytes).await.map_err(failed)?;
    }
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(read(&answer, kind)),
        other => Err(ResolveError::Answer(server, other)),
    }
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let asking = async {
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        socket.send(query).await?;
        let mut packet = vec![0; PACKET];
        loop {
            let length = socket.recv(&mut packet).await?;
            if let Some(message) = answers(query, &packet[..length]) {
                return Ok(message);
            }
        }
    };
    timeout(PATIENCE, asking).await?
}

/// The same question over TCP, where answers are never cut.
async fn whole(server: SocketAddr, query: &[u8]) -> io::Result<Message> {
    let asking = async {
        let mut stream = TcpStream::connect(server).await?;
        let packet = over_tcp(&mut stream, query).await?;
        answers(query, &packet).ok_or_else(|| io::ErrorKind::InvalidData.into())
    };
    timeout(PATIENCE, asking).await?
}

/// The message when it answers this very query; anything else is somebody else's.
fn answers(query: &[u8], packet: &[u8]) -> Option<Message> {
    if id_of(packet)? != (id_of(query)?.0, true) {
        return None;
    }
    let (asked, answer) = (
        Message::from_vec(query).ok()?,
        Message::from_vec(packet).ok()?,
    );
    let [question] = &answer.queries[..] else {
        return None;
    };
    let same = asked.queries.first().is_some_and(|q| {
        q.name().to_lowercase() == question.name().to_lowercase()
            && q.query_type() == question.query_type()
    });
    same.then_some(answer)
}

fn read(answer: &Message, kind: RecordType) -> Found {
    let addresses: Vec<IpAddr> = answer
        .answers
        .iter()
        .filter_map(|r| match (&r.data, kind) {
            (RData::A(a), RecordType::A) => Some(IpAddr::from(a.0)),
            (RData::AAAA(a), RecordType::AAAA) => Some(IpAddr::from(a.0)),
            _ => None,
        })
        .filter(|ip| !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()))
        .collect();
    let ttl = answer.answers.iter().map(|r| r.ttl).min().unwrap_or(0);
    Found {
        addresses,
        ttl: Duration::from_secs(ttl.into()),
    }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
pub(super) mod tests;
