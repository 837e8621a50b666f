//! Clients and servers of other make that speak HTTP/2 and gRPC, from their Go modules, for the lab's tests.
//!
//! Invariant: the folder holds all of them or is not told of.

use std::path::PathBuf;

use anyhow::Result;

use super::go::Module;
use crate::step;

/// The environment variable by which the lab's tests are told in which folder they are.
pub const TOLD: &str = "WARREN_PROTOCOLS";
const PROTOCOLS: Module = Module("protocols");

/// What is built, by name and package.
const PROGRAMS: [(&str, &str); 4] = [
    ("h2spec", "github.com/summerwind/h2spec/cmd/h2spec"),
    ("grpcurl", "github.com/fullstorydev/grpcurl/cmd/grpcurl"),
    ("interop-client", "google.golang.org/grpc/interop/client"),
    ("interop-server", "google.golang.org/grpc/interop/server"),
];

/// The folder that they are in; built when they are not there yet.
pub fn programs() -> Result<PathBuf> {
    let kept = PROTOCOLS.kept()?;
    let build = || {
        for (name, package) in PROGRAMS {
            PROTOCOLS.program(&["build"], package, name)?;
        }
        Ok(())
    };
    match PROGRAMS.iter().all(|(name, _)| kept.join(name).is_file()) {
        true => build()?,
        false => step::timed(
            "building h2spec, grpcurl and gRPC's peers (a minute, once)",
            build,
        )?,
    }
    Ok(kept)
}
