//! What people and metrics are shown about certificates; never a key.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Certificates;
use crate::observe::{IdentityLabel, Metrics};

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// How they stand, for whoever looks at the node as a whole: its clock, how many identities are served and how many of
/// them lack a certificate that is valid, and when the first expires. Times are in seconds since 1970.
pub fn stand(certificates: &Certificates) -> serde_json::Value {
    let now = certificates.now();
    let all = certificates.status();
    let wanted = all.iter().filter(|c| c.wanted);
    let valid = |until: &SystemTime| *until > now;
    let ends: Vec<_> = wanted
        .map(|c| c.not_after.filter(valid).map(seconds))
        .collect();
    serde_json::json!({
        "now": seconds(now), "wanted": ends.len(),
        "lacking": ends.iter().filter(|end| end.is_none()).count(),
        "firstExpiry": ends.iter().flatten().min(),
    })
}

/// Every certificate, for a dump.
pub fn describe(certificates: &Certificates) -> serde_json::Value {
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
            let until = status.not_after.map_or(0, seconds);
            let family = &metrics.node().certificate_expiry;
            if status.wanted {
                family
                    .get_or_create(&label)
                    .set(i64::try_from(until).unwrap_or(i64::MAX));
            } else {
                family.remove(&label);
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identify::testing::{Authority, identity};

    #[test]
    fn what_is_served_without_a_valid_certificate_is_counted() {
        fn later() -> SystemTime {
            SystemTime::now() + Duration::from_secs(1 << 30)
        }
        let authority = Authority::new("root");
        let (web, db) = (identity("shop", "web"), identity("shop", "db"));
        let check = |now: fn() -> SystemTime, lacking: u64, ends: bool| {
            let certificates = Certificates::new(now);
            let _held = [certificates.hold(&web), certificates.hold(&db)];
            certificates.put(authority.issue(&web));
            // Nobody wants it any more.
            certificates.put(authority.issue(&identity("shop", "gone")));
            let seen = stand(&certificates);
            assert_eq!(
                (&seen["wanted"], &seen["lacking"]),
                (&2.into(), &lacking.into())
            );
            assert_eq!(seen["firstExpiry"].is_u64(), ends, "{seen}");
        };
        check(SystemTime::now, 1, true);
        check(later, 2, false);
    }
}
