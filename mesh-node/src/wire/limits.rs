//! What a tunnel may use: windows, sizes, counts and times, in one place.
//!
//! Invariant: every bound of the codec and its driver is a field or a constant here.

use std::time::Duration;

/// The bounds of one tunnel. `client()` and `server()` give the defaults of HBONE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Receive window of each stream.
    pub stream_window: u32,
    /// Receive window of the connection.
    pub connection_window: u32,
    /// The largest frame that we accept.
    pub max_frame: u32,
    /// The largest decoded header list, counted as HTTP/2 counts it.
    pub header_list: u32,
    /// The largest header block on the wire, CONTINUATION included.
    pub header_block: usize,
    /// How many CONTINUATION frames may follow one HEADERS frame.
    pub continuations: u32,
    /// Streams at the same time: what a server advertises, what a client uses at most.
    pub streams: u32,
    /// How many bytes of control frames may wait for a peer that does not read.
    pub control_queue: usize,
    /// The time over which the counts in `abuse` are taken.
    pub abuse_window: Duration,
    /// Counts per `abuse_window` that end a tunnel.
    pub abuse: Abuse,
    /// Silence after which a PING is sent.
    pub ping_every: Duration,
    /// How long a PING may stay unanswered.
    pub ping_timeout: Duration,
    /// A client tunnel without streams closes after this time.
    pub idle: Duration,
    /// How long a closing tunnel waits for the peer to take the last bytes.
    pub linger: Duration,
    /// How long a thread may spin before it sleeps, when few streams are active. Zero: never.
    pub spin: Duration,
}

/// How often a peer may do what costs us work and carries nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abuse {
    /// Streams reset by the peer before they were answered (rapid reset).
    pub early_resets: u32,
    /// Streams reset by the peer after they were answered: each may be a TCP connection that ended in RST.
    pub resets: u32,
    /// Streams that we had to reset because of the peer's mistakes (MadeYouReset).
    pub local_resets: u32,
    /// PING.
    pub pings: u32,
    /// SETTINGS.
    pub settings: u32,
    /// DATA frames and TLS records without content.
    pub empty: u32,
    /// WINDOW_UPDATE, beyond what the data we sent explains.
    pub window_updates: u32,
    /// PRIORITY, unknown frames, and frames of streams that ended.
    pub stray: u32,
    /// TLS key updates.
    pub key_updates: u32,
}

impl Limits {
    /// The side that opens streams.
    pub const fn client() -> Self {
        Self {
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            max_frame: 1 << 20,
            header_list: 16 << 10,
            header_block: 64 << 10,
            continuations: 16,
            streams: 100,
            control_queue: 64 << 10,
            abuse_window: Duration::from_secs(10),
            abuse: Abuse {
                early_resets: 500,
                resets: 100_000,
                local_resets: 200,
                pings: 1_000,
                settings: 100,
                empty: 1_000,
                window_updates: 10_000,
                stray: 5_000,
                key_updates: 32,
            },
            ping_every: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            idle: Duration::from_secs(300),
            linger: Duration::from_secs(2),
            spin: Duration::from_micros(50),
        }
    }

    /// The side that accepts streams.
    pub const fn server() -> Self {
        Self {
            header_list: 64 << 10,
            streams: 200,
            ..Self::client()
        }
    }
}
