//! Who is at the other end of a connection, as its certificate proves.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use mesh_model::name::TrustDomain;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::ca::{Member, member_of};

/// Who a connection comes from.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its name.
    pub name: PeerName,
    /// When its certificate expires.
    pub not_after: Option<SystemTime>,
}

/// A name that a certificate proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerName {
    /// There was no certificate.
    Nobody,
    /// A node or a waypoint of the mesh.
    Member(Member),
    /// Anything else: a workload, or a name that is no member's.
    Other(String),
}

/// A TLS connection.
pub struct Conn {
    tls: TlsStream<TcpStream>,
    peer: Peer,
}

impl Conn {
    pub(super) fn new(
        tls: TlsStream<TcpStream>,
        address: SocketAddr,
        trust_domain: &TrustDomain,
    ) -> Self {
        let leaf = tls
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first());
        let peer = match leaf {
            None => Peer {
                address,
                name: PeerName::Nobody,
                not_after: None,
            },
            Some(der) => proven(der, address, trust_domain),
        };
        Self { tls, peer }
    }
}

/// Reads the one URI of a certificate that the handshake has verified.
pub(super) fn proven(der: &[u8], address: SocketAddr, trust_domain: &TrustDomain) -> Peer {
    let other = |text: &str| Peer {
        address,
        name: PeerName::Other(text.to_owned()),
        not_after: None,
    };
    let Ok((_, cert)) = X509Certificate::from_der(der) else {
        return other("a certificate that cannot be read");
    };
    let names = cert.subject_alternative_name().ok().flatten();
    let names = names
        .map(|ext| &ext.value.general_names[..])
        .unwrap_or_default();
    let [GeneralName::URI(uri)] = names else {
        return other("a certificate without exactly one name, a URI");
    };
    let Some(member) = member_of(uri, trust_domain) else {
        return other(uri);
    };
    let seconds = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
    Peer {
        address,
        name: PeerName::Member(member),
        not_after: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
    }
}

impl Connected for Conn {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
