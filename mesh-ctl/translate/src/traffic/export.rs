//! `exportTo` of virtual services and destination rules.
//!
//! Invariant: what cannot be understood reaches the own namespace only.

use std::collections::BTreeSet;

use super::reader::Reader;

/// Whose clients an object is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Export {
    /// Everybody's.
    Everyone,
    /// Those of these namespaces; nobody's when empty.
    Only(BTreeSet<String>),
}

impl Export {
    /// Reads a list of namespaces: `*` is everybody, `.` the own namespace, `~` nobody. No list is everybody.
    pub(crate) fn read(own: &str, list: &[String], reader: &mut Reader) -> Self {
        let mut only = BTreeSet::new();
        for (i, entry) in list.iter().map(|entry| entry.trim()).enumerate() {
            match entry {
                "*" => return Self::Everyone,
                "." => only.insert(own.to_owned()),
                "~" => continue,
                name if mesh_k8s::is_name(name) => only.insert(name.to_owned()),
                other => {
                    let text = format!(
                        "{other:?} is neither a namespace nor one of \".\", \"*\" and \"~\"; taken for \".\""
                    );
                    reader.error(format!("spec.exportTo[{i}]"), text);
                    only.insert(own.to_owned())
                }
            };
        }
        match list {
            [] => Self::Everyone,
            _ => Self::Only(only),
        }
    }

    /// Whether clients of a namespace are meant.
    pub(crate) fn reaches(&self, namespace: &str) -> bool {
        match self {
            Self::Everyone => true,
            Self::Only(only) => only.contains(namespace),
        }
    }
}
