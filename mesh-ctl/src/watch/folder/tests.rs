//! What files hold, and what their changes mean.

use super::*;

fn show(deltas: Vec<Delta>) -> Vec<String> {
    let text = |delta| match delta {
        Delta::Applied {
            object,
            origin,
            unknown,
        } => format!("+ {} {origin} {}", object.reference(), unknown.join(",")),
        Delta::Removed(object) => format!("- {object}"),
        Delta::Bad(object, broken) => format!(
            "! {object} {} {}: {}",
            broken.origin, broken.field, broken.message
        ),
    };
    deltas
        .into_iter()
        .map(|delta| text(delta).trim_end().to_owned())
        .collect()
}

fn check(folder: &mut Folder, file: &str, text: Option<&str>, expect: &[&str]) {
    let found = show(folder.update(file, text));
    let fits = found.len() == expect.len()
        && found.iter().zip(expect).all(|(found, expect)| {
            found == expect
                || expect.ends_with('…') && found.starts_with(expect.trim_end_matches('…'))
        });
    assert!(
        fits,
        "found\n{}\nexpected\n{}",
        found.join("\n"),
        expect.join("\n")
    );
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
const NS: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n";

#[test]
fn documents_come_change_and_go() {
    let mut folder = Folder::default();
    let both = format!("# note\n---\n{POD}---\n{NS}");
    check(
        &mut folder,
        "f",
        Some(&both),
        &["+ Namespace shop f:7", "+ Pod default/a f:3"],
    );
    check(&mut folder, "f", Some(&both), &[]);
    let changed = format!("{POD}spec: {{nodeName: n1, typo: 1}}\n");
    check(
        &mut folder,
        "f",
        Some(&changed),
        &["- Namespace shop", "+ Pod default/a f:1 spec.typo"],
    );
    check(&mut folder, "f", None, &["- Pod default/a"]);
}

#[test]
fn a_bad_object_is_named_by_file_line_and_field_and_stops_nobody_else() {
    let mut folder = Folder::default();
    let text = format!(
        "{NS}---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: b\nspec:\n  nodeName: n1\n  containers:\n  - name: [c]\n---\n{POD}"
    );
    check(
        &mut folder,
        "f",
        Some(&text),
        &[
            "+ Namespace shop f:1",
            "+ Pod default/a f:15",
            "! Pod default/b f:13 spec.containers[0].name: invalid type: sequence, expected a string",
        ],
    );
    let good = text.replace("[c]", "c");
    check(&mut folder, "f", Some(&good), &["+ Pod default/b f:6"]);
}

#[test]
fn broken_syntax_keeps_what_it_may_have_meant() {
    let mut folder = Folder::default();
    let good = format!("{NS}---\n{POD}");
    check(
        &mut folder,
        "f",
        Some(&good),
        &["+ Namespace shop f:1", "+ Pod default/a f:6"],
    );
    let broken = format!("{NS}---\n{POD}spec: {{nodeName: [\n");
    check(
        &mut folder,
        "f",
        Some(&broken),
        &["! Pod default/a f:9 : is not valid YAML:…"],
    );
    // Cut in the middle of a name: nothing says which object was meant, so none is gone.
    let cut = format!("{NS}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: \"");
    let found = show(folder.update("f", Some(&cut)));
    assert!(found.iter().all(|line| !line.starts_with('-')), "{found:?}");
    check(
        &mut folder,
        "f",
        Some(&good),
        &["- Document f:8", "+ Pod default/a f:6"],
    );
    check(&mut folder, "f", Some(NS), &["- Pod default/a"]);
}

#[test]
fn the_first_place_wins_and_the_other_is_named() {
    let mut folder = Folder::default();
    check(
        &mut folder,
        "b.yaml",
        Some(POD),
        &["+ Pod default/a b.yaml:1"],
    );
    let other = format!("\n{POD}spec: {{nodeName: n9}}\n");
    check(
        &mut folder,
        "a.yaml",
        Some(&other),
        &[
            "! Document Pod default/a again at b.yaml:1 b.yaml:1 metadata.name: Pod default/a is already given at a.yaml:2; this one is ignored",
            "+ Pod default/a a.yaml:2",
        ],
    );
    check(
        &mut folder,
        "a.yaml",
        None,
        &[
            "- Document Pod default/a again at b.yaml:1",
            "+ Pod default/a b.yaml:1",
        ],
    );
    check(
        &mut folder,
        "b.yaml",
        Some(&format!("{POD}---\n{POD}")),
        &[
            "! Document Pod default/a again at b.yaml:5 b.yaml:5 metadata.name: Pod default/a is already given at b.yaml:1; this one is ignored",
        ],
    );
}

#[test]
fn lists_hold_many_objects() {
    let mut folder = Folder::default();
    let text = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: x}}\n- {apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: 3}}\n";
    check(
        &mut folder,
        "l.json",
        Some(text),
        &[
            "+ Namespace x l.json:4",
            "! Pod default/p l.json:5 spec.containers: invalid type: integer `3`, expected a sequence",
        ],
    );
    let typed = "apiVersion: v1\nkind: NamespaceList\nitems:\n- metadata: {name: y}\n";
    check(
        &mut folder,
        "l.json",
        Some(typed),
        &["- Namespace x", "+ Namespace y l.json:4", "- Pod default/p"],
    );
    check(
        &mut folder,
        "l.json",
        Some("kind: [\n"),
        &["! Document l.json:1 l.json:1 : is not valid YAML:…"],
    );
    check(
        &mut folder,
        "l.json",
        Some(""),
        &["- Document l.json:1", "- Namespace y"],
    );
}

#[test]
fn hostile_documents_are_refused_in_time() {
    let mut folder = Folder::default();
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        bomb.push_str(&format!(
            "a{i}: &a{i} [{}]\n",
            vec![format!("*a{}", i - 1); 10].join(", ")
        ));
    }
    let deep = format!("a: {}", "[".repeat(200_000));
    for text in [
        bomb.as_str(),
        deep.as_str(),
        "a: !!binary x\n? {b: c}\n: d",
        "\u{feff}kind: x",
        "--- |\n text",
        "- 1\n- 2",
    ] {
        for line in show(folder.update("f", Some(text))) {
            assert!(line.starts_with('!') || line.starts_with('-'), "{line}");
        }
    }
}

#[test]
fn a_long_policy_is_read_and_only_its_change_is_read_again() {
    let mut text = String::from(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: long, namespace: shop}\nspec:\n  rules:\n",
    );
    for i in 0..3_400 {
        text.push_str(&format!(
            "  - from:\n    - source:\n        ipBlocks: [10.{}.{}.0/24]\n",
            i / 256,
            i % 256
        ));
    }
    let mut folder = Folder::default();
    assert_eq!(text.lines().count(), 10_205);
    check(
        &mut folder,
        "p",
        Some(&text),
        &["+ AuthorizationPolicy shop/long p:1"],
    );
    check(
        &mut folder,
        "p",
        Some(&format!("{POD}---\n{text}")),
        &["+ AuthorizationPolicy shop/long p:5", "+ Pod default/a p:1"],
    );
}
