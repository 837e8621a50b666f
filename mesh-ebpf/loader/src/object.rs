//! The compiled kernel programs: where they come from, and how they get into the kernel.
//!
//! Invariant: every program of the object is loaded or the whole load fails; maps are opened from their pins
//! or created and pinned, so two loads of one layout share them.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use mesh_abi::MAPS;

use crate::LoadError;

static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf.o"));

/// The programs that were compiled in; empty when there are none.
pub fn embedded() -> &'static [u8] {
    EMBEDDED
}

/// Programs in the kernel, by name.
pub struct Loaded {
    /// Every program.
    pub programs: HashMap<String, OwnedFd>,
}

/// Loads the object; its maps are those pinned in `maps`. `logs`: where a verifier's log goes.
pub fn load(object: &[u8], maps: &Path, logs: &Path) -> Result<Loaded, LoadError> {
    let loaded = load_all(object, maps, logs);
    // The kernel's own types were read and parsed on the way: tens of megabytes that nobody needs again.
    crate::sys::give_memory_back();
    loaded
}

fn load_all(object: &[u8], maps: &Path, logs: &Path) -> Result<Loaded, LoadError> {
    if object.is_empty() {
        return Err(LoadError::NoObject);
    }
    let mut object = loader(maps).load(object).map_err(prepared)?;
    let mut programs = HashMap::new();
    for (name, program) in object.programs_mut().filter(|(n, _)| *n != TRIAL) {
        let fd = into_kernel(program).map_err(|e| explain(name, e, logs))?;
        programs.insert(name.to_owned(), fd);
    }
    crate::maps::check_all(maps)?;
    Ok(Loaded { programs })
}

/// Loads one program of the object once more, on the maps that are pinned in `maps`.
pub fn one(object: &[u8], maps: &Path, logs: &Path, name: &str) -> Result<OwnedFd, LoadError> {
    let loaded = loader(maps).load(object);
    single(&mut loaded.map_err(prepared)?, logs, name)
}

/// The program that is attached nowhere.
pub const TRIAL: &str = "trial";

/// Loads one program of the object with maps of its own.
pub fn alone(object: &[u8], logs: &Path, name: &str) -> Result<OwnedFd, LoadError> {
    let loaded = EbpfLoader::new().load(object);
    single(&mut loaded.map_err(prepared)?, logs, name)
}

fn single(object: &mut Ebpf, logs: &Path, name: &str) -> Result<OwnedFd, LoadError> {
    let program = object
        .program_mut(name)
        .ok_or_else(|| LoadError::Layout(format!("there is no program `{name}`")))?;
    into_kernel(program).map_err(|e| explain(name, e, logs))
}

fn loader(maps: &Path) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    for row in MAPS {
        loader.map_pin_path(row.name, maps.join(row.name));
    }
    loader
}

fn into_kernel(program: &mut Program) -> Result<OwnedFd, ProgramError> {
    let fd = match program {
        Program::CgroupSockAddr(p) => p.load().and_then(|()| p.fd())?,
        Program::CgroupSock(p) => p.load().and_then(|()| p.fd())?,
        Program::SockOps(p) => p.load().and_then(|()| p.fd())?,
        Program::SkLookup(p) => p.load().and_then(|()| p.fd())?,
        Program::SchedClassifier(p) => p.load().and_then(|()| p.fd())?,
        _ => return Err(ProgramError::UnexpectedProgramType),
    };
    Ok(fd.as_fd().try_clone_to_owned()?)
}

/// Lines of the verifier's log that are shown in the error.
const TAIL: usize = 25;

fn prepared(error: EbpfError) -> LoadError {
    match error {
        EbpfError::MapError(MapError::CreateError { name, io_error })
            if io_error.kind() == ErrorKind::PermissionDenied =>
        {
            LoadError::Rights {
                what: format!("make map `{name}`"),
                error: io_error,
            }
        }
        error => LoadError::Object(error),
    }
}

