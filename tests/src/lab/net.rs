//! The lab's wires: a fabric bridge, nodes on it, pods on each node's bridge, both IP families.
//!
//! Invariants: nothing is created in the host's own network namespace; every interface lives in a namespace
//! of the lab and goes away with it.

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{enter::in_netns, place::Place};

/// The resolver that pods are told to ask.
pub const DNS_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The same for IPv6.
pub const DNS_VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0xa);
/// The hardware address of every node's bridge. One that it takes from a pod's interface would change when that pod goes,
/// and what the other pods send to the old one be lost.
const BRIDGE: &str = "0a:58:0a:f4:00:01";
/// The fabric's own address: controller and outside world.
pub const FABRIC: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// The name of the fabric's namespace.
pub const FABRIC_NAME: &str = "fabric";

/// A node by its number, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeIndex(pub u8);

impl NodeIndex {
    /// `n1`, `n2`, ...
    pub fn name(self) -> String {
        format!("n{}", self.0)
    }

    /// The node called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        name.strip_prefix('n')?.parse().ok().map(Self)
    }

    /// The node's address on the fabric.
    pub fn ip(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, 0, 10 + self.0)
    }

    /// The same for IPv6.
    pub fn ip6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 0x10 + u16::from(self.0))
    }

    /// The address of pod number `host` on this node.
    pub fn pod_ip(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.0, host)
    }

    /// The same for IPv6.
    pub fn pod_ip6(self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(
            0xfd00,
            0x244,
            u16::from(self.0),
            0,
            0,
            0,
            0,
            u16::from(host),
        )
    }

    /// The node's pod networks.
    pub fn pod_cidrs(self) -> [String; 2] {
        [
            format!("{}/24", self.pod_ip(0)),
            format!("{}/64", self.pod_ip6(0)),
        ]
    }
}

/// Builds the fabric and `nodes` nodes on it.
pub fn build_world(place: &Place, nodes: u8) -> Result<()> {
    let fabric = place.netns(FABRIC_NAME);
    add_netns(&fabric)?;
    let settings = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ];
    set_sysctls(&place.netns_path(FABRIC_NAME), &settings)?;
    let mut batch = format!(
        "link set lo up\nlink add br0 type bridge stp_state 0 mcast_snooping 0\nlink set br0 up\n\
         addr add {FABRIC}/24 dev br0\naddr add fd00:30::1/64 dev br0 nodad\n\
         addr add {DNS_VIP}/32 dev lo\naddr add {DNS_VIP6}/128 dev lo nodad\n"
    );
    for node in (1..=nodes).map(NodeIndex) {
        add_netns(&place.netns(&node.name()))?;
        let name = node.name();
        batch += &format!(
            "link add {name} type veth peer name eth0 netns {}\nlink set {name} master br0 up\n\
             route add {}/24 via {}\nroute add {}/64 via {}\n",
            place.netns(&name),
            node.pod_ip(0),
            node.ip(),
            node.pod_ip6(0),
            node.ip6(),
        );
    }
    ip_batch(&fabric, &batch)?;
    for node in (1..=nodes).map(NodeIndex) {
        build_node(place, node, nodes)?;
    }
    Ok(())
}

fn build_node(place: &Place, node: NodeIndex, nodes: u8) -> Result<()> {
    let settings = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        // Without these a service's answer between two pods of one bridge would skip the address translation.
        ("net/bridge/bridge-nf-call-iptables", "1"),
        ("net/bridge/bridge-nf-call-ip6tables", "1"),
    ];
    set_sysctls(&place.netns_path(&node.name()), &settings)?;
    let mut batch = format!(
        "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
         route add default via {FABRIC}\nroute add default via fd00:30::1\n\
         link add cni0 address {BRIDGE} type bridge stp_state 0 mcast_snooping 0\nlink set cni0 up\n\
         addr add {}/24 dev cni0\naddr add {}/64 dev cni0 nodad\n",
        node.ip(),
        node.ip6(),
        node.pod_ip(1),
        node.pod_ip6(1),
    );
    for other in (1..=nodes).map(NodeIndex).filter(|n| *n != node) {
        batch += &format!(
            "route add {}/24 via {}\nroute add {}/64 via {}\n",
            other.pod_ip(0),
            other.ip(),
            other.pod_ip6(0),
            other.ip6()
        );
    }
    ip_batch(&place.netns(&node.name()), &batch)
}

