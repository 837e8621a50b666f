//! `mesh-ctl ca`: shows the roots, and replaces the root in three steps.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::Subcommand;
use serde_json::Value;

use crate::{
    admin::{self, Admin, Command as Asked, GivenText},
    ca::{Authority, Step, lock},
};

/// The path that means standard input.
const INPUT: &str = "-";
/// At most so many bytes are read there.
const LARGEST: u64 = 64 << 10;

/// What to do with the certificate authority.
#[derive(Subcommand)]
pub enum Command {
    /// Show the roots that nodes trust and how far a rotation is.
    Show {
        /// The controller's state directory.
        #[arg(long, value_name = "DIR", env = "WARREN_CTL_STATE")]
        state: PathBuf,
    },
    /// Take one step of replacing the root: prepare, switch, finish. Give nodes time between them.
    Rotate {
        /// The step.
        #[arg(long, value_enum)]
        step: Step,
        /// The controller's state directory; a running controller takes the step itself.
        #[arg(long, value_name = "DIR", env = "WARREN_CTL_STATE")]
        state: PathBuf,
        /// With `prepare`: the next CA's certificate, followed by those up to its root. Without it one is made. `-` is
        /// standard input, which may hold the key as well: a pod of the controller, whose files nobody can write, is told
        /// by `cat ca.crt ca.key | kubectl exec -i`, with `--ca-cert - --ca-key -`.
        #[arg(long, value_name = "FILE", requires = "ca_key")]
        ca_cert: Option<PathBuf>,
        /// With `prepare`: its key, or `-` as above.
        #[arg(long, value_name = "FILE", requires = "ca_cert")]
        ca_key: Option<PathBuf>,
        /// With `switch`: also when a replica of the controller does not know the next root yet; with `finish`: also when
        /// certificates of the old root are in use.
        #[arg(long)]
        force: bool,
        /// Without a running controller: the longest life of the certificates it signed.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = super::duration)]
        leaf_ttl: Duration,
    },
}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    let (state, asked, leaf_ttl) = match command {
        Command::Show { state } => (state, Asked::Show, Duration::ZERO),
        Command::Rotate {
            step,
            state,
            ca_cert,
            ca_key,
            force,
            leaf_ttl,
        } => {
            anyhow::ensure!(
                ca_cert.is_none() || step == Step::Prepare,
                "--ca-cert and --ca-key belong to step prepare"
            );
            let given = ca_cert
                .zip(ca_key)
                .map(|(cert, key)| given(&cert, &key, io::stdin().lock()))
                .transpose()?;
            (state, Asked::Rotate { step, force, given }, leaf_ttl)
        }
    };
    anyhow::ensure!(
        state.join("ca.json").exists() || state.join("admin.sock").exists(),
        "{} is not the state directory of a controller",
        state.display()
    );
    let answer = match super::at_hand(admin::ask(&state, &asked))? {
        Some(answer) => answer,
        None => alone(&state, asked, leaf_ttl)?,
    };
    show(&answer);
    Ok(())
}

/// Acts on the state directory while no controller does.
fn alone(state: &Path, asked: Asked, leaf_ttl: Duration) -> anyhow::Result<Value> {
    anyhow::ensure!(
        state.join("ca.json").exists(),
        "the keys are in the cluster's Secret warren-ca and no controller runs here; run this in a pod of the controller"
    );
    let _lock = lock(state)?;
    // The domain only matters when a root is made: it stands in its name.
    let authority = Arc::new(Authority::open(state, None, "cluster.local".into())?);
    let admin = Admin {
        authority,
        leaf_ttl,
        running: None,
    };
    super::at_hand(admin.answer(asked))
}

/// A CA of two files. Those that are standard input are one stream, of which each takes what is its own.
fn given(cert: &Path, key: &Path, input: impl Read) -> anyhow::Result<GivenText> {
    let is_input = |path: &Path| path == Path::new(INPUT);
    let stream = match is_input(cert) || is_input(key) {
        true => stream(input).context("reading standard input")?,
        false => String::new(),
    };
    let read = |path: &Path, kind: &str| match is_input(path) {
        true => blocks(&stream, kind),
        false => fs::read_to_string(path).with_context(|| format!("reading {}", path.display())),
    };
    Ok(GivenText {
        chain: read(cert, "CERTIFICATE")?,
        key: read(key, "PRIVATE KEY")?,
    })
}

