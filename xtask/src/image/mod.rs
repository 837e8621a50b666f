//! `cargo xtask image`: the images of the node proxy, the controller and the samples, without a container daemon.
//!
//! Invariants: an image holds its programs, the libraries that they load, and nothing else, no shell among it; the same
//! programs give the same bytes; only the node proxy's image runs as root, which needs capabilities.

pub mod oci;
mod statics;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use self::oci::{Content, Image};
use crate::{ebpf, provision, root, step, workspace};

/// The user of whatever needs no privilege; the number that minimal base images use for theirs.
const NOBODY: u32 = 65532;

/// An image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Name {
    /// The node proxy.
    MeshNode,
    /// The controller.
    MeshCtl,
    /// The sample applications and the load generator.
    Samples,
    /// All three.
    #[default]
    All,
}

/// What is in an image.
struct Recipe {
    name: &'static str,
    /// The first is the entrypoint.
    programs: &'static [&'static str],
    /// Programs that run outside the image, on any node: linked statically.
    statics: &'static [&'static str],
    user: Option<u32>,
}

const NODE: Recipe = Recipe {
    name: "mesh-node",
    programs: &["mesh-node"],
    statics: &["warren-cni"],
    user: None,
};
const CTL: Recipe = Recipe {
    name: "mesh-ctl",
    programs: &["mesh-ctl"],
    statics: &[],
    user: Some(NOBODY),
};
const SAMPLES: Recipe = Recipe {
    name: "samples",
    programs: &["warren-sample", "warren-load"],
    statics: &[],
    user: Some(NOBODY),
};

impl Recipe {
    fn tar(&self) -> String {
        format!("{}.tar", self.name)
    }
}

impl Name {
    fn recipes(self) -> &'static [Recipe] {
        match self {
            Self::MeshNode => &[NODE],
            Self::MeshCtl => &[CTL],
            Self::Samples => &[SAMPLES],
            Self::All => &[NODE, CTL, SAMPLES],
        }
    }
}

/// Build the container images as tar files.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Which image.
    #[arg(value_enum, default_value = "all")]
    name: Name,
    /// With optimisation, as for use and for measurements.
    #[arg(long)]
    release: bool,
    /// The folder for the tar files; `target/images` unless given.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Args {
    /// All images, with optimisation or without.
    pub fn all(release: bool) -> Self {
        Self {
            release,
            ..Self::default()
        }
    }
}

/// Builds the programs and writes the images.
pub fn run(args: &Args) -> Result<()> {
    if !root::on_path("strip") {
        provision::packages(&["binutils"])?;
    }
    step::build_programs(args.release)?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => usual_place()?,
    };
    let stripped = out.join("stripped");
    fs::create_dir_all(&stripped).with_context(|| format!("the folder {}", stripped.display()))?;
    for recipe in args.name.recipes() {
        let tar = out.join(recipe.tar());
        let reference = format!("warren/{}:dev", recipe.name);
        let image = Image {
            reference: &reference,
            entrypoint: &[&format!("/{}", recipe.programs[0])],
            user: recipe.user,
            content: content(recipe, &step::built_as(args.release)?, &stripped)?,
        };
        let written = image.write(&tar)?;
        let size = written.size / (1 << 20);
        println!(
            "image: {reference} {} ({size} MiB, {})",
            tar.display(),
            written.digest
        );
    }
    fs::remove_dir_all(&stripped).with_context(|| format!("removing {}", stripped.display()))
}

fn usual_place() -> Result<PathBuf> {
    Ok(workspace()?.join("target/images"))
}

/// The tar files of all images, where they are written unless told otherwise.
pub fn tars() -> Result<Vec<PathBuf>> {
    let place = usual_place()?;
    let recipes = Name::All.recipes();
    Ok(recipes.iter().map(|r| place.join(r.tar())).collect())
}

