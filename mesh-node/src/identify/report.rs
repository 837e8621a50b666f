//! What people and metrics are shown about certificates; never a key.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Certificates;
use crate::observe::{IdentityLabel, Metrics};

/// Every certificate, for a dump.
pub fn describe(certificates: &Certificates) -> serde_json::Value {
    let seconds = |t: SystemTime| t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let all = certificates.status();
    all.iter()
        .map(|c| {
            serde_json::json!({
                "identity": c.identity.to_string(), "expires": c.not_after.map(seconds), "wanted": c.wanted, "failure": c.failure,
            })
        })
        .collect()
}

/// Shows when certificates expire, for ever.
pub async fn show(certificates: Certificates, metrics: Metrics) {
    let mut changes = certificates.changes();
    loop {
        changes.mark_unchanged();
        for status in certificates.status() {
            let label = IdentityLabel {
                identity: status.identity.to_string(),
            };
            let seconds = status
                .not_after
                .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
                .map_or(0, |d| d.as_secs());
            let family = &metrics.node().certificate_expiry;
            if status.wanted {
                family
                    .get_or_create(&label)
                    .set(i64::try_from(seconds).unwrap_or(i64::MAX));
            } else {
                family.remove(&label);
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
