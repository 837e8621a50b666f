//! TLS 1.3 of a tunnel without I/O: rustls makes the handshake and keeps the secrets; records are sealed and
//! opened in place.
//!
//! Invariants: nothing but TLS 1.3 with ALPN `h2`; a key is replaced long before its limit; key updates,
//! tickets, alerts and close_notify are honoured; an error is final.

use std::{ops::Range, sync::Arc};

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{
    ClientConfig, ConnectionTrafficSecrets, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    kernel::KernelConnection,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};
use rustls_pki_types::{CertificateDer, ServerName};

/// The protocol that both sides must agree on.
const ALPN: &[u8] = b"h2";
/// Records under one key: half of what AES-GCM allows.
const WORN: u64 = 1 << 23;
/// The longest record body that TLS 1.3 allows.
const MAX_BODY: usize = (16 << 10) + 256;
/// The longest handshake message after the handshake (a ticket, a key update).
const MAX_MESSAGE: usize = 16 << 10;

/// Why TLS failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TlsError {
    /// The handshake or a secret.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    /// No agreement on `h2`.
    #[error("the peer did not agree on h2")]
    Alpn,
    /// A record that is malformed or was tampered with.
    #[error("{0}")]
    Record(&'static str),
    /// The peer's alert.
    #[error("the peer sent alert {0}")]
    Alert(u8),
}

/// A handshake under way.
pub enum Handshake {
    /// As client.
    Client(Box<UnbufferedClientConnection>),
    /// As server.
    Server(Box<UnbufferedServerConnection>),
}

/// What a handshake needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send what is in `outgoing`, then call again.
    Write,
    /// Receive more, then call again.
    Read,
    /// It is complete.
    Done,
}

/// A completed handshake.
pub struct Established {
    /// Protects what we send.
    pub sealer: Box<Sealer>,
    /// Opens what we receive.
    pub session: Session,
    /// The chain that the peer proved.
    pub certificates: Vec<CertificateDer<'static>>,
}

impl Handshake {
    /// A client's. The name is never sent as SNI when it is an address.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, TlsError> {
        let config = if config.enable_secret_extraction && config.alpn_protocols == [ALPN] {
            config
        } else {
            let mut own = (*config).clone();
            own.enable_secret_extraction = true;
            own.alpn_protocols = vec![ALPN.to_vec()];
            Arc::new(own)
        };
        Ok(Self::Client(Box::new(UnbufferedClientConnection::new(
            config, name,
        )?)))
    }

    /// A server's.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        let config = if config.enable_secret_extraction && config.alpn_protocols == [ALPN] {
            config
        } else {
            let mut own = (*config).clone();
            own.enable_secret_extraction = true;
            own.alpn_protocols = vec![ALPN.to_vec()];
            Arc::new(own)
        };
        Ok(Self::Server(Box::new(UnbufferedServerConnection::new(
            config,
        )?)))
    }

    /// Goes on with what was received. On an error `outgoing` may hold an alert that should still be sent.
    /// Application data that came early is appended to `early`.
    pub fn advance(
        &mut self,
        incoming: &mut Vec<u8>,
        outgoing: &mut Vec<u8>,
        early: &mut Vec<u8>,
    ) -> Result<Step, TlsError> {
        match self {
            Self::Client(conn) => drive(incoming, outgoing, early, |buf, f| {
                f(conn.process_tls_records(buf))
            }),
            Self::Server(conn) => drive(incoming, outgoing, early, |buf, f| {
                f(conn.process_tls_records(buf))
            }),
        }
    }

    /// Takes the secrets of a completed handshake. `incoming` is what `advance` left.
    pub fn finish(self, incoming: &[u8]) -> Result<Established, TlsError> {
        if let Some(&[_, _, _, a, b]) = incoming.first_chunk::<5>()
            && incoming.len() >= 5 + usize::from(u16::from_be_bytes([a, b]))
        {
            return Err(TlsError::Record(
                "a handshake message was split after the handshake",
            ));
        }
        let (alpn, certificates) = match &self {
            Self::Client(c) => (c.alpn_protocol(), c.peer_certificates()),
            Self::Server(c) => (c.alpn_protocol(), c.peer_certificates()),
        };
        if alpn != Some(ALPN) {
            return Err(TlsError::Alpn);
        }
        let certificates: Vec<_> = certificates
            .unwrap_or_default()
            .iter()
            .map(|c| c.clone().into_owned())
            .collect();
        let (secrets, kernel) = match self {
            Self::Client(c) => {
                let (secrets, kernel) = c.dangerous_into_kernel_connection()?;
                (secrets, Kernel::Client(Box::new(kernel)))
            }
            Self::Server(c) => {
                let (secrets, kernel) = c.dangerous_into_kernel_connection()?;
                (secrets, Kernel::Server(Box::new(kernel)))
            }
        };
        let sealer = Box::new(Sealer(Key::new(secrets.tx)?));
        let session = Session {
            key: Key::new(secrets.rx)?,
            kernel,
            message: Vec::new(),
        };
        Ok(Established {
            sealer,
            session,
            certificates,
        })
    }
}

