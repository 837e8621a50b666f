//! Embeds the kernel programs that `cargo xtask ebpf` compiled, or nothing when it has not run.
//!
//! Invariant: the crate compiles on stable without them; opening the datapath then says what to do.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-env-changed=WARREN_EBPF_OBJECT");
    let out =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("mesh-ebpf.o");
    let object = match env::var_os("WARREN_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => built_here(),
    };
    let bytes = fs::read(&object).unwrap_or_default();
    fs::write(&out, bytes).expect("OUT_DIR is writable");
}

/// Where `cargo xtask ebpf` writes. The folder is watched, not the file: cargo takes a missing file for a
/// changed one and would rebuild everything above this crate each time.
fn built_here() -> PathBuf {
    let here =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let folder = here
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("/"))
        .join("target/ebpf");
    if fs::create_dir_all(&folder).is_ok() {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    folder.join("mesh-ebpf.o")
}
