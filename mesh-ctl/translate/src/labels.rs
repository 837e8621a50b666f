//! Which workloads a label selector means, found by the rarest of its labels.

use std::collections::{BTreeMap, HashMap};

type ByLabel<'a> = HashMap<(&'a str, &'a str), Vec<usize>>;

/// An index of labelled things by namespace and label.
#[derive(Debug, Default)]
pub(crate) struct LabelIndex<'a> {
    everywhere: ByLabel<'a>,
    by_namespace: HashMap<&'a str, ByLabel<'a>>,
    labels: Vec<Option<&'a BTreeMap<String, String>>>,
}

impl<'a> LabelIndex<'a> {
    /// Adds thing number `index`; numbers must come in ascending order.
    pub(crate) fn insert(
        &mut self,
        index: usize,
        namespace: &'a str,
        labels: &'a BTreeMap<String, String>,
    ) {
        self.labels.resize(index, None);
        self.labels.push(Some(labels));
        let local = self.by_namespace.entry(namespace).or_default();
        for (key, value) in labels {
            local.entry((key, value)).or_default().push(index);
            self.everywhere.entry((key, value)).or_default().push(index);
        }
    }

    /// The things that have a label, with its value.
    pub(crate) fn values(&self, key: &str) -> impl Iterator<Item = (usize, &'a str)> {
        let all = self.labels.iter().enumerate();
        all.filter_map(move |(index, labels)| Some((index, labels.as_ref()?.get(key)?.as_str())))
    }

    /// The things with all of these labels, in one namespace or (`None`) in all. No labels select nothing.
    pub(crate) fn select(
        &self,
        namespace: Option<&str>,
        labels: &BTreeMap<String, String>,
    ) -> Vec<usize> {
        let by_label = match namespace {
            None => &self.everywhere,
            Some(namespace) => match self.by_namespace.get(namespace) {
                Some(by_label) => by_label,
                None => return Vec::new(),
            },
        };
        let mut rarest: Option<&[usize]> = None;
        for (key, value) in labels {
            let Some(found) = by_label.get(&(key.as_str(), value.as_str())) else {
                return Vec::new();
            };
            if rarest.is_none_or(|best| found.len() < best.len()) {
                rarest = Some(found);
            }
        }
        let has_all = |index: &usize| {
            self.labels[*index].is_some_and(|own| {
                labels
                    .iter()
                    .all(|(key, value)| own.get(key) == Some(value))
            })
        };
        rarest
            .unwrap_or_default()
            .iter()
            .copied()
            .filter(has_all)
            .collect()
    }
}
