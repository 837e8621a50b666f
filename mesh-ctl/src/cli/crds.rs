//! `mesh-ctl crds`: the definitions of Warren's own kinds. `deploy/crds` holds the same text.

use anyhow::Context;

/// The definitions as YAML documents.
pub(super) fn text() -> anyhow::Result<String> {
    let mut text = String::new();
    for crd in mesh_k8s::warren::crds() {
        let yaml = serde_saphyr::to_string(&crd).context("writing a definition as YAML")?;
        text.push_str("---\n");
        text.push_str(yaml.trim_end());
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// `BLESS=1` writes the file.
    #[test]
    fn the_committed_definitions_are_current() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds/warren.yaml");
        let made = text().expect("definitions");
        let read: serde_json::Value =
            serde_saphyr::from_str(made.trim_start_matches("---\n")).expect("is YAML");
        assert_eq!(
            read,
            mesh_k8s::warren::crds()[0],
            "what is written reads back the same"
        );
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(file.parent().expect("has one")).expect("a directory");
            fs::write(&file, &made).expect("written");
        }
        let committed = fs::read_to_string(&file).expect("deploy/crds/warren.yaml is committed");
        assert_eq!(
            committed, made,
            "run this test with BLESS=1 and commit the file"
        );
    }
}
