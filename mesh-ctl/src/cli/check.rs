//! `mesh-ctl check`: what is well and what is not.

use std::process::ExitCode;

use super::{Form, manifest};
use crate::install::{
    self, Asked,
    check::{self, Finding},
    cluster::Cluster,
};

/// What to look at.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    what: manifest::Args,
    /// Look whether the cluster is fit for an installation, not at one. Kernels are told by their versions then; whether
    /// a node's kernel has BTF, its cgroups and its CNI configuration are seen once a node proxy runs there.
    #[arg(long)]
    pre: bool,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
}

/// Runs the command; fails when a check did.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let asked = args.what.read(Asked::default())?;
    asked.values()?;
    super::at_hand(async {
        let cluster = Cluster::connect(&args.what.namespace).await?;
        let findings = match args.pre {
            true => {
                let asked = install::with_directories(&cluster, asked, |_| {}).await?;
                check::before(&cluster, &asked.values()?).await
            }
            false => check::after(&cluster).await,
        };
        show(&findings, args.output)
    })
}

/// Prints findings; the code says whether all is well.
pub(super) fn show(findings: &[Finding], form: Form) -> anyhow::Result<ExitCode> {
    match form {
        Form::Table => print!("{}", check::table(findings)),
        Form::Json => println!("{}", serde_json::to_string_pretty(findings)?),
        Form::Yaml => print!("{}", serde_saphyr::to_string(&findings)?),
    }
    Ok(match check::passed(findings) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
