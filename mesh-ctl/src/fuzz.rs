//! The controller's parsers, each as a function that takes whatever comes (`mesh_model::testing::noise`).
//!
//! Join tokens are none of them: nothing of one is read before its code is found to be ours.

use mesh_model::testing::noise::Target;
use mesh_translate::{ClusterView, Origin, translate};

use crate::watch::objects_of;

/// All of them.
pub const TARGETS: &[Target] = &[Target {
    name: "manifests",
    run: manifests,
    seeds: manifest_seeds,
}];

/// A file of manifests, as objects, and everything that is made of them.
fn manifests(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let mut view = ClusterView::default();
    for (object, unknown) in objects_of(text) {
        view.apply(object, Origin::default(), unknown);
    }
    translate(&view);
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let whole = [
        include_str!("../translate/golden/authorization.in.yaml"),
        include_str!("../translate/golden/destination-rule.in.yaml"),
        include_str!("../translate/golden/entries.in.yaml"),
        include_str!("../translate/golden/mesh-config.in.yaml"),
        include_str!("../translate/golden/pods.in.yaml"),
        include_str!("../translate/golden/routes.in.yaml"),
        include_str!("../translate/golden/telemetry.in.yaml"),
        include_str!("../translate/golden/virtual-service.in.yaml"),
        include_str!("../translate/golden/waypoints.in.yaml"),
    ];
    // A document each: short ones are changed where it matters.
    let documents = whole.iter().flat_map(|text| text.split("\n---\n"));
    let documents = documents.map(|text| text.as_bytes().to_vec());
    let list = "apiVersion: v1\nkind: List\nitems:\n- &a {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- *a\n";
    documents.chain([list.as_bytes().to_vec()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsers_withstand_whatever_comes() {
        TARGETS.iter().for_each(|target| target.withstands(3000));
    }
}
