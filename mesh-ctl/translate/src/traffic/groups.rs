//! Which workloads the selectors of rules and subsets select.
//!
//! Invariant: a workload names every selector in use that selects it, in the one form that rules and subsets have.

use std::collections::{BTreeMap, BTreeSet};

use crate::{core::draft::Drafts, istio::http_match::group, labels::LabelIndex};

/// A selector: the namespace whose workloads are meant, every one's when absent, and their labels.
pub(crate) type Selecting = (Option<String>, BTreeMap<String, String>);

/// Tells workloads which selectors select them.
pub(crate) fn apply(
    selectors: &BTreeSet<Selecting>,
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
    for (index, groups) in found {
        drafts.all[index].extra.groups = groups.into_iter().collect();
    }
}
