//! Lines that the programs write, where they were compiled to write any (`cargo xtask ebpf --log`).
//!
//! Invariant: programs as they are shipped write none, and then there is nothing to read.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use aya_log::{EbpfLogger, Error};

use crate::datapath::Datapath;
use crate::{LoadError, sys};

/// The lines of one instance. Poll the descriptor for input, then drain.
pub struct Lines {
    logger: EbpfLogger<Keep>,
    kept: Kept,
}

type Kept = Arc<Mutex<Vec<String>>>;

impl Lines {
    /// What has come, each line after the name of its program's module.
    pub fn drain(&mut self) -> Vec<String> {
        self.logger.flush();
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsFd for Lines {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.logger.as_fd()
    }
}

/// What aya writes to.
struct Keep(Kept);

impl log::Log for Keep {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let module = record.module_path().unwrap_or_default();
        let line = format!("{module}: {}", record.args());
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(line);
    }

    fn flush(&self) {}
}

impl Datapath {
    /// The programs' lines; `None` when they were compiled without.
    pub fn lines(&self) -> Result<Option<Lines>, LoadError> {
        let id = sys::program_id(self.programs.lookup.as_fd())
            .map_err(LoadError::io("ask for a program's number"))?;
        let kept = Kept::default();
        match EbpfLogger::init_from_id_with_logger(id, Keep(kept.clone())) {
            Ok(logger) => Ok(Some(Lines { logger, kept })),
            Err(Error::MapNotFound) => Ok(None),
            Err(error) => Err(LoadError::Io {
                what: "open the programs' log".to_owned(),
                error: std::io::Error::other(error),
            }),
        }
    }
}
