//! `cargo xtask ebpf`: compiles the kernel programs with whatever toolchain is there, and brings what it may.
//!
//! Invariants: the object is written to `<workspace>/target/ebpf/mesh-ebpf.o` wherever cargo's own target
//! folder is, and only when its inputs changed; what cannot be installed here is named with the command for it.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::{provision, root, workspace};

const TARGET: &str = "bpfel-unknown-none";
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13";
/// Debian's toolchain with a prebuilt `core` for the target, and the LLVM that its linker is built with.
const PACKAGES: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "rust-web-llvm",
    "llvm-22-dev",
];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// The LLVM of Debian's toolchain.
const DEBIAN_LLVM: u32 = 22;

/// Compile the kernel programs.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Compile even though nothing changed.
    #[arg(long)]
    pub force: bool,
    /// Install nothing; say what is missing instead.
    #[arg(long)]
    pub offline: bool,
    /// Compile programs that write lines about what they do, beside those that do not. A node proxy takes them in
    /// when it is built with WARREN_EBPF_OBJECT naming their file.
    #[arg(long)]
    pub log: bool,
}

/// How the programs are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Toolchain {
    /// Rustup's nightly with the sources of the standard library, and the major version of its LLVM.
    Nightly(u32),
    /// Debian's rustc-web.
    Debian,
}

impl Toolchain {
    /// The LLVM whose bitcode the linker has to read.
    fn llvm(self) -> u32 {
        match self {
            Toolchain::Nightly(llvm) => llvm,
            Toolchain::Debian => DEBIAN_LLVM,
        }
    }
}

/// Compiles the kernel programs if their inputs changed.
pub fn run(args: &Args) -> Result<()> {
    let root = workspace()?;
    let object = if args.log {
        object_with_lines()?
    } else {
        object()?
    };
    let stamp = root.join(if args.log {
        "target/ebpf-build/inputs-log"
    } else {
        "target/ebpf-build/inputs"
    });
    let toolchain = find_toolchain();
    let inputs = inputs(&root.join("mesh-ebpf"), toolchain)?;
    if !args.force && object.exists() && fs::read_to_string(&stamp).is_ok_and(|s| s == inputs) {
        println!("ebpf: {} is up to date", object.display());
        return Ok(());
    }
    let begin = Instant::now();
    let toolchain = match toolchain {
        Some(t) => t,
        None => install_toolchain(args)?,
    };
    let llvm = toolchain.llvm();
    let linker = find_linker(llvm).map_or_else(|| install_linker(args, llvm), Ok)?;
    let built = compile(&root, toolchain, &linker, args.log)?;
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    publish(&object, &bytes)?;
    // The lock may have been written by the build, so hash again.
    fs::write(
        &stamp,
        self::inputs(&root.join("mesh-ebpf"), Some(toolchain))?,
    )?;
    println!(
        "ebpf: {} ({} KiB, {:.1} s)",
        object.display(),
        bytes.len() / 1024,
        begin.elapsed().as_secs_f32()
    );
    Ok(())
}

/// Where the object is.
pub fn object() -> Result<PathBuf> {
    Ok(workspace()?.join("target/ebpf/mesh-ebpf.o"))
}

/// Where the object is whose programs write lines.
pub fn object_with_lines() -> Result<PathBuf> {
    Ok(object()?.with_file_name("mesh-ebpf-log.o"))
}

/// A hash over everything that the object depends on.
fn inputs(kernel: &Path, toolchain: Option<Toolchain>) -> Result<String> {
    let mut files = vec![
        kernel.join("Cargo.toml"),
        kernel.join("Cargo.lock"),
        kernel.join("abi/Cargo.toml"),
    ];
    walk(&kernel.join("src"), &mut files)?;
    walk(&kernel.join("abi/src"), &mut files)?;
    files.sort();
    let mut hash = DefaultHasher::new();
    format!("{toolchain:?} {LINKER_VERSION}").hash(&mut hash);
    for file in files {
        file.hash(&mut hash);
        fs::read(&file).unwrap_or_default().hash(&mut hash);
    }
    Ok(format!("{:016x}\n", hash.finish()))
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, files)?
        } else {
            files.push(path)
        }
    }
    Ok(())
}

/// What of the toolchains is on this machine.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// Rustup has a nightly with the sources of the standard library, and this LLVM.
    nightly: Option<u32>,
    /// There is a linker for that LLVM, or what it takes to build one.
    linker: bool,
    /// Debian's compiler, cargo and prebuilt `core` for the target.
    debian: bool,
}

fn find_toolchain() -> Option<Toolchain> {
    choose(look())
}