/// A pod's wire.
#[derive(Clone, Debug)]
pub struct PodWire {
    /// The node it hangs on.
    pub node: NodeIndex,
    /// The pod's number on the node.
    pub host: u8,
    /// The pod's namespace, without the lab's prefix.
    pub netns: String,
    /// The interface on the node's side.
    pub veth: String,
}

/// Gives a pod its namespace and its wire; returns the index of the interface on the node's side.
pub fn add_pod(place: &Place, wire: &PodWire) -> Result<u32> {
    let (pod, node) = (place.netns(&wire.netns), place.netns(&wire.node.name()));
    add_netns(&pod)?;
    let settings = [
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv4/ip_unprivileged_port_start", "0"),
        ("net/ipv4/ping_group_range", "0 2147483647"),
    ];
    set_sysctls(&place.netns_path(&wire.netns), &settings)?;
    ip_batch(
        &node,
        &format!(
            "link add {veth} type veth peer name eth0 netns {pod}\nlink set {veth} master cni0 up\nlink set {veth} type bridge_slave hairpin on\n",
            veth = wire.veth,
        ),
    )?;
    let (n, h) = (wire.node, wire.host);
    ip_batch(
        &pod,
        &format!(
            "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
         route add default via {}\nroute add default via {}\n",
            n.pod_ip(h),
            n.pod_ip6(h),
            n.pod_ip(1),
            n.pod_ip6(1),
        ),
    )?;
    let veth = wire.veth.clone();
    in_netns(&place.netns_path(&wire.node.name()), move || {
        nix::net::if_::if_nametoindex(veth.as_str())
            .with_context(|| format!("finding the index of {veth}"))
    })
}

/// Makes a named network namespace.
pub fn add_netns(name: &str) -> Result<()> {
    run(Command::new("ip").args(["netns", "add", name]), None)
}

/// Removes a named network namespace; the kernel lets go of it when its last process and socket have gone.
pub fn remove_netns(name: &str) -> Result<()> {
    run(Command::new("ip").args(["netns", "del", name]), None)
}

/// Loads an nftables ruleset in a namespace, all or nothing.
pub fn load_nft(netns: &str, rules: &str) -> Result<()> {
    run(
        Command::new("ip").args(["netns", "exec", netns, "nft", "-f", "-"]),
        Some(rules),
    )
}

/// Whether `nft` is installed: without it a pod outside the mesh reaches pods, but no service's address.
pub fn nft_present() -> bool {
    Command::new("nft")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn ip_batch(netns: &str, batch: &str) -> Result<()> {
    run(
        Command::new("ip").args(["-n", netns, "-batch", "-"]),
        Some(batch),
    )
}

fn run(cmd: &mut Command, input: Option<&str>) -> Result<()> {
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut child = cmd.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
        .with_context(|| format!("starting {cmd:?}: is it installed? `cargo xtask provision` installs what the lab needs"))?;
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        // A program that stops reading tells why on its error output.
        let _ = pipe.write_all(text.as_bytes());
    }
    let done = child.wait_with_output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!(
            "{cmd:?} ended with {}: {}",
            done.status,
            said.lines().take(4).collect::<Vec<_>>().join("; ")
        );
    }
    Ok(())
}

fn set_sysctls(netns: &Path, settings: &[(&'static str, &'static str)]) -> Result<()> {
    let settings = settings.to_vec();
    in_netns(netns, move || {
        for (key, value) in settings {
            let path = Path::new("/proc/sys").join(key);
            match fs::write(&path, value) {
                // The bridge settings exist only where the kernel can filter bridged packets.
                Err(e)
                    if e.kind() == std::io::ErrorKind::NotFound
                        && key.starts_with("net/bridge") => {}
                done => done.with_context(|| format!("setting {key} to {value}"))?,
            }
        }
        Ok(())
    })
}
