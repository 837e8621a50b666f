//! `mesh-ctl manifest`: the objects of an installation as text; and the arguments that say what to install.

use std::{fs, path::PathBuf};

use anyhow::Context;

use crate::install::{self, Asked, Assignment, Profile};

/// What to install, and where.
#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// The set of values to begin with; `default` unless an upgrade remembers another.
    #[arg(long, value_enum)]
    profile: Option<Profile>,
    /// A YAML file with values; can be given several times.
    #[arg(short = 'f', long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// One value, such as node.drain=60; can be given several times.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// The same, but the value is text whatever it looks like.
    #[arg(long, value_name = "PATH=VALUE")]
    set_string: Vec<String>,
    /// The namespace of the installation.
    #[arg(short, long, value_name = "NAME", env = "WARREN_CTL_NAMESPACE", default_value = install::NAMESPACE)]
    pub namespace: String,
}

impl Args {
    /// What is asked for, over what was asked for before.
    pub(super) fn read(&self, before: Asked) -> anyhow::Result<Asked> {
        let files: Vec<(String, String)> = self
            .values
            .iter()
            .map(|path| {
                let name = path.display().to_string();
                let text = fs::read_to_string(path).with_context(|| format!("reading {name}"))?;
                Ok((name, text))
            })
            .collect::<anyhow::Result<_>>()?;
        let mut assignments = Vec::new();
        for (written, text) in [(&self.set, false), (&self.set_string, true)] {
            for one in written {
                assignments.extend(Assignment::parse(one, text)?);
            }
        }
        Ok(before.with(self.profile, &files, assignments)?)
    }
}

/// The objects as YAML documents.
pub(super) fn text(args: &Args) -> anyhow::Result<String> {
    let values = args.read(Asked::default())?.values()?;
    let mut text = String::new();
    for object in install::objects(&values, &args.namespace) {
        let yaml = serde_saphyr::to_string(&object).context("writing an object as YAML")?;
        text.push_str("---\n");
        text.push_str(yaml.trim_end());
        text.push('\n');
    }
    Ok(text)
}
