//! Golden files: `golden/<name>.in.yaml` translates to `golden/<name>.out.yaml`, whatever the order of the objects.
//! `BLESS=1 cargo test -p mesh-translate` writes the results anew.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use mesh_translate::{
    Broken, ClusterView, Condition, Origin, Output, Status, dump, foreign_policies, translate,
};
use serde_json::{Value, json};

fn view(documents: &[Value]) -> ClusterView {
    let mut view = ClusterView::default();
    for document in documents {
        match mesh_k8s::read(document.clone()) {
            Ok(parsed) => {
                let mut unknown = parsed.unknown;
                unknown.extend(parsed.unknown_version.map(|_| "apiVersion".to_owned()));
                view.apply(parsed.object, Origin::default(), Arc::from(unknown));
            }
            Err(error) => {
                let selector = document.pointer("/spec/selector/matchLabels").cloned();
                let broken = Broken {
                    origin: Origin::default(),
                    field: error.field,
                    message: error.message,
                    selector: selector.and_then(|labels| serde_json::from_value(labels).ok()),
                };
                view.set_broken(
                    error
                        .object
                        .unwrap_or_else(|| panic!("a golden input without a name: {document}")),
                    broken,
                );
            }
        }
    }
    view
}

fn status(status: &Status) -> (String, Value) {
    let conditions = status.conditions.iter().map(condition);
    let parents = status.parents.iter().map(|said| {
        let port = said.parent.port.map(|p| format!(":{p}"));
        let conditions: Vec<String> = said.conditions.iter().map(condition).collect();
        let (name, port) = (&said.parent.name, port.unwrap_or_default());
        format!("at {name}{port}: {}", conditions.join(", "))
    });
    let listeners = status.listeners.iter().map(|said| {
        let conditions: Vec<String> = said.conditions.iter().map(condition).collect();
        format!("listener {}: {}", said.name, conditions.join(", "))
    });
    let messages = status.messages.iter().map(|message| {
        format!("{:?} {}: {}", message.severity, message.field, message.text).replace(" : ", ": ")
    });
    (
        status.object.to_string(),
        conditions
            .chain(parents)
            .chain(listeners)
            .chain(messages)
            .map(Value::String)
            .collect(),
    )
}

fn condition(condition: &Condition) -> String {
    let text = format!(
        "{:?}={} {}",
        condition.kind,
        if condition.status { "True" } else { "False" },
        condition.reason
    );
    match condition.message.as_str() {
        "" => text,
        message => format!("{text}: {message}"),
    }
}

fn render(output: &Output, view: &ClusterView) -> String {
    let hosted: BTreeMap<String, Vec<String>> = output
        .hosted
        .iter()
        .map(|(node, identities)| {
            (
                node.to_string(),
                identities.iter().map(ToString::to_string).collect(),
            )
        })
        .collect();
    let foreign = foreign_policies(view)
        .into_iter()
        .map(|policy| dump::change(&mesh_model::mesh::Change::Policy(policy)));
    let mut whole = json!({
        "changes": output.changes.iter().map(dump::change).collect::<Vec<_>>(),
        "foreign": foreign.collect::<Vec<_>>(),
        "hosted": hosted,
        "statuses": output.statuses.iter().map(status).collect::<BTreeMap<_, _>>(),
    });
    if !output.waypoints.is_empty() {
        whole["waypoints"] = json!(output.waypoints);
    }
    serde_saphyr::to_string(&whole).expect("JSON prints as YAML")
}

/// A fixed permutation that is neither the identity nor the reverse.
fn shuffled(documents: &[Value], seed: usize) -> Vec<Value> {
    let mut left = documents.to_vec();
    let mut out = Vec::new();
    let mut at = seed;
    while !left.is_empty() {
        at = (at * 31 + 17) % left.len();
        out.push(left.remove(at));
    }
    out
}

fn check(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(
        &text,
        serde_saphyr::options! { strict_booleans: true },
    )
    .map_err(|e| format!("{}: {e}", path.display()))?;
    let whole = view(&documents);
    let found = render(&translate(&whole), &whole);
    for seed in 1..6 {
        let other = view(&shuffled(&documents, seed));
        if render(&translate(&other), &other) != found {
            return Err(format!(
                "{}: the result depends on the order of the objects",
                path.display()
            ));
        }
    }
    let out = path.with_file_name(
        path.file_name()
            .expect("a file")
            .to_string_lossy()
            .replace(".in.", ".out."),
    );
    if std::env::var_os("BLESS").is_some() {
        return fs::write(&out, &found).map_err(|e| format!("{}: {e}", out.display()));
    }
    let expect = fs::read_to_string(&out)
        .map_err(|e| format!("{}: {e}; bless it with BLESS=1", out.display()))?;
    let mut lines = expect.lines().zip(found.lines()).enumerate();
    match lines.find(|(_, (a, b))| a != b) {
        Some((at, (a, b))) => Err(format!(
            "{}:{}: expected\n  {a}\nfound\n  {b}",
            out.display(),
            at + 1
        )),
        None if expect.lines().count() != found.lines().count() => {
            Err(format!("{}: lengths differ", out.display()))
        }
        None => Ok(()),
    }
}

#[test]
fn golden_files_hold_in_any_order() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let files = fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("readable").path());
    let mut inputs: Vec<_> = files
        .filter(|path| path.to_string_lossy().ends_with(".in.yaml"))
        .collect();
    inputs.sort();
    assert!(
        inputs.len() >= 8,
        "golden inputs are missing: found {}",
        inputs.len()
    );
    let failed: Vec<_> = inputs.iter().filter_map(|path| check(path).err()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
