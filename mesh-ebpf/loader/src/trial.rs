//! The decisions as they were compiled for the kernel, asked case by case.
//!
//! Invariant: attached nowhere and shares no map with an instance; for tests and for people who want to know.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use mesh_abi::Plain;
use mesh_abi::trial::Trial;

use crate::{LoadError, object, sys};

/// Length of the Ethernet header that a case stands behind.
const ETH: usize = 14;

/// The compiled decisions.
#[derive(Debug)]
pub struct Compiled {
    prog: OwnedFd,
}

impl Compiled {
    /// Takes them into the kernel. `logs`: where a verifier's log goes.
    pub fn load(object: &[u8], logs: &Path) -> Result<Self, LoadError> {
        if object.is_empty() {
            return Err(LoadError::NoObject);
        }
        object::alone(object, logs, object::TRIAL).map(|prog| Self { prog })
    }

    /// What the kernel says of a case: as `mesh_abi::trial::answer` does.
    pub fn ask(&self, case: &Trial) -> io::Result<u32> {
        let mut frame = [0u8; ETH + size_of::<Trial>()];
        frame[ETH..].copy_from_slice(bytes(case));
        sys::test_run(self.prog.as_fd(), &frame)
    }
}

fn bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: a type that is Plain has no padding, so every byte of it is initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}
