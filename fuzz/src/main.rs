//! One program for all fuzz targets: `WARREN_FUZZ` names the one, `WARREN_FUZZ_SEEDS` a directory to write its seeds to
//! instead of fuzzing; `WARREN_FUZZ=list` names them all.
//!
//! Invariant: it has no target of its own; those are the parsers' (`mesh_node::fuzz`, `mesh_ctl::fuzz`), which ordinary
//! tests run with dice.

#![no_main]

use std::{env, fs, path::Path, process::exit, sync::OnceLock};

use libfuzzer_sys::fuzz_target;
use mesh_model::testing::noise::Target;

static CHOSEN: OnceLock<Target> = OnceLock::new();

fn targets() -> impl Iterator<Item = &'static Target> {
    mesh_node::fuzz::TARGETS
        .iter()
        .chain(mesh_ctl::fuzz::TARGETS)
}

fn choose() {
    let wanted = env::var("WARREN_FUZZ").unwrap_or_default();
    if wanted == "list" {
        targets().for_each(|target| println!("{}", target.name));
        exit(0);
    }
    let Some(target) = targets().find(|target| target.name == wanted) else {
        eprintln!("no fuzz target is named {wanted:?}; run `cargo xtask fuzz`");
        exit(2);
    };
    if let Some(folder) = env::var_os("WARREN_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            if let Err(error) = fs::write(Path::new(&folder).join(format!("seed-{number}")), seed) {
                eprintln!("writing seeds: {error}");
                exit(2);
            }
        }
        exit(0);
    }
    CHOSEN.get_or_init(|| *target);
}

fuzz_target!(init: choose(), |input: &[u8]| {
    if let Some(target) = CHOSEN.get() {
        (target.run)(input);
    }
});