fn explain(name: &str, error: ProgramError, logs: &Path) -> LoadError {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return LoadError::Program {
            program: name.to_owned(),
            error,
        };
    };
    let text = verifier_log.to_string();
    // The verifier says why; whoever may not ask it at all is told nothing.
    if text.trim().is_empty() && io_error.kind() == ErrorKind::PermissionDenied {
        return LoadError::Rights {
            what: format!("load program `{name}`"),
            error: io_error,
        };
    }
    refused(name, &io_error.to_string(), &text, logs)
}

/// The verifier's refusal for people: the end of what it said, and where all of it is.
fn refused(name: &str, error: &str, text: &str, logs: &Path) -> LoadError {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
    let mut log: PathBuf = logs.join(format!("warren-verifier-{name}.log"));
    if std::fs::write(&log, text).is_err() {
        log = PathBuf::from("could not be written");
    }
    LoadError::Verifier {
        program: name.to_owned(),
        error: error.to_owned(),
        tail,
        log,
    }
}

/// Runs and nanoseconds of every loaded program of ours, while the kernel's statistics are on.
pub fn statistics() -> std::io::Result<Vec<(String, u64, u64)>> {
    let mut all = Vec::new();
    for info in aya::programs::loaded_programs() {
        let info = info.map_err(std::io::Error::other)?;
        if let Some(name) = info.name_as_str().filter(|n| NAMES.contains(n)) {
            all.push((
                format!("{name}#{}", info.id()),
                info.run_count(),
                info.run_time().as_nanos() as u64,
            ));
        }
    }
    Ok(all)
}

/// Every program of the object.
const NAMES: &[&str] = &[
    "connect4",
    "connect6",
    "getpeername4",
    "getpeername6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "release",
    "flows",
    "node",
    "probe",
    "lookup",
    "guard",
    "anchor",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_too_few_rights_is_told_which_are_needed() {
        let denied = || std::io::Error::from_raw_os_error(1);
        let load = |text: &str| ProgramError::LoadError {
            io_error: denied(),
            verifier_log: aya_obj::VerifierLog::new(text.to_owned()),
        };
        let map = MapError::CreateError {
            name: "flows".to_owned(),
            io_error: denied(),
        };
        let logs = folder("rights");
        for (error, what) in [
            (explain("guard", load(""), &logs), "load program `guard`"),
            (prepared(EbpfError::MapError(map)), "make map `flows`"),
        ] {
            let said = error.to_string();
            assert!(
                said.contains(what) && said.contains("node.privileged=true"),
                "{said}"
            );
        }
        // A verifier that says something is no matter of rights.
        let error = explain("guard", load("0: R1 leaks"), &logs);
        assert!(matches!(error, LoadError::Verifier { .. }), "{error}");
        std::fs::remove_dir_all(&logs).expect("ours");
    }

    fn folder(what: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("warren-{what}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("writable");
        folder
    }

    #[test]
    fn a_refusal_shows_the_end_of_the_verifiers_log_and_where_the_rest_is() {
        let logs = folder("refused");
        let text: String = (0..100)
            .map(|n| format!("{n}: (bf) r{} = r1\n\n", n % 10))
            .collect();
        let said = refused("guard", "Permission denied (os error 13)", &text, &logs).to_string();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            lines[0],
            "the kernel refused program `guard`: Permission denied (os error 13)"
        );
        assert_eq!(lines.len(), TAIL + 2, "no blank line between: {said}");
        assert_eq!(
            (lines[1], lines[TAIL]),
            ("75: (bf) r5 = r1", "99: (bf) r9 = r1")
        );
        let log = logs.join("warren-verifier-guard.log");
        assert_eq!(lines[TAIL + 1], format!("(whole log: {})", log.display()));
        assert_eq!(std::fs::read_to_string(&log).expect("it is there"), text);
        std::fs::remove_dir_all(&logs).expect("ours");
        // Where it cannot be written it is said all the same.
        let said = refused("guard", "refused", "r1 is not a pointer", &logs).to_string();
        assert!(
            said.contains("r1 is not a pointer") && said.contains("could not be written"),
            "{said}"
        );
    }
}
