//! Standard output of programs that print: when its reader has gone, they end quietly, as `ls | head` does.
//!
//! Invariant: a reader that went away is told apart from every other error by its own type, so that a program
//! still takes down what it has made before it ends.

use std::{
    io::{self, ErrorKind, Write},
    process::ExitCode,
};

/// Nobody reads what is printed any more.
#[derive(Clone, Copy, Debug)]
pub struct ReaderGone;

impl std::fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nobody reads the standard output any more")
    }
}

impl std::error::Error for ReaderGone {}

/// Writes to standard output at once.
pub fn print(bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes.as_ref()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        done => done.map_err(|e| anyhow::Error::new(e).context("writing to the standard output")),
    }
}

/// The same with a line's end.
pub fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    print(format!("{text}\n"))
}

/// How `program` ends: an error is printed with its causes, but for a reader that has gone. Then the status is
/// what a shell shows of a program that SIGPIPE ended.
pub fn end(program: &str, done: anyhow::Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(e) if e.is::<ReaderGone>() => ExitCode::from(141),
        Err(e) => {
            // Without a reader of errors there is nobody left to tell.
            let _ = writeln!(io::stderr(), "{program}: {e:#}");
            ExitCode::FAILURE
        }
    }
}
