//! Failures as the CNI specification wants them told: a code, a message, details.
//!
//! Invariant: codes below 100 mean what the specification says they mean.

use serde_json::{Value, json};

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version, or what was asked under it, is not supported.
    Version,
    /// A variable is missing or makes no sense.
    Environment,
    /// A file could not be read.
    Io,
    /// The input is not JSON.
    Decode,
    /// The configuration makes no sense.
    Configuration,
    /// It may work later.
    TryAgain,
    /// The pod is to be captured and cannot be.
    Refused,
}

impl Code {
    /// The number on the wire.
    pub const fn number(self) -> u32 {
        match self {
            Self::Version => 1,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::Configuration => 7,
            Self::TryAgain => 11,
            Self::Refused => 100,
        }
    }
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct Failure {
    /// Its kind.
    pub code: Code,
    /// What happened, in short.
    pub msg: &'static str,
    /// To which object, and what to do.
    pub details: String,
}

impl Failure {
    /// Of its parts.
    pub fn new(code: Code, msg: &'static str, details: impl Into<String>) -> Self {
        Self {
            code,
            msg,
            details: details.into(),
        }
    }

    /// As it is written to the runtime, under the version that the runtime speaks.
    pub fn json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code.number(), "msg": self.msg, "details": self.details})
    }
}
