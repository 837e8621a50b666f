//! Which workloads the selectors of rules and subsets select, and what labels they have by which they are compared.
//!
//! Invariant: a workload names every selector in use that selects it, in the one form that rules and subsets have; a
//! label whose values are compared is a selector of each value.

use std::collections::{BTreeMap, BTreeSet};

use crate::{core::draft::Drafts, istio::http_match::group, labels::LabelIndex};

/// A selector: the namespace whose workloads are meant, every one's when absent, and their labels.
pub(crate) type Selecting = (Option<String>, BTreeMap<String, String>);

/// Tells workloads which selectors select them, and which values they have of the labels that are compared.
pub(crate) fn apply(
    selectors: &BTreeSet<Selecting>,
    compared: &BTreeSet<String>,
    labels: &LabelIndex<'_>,
    drafts: &mut Drafts<'_>,
) {
    let mut found: BTreeMap<usize, BTreeSet<std::sync::Arc<str>>> = BTreeMap::new();
    for (namespace, wanted) in selectors {
        let name = group(wanted);
        for index in labels.select(namespace.as_deref(), wanted) {
            found.entry(index).or_default().insert(name.clone());
        }
    }
    for key in compared {
        for (index, value) in labels.values(key) {
            let own = BTreeMap::from([(key.clone(), value.to_owned())]);
            found.entry(index).or_default().insert(group(&own));
        }
    }
    for (index, groups) in found {
        drafts.all[index].extra.groups = groups.into_iter().collect();
    }
}
