//! Says when Istio runs in the same cluster: in the log once, in metrics, and at `/debug/istio`.
//!
//! Invariant: it only says so. What becomes of pods is decided by enrolment.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use mesh_translate::IstioPresence;
use tokio::time::interval;
use tracing::{info, warn};

use super::Metrics;
use crate::view::View;

/// How often it is looked for.
const LOOK: Duration = Duration::from_secs(10);
/// So many names are listed.
const NAMED: usize = 8;

/// Looks for ever.
pub async fn look_for_istio(view: Arc<RwLock<View>>, metrics: Arc<Metrics>) {
    let mut ticks = interval(LOOK);
    loop {
        ticks.tick().await;
        let now = {
            let view = view.read().unwrap_or_else(PoisonError::into_inner);
            if !view.is_complete() {
                continue;
            }
            IstioPresence::of(view.cluster())
        };
        let before = metrics.set_istio(now.clone());
        match told(before.as_deref(), now.as_ref()) {
            Some((true, text)) => warn!("{text}"),
            Some((false, text)) => info!("{text}"),
            None => {}
        }
    }
}

/// What is said of a change, and whether it is a warning.
fn told(before: Option<&IstioPresence>, now: Option<&IstioPresence>) -> Option<(bool, String)> {
    if before == now {
        return None;
    }
    let Some(IstioPresence {
        parts,
        both,
        theirs,
    }) = now
    else {
        return Some((false, "Istio does not run here any more".to_owned()));
    };
    let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
    let mut text = format!("Istio runs in this cluster ({})", list(&parts));
    if !theirs.is_empty() {
        text.push_str(&format!("; namespaces of its alone: {}", list(theirs)));
    }
    if !both.is_empty() {
        text.push_str(&format!(
            "; namespaces that both meshes take: {}. Take Istio's label off, label them warren.dev/mesh=disabled, or turn honourIstioLabels off in the MeshConfig",
            list(both)
        ));
    }
    text.push_str(". Pods that have its sidecar, or that it redirects, are left alone here");
    Some((!both.is_empty(), text))
}

fn list(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let some = names[..names.len() - more].join(", ");
    match more {
        0 => some,
        more => format!("{some} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use mesh_k8s::ObjectRef;

    use super::*;

    #[test]
    fn what_it_means_is_said_once() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let alone = IstioPresence {
            parts: vec![ObjectRef::new("Deployment", "istio-system", "istiod")],
            both: Vec::new(),
            theirs: names(&["old"]),
        };
        let shared = IstioPresence {
            both: names(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]),
            ..alone.clone()
        };
        assert_eq!(told(None, None), None);
        assert_eq!(told(Some(&alone), Some(&alone)), None);
        let (warns, text) = told(None, Some(&alone)).expect("is said");
        assert!(!warns);
        assert_eq!(
            text,
            "Istio runs in this cluster (Deployment istio-system/istiod); namespaces of its alone: old. Pods that have its sidecar, or that it redirects, are left alone here"
        );
        let (warns, text) = told(Some(&alone), Some(&shared)).expect("is said");
        assert!(
            warns && text.contains("both meshes take: a, b, c, d, e, f, g, h and 1 more."),
            "{text}"
        );
        assert!(told(Some(&shared), None).is_some_and(|(warns, _)| !warns));
    }
}
