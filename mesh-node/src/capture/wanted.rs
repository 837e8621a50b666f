//! Whether a registered pod is to be captured: the registration held against the configuration.
//!
//! Invariants: pure; what the configuration does not say is `Unknown`, never a yes or a no; a pod that
//! claims to be another than the configuration says is never captured under that name.

use std::{collections::BTreeSet, net::IpAddr};

use mesh_model::{
    mesh::{Enrolment, Mesh},
    name::{ClusterId, Identity, TrustDomain},
};

use super::registration::Registration;

/// What the configuration wants of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Capture it.
    Capture(Terms),
    /// Leave it alone.
    Out,
    /// It asks to be captured and cannot be; says why.
    Refuse(String),
    /// The registration and the configuration contradict each other; either may be late.
    Disagree(String),
    /// Nothing is known.
    Unknown,
}

/// How a pod is captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// End connections that are older than the enrolment.
    pub cut_existing: bool,
    /// Tolerate addresses that are not the pod's own inside its namespace.
    pub allow_forwarded: bool,
    /// Ports that the kubelet may probe, besides those registered.
    pub probe_ports: Vec<u16>,
}

/// Decides.
pub fn wanted(mesh: &Mesh, cluster: &ClusterId, pod: &Registration) -> Wanted {
    let uid = pod.workload(cluster);
    let (Some(workload), Some(extra)) = (mesh.workload(&uid), mesh.extra(&uid)) else {
        return Wanted::Unknown;
    };
    match &extra.enrolment {
        Enrolment::Out => return Wanted::Out,
        Enrolment::Refused(why) => return Wanted::Refuse(why.to_string()),
        Enrolment::Enrolled => {}
    }
    if workload.host_network {
        return Wanted::Refuse("it shares the node's network".into());
    }
    if !pod.service_account.is_empty()
        && workload.identity.service_account.as_str() != pod.service_account
    {
        return Wanted::Disagree(format!(
            "it was registered with service account {} and the configuration says {}",
            pod.service_account, workload.identity.service_account
        ));
    }
    let (here, there): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) = (
        pod.addresses.iter().copied().collect(),
        workload.addresses.iter().copied().collect(),
    );
    // A pod's address reaches the configuration only after its network has been set up.
    if !there.is_empty() && here != there {
        return Wanted::Disagree(format!(
            "it was registered with addresses {here:?} and the configuration says {there:?}"
        ));
    }
    if let Some(ip) = here
        .iter()
        .find(|ip| mesh.is_contested(&workload.network, **ip))
    {
        return Wanted::Disagree(format!(
            "its address {ip} is claimed by another workload too"
        ));
    }
    Wanted::Capture(Terms {
        cut_existing: extra.cut_existing,
        allow_forwarded: extra.allow_forwarded,
        probe_ports: extra.probe_ports.to_vec(),
    })
}

/// The pod's identity: the configuration's, or made of the registration while there is none.
pub fn identity(mesh: &Mesh, cluster: &ClusterId, pod: &Registration) -> Identity {
    if let Some(workload) = mesh.workload(&pod.workload(cluster)) {
        return workload.identity.clone();
    }
    Identity {
        // No certificate of such a domain is ever issued, so that nothing can be done under this name.
        trust_domain: mesh
            .config()
            .filter(|_| !pod.service_account.is_empty())
            .map_or_else(
                || TrustDomain::from("unknown.invalid"),
                |c| c.trust_domain.clone(),
            ),
        namespace: pod.namespace.as_str().into(),
        service_account: pod.service_account.as_str().into(),
    }
}

#[cfg(test)]
#[path = "wanted_tests.rs"]
mod tests;
