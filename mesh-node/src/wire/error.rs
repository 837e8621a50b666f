//! HTTP/2 error codes and the error that ends a connection.
//!
//! Invariant: a [`ConnError`] carries the code that the peer is told in GOAWAY.

/// An HTTP/2 error code. Any 32-bit number may arrive; the names are those that we send.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// Nothing went wrong.
    pub const NO_ERROR: Self = Self(0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// A failure on our side.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// More data than the window allowed, or a window larger than 2^31-1.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// A frame for a stream that had ended.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame of a wrong size.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// Nothing was done for this stream.
    pub const REFUSED_STREAM: Self = Self(7);
    /// The stream is not wanted any more.
    pub const CANCEL: Self = Self(8);
    /// The header compression state is lost.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The TCP connection behind a CONNECT was reset.
    pub const CONNECT_ERROR: Self = Self(10);
    /// The peer does too much that costs us and carries nothing.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

/// Ends a connection: what the peer did, and the code it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({code:?})")]
pub struct ConnError {
    /// The code for GOAWAY.
    pub code: Code,
    /// What happened.
    pub what: &'static str,
}

impl ConnError {
    /// An error with this code.
    pub const fn new(code: Code, what: &'static str) -> Self {
        Self { code, what }
    }
}
