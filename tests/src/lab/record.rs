//! A pod as the supervisor remembers it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

use super::{
    control::PodStatus, manifest::Key, place::Place, pod::Settled, publish, schedule::Existing,
};

/// A pod that exists.
pub struct PodRecord {
    /// What is fixed about it.
    pub settled: Arc<Settled>,
    pub(super) owner: Option<Key>,
    pub(super) generation: String,
    /// `Pending`, `Running`, `Succeeded`, `Failed`.
    pub phase: &'static str,
    /// Whether it is ready.
    pub ready: bool,
    pub(super) idle: bool,
    /// Whether it was told to go.
    pub terminating: bool,
    /// When it was made.
    pub since: SystemTime,
    pub(super) mesh: (String, String),
    pub(super) note: String,
    pub(super) restarts: u32,
    pub(super) ifindex: Option<u32>,
    pub(super) stop: watch::Sender<bool>,
}

impl PodRecord {
    pub(super) fn existing(&self) -> Existing {
        Existing {
            key: self.settled.key.clone(),
            owner: self.owner.clone(),
            generation: self.generation.clone(),
            node: self.settled.node,
            ready: self.ready,
        }
    }

    pub(super) fn status(&self, place: &Place) -> PodStatus {
        let pod = &self.settled;
        let view = pod.surroundings(place, "exec");
        let (ip, ip6) = pod.ips();
        let note = if self.note.is_empty() {
            self.mesh.1.clone()
        } else {
            self.note.clone()
        };
        PodStatus {
            namespace: pod.key.namespace.clone(),
            name: pod.key.name.clone(),
            uid: pod.uid.clone(),
            node: pod.node.name(),
            ip,
            ip6,
            phase: if self.terminating {
                "Terminating"
            } else {
                self.phase
            }
            .to_owned(),
            ready: self.ready,
            idle: self.idle && self.phase == "Running",
            mesh: self.mesh.0.clone(),
            restarts: self.restarts,
            note,
            netns: place.netns_path(&pod.netns()),
            veth: format!("veth{}", &pod.uid[..8]),
            cgroup: view.cgroup.unwrap_or_default(),
            resolv: view.resolv.unwrap_or_default(),
            hostname: view.hostname.unwrap_or_default(),
            labels: publish::string_map(&pod.value["metadata"]["labels"]),
        }
    }
}

/// A uid that nobody else has.
pub fn random_uid() -> String {
    let n = fastrand::u128(..);
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        n >> 96,
        (n >> 80) & 0xffff,
        (n >> 64) & 0xfff,
        0x8000 | ((n >> 48) & 0x3fff),
        n & 0xffff_ffff_ffff
    )
}

/// A time as Kubernetes writes it.
pub fn rfc3339(at: SystemTime) -> String {
    let seconds = at
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01 in eras of 400 years: the usual way from a day's number to its date.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (
        doy - (153 * mp + 2) / 5 + 1,
        if mp < 10 { mp + 3 } else { mp - 9 },
    );
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let at = |s| rfc3339(UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_253_696), "2026-11-21T09:34:56Z");
    }

    #[test]
    fn uids_look_like_uids() {
        let uid = random_uid();
        assert_eq!(
            uid.split('-').map(str::len).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12],
            "{uid}"
        );
    }
}