fn look() -> Found {
    let sysroot = output(clean("rustc").args(["+nightly", "--print", "sysroot"]));
    let sources = |s: &String| {
        Path::new(s.trim())
            .join("lib/rustlib/src/rust/library/core")
            .exists()
    };
    let nightly = sysroot
        .filter(sources)
        .and_then(|_| llvm_of(&output(clean("rustc").args(["+nightly", "-vV"]))?));
    let debian = [
        DEBIAN_RUSTC,
        DEBIAN_CARGO,
        "/usr/lib/rustlib/bpfel-unknown-none/lib",
    ];
    Found {
        nightly,
        linker: nightly.is_some_and(|n| find_linker(n).is_some() || llvm(n).exists()),
        debian: debian.iter().all(|p| Path::new(p).exists()),
    }
}

/// The major version of LLVM that `rustc -vV` names.
fn llvm_of(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|l| l.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

/// Where a Debian-like system keeps an LLVM.
fn llvm(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}

/// Nightly first, where it can build `core` itself and what it makes can be linked; `None`: something is to be installed.
fn choose(found: Found) -> Option<Toolchain> {
    match found {
        Found {
            nightly: Some(llvm),
            linker: true,
            ..
        } => Some(Toolchain::Nightly(llvm)),
        Found { debian: true, .. } => Some(Toolchain::Debian),
        Found { .. } => None,
    }
}

fn install_toolchain(args: &Args) -> Result<Toolchain> {
    let what_to_do = format!(
        "no toolchain for the kernel programs. Either\n  rustup toolchain install nightly --component rust-src\nand the development files of that nightly's LLVM{}, or, on Debian or Ubuntu as root,\n  apt-get install {}",
        look()
            .nightly
            .map_or_else(String::new, |n| format!(" ({n})")),
        PACKAGES.join(" ")
    );
    ensure!(!args.offline, "{what_to_do}");
    if Path::new("/usr/bin/apt-get").exists() && (root::is_root() || root::on_path("sudo")) {
        if let Err(e) = provision::packages(PACKAGES) {
            eprintln!("ebpf: {e:#}");
        }
    } else if output(clean("rustup").arg("--version")).is_some() {
        println!("ebpf: installing nightly with rust-src by rustup");
        let mut install = clean("rustup");
        install.args([
            "toolchain",
            "install",
            "nightly",
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ]);
        if let Err(e) = retry("rustup toolchain install nightly", &mut install) {
            eprintln!("ebpf: {e:#}");
        }
    }
    find_toolchain().with_context(|| what_to_do)
}

/// A linker says nothing of its LLVM: ours are kept apart by it, and one on the path is taken at its word.
fn find_linker(llvm: u32) -> Option<PathBuf> {
    let cached = linkers(llvm).ok().map(|t| t.join("bin").join(LINKER));
    cached
        .into_iter()
        .chain([PathBuf::from(LINKER)])
        .find(|linker| {
            let version = output(Command::new(linker).arg("--version"));
            version.is_some_and(|v| v.split_whitespace().any(|w| w.starts_with(LINKER_VERSION)))
        })
}

/// Where the linker for an LLVM is kept.
fn linkers(llvm: u32) -> Result<PathBuf> {
    Ok(provision::tools()?.join(format!("llvm-{llvm}")))
}

fn install_linker(args: &Args, llvm: u32) -> Result<PathBuf> {
    let tools = linkers(llvm)?;
    let mut install = clean("cargo");
    install
        .args([
            "install",
            LINKER,
            "--locked",
            "--version",
            &format!("^{LINKER_VERSION}"),
            "--root",
        ])
        .arg(&tools);
    let feature = format!("llvm-{llvm}");
    install.args(["--no-default-features", "--features", &feature]);
    if self::llvm(llvm).exists() {
        install.env("LLVM_PREFIX", self::llvm(llvm));
    }
    ensure!(
        !args.offline,
        "{LINKER} {LINKER_VERSION} is missing; run `cargo install {LINKER} --version ^{LINKER_VERSION} --no-default-features --features {feature}`"
    );
    println!(
        "ebpf: installing {LINKER} into {} (a minute or two)",
        tools.display()
    );
    retry("cargo install bpf-linker", &mut install)?;
    find_linker(llvm).with_context(|| {
        format!(
            "{LINKER} was installed but does not run from {}",
            tools.display()
        )
    })
}

fn compile(root: &Path, toolchain: Toolchain, linker: &Path, log: bool) -> Result<PathBuf> {
    let build = root.join("target/ebpf-build");
    let how = invocation(toolchain, &build, linker);
    let status = clean(how.program)
        .args(&how.args)
        .args(if log { &["--features", "log"][..] } else { &[] })
        .envs(how.env)
        .current_dir(root.join("mesh-ebpf"))
        .status()
        .context("start cargo for the kernel programs")?;
    ensure!(
        status.success(),
        "the kernel programs did not compile ({toolchain:?} toolchain)"
    );
    Ok(build.join(TARGET).join("release/mesh-ebpf"))
}

/// A command line.
#[derive(Debug, PartialEq, Eq)]
struct Invocation {
    program: &'static str,
    args: Vec<String>,
    env: Vec<(&'static str, String)>,
}

/// How a toolchain compiles the programs into the folder `build`.
fn invocation(toolchain: Toolchain, build: &Path, linker: &Path) -> Invocation {
    let flags = format!(
        "-C linker={} -C debuginfo=2 -C link-arg=--btf",
        linker.display()
    );
    let mut env = vec![("RUSTFLAGS", flags)];
    let (program, first): (_, &[&str]) = match toolchain {
        Toolchain::Nightly(_) => ("cargo", &["+nightly", "build", "-Z", "build-std=core"]),
        Toolchain::Debian => {
            // A released compiler, which takes the unstable features of the target only so.
            env.push(("RUSTC", DEBIAN_RUSTC.into()));
            env.push(("RUSTC_BOOTSTRAP", "1".into()));
            (DEBIAN_CARGO, &["build"])
        }
    };
    let args = first
        .iter()
        .chain(&["--release", "--locked", "--target", TARGET, "--target-dir"]);
    let mut args: Vec<String> = args.map(|a| (*a).to_owned()).collect();
    args.push(build.display().to_string());
    Invocation { program, args, env }
}

/// Replaces the object in one step, and leaves it alone when it is the same, so that nothing is rebuilt above it.
fn publish(object: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(object).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = object.parent().expect("the object is in a folder");
    fs::create_dir_all(folder)?;
    // Beside the folder, which the loader's build script watches.
    let fresh = folder.with_extension("new");
    fs::write(&fresh, bytes)?;
    fs::rename(&fresh, object).with_context(|| format!("write {}", object.display()))
}

/// A command that knows nothing of the cargo that runs us.
fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO")
            && text != "CARGO_HOME"
            && !text.starts_with("CARGO_NET")
            && !text.starts_with("CARGO_HTTP")
        {
            command.env_remove(&name);
        }
    }
    for name in [
        "RUSTUP_TOOLCHAIN",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
    ] {
        command.env_remove(name);
    }
    command
}