/// Runs one side's state machine until it needs I/O.
fn drive<D>(
    incoming: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
    early: &mut Vec<u8>,
    mut process: impl FnMut(
        &mut [u8],
        &mut dyn FnMut(UnbufferedStatus<'_, '_, D>) -> (usize, Option<Result<Step, TlsError>>),
    ) -> (usize, Option<Result<Step, TlsError>>),
) -> Result<Step, TlsError> {
    let mut failed: Option<TlsError> = None;
    loop {
        let before = outgoing.len();
        let (discard, step) = process(incoming, &mut |status| {
            let step = match status.state {
                Ok(state) => handle(state, outgoing, early),
                Err(e) => Some(Err(e.into())),
            };
            (status.discard, step)
        });
        incoming.drain(..discard.min(incoming.len()));
        match (step, failed.take()) {
            (None, None) => {}
            // After a failure the messages before it and then the alert come out. Nothing may be asked of
            // rustls after the alert: it would read on, and fail again.
            (None, Some(error)) if !matches!(outgoing.get(before), Some(21 | 23)) => {
                failed = Some(error)
            }
            (Some(Err(error)), None) => failed = Some(error),
            (_, Some(error)) => return Err(error),
            (Some(Ok(step)), None) => return Ok(step),
        }
    }
}

/// One state: `None` to go on at once.
fn handle<D>(
    state: ConnectionState<'_, '_, D>,
    outgoing: &mut Vec<u8>,
    early: &mut Vec<u8>,
) -> Option<Result<Step, TlsError>> {
    match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => early.extend_from_slice(record.payload),
                    Err(e) => return Some(Err(e.into())),
                }
            }
            None
        }
        ConnectionState::EncodeTlsData(mut encode) => {
            let start = outgoing.len();
            let mut size = 4 << 10;
            loop {
                outgoing.resize(start + size, 0);
                match encode.encode(&mut outgoing[start..]) {
                    Ok(n) => {
                        outgoing.truncate(start + n);
                        return None;
                    }
                    Err(EncodeError::InsufficientSize(need)) if need.required_size > size => {
                        size = need.required_size
                    }
                    Err(_) => {
                        return Some(Err(TlsError::Record(
                            "a handshake message could not be encoded",
                        )));
                    }
                }
            }
        }
        ConnectionState::TransmitTlsData(transmit) => {
            // The caller sends `outgoing` before it reads again, and before it sends anything else.
            transmit.done();
            Some(Ok(Step::Write))
        }
        ConnectionState::BlockedHandshake => Some(Ok(Step::Read)),
        ConnectionState::WriteTraffic(_) => Some(Ok(Step::Done)),
        ConnectionState::PeerClosed | ConnectionState::Closed => Some(Err(TlsError::Record(
            "the peer closed during the handshake",
        ))),
        _ => Some(Err(TlsError::Record(
            "the handshake went to a state that is not used here",
        ))),
    }
}

/// One direction's key, its nonce base and the number of the next record.
struct Key {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Key {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, TlsError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (&aead::CHACHA20_POLY1305, key, iv)
            }
            _ => return Err(TlsError::Record("a cipher suite that is not known here")),
        };
        const BAD: TlsError = TlsError::Record("the negotiated key does not fit its cipher");
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| BAD)?;
        let iv = iv.as_ref().try_into().map_err(|_| BAD)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv,
            sequence,
        })
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (n, s) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *n ^= s;
        }
        // WORN makes sure that the number cannot wrap.
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Seals what we send.
pub struct Sealer(Key);

impl Sealer {
    /// Seals a record in place: five octets for the header, the content, and 17 octets for type and tag.
    pub fn seal(&mut self, content_type: u8, record: &mut [u8]) {
        let body = record.len() - 5;
        let [a, b] = (body as u16).to_be_bytes();
        let header = [23, 3, 3, a, b];
        record[..5].copy_from_slice(&header);
        record[5 + body - 17] = content_type;
        let nonce = self.0.nonce();
        let (content, tag) = record[5..].split_at_mut(body - 16);
        let sealed = self
            .0
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), content);
        // Only a content too long for the cipher could fail, and a record is never that long.
        tag.copy_from_slice(sealed.expect("a record fits the cipher").as_ref());
    }

    /// Whether the key has sealed so many records that it should be replaced.
    pub fn is_worn(&self) -> bool {
        self.0.sequence >= WORN
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealer(record {})", self.0.sequence)
    }
}

