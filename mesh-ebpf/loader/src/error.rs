//! What can go wrong with the kernel side, told so that the reader knows what to do.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// A failure of the kernel side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is nothing to load.
    #[error("built without kernel programs; run `cargo xtask ebpf` and build again")]
    NoObject,
    /// The object could not be read or its maps could not be made.
    #[error("the kernel programs could not be prepared: {0}")]
    Object(#[source] aya::EbpfError),
    /// The kernel does not let this process do it.
    #[error(
        "the kernel does not allow this process to {what}: {error}; it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and where a kernel asks for more it has to run privileged (in a cluster: `mesh-ctl upgrade --set node.privileged=true`)"
    )]
    Rights {
        /// What was tried.
        what: String,
        /// What the system call returned.
        error: io::Error,
    },
    /// The object and this program disagree.
    #[error(
        "the kernel programs do not fit this program ({0}); run `cargo xtask ebpf` and build again"
    )]
    Layout(String),
    /// The verifier said no.
    #[error("the kernel refused program `{program}`: {error}\n{tail}\n(whole log: {})", log.display())]
    Verifier {
        /// Name of the program.
        program: String,
        /// What the system call returned.
        error: String,
        /// The last lines of the verifier's log.
        tail: String,
        /// Where the whole log is.
        log: PathBuf,
    },
    /// A program could not be loaded for another reason.
    #[error("program `{program}` could not be loaded: {error}")]
    Program {
        /// Name of the program.
        program: String,
        /// Why.
        error: aya::programs::ProgramError,
    },
    /// The BPF file system is not there.
    #[error("{} is not a BPF file system; run `mount -t bpf bpf {}`", .0.display(), .0.display())]
    NoBpffs(PathBuf),
    /// A program could not be attached.
    #[error("`{program}` could not be attached to {target}: {error}")]
    Attach {
        /// Name of the program.
        program: &'static str,
        /// What it was to be attached to.
        target: String,
        /// Why.
        error: io::Error,
    },
    /// A map did not take or give something.
    #[error("kernel map {map}: {what}: {error}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// The pod's specification cannot be carried out.
    #[error("pod {uid}: {why}")]
    Pod {
        /// The pod.
        uid: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// Two pods claim one address.
    #[error("pod {uid}: address {address} already belongs to pod {other}; remove one of them")]
    DuplicateAddress {
        /// The pod that came second.
        uid: String,
        /// The address.
        address: IpAddr,
        /// The pod that has it.
        other: String,
    },
    /// A limit was reached.
    #[error("{what}: the limit of {limit} is reached")]
    Full {
        /// What is full.
        what: String,
        /// How many there may be.
        limit: u32,
    },
    /// Something of the system's failed.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
}

impl LoadError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> LoadError {
        let what = what.into();
        move |error| LoadError::Io { what, error }
    }
}
