//! The HBONE peer of OpenSSL and hyper-h2 (`tests/interop/hbone_peer.py`), and what runs it.

use std::path::{Path, PathBuf};

use super::envoy::{Files, environment};

/// The interpreter that has hyper-h2, with the peer's script: `WARREN_PYTHON`, else the one that
/// `cargo xtask provision interop` put into the cache. `None` with the reason printed when there is none.
pub fn program() -> Option<[String; 2]> {
    let given = std::env::var_os("WARREN_PYTHON").map(PathBuf::from);
    let python = given
        .or_else(|| {
            environment()
                .filter(|venv| has_h2(venv))
                .map(|venv| venv.join("bin/python"))
        })
        .filter(|p| p.is_file());
    let Some(python) = python else {
        println!(
            "skipped: no Python with hyper-h2 (set WARREN_PYTHON or run `cargo xtask provision interop`)"
        );
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/hbone_peer.py");
    Some([python.display().to_string(), script.display().to_string()])
}

fn has_h2(venv: &Path) -> bool {
    let lib = std::fs::read_dir(venv.join("lib"));
    lib.into_iter()
        .flatten()
        .flatten()
        .any(|e| e.path().join("site-packages/h2/connection.py").is_file())
}

/// The flags that give the peer its certificate.
pub fn certificate(files: &Files) -> Vec<String> {
    [
        ("--cert", &files.chain),
        ("--key", &files.key),
        ("--ca", &files.roots),
    ]
    .iter()
    .flat_map(|(flag, path)| [(*flag).to_owned(), path.display().to_string()])
    .collect()
}
