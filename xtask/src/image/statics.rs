//! Programs of ours that run on a node itself, whose libraries are not ours: linked statically, in a folder of their own.
//!
//! Invariant: what is given to an image names no loader, or it is an error.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{step, workspace};

/// The crate that each is built from.
const CRATES: [(&str, &str); 1] = [("warren-cni", "mesh-cni")];
/// The kind of program header that names a loader.
const PT_INTERP: u32 = 3;

/// Builds a program, unless it is there already as its sources make it.
pub fn build(program: &str) -> Result<PathBuf> {
    let Some((_, package)) = CRATES.iter().find(|(p, _)| *p == program) else {
        bail!("{program} is not known as a program that can be linked statically");
    };
    // An explicit target: without one the flags would hold for build scripts and macros too, which cannot be static.
    let target = format!("{ARCH}-unknown-linux-gnu");
    let folder = workspace()?.join("target/static");
    let mut cargo = step::cargo()?;
    cargo
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args(["build", "--locked", "--bin", program])
        .args(["--package", package, "--target", &target, "--target-dir"])
        .arg(&folder);
    step::run(&mut cargo)?;
    Ok(folder.join(target).join("debug").join(program))
}

/// Whether it is linked statically.
pub fn check(program: &Path) -> Result<()> {
    let about = || format!("{}", program.display());
    let bytes = fs::read(program).with_context(about)?;
    let loader = loader(&bytes).with_context(about)?;
    ensure!(
        loader.is_none(),
        "{} is not linked statically: it wants {}",
        about(),
        loader.unwrap_or_default()
    );
    Ok(())
}

/// The loader that a 64-bit little-endian ELF file asks for.
fn loader(elf: &[u8]) -> Result<Option<String>> {
    let number = |at: usize, bytes: usize| -> Result<usize> {
        let end = at.checked_add(bytes).context("an offset that overflows")?;
        let part = elf.get(at..end).context("it is cut off")?;
        let value = part.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        Ok(usize::try_from(value)?)
    };
    ensure!(
        elf.starts_with(b"\x7fELF\x02\x01"),
        "it is no 64-bit little-endian ELF file"
    );
    // e_phoff, e_phentsize, e_phnum; then p_type, p_offset and p_filesz of each header.
    let (first, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    for header in (0..count).map(|i| first + i * size) {
        if number(header, 4)? == PT_INTERP as usize {
            let (at, length) = (number(header + 8, 8)?, number(header + 32, 8)?);
            let name = elf.get(at..at + length).context("it is cut off")?;
            let name = String::from_utf8_lossy(name);
            return Ok(Some(name.trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_wants_a_loader_is_not_static() {
        let own = std::env::current_exe().expect("this program");
        let said = check(&own).expect_err("it is linked dynamically");
        assert!(said.to_string().contains("ld-linux"), "{said}");
        assert!(loader(b"#!/bin/sh").is_err());
        assert!(loader(b"\x7fELF\x02\x01").is_err(), "cut off");
        let mut none = b"\x7fELF\x02\x01".to_vec();
        none.resize(64, 0);
        assert_eq!(loader(&none).expect("no headers at all"), None);
    }
}
