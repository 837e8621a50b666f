//! Why a tunnel or one of its streams failed, and which reason each failure shows.
//!
//! Invariant: the mapping to [`Reason`] is exhaustive; a failure that may be tried again says so.

use mesh_model::reason::Reason;

use crate::{
    identify::peer_error,
    wire::{Headers, error::Code, tls::TlsError},
};

/// The response header in which our own nodes name the reason of a refusal (a key of the reason table).
pub const REASON_HEADER: &str = "x-warren-reason";

/// Why a tunnel could not be made or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// The socket failed.
    #[error("the tunnel's connection failed: {0}")]
    Io(String),
    /// The peer closed its side.
    #[error("the peer closed the tunnel")]
    Eof,
    /// The TLS handshake or a record failed.
    #[error("TLS with the peer failed: {0}")]
    Tls(String),
    /// The peer proved another identity than it should, or none that counts.
    #[error("the peer is not whom it should be: {0}")]
    Identity(String),
    /// The peer does not speak HTTP/2.
    #[error("the peer did not agree on h2, so it does not speak HBONE")]
    Alpn,
    /// The peer broke HTTP/2 or one of our limits.
    #[error("HTTP/2 with the peer failed: {what}")]
    Protocol {
        /// The HTTP/2 error code that the peer is told.
        code: u32,
        /// What it did.
        what: String,
    },
    /// The peer ended the tunnel with an error code.
    #[error("the peer ended the tunnel: {0}")]
    GoAway(String),
    /// A PING stayed unanswered.
    #[error("the peer did not answer a ping in time")]
    PingTimeout,
    /// We closed it: idle, retired or draining.
    #[error("the tunnel is closed")]
    Closed,
}

impl TunnelError {
    /// The reason that flows show when they end by this.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Tls(_) => Reason::TlsFailure,
            Self::Identity(_) => Reason::IdentityMismatch,
            Self::Io(_)
            | Self::Eof
            | Self::Alpn
            | Self::Protocol { .. }
            | Self::GoAway(_)
            | Self::PingTimeout => Reason::TunnelFailure,
            Self::Closed => Reason::Draining,
        }
    }
}

impl From<TlsError> for TunnelError {
    fn from(error: TlsError) -> Self {
        if let TlsError::Rustls(error) = &error
            && let Some(peer) = peer_error(error)
        {
            return match peer.reason() {
                Reason::IdentityMismatch => Self::Identity(peer.to_string()),
                _ => Self::Tls(peer.to_string()),
            };
        }
        match error {
            TlsError::Alpn => Self::Alpn,
            error @ (TlsError::Rustls(_) | TlsError::Record(_) | TlsError::Alert(_)) => {
                Self::Tls(error.to_string())
            }
        }
    }
}

impl TunnelError {
    /// The HTTP/2 error code that the peer is told.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Protocol { code, .. } => Code(*code),
            Self::Tls(_) | Self::Identity(_) | Self::Alpn => Code::PROTOCOL_ERROR,
            Self::Io(_) | Self::Eof | Self::GoAway(_) | Self::PingTimeout | Self::Closed => {
                Code::NO_ERROR
            }
        }
    }
}

/// Why a stream could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The far side answered with another status than 200.
    #[error("the destination's proxy answered {status}{}", named(headers))]
    Refused {
        /// Its status.
        status: u16,
        /// Its headers.
        headers: Headers,
    },
    /// The far side reset the stream before it answered.
    #[error("the peer reset the stream before it answered (code {code})")]
    Reset {
        /// The HTTP/2 error code.
        code: u32,
    },
    /// The tunnel takes no more streams now.
    #[error("the tunnel takes no more streams")]
    Saturated,
    /// The tunnel ended before the far side answered, or had ended already.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The request cannot be sent: its authority is not one.
    #[error("{authority:?} cannot be the authority of a CONNECT")]
    BadRequest {
        /// The authority.
        authority: String,
    },
}

impl OpenError {
    /// Whether the far side certainly did nothing for this request, so that another tunnel may be tried.
    pub fn may_retry(&self) -> bool {
        match self {
            Self::Tunnel(_) | Self::Saturated => true,
            // REFUSED_STREAM promises that nothing was done.
            Self::Reset { code } => *code == 7,
            Self::Refused { .. } | Self::BadRequest { .. } => false,
        }
    }

    /// The reason that the flow shows.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused { status, headers } => refused(*status, headers),
            Self::Reset { .. } => Reason::PeerReset,
            Self::Saturated => Reason::Overloaded,
            Self::Tunnel(e) => e.reason(),
            Self::BadRequest { .. } => Reason::BadAuthority,
        }
    }
}

fn named(headers: &Headers) -> String {
    headers
        .get(REASON_HEADER)
        .map(|key| format!(" ({key})"))
        .unwrap_or_default()
}

/// A refusal's reason: denials are always shown as the peer's, other reasons as the peer names them.
fn refused(status: u16, headers: &Headers) -> Reason {
    let key = headers.get(REASON_HEADER);
    let named = key.and_then(|key| {
        Reason::ALL
            .iter()
            .copied()
            .find(|r| r.shown().key == key && r.shown().hbone == status)
    });
    match status {
        401 | 403 => Reason::PeerDenied,
        400 => named.unwrap_or(Reason::BadAuthority),
        503 => named.unwrap_or(Reason::ConnectRefused),
        _ => Reason::TunnelFailure,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_the_reason_that_the_peer_named() {
        let check = |status: u16, key: &str, expect: Reason| {
            let headers = Headers::new().with(REASON_HEADER, key);
            assert_eq!(
                OpenError::Refused { status, headers }.reason(),
                expect,
                "{status} {key}"
            );
        };
        check(401, "policy_denied", Reason::PeerDenied);
        check(503, "no_such_port", Reason::NoSuchPort);
        check(503, "policy_denied", Reason::ConnectRefused);
        check(503, "", Reason::ConnectRefused);
        check(400, "loop", Reason::Loop);
        check(418, "loop", Reason::TunnelFailure);
    }
}
