//! `mesh-ctl analyze`: what is wrong with manifests, by file, line and field.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use mesh_k8s::ObjectRef;
use mesh_translate::{Message, Origin, Severity, Status};
use serde::Serialize;

use super::Form;
use crate::{status::line_of, view::View, watch::read_folder};

/// What to analyze.
#[derive(clap::Args)]
pub struct Args {
    /// The folder of manifests.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// How to show what was found.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
    /// Only this object, with all that is to be said of it: [KIND/][NAMESPACE/]NAME.
    #[arg(value_name = "OBJECT")]
    object: Option<String>,
}

/// A message with its exact place.
#[derive(Debug, Serialize)]
struct Finding<'s> {
    severity: Severity,
    object: &'s ObjectRef,
    #[serde(flatten)]
    place: Origin,
    #[serde(skip_serializing_if = "str::is_empty")]
    field: &'s str,
    text: &'s str,
}

/// Runs the command; it fails when there is an error among the findings.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args {
        manifests,
        output,
        object,
    } = args;
    let mut view = View::default();
    view.apply(read_folder(&manifests)?);
    let refresh = view.refresh().unwrap_or_default();
    let mut statuses: Vec<Status> = refresh.statuses.into_values().flatten().collect();
    if let Some(wanted) = &object {
        statuses.retain(|status| is_meant(&status.object, wanted));
        if statuses.is_empty() {
            println!("nothing is to be said about {wanted}");
            return Ok(ExitCode::SUCCESS);
        }
    }
    let findings = findings(&statuses, object.is_some());
    let failed = findings
        .iter()
        .any(|finding| finding.severity == Severity::Error);
    let mut out = std::io::stdout().lock();
    let text = match (output, object.is_some()) {
        (Form::Json, false) => serde_json::to_string_pretty(&findings)? + "\n",
        (Form::Json, true) => serde_json::to_string_pretty(&statuses)? + "\n",
        (Form::Yaml, false) => serde_saphyr::to_string(&findings)?,
        (Form::Yaml, true) => serde_saphyr::to_string(&statuses)?,
        (Form::Table, whole) => {
            let conditions = if whole {
                conditions(&statuses)
            } else {
                String::new()
            };
            conditions + &table(&findings, std::io::stdout().is_terminal())
        }
    };
    out.write_all(text.as_bytes())
        .context("writing the findings")?;
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn findings(statuses: &[Status], all: bool) -> Vec<Finding<'_>> {
    let of = |status: &'_ Status, message: &Message| line_of(status, message);
    let mut findings: Vec<_> = statuses
        .iter()
        .flat_map(|status| status.messages.iter().map(move |message| (status, message)))
        .filter(|(_, message)| all || message.severity > Severity::Info)
        .map(|(status, message)| Finding {
            severity: message.severity,
            object: &status.object,
            place: of(status, message),
            field: &message.field,
            text: &message.text,
        })
        .collect();
    findings.sort_by(|a, b| {
        b.severity
            .cmp(&a.severity)
            .then_with(|| a.place.cmp(&b.place))
    });
    findings
}

fn conditions(statuses: &[Status]) -> String {
    let mut text = String::new();
    for status in statuses {
        text.push_str(&format!("{} ({})\n", status.object, status.origin));
        for condition in &status.conditions {
            let holds = if condition.status { "yes" } else { "no" };
            text.push_str(&format!(
                "  {:?}: {holds}, {}",
                condition.kind, condition.reason
            ));
            text.push_str(&if condition.message.is_empty() {
                "\n".to_owned()
            } else {
                format!(": {}\n", condition.message)
            });
        }
    }
    text
}

fn table(findings: &[Finding<'_>], colour: bool) -> String {
    let mut text = String::new();
    for Finding {
        severity,
        object,
        place,
        field,
        text: said,
    } in findings
    {
        let (word, paint) = match severity {
            Severity::Error => ("error", "\x1b[31m"),
            Severity::Warning => ("warning", "\x1b[33m"),
            Severity::Info => ("info", "\x1b[36m"),
        };
        let word = if colour {
            format!("{paint}{word}\x1b[0m")
        } else {
            word.to_owned()
        };
        let field = if field.is_empty() {
            String::new()
        } else {
            format!("{field}: ")
        };
        text.push_str(&format!("{place}: {word}: {object}: {field}{said}\n"));
    }
    let count = |severity| {
        findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    };
    text.push_str(&format!(
        "{} errors, {} warnings\n",
        count(Severity::Error),
        count(Severity::Warning)
    ));
    text
}

/// Whether an object is what a user named, with as much as was given.
fn is_meant(object: &ObjectRef, wanted: &str) -> bool {
    let parts: Vec<&str> = wanted.split('/').collect();
    let kind = |kind: &str| object.kind.eq_ignore_ascii_case(kind);
    match parts.as_slice() {
        [name] => *object.name == **name,
        [first, name] => *object.name == **name && (*object.namespace == **first || kind(first)),
        [first, namespace, name] => {
            kind(first) && *object.namespace == **namespace && *object.name == **name
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_with_as_much_as_is_given() {
        let check = |wanted: &str, expect| {
            assert_eq!(
                is_meant(&ObjectRef::new("Pod", "shop", "web"), wanted),
                expect,
                "{wanted}"
            );
        };
        check("web", true);
        check("shop/web", true);
        check("pod/web", true);
        check("Pod/shop/web", true);
        check("Service/shop/web", false);
        check("bank/web", false);
        check("a/b/c/d", false);
    }

    #[test]
    fn findings_point_at_the_field() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n\
                    spec:\n  rules:\n  - from:\n    - source:\n        ipBlocks:\n        - 10.0.0.0/8\n        - 10.0.0.0/99\n";
        std::fs::write(
            folder.path().join("p.yaml"),
            format!("# a note\n---\n{text}"),
        )
        .expect("written");
        let mut view = View::default();
        view.apply(read_folder(folder.path()).expect("read"));
        let refresh = view.refresh().expect("a refresh");
        let statuses: Vec<Status> = refresh.statuses.into_values().flatten().collect();
        let shown = table(&findings(&statuses, false), false);
        let expect = format!(
            "{}:12: error: AuthorizationPolicy shop/p: spec.rules[0].from[0].source.ipBlocks[1]: \"10.0.0.0/99\" is neither an address nor a CIDR block\n1 errors, 0 warnings\n",
            folder.path().join("p.yaml").display()
        );
        assert_eq!(shown, expect);
    }
}
