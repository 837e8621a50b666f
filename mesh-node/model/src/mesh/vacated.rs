//! Which addresses of the mesh lost their owner from one snapshot to the next.
//!
//! Invariant: what had nothing to protect, because no captured workload stood behind it, is never named.

use super::{Diff, Mesh, known::Known, workload::TunnelProtocol};
use crate::name::NetworkAddress;

impl Mesh {
    /// The addresses of captured workloads, and of services that had any, which belonged to somebody in `before`
    /// and to nobody here. `diff` is what changed in between.
    pub fn vacated(&self, before: &Mesh, diff: &Diff) -> Vec<NetworkAddress> {
        let workloads = diff
            .workloads
            .iter()
            .filter_map(|uid| before.inner.workloads.get(uid))
            .filter(|known| is_captured(known))
            .flat_map(|known| {
                let network = &known.shape().network;
                let at = |ip| NetworkAddress {
                    network: network.clone(),
                    ip,
                };
                known.addresses().into_iter().map(at).collect::<Vec<_>>()
            });
        let services = diff
            .services
            .iter()
            .filter(|name| {
                let members = before.inner.members(name);
                members.iter().any(|known| is_captured(known))
            })
            .filter_map(|name| before.service(name))
            .flat_map(|service| service.vips.iter().cloned());
        workloads
            .chain(services)
            .filter(|at| !self.is_known(&at.network, at.ip))
            .collect()
    }
}

fn is_captured(known: &Known) -> bool {
    let shape = known.shape();
    shape.protocol == TunnelProtocol::Hbone && !shape.host_network
}