fn output(command: &mut Command) -> Option<String> {
    let out = command.stderr(Stdio::null()).output().ok()?;
    out.status
        .success()
        .then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

fn retry(what: &str, command: &mut Command) -> Result<()> {
    provision::retry(|| Ok(command.status()?.success()), what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found -> the command line that compiles, or nothing.
    fn check(nightly: Option<u32>, linker: bool, debian: bool, expect: Option<&str>) {
        let found = Found {
            nightly,
            linker,
            debian,
        };
        let line = choose(found).map(|toolchain| {
            let how = invocation(toolchain, Path::new("/b"), Path::new("/l"));
            let env = how
                .env
                .iter()
                .map(|(name, value)| format!("{name}={value}"));
            let words: Vec<String> = env.chain([how.program.into()]).chain(how.args).collect();
            words.join(" ")
        });
        assert_eq!(line.as_deref(), expect, "{found:?}");
    }

    #[test]
    fn the_toolchain_that_is_there_is_used() {
        let nightly = "RUSTFLAGS=-C linker=/l -C debuginfo=2 -C link-arg=--btf cargo +nightly build \
            -Z build-std=core --release --locked --target bpfel-unknown-none --target-dir /b";
        let debian = "RUSTFLAGS=-C linker=/l -C debuginfo=2 -C link-arg=--btf RUSTC=/usr/bin/rustc \
            RUSTC_BOOTSTRAP=1 /usr/bin/cargo build --release --locked --target bpfel-unknown-none --target-dir /b";
        for with_debian in [false, true] {
            check(Some(23), true, with_debian, Some(nightly));
        }
        check(Some(23), false, true, Some(debian));
        check(None, false, true, Some(debian));
        check(Some(23), false, false, None);
        check(None, false, false, None);
    }

    #[test]
    fn the_linker_is_the_one_for_the_compilers_llvm() {
        let told = "rustc 1.99.0-nightly\nrelease: 1.99.0-nightly\nLLVM version: 23.1.4\n";
        assert_eq!(llvm_of(told), Some(23));
        assert_eq!(llvm_of("rustc 1.99.0"), None);
        assert_eq!(Toolchain::Nightly(23).llvm(), 23);
        assert_eq!(Toolchain::Debian.llvm(), 22);
    }

    #[test]
    fn inputs_follow_the_sources_and_the_toolchain() {
        let folder = env::temp_dir().join(format!("warren-ebpf-inputs-{}", std::process::id()));
        for sub in ["src", "abi/src"] {
            fs::create_dir_all(folder.join(sub)).unwrap();
        }
        fs::write(folder.join("src/main.rs"), "a").unwrap();
        let first = inputs(&folder, Some(Toolchain::Debian)).unwrap();
        assert_eq!(first, inputs(&folder, Some(Toolchain::Debian)).unwrap());
        assert_ne!(
            first,
            inputs(&folder, Some(Toolchain::Nightly(23))).unwrap()
        );
        fs::write(folder.join("abi/src/new.rs"), "").unwrap();
        assert_ne!(first, inputs(&folder, Some(Toolchain::Debian)).unwrap());
        fs::remove_dir_all(&folder).unwrap();
    }
}
