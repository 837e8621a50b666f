//! The node's side of a pod's interface: its ifindex, or why there is none that packets could be guarded on.
//!
//! Invariant: an index is given only when both sides name each other, so that an interface which merely has the same
//! number, as those of other namespaces do, is never taken for the pod's.

use std::{collections::BTreeSet, io, net::IpAddr};

use mesh_loader::{Interface, interfaces};

use super::Netns;

/// Finds the node's side of the interface that has the addresses. `Err` says why there is none.
pub fn find(netns: &Netns, addresses: &[IpAddr]) -> io::Result<Result<u32, String>> {
    let named: BTreeSet<String> = netns
        .interfaces()?
        .into_iter()
        .filter(|(_, ip)| addresses.contains(ip))
        .map(|(name, _)| name)
        .collect();
    let inside = netns.enter(interfaces)?;
    Ok(other_side(&named, &inside, &interfaces()?))
}

/// `named`: the pod's interface, by its addresses.
fn other_side(
    named: &BTreeSet<String>,
    inside: &[Interface],
    outside: &[Interface],
) -> Result<u32, String> {
    let name = match named.iter().collect::<Vec<_>>()[..] {
        [only] => only,
        [] => return Err("no interface in its network namespace has its address".into()),
        _ => {
            return Err(format!(
                "its addresses are on several interfaces: {named:?}"
            ));
        }
    };
    let Some(pods) = inside.iter().find(|i| i.name == *name) else {
        return Err(format!("its interface {name} went while it was looked at"));
    };
    if pods.kind != "veth" {
        let kind = match pods.kind.as_str() {
            "" => "a device",
            kind => kind,
        };
        return Err(format!(
            "its interface {name} is not a veth ({kind}), and has no side on the node where its packets could be guarded"
        ));
    }
    outside
        .iter()
        .find(|i| i.index == pods.link && i.kind == "veth" && i.link == pods.index)
        .map(|i| i.index)
        .ok_or_else(|| {
            format!(
                "the other side of its interface {name} is not in the node's network namespace, where its packets could be guarded"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, kind: &str, link: u32) -> Interface {
        Interface {
            index,
            name: name.into(),
            bridge: 0,
            kind: kind.into(),
            link,
        }
    }

    fn check(named: &[&str], inside: Interface, expect: Result<u32, &str>) {
        let named = named.iter().map(|n| (*n).to_owned()).collect();
        let outside = [
            interface(2, "eth0", "", 0),
            interface(3, "cni0", "bridge", 0),
            interface(7, "veth1", "veth", 2),
            interface(8, "veth2", "veth", 5),
        ];
        match (other_side(&named, &[inside], &outside), expect) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(why), Err(part)) => assert!(why.contains(part), "{why} does not say {part}"),
            (found, _) => panic!("{found:?}"),
        }
    }

    #[test]
    fn the_other_side_is_believed_only_when_it_says_the_same() {
        check(&["eth0"], interface(2, "eth0", "veth", 7), Ok(7));
        // Number 8 of the node is some other pod's.
        check(
            &["eth0"],
            interface(2, "eth0", "veth", 8),
            Err("not in the node's"),
        );
        check(
            &["eth0"],
            interface(2, "eth0", "veth", 99),
            Err("not in the node's"),
        );
        check(&["eth0"], interface(2, "eth0", "ipvlan", 2), Err("ipvlan"));
        check(&["eth0"], interface(2, "eth0", "", 0), Err("a device"));
        check(
            &["eth0", "net1"],
            interface(2, "eth0", "veth", 7),
            Err("several"),
        );
        check(&[], interface(2, "eth0", "veth", 7), Err("no interface"));
    }
}
