//! Waypoints in a lab: pods of the image `warren/waypoint`, in whose place the node proxy's program runs in that role.
//!
//! Invariant: a waypoint has directories of its own and a join token for its own pod only, both gone with the lab.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result};
use tokio::task::spawn_blocking;

use super::{
    Lab, boot,
    enter::in_netns,
    net::FABRIC,
    node::{METRICS_PORT, http_get},
    place::{Place, private_dir},
    pod::{Programs, Settled, service_account},
};

/// The image that stands for a waypoint, without registry and tag.
const IMAGE: &str = "warren/waypoint";

/// Whether an image is a waypoint's.
pub fn is_waypoint(image: &str) -> bool {
    let (name, _) = super::images::split(image);
    name == IMAGE || name.ends_with(&format!("/{IMAGE}"))
}

/// The program of a waypoint.
pub(super) fn program(samples: &std::path::Path) -> Vec<String> {
    let node = samples.with_file_name("mesh-node");
    vec![node.display().to_string(), "waypoint".to_owned()]
}

/// Makes what a waypoint needs to begin; returns its environment.
pub(super) fn prepare(
    place: &Place,
    programs: &Programs,
    pod: &Settled,
) -> Result<Vec<(String, String)>> {
    let account = service_account(&pod.value);
    let (namespace, name) = (&pod.key.namespace, &pod.key.name);
    let state = place.node_state(&format!("{namespace}.{name}"));
    private_dir(&state)?;
    let run = place.node_run(&format!("{namespace}.{name}"));
    private_dir(&run)?;
    let who = format!("{namespace}/{account}/{name}");
    let token = boot::make_token(place, programs, ("--waypoint", &who), &state)?;
    let (v4, v6) = pod.ips();
    let path = |path: PathBuf| path.display().to_string();
    let settings = [
        ("POD_NAMESPACE", namespace.clone()),
        ("POD_NAME", name.clone()),
        ("POD_IPS", format!("{v4},{v6}")),
        ("SERVICE_ACCOUNT", account),
        ("NODE_NAME", pod.node.name()),
        ("NODE_IP", v4.to_string()),
        (
            "CONTROLLER",
            format!("https://{FABRIC}:{}", boot::CONTROLLER_PORT),
        ),
        (
            "CONTROLLER_CA",
            path(boot::controller_state(place).join("ca.pem")),
        ),
        ("TOKEN_FILE", path(token)),
        ("RUN_DIR", path(run)),
        ("STATE_DIR", path(state)),
    ];
    Ok(settings
        .into_iter()
        .map(|(k, v)| (format!("WARREN_{k}"), v))
        .collect())
}

impl Lab {
    /// A waypoint's metrics, as text.
    pub async fn waypoint_metrics(&self, pod: &str) -> Result<String> {
        let status = self.status().await?;
        let pod = status.pod(pod)?;
        let (netns, to) = (
            pod.netns.clone(),
            SocketAddr::new(IpAddr::V4(pod.ip), METRICS_PORT),
        );
        spawn_blocking(move || in_netns(&netns, move || http_get(to, "/metrics")))
            .await
            .context("asking the waypoint")?
    }

    /// Lines of a pod's log in which all of `words` are.
    pub async fn log_lines(&self, pod: &str, words: &[&str]) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.log(pod).await?)?;
        let fits = |l: &&str| words.iter().all(|w| l.contains(w));
        Ok(text.lines().filter(fits).map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::is_waypoint;

    #[test]
    fn images_of_waypoints() {
        for image in [
            "warren/waypoint",
            "warren/waypoint:1",
            "r.test:5000/warren/waypoint@sha256:00",
        ] {
            assert!(is_waypoint(image), "{image}");
        }
        for image in [
            "waypoint",
            "unwarren/waypoint",
            "warren/waypoints",
            "warren/node",
        ] {
            assert!(!is_waypoint(image), "{image}");
        }
    }
}