enum Kernel {
    Client(Box<KernelConnection<ClientConnectionData>>),
    Server(Box<KernelConnection<ServerConnectionData>>),
}

/// Opens what we receive, and keeps the secrets.
pub struct Session {
    key: Key,
    kernel: Kernel,
    /// A handshake message that is not complete.
    message: Vec<u8>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session(record {})", self.key.sequence)
    }
}

/// What a record held.
#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    /// Application data, at this place of the buffer.
    Data(Range<usize>),
    /// The peer changed its key; `reply` if it asks for ours to change, too.
    KeyUpdate {
        /// Whether ours must change.
        reply: bool,
    },
    /// A ticket, or a part of a message.
    Other,
    /// The peer sends nothing more.
    Closed,
}

impl Session {
    /// Opens the record at `*at`, in place, and moves `*at` behind it. `None` until the record is complete.
    pub fn open(&mut self, buf: &mut [u8], at: &mut usize) -> Result<Option<Record>, TlsError> {
        let start = *at;
        let Some(&[kind, _, _, a, b]) = buf[start..].first_chunk::<5>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes([a, b]));
        if kind != 23 || !(17..=MAX_BODY).contains(&len) {
            return Err(TlsError::Record("a record that is not of TLS 1.3"));
        }
        let (head, body) = (start + 5, start + 5 + len);
        if buf.len() < body {
            return Ok(None);
        }
        *at = body;
        let nonce = self.key.nonce();
        let plain = self
            .key
            .key
            .open_in_place(nonce, Aad::from([kind, 3, 3, a, b]), &mut buf[head..body])
            .map_err(|_| TlsError::Record("a record that cannot be decrypted"))?;
        let end = plain
            .iter()
            .rposition(|&b| b != 0)
            .ok_or(TlsError::Record("a record without a type"))?;
        match plain[end] {
            23 => Ok(Some(Record::Data(head..head + end))),
            22 => self.handshake(head, end, buf).map(Some),
            21 => alert(&plain[..end]).map(Some),
            _ => Err(TlsError::Record("a record of an unknown type")),
        }
    }

    /// The next key of our own direction.
    pub fn next_sealer(&mut self) -> Result<Box<Sealer>, TlsError> {
        let secrets = match &mut self.kernel {
            Kernel::Client(k) => k.update_tx_secret()?,
            Kernel::Server(k) => k.update_tx_secret()?,
        };
        Ok(Box::new(Sealer(Key::new(secrets)?)))
    }

    fn handshake(&mut self, head: usize, len: usize, buf: &[u8]) -> Result<Record, TlsError> {
        self.message.extend_from_slice(&buf[head..head + len]);
        if len == 0 || self.message.len() > MAX_MESSAGE {
            return Err(TlsError::Record("a handshake message of a wrong size"));
        }
        let mut update = None;
        let message = std::mem::take(&mut self.message);
        let mut rest = message.as_slice();
        while let Some((&[kind, a, b, c], tail)) = rest.split_first_chunk::<4>() {
            let Some((body, after)) =
                tail.split_at_checked(u32::from_be_bytes([0, a, b, c]) as usize)
            else {
                break;
            };
            match (kind, body, &mut self.kernel) {
                (4, body, Kernel::Client(kernel)) => kernel.handle_new_session_ticket(body)?,
                // A key update must be the last message of its record.
                (24, &[reply @ 0..=1], _) if after.is_empty() => update = Some(reply == 1),
                _ => {
                    return Err(TlsError::Record(
                        "a handshake message that may not come now",
                    ));
                }
            }
            rest = after;
        }
        self.message = rest.to_vec();
        let Some(reply) = update else {
            return Ok(Record::Other);
        };
        let secrets = match &mut self.kernel {
            Kernel::Client(k) => k.update_rx_secret()?,
            Kernel::Server(k) => k.update_rx_secret()?,
        };
        self.key = Key::new(secrets)?;
        Ok(Record::KeyUpdate { reply })
    }
}

fn alert(content: &[u8]) -> Result<Record, TlsError> {
    match content {
        [_, 0] => Ok(Record::Closed),
        [_, description] => Err(TlsError::Alert(*description)),
        _ => Err(TlsError::Record("a malformed alert")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