fn content(recipe: &Recipe, built: &Path, stripped: &Path) -> Result<Vec<Content>> {
    let mut content = Vec::new();
    let mut libraries = BTreeSet::new();
    for program in recipe.programs {
        let from = built.join(program);
        let to = stripped.join(program);
        strip(&from, &to)?;
        if *program == "mesh-node" {
            holds_kernel_programs(&to, &ebpf::object()?)?;
        }
        libraries.extend(loads(&to)?);
        content.push(Content::file(program, &to)?);
    }
    for program in recipe.statics {
        let from = statics::build(program)?;
        let to = stripped.join(program);
        strip(&from, &to)?;
        statics::check(&to)?;
        content.push(Content::file(program, &to)?);
    }
    for library in libraries {
        content.push(Content::file(
            library.trim_start_matches('/'),
            Path::new(&library),
        )?);
    }
    Ok(content)
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    let words = [Path::new("--strip-debug"), Path::new("-o"), to, from];
    step::run(Command::new("strip").args(words))
}

/// A program of this machine and the libraries that it loads.
pub fn with_libraries(name: &str, program: &Path) -> Result<Vec<Content>> {
    let mut content = vec![Content::file(name, program)?];
    for library in loads(program)? {
        content.push(Content::file(
            library.trim_start_matches('/'),
            Path::new(&library),
        )?);
    }
    Ok(content)
}

/// A node proxy that was compiled before the kernel programs were would start nowhere.
fn holds_kernel_programs(program: &Path, object: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let (program_bytes, object_bytes) = (read(program)?, read(object)?);
    let embedded = !object_bytes.is_empty()
        && program_bytes
            .windows(object_bytes.len())
            .any(|w| w == object_bytes);
    ensure!(
        embedded,
        "{} does not embed the kernel programs in {}: build it with WARREN_EBPF_OBJECT unset",
        program.display(),
        object.display()
    );
    Ok(())
}

/// The libraries that a program loads, and the loader.
fn loads(program: &Path) -> Result<Vec<String>> {
    let about = || format!("ldd {}", program.display());
    let out = Command::new("ldd")
        .arg(program)
        .output()
        .with_context(about)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.success(), "{}: {text}{complaint}", about());
    libraries(&text).with_context(about)
}

/// The files in what ldd says: `NAME => PATH (ADDRESS)`, the loader as `PATH (ADDRESS)`, the kernel's page as
/// `NAME (ADDRESS)`.
fn libraries(said: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for line in said.lines().map(str::trim) {
        let file = line.split_once(" => ").map_or(line, |(_, path)| path);
        if file == "not found" {
            bail!("{line}: install the package that has it");
        }
        let file = file.rsplit_once(" (").map_or(file, |(path, _)| path);
        if file.starts_with('/') {
            found.push(file.to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_and_the_loader_are_taken_and_the_kernels_page_is_not() {
        let said = "\tlinux-vdso.so.1 (0x00007f9f805aa000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f9f7f01e000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f9f805ac000)\n";
        assert_eq!(
            libraries(said).expect("libraries"),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
        assert!(libraries("\tstatically linked\n").expect("none").is_empty());
    }

    #[test]
    fn a_missing_library_is_an_error_that_names_it() {
        let e = libraries("\tlibfoo.so.1 => not found\n").expect_err("an error");
        assert!(e.to_string().contains("libfoo.so.1"), "{e}");
    }

    #[test]
    fn the_containerfile_makes_the_same_images() {
        let path = workspace()
            .expect("a workspace")
            .join("deploy/image/Containerfile");
        let text = fs::read_to_string(path).expect("the Containerfile");
        for recipe in Name::All.recipes() {
            let (_, stage) = text
                .split_once(&format!(" AS {}\n", recipe.name))
                .expect("a stage for each image");
            let stage = stage.split("\nFROM ").next().unwrap_or_default();
            for program in recipe.programs.iter().chain(recipe.statics) {
                let copied = stage
                    .lines()
                    .any(|l| l.starts_with("COPY ") && l.contains(&format!("/{program} ")));
                assert!(copied, "{} without {program}", recipe.name);
            }
            let user = recipe.user.unwrap_or(0);
            assert!(
                stage.contains(&format!("\nUSER {user}:{user}\n")),
                "{stage}"
            );
            let entrypoint = format!("\nENTRYPOINT [\"/{}\"]", recipe.programs[0]);
            assert!(stage.contains(&entrypoint), "{stage}");
        }
    }
}
