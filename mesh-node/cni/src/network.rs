//! What the plugins before us made of a pod's network: its addresses, and the host's side of its veth.
//!
//! Invariants: reads results of every version of the specification; what it does not say is left out, never guessed.

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path};

use serde_json::Value;

/// Where the host's interfaces are listed.
pub const INTERFACES: &str = "/sys/class/net";

/// The pod's addresses. An address on an interface of the host's (a bridge's, say) is none of the pod's.
pub fn addresses(result: &Value) -> BTreeSet<IpAddr> {
    let interfaces = list(&result["interfaces"]);
    let of_the_host = |ip: &&Value| {
        let index = ip["interface"]
            .as_u64()
            .and_then(|i| usize::try_from(i).ok());
        index
            .and_then(|i| interfaces.get(i))
            .is_some_and(|i| !has_sandbox(i))
    };
    let since_0_3 = list(&result["ips"]).iter().filter(|ip| !of_the_host(ip));
    let before = ["ip4", "ip6"].iter().map(|f| &result[f]["ip"]);
    since_0_3
        .map(|ip| &ip["address"])
        .chain(before)
        .filter_map(|address| address.as_str()?.split('/').next()?.parse().ok())
        .collect()
}

/// The index of the host's side of the pod's veth; 0 when the result names none, or more than one. A veth is told
/// from a bridge by having its other side elsewhere. `interfaces` is [`INTERFACES`], except in tests.
pub fn veth(result: &Value, interfaces: &Path) -> u32 {
    let number = |name: &str, file: &str| -> Option<u32> {
        let text = fs::read_to_string(interfaces.join(name).join(file)).ok()?;
        text.trim().parse().ok()
    };
    let named = list(&result["interfaces"])
        .iter()
        .filter(|i| !has_sandbox(i))
        .filter_map(|i| i["name"].as_str())
        .filter(|name| !name.is_empty() && !name.contains('/') && !name.starts_with('.'));
    let veths: BTreeSet<u32> = named
        .filter_map(|name| {
            let own = number(name, "ifindex")?;
            (number(name, "iflink")? != own).then_some(own)
        })
        .collect();
    match veths.first() {
        Some(only) if veths.len() == 1 => *only,
        _ => 0,
    }
}

fn has_sandbox(interface: &Value) -> bool {
    interface["sandbox"].as_str().is_some_and(|s| !s.is_empty())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(result: &Value, expect: &[&str], veth_expected: u32) {
        let dir = tempfile::tempdir().unwrap();
        for (name, index, link) in [("cni0", 3, 3), ("veth1", 9, 2), ("cali2", 11, 2)] {
            let at = dir.path().join(name);
            fs::create_dir(&at).unwrap();
            fs::write(at.join("ifindex"), format!("{index}\n")).unwrap();
            fs::write(at.join("iflink"), format!("{link}\n")).unwrap();
        }
        let expect: BTreeSet<IpAddr> = expect.iter().map(|a| a.parse().unwrap()).collect();
        assert_eq!(addresses(result), expect, "{result}");
        assert_eq!(veth(result, dir.path()), veth_expected, "{result}");
    }

    #[test]
    fn results_of_providers_are_understood() {
        // bridge and portmap, 0.3.1
        check(
            &json!({"cniVersion":"0.3.1","interfaces":[{"name":"cni0","mac":"a"},{"name":"veth1","mac":"b"},
                {"name":"eth0","mac":"c","sandbox":"/var/run/netns/x"}],
                "ips":[{"version":"4","interface":2,"address":"10.244.0.5/24","gateway":"10.244.0.1"}],"dns":{}}),
            &["10.244.0.5"],
            9,
        );
        // calico names the host's side only, and says of no address where it is
        check(
            &json!({"cniVersion":"0.3.1","interfaces":[{"name":"cali2"}],
                "ips":[{"version":"4","address":"10.1.2.3/32"},{"version":"6","address":"fd00::3/128"}]}),
            &["10.1.2.3", "fd00::3"],
            11,
        );
        // an address of the bridge is not the pod's
        check(
            &json!({"cniVersion":"1.0.0","interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/n"}],
                "ips":[{"interface":0,"address":"10.0.0.1/24"},{"interface":1,"address":"10.0.0.2/24"}]}),
            &["10.0.0.2"],
            0,
        );
        // before 0.3.0
        check(
            &json!({"ip4":{"ip":"10.0.0.9/16"},"ip6":{"ip":"fd00::9/64"}}),
            &["10.0.0.9", "fd00::9"],
            0,
        );
        // two veths, a name that is no name, and nothing
        check(
            &json!({"interfaces":[{"name":"veth1"},{"name":"cali2"}]}),
            &[],
            0,
        );
        check(
            &json!({"interfaces":[{"name":"../veth1"},{"name":".."},{}],"ips":[{"address":"none"}]}),
            &[],
            0,
        );
        check(&json!({}), &[], 0);
    }
}
