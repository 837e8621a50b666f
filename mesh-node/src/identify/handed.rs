//! Certificates, keys and trusted roots as they pass from a process to its successor, in one piece of memory.
//!
//! Invariants: a key is in nothing but the piece itself, which only the two processes see; each part is
//! checked as if it came from the CA, and one that fails is named and left out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_model::name::Identity;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::{Certificates, Issued, NodeCertificate, Trust, issued::Bundle};

/// What the piece is called in a hand-over.
pub const HANDED: &str = "certificates";

#[derive(Serialize, Deserialize)]
struct Handed {
    node: Option<Kept>,
    workloads: Vec<(String, Kept)>,
    /// The roots that the controller published, each as base64 of its DER.
    roots: Vec<String>,
}

/// A bundle: when it came, in milliseconds since 1970, and its text.
#[derive(Serialize, Deserialize)]
struct Kept {
    since: u64,
    pem: String,
}

impl Kept {
    fn of(bundle: &Bundle) -> Self {
        let since = bundle.since().duration_since(UNIX_EPOCH);
        Self {
            since: since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            pem: bundle.pem().to_owned(),
        }
    }

    fn into_bundle(self) -> Bundle {
        let since = UNIX_EPOCH.checked_add(Duration::from_millis(self.since));
        Bundle::from_pem(self.pem, since.unwrap_or(SystemTime::UNIX_EPOCH))
    }
}

/// Everything that a successor needs to go on without files and without the controller.
pub fn hand_over(certificates: &Certificates) -> Vec<u8> {
    let handed = Handed {
        node: certificates.node().map(|n| Kept::of(&n.bundle)),
        workloads: certificates
            .issued()
            .iter()
            .map(|i| (i.identity.to_string(), Kept::of(&i.bundle)))
            .collect(),
        roots: certificates
            .published()
            .map(|p| p.trust)
            .iter()
            .flat_map(Trust::roots)
            .map(|der| STANDARD.encode(der))
            .collect(),
    };
    serde_json::to_vec(&handed).expect("names and texts can always be written as JSON")
}

/// Takes in what an earlier process handed over; says how many certificates that were.
pub fn receive(certificates: &Certificates, piece: &[u8]) -> usize {
    let handed: Handed = match serde_json::from_slice(piece) {
        Ok(handed) => handed,
        Err(error) => {
            tracing::warn!(%error, "the handed-over certificates cannot be read; those on disk are used");
            return 0;
        }
    };
    let now = certificates.now();
    let mut taken = 0;
    match handed.node.map(Kept::into_bundle) {
        None => {}
        Some(bundle) => match NodeCertificate::from_bundle(bundle, now) {
            Ok(node) => {
                certificates.put_node(node);
                taken += 1;
            }
            Err(error) => tracing::warn!(%error, "the node's handed-over certificate is not used"),
        },
    }
    for (name, kept) in handed.workloads {
        let issued = name
            .parse::<Identity>()
            .map_err(|e| e.to_string())
            .and_then(|identity| {
                Issued::from_bundle(&kept.into_bundle(), &identity, now).map_err(|e| e.to_string())
            });
        match issued {
            Ok(issued) => {
                certificates.put(issued);
                taken += 1;
            }
            Err(error) => {
                tracing::warn!(identity = %name.escape_debug(), %error, "a handed-over certificate is not used")
            }
        }
    }
    publish(certificates, &handed.roots);
    taken
}

fn publish(certificates: &Certificates, roots: &[String]) {
    if roots.is_empty() {
        return;
    }
    let ders: Result<Vec<_>, _> = roots
        .iter()
        .map(|text| STANDARD.decode(text).map(CertificateDer::from))
        .collect();
    let trust = ders
        .map_err(|e| e.to_string())
        .and_then(|ders| Trust::new(ders).map_err(|e| e.to_string()));
    match trust {
        Ok(trust) => certificates.publish_roots(trust),
        Err(error) => {
            tracing::warn!(%error, "the handed-over roots cannot be read; those of the configuration are used")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identify::{
        Admits,
        testing::{Authority, identity},
    };

    fn who(name: &str) -> Identity {
        identity("shop", name)
    }

    fn old() -> (Certificates, Authority) {
        let (old, ca) = (Certificates::new(SystemTime::now), Authority::new("ca"));
        for name in ["web", "db"] {
            old.put(ca.issue(&who(name)));
        }
        old.publish_roots(ca.trust());
        (old, ca)
    }

    #[test]
    fn a_successor_has_what_its_predecessor_had() {
        let (old, ca) = old();
        let new = Certificates::new(SystemTime::now);
        assert_eq!(receive(&new, &hand_over(&old)), 2);
        for name in ["web", "db"] {
            assert!(
                new.try_server(&who(name), Admits::Workloads).is_ok(),
                "{name}"
            );
        }
        let ages = |of: &Certificates| {
            let mut all: Vec<_> = of
                .issued()
                .iter()
                .map(|i| (i.identity.to_string(), i.not_after))
                .collect();
            all.sort();
            all
        };
        assert_eq!(ages(&new), ages(&old));
        assert!(new.published().is_some_and(|p| p.trust.same(&ca.trust())));
    }

    #[test]
    fn a_bad_part_is_left_out_and_the_rest_is_used() {
        let (old, _) = old();
        let mut handed: Handed = serde_json::from_slice(&hand_over(&old)).expect("JSON");
        handed.workloads[0].1.pem.truncate(100);
        let other = handed.workloads[1].0.clone();
        handed.workloads.push((
            "spiffe://elsewhere".into(),
            Kept {
                since: u64::MAX,
                pem: String::new(),
            },
        ));
        handed.roots.push("no base64!".into());
        let new = Certificates::new(SystemTime::now);
        let piece = serde_json::to_vec(&handed).expect("JSON");
        assert_eq!(receive(&new, &piece), 1);
        assert!(
            new.try_server(&other.parse().expect("an identity"), Admits::Workloads)
                .is_ok()
        );
        assert!(new.published().is_none());
        assert_eq!(receive(&new, b"{"), 0);
    }
}
