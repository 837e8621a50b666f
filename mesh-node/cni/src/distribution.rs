//! The directories of CNI in the distributions of Kubernetes, and by what a distribution is known.
//!
//! Invariant: one that is not known is taken for a usual one.
//! Sources of the paths: the distributions' own documentation, as installers of CNI plugins gather them.

/// A distribution of Kubernetes and its directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Its name.
    pub name: &'static str,
    /// Network configurations.
    pub conf_dir: &'static str,
    /// Programs.
    pub bin_dir: &'static str,
}

const fn known(name: &'static str, conf_dir: &'static str, bin_dir: &'static str) -> Distribution {
    Distribution {
        name,
        conf_dir,
        bin_dir,
    }
}

/// kubeadm, kind, minikube, k0s, RKE2, Talos, Bottlerocket, EKS, AKS and others.
pub const USUAL: Distribution = known("usual", "/etc/cni/net.d", "/opt/cni/bin");
/// The programs are on the part of the disk that may be written.
pub const GKE: Distribution = known("GKE", "/etc/cni/net.d", "/home/kubernetes/bin");
/// k3s.
pub const K3S: Distribution = known(
    "k3s",
    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    "/var/lib/rancher/k3s/data/cni",
);
/// k3s as it was.
pub const K3S_OLD: Distribution = known(
    "k3s before 1.31",
    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    "/var/lib/rancher/k3s/data/current/bin",
);
/// k3s in containers.
pub const K3D: Distribution = known("k3d", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/bin");
/// MicroK8s.
pub const MICROK8S: Distribution = known(
    "MicroK8s",
    "/var/snap/microk8s/current/args/cni-network",
    "/var/snap/microk8s/current/opt/cni/bin",
);
/// OpenShift, whose Multus reads this directory.
pub const OPENSHIFT: Distribution = known("OpenShift", "/etc/cni/multus/net.d", "/var/lib/cni/bin");

/// What is known, the usual first.
pub const ALL: &[Distribution] = &[USUAL, GKE, K3S, K3S_OLD, K3D, MICROK8S, OPENSHIFT];

/// The first release of Kubernetes whose k3s has the directory of now.
const K3S_MOVED: u32 = 31;

/// The distribution of a node, by what its kubelet says: its version (`v1.34.1+k3s1`), the name of its operating
/// system, and the names of its labels.
pub fn of_node<'l>(
    kubelet: &str,
    system: &str,
    mut labels: impl Iterator<Item = &'l str>,
) -> &'static Distribution {
    if kubelet.contains("+k3s") {
        let minor = kubelet
            .split('.')
            .nth(1)
            .and_then(|m| m.parse::<u32>().ok());
        return match minor {
            // In a container of its own there is no other system.
            _ if system.starts_with("K3s") => &K3D,
            Some(minor) if minor < K3S_MOVED => &K3S_OLD,
            _ => &K3S,
        };
    }
    if kubelet.contains("-gke.") {
        return &GKE;
    }
    let mine = |label: &str| match label {
        "microk8s.io/cluster" => Some(&MICROK8S),
        "node.openshift.io/os_id" => Some(&OPENSHIFT),
        _ => None,
    };
    labels.find_map(mine).unwrap_or(&USUAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_by_what_its_kubelet_says() {
        let check = |kubelet: &str, system: &str, labels: &[&str], expect: Distribution| {
            let found = of_node(kubelet, system, labels.iter().copied());
            assert_eq!(*found, expect, "{kubelet} {system} {labels:?}");
        };
        let debian = "Debian GNU/Linux 12 (bookworm)";
        check("v1.34.4", debian, &["kubernetes.io/os"], USUAL);
        check("v1.34.1+k3s1", debian, &[], K3S);
        check("v1.30.9+k3s1", debian, &[], K3S_OLD);
        check("v1.34.1+k3s1", "K3s v1.34.1+k3s1", &[], K3D);
        check("v1.34.1+rke2r1", debian, &[], USUAL);
        check(
            "v1.33.5-gke.1080000",
            "Container-Optimized OS from Google",
            &[],
            GKE,
        );
        check("v1.34.0", debian, &["microk8s.io/cluster"], MICROK8S);
        check(
            "v1.33.4",
            "Red Hat Enterprise Linux CoreOS 9.6",
            &["node.openshift.io/os_id"],
            OPENSHIFT,
        );
        check("", "", &[], USUAL);
    }
}