fn stream(input: impl Read) -> anyhow::Result<String> {
    let mut text = String::new();
    let count = input.take(LARGEST + 1).read_to_string(&mut text)?;
    anyhow::ensure!(
        count as u64 <= LARGEST,
        "no CA has more than {LARGEST} bytes"
    );
    Ok(text)
}

/// The blocks of PEM whose label ends so, which is how the kinds of private keys are alike.
fn blocks(text: &str, kind: &str) -> anyhow::Result<String> {
    const BEGIN: &str = "-----BEGIN ";
    let mut found = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        rest = &rest[at..];
        let label = rest[BEGIN.len()..]
            .split("-----")
            .next()
            .unwrap_or_default();
        let end = format!("-----END {label}-----");
        let Some(to) = rest.find(&end) else {
            anyhow::bail!("standard input ends within a {label} in PEM");
        };
        let (block, after) = rest.split_at(to + end.len());
        if label.ends_with(kind) {
            found.push_str(block);
            found.push('\n');
        }
        rest = after;
    }
    anyhow::ensure!(
        !found.is_empty(),
        "standard input holds no {kind} in PEM; `kubectl exec` passes it on with -i only"
    );
    Ok(found)
}

fn show(answer: &Value) {
    println!("{}", answer["phase"].as_str().unwrap_or_default());
    for (i, root) in answer["roots"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .enumerate()
    {
        let signs = if i == 0 { "signs" } else { "trusted" };
        match describe(root) {
            Ok(text) => println!("{signs:8} {text}"),
            Err(e) => println!("{signs:8} (cannot be read: {e})"),
        }
    }
}

fn describe(pem: &str) -> anyhow::Result<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes())?;
    let cert = pem.parse_x509()?;
    Ok(format!(
        "{}, valid until {}, serial {}",
        cert.subject(),
        cert.validity().not_after,
        cert.raw_serial_as_string()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: &str = "-----BEGIN CERTIFICATE-----\nb25l\n-----END CERTIFICATE-----\n";
    const ROOT: &str = "-----BEGIN CERTIFICATE-----\ncm9vdA==\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN EC PRIVATE KEY-----\na2V5\n-----END EC PRIVATE KEY-----\n";
    const CURVE: &str = "-----BEGIN EC PARAMETERS-----\nMA==\n-----END EC PARAMETERS-----\n";

    /// What is taken of an input, and of a file that holds a key.
    fn check(cert: &str, key: &str, input: &str, expect: Result<(&str, &str), &str>) {
        let got = given(Path::new(cert), Path::new(key), input.as_bytes());
        match (got, expect) {
            (Ok(got), Ok(expect)) => assert_eq!((&*got.chain, &*got.key), expect, "{input}"),
            (Err(error), Err(expect)) => {
                let said = format!("{error:#}");
                assert!(said.contains(expect), "{said}");
            }
            (got, expect) => panic!("{:?}, and {expect:?} was to be", got.map(|g| g.chain)),
        }
    }

    #[test]
    fn a_ca_comes_by_standard_input_in_one_stream() {
        let chain = format!("{LEAF}{ROOT}");
        for input in [
            format!("{LEAF}{ROOT}{KEY}"),
            format!("{CURVE}{KEY}{LEAF}{ROOT}"),
            format!("subject=one\n{LEAF}\n{KEY}issuer=root\r\n{ROOT}"),
        ] {
            check("-", "-", &input, Ok((&chain, KEY)));
        }
        check("-", "-", "", Err("no CERTIFICATE in PEM; `kubectl exec`"));
        check("-", "-", LEAF, Err("no PRIVATE KEY in PEM"));
        check(
            "-",
            "-",
            &format!("{KEY}{}", &LEAF[..40]),
            Err("ends within a CERTIFICATE"),
        );
        let long = " ".repeat(70 << 10);
        check("-", "-", &long, Err("no CA has more than"));
    }

    #[test]
    fn files_and_standard_input_go_together() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("is written");
            path.display().to_string()
        };
        let (chain, key) = (file("ca.crt", LEAF), file("ca.key", KEY));
        check(&chain, &key, "nobody reads this", Ok((LEAF, KEY)));
        check(&chain, "-", &format!("{ROOT}{KEY}"), Ok((LEAF, KEY)));
        check("-", &key, ROOT, Ok((ROOT, KEY)));
        check(&chain, "/no/such/key", "", Err("reading /no/such/key"));
    }
}
