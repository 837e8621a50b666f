//! Lines for whoever works on the programs. They exist only with the feature `log`: `cargo xtask ebpf --log`.
//!
//! Invariant: without the feature nothing is left of them, not even an argument.

/// Writes a line.
#[cfg(feature = "log")]
macro_rules! say {
    ($($line:tt)+) => {
        aya_log_ebpf::debug!(&(), $($line)+)
    };
}

/// Writes nothing.
#[cfg(not(feature = "log"))]
macro_rules! say {
    ($($line:tt)+) => {};
}

pub(crate) use say;
