//! Lists as network providers write them, with our plugin and without it.

use super::*;

const FLANNEL: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[
    {"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;
const CALICO: &str = r#"{"name":"k8s-pod-network","cniVersion":"0.3.1","plugins":[
    {"type":"calico","log_level":"info","datastore_type":"kubernetes","nodename":"n1","mtu":0,"ipam":{"type":"calico-ipam"},
     "policy":{"type":"k8s"},"kubernetes":{"kubeconfig":"/etc/cni/net.d/calico-kubeconfig"}},
    {"type":"portmap","snat":true,"capabilities":{"portMappings":true}},
    {"type":"bandwidth","capabilities":{"bandwidth":true}}]}"#;
const CILIUM: &str = r#"{"cniVersion":"0.3.1","name":"cilium","plugins":[
    {"type":"cilium-cni","enable-debug":false,"log-file":"/var/run/cilium/cilium-cni.log"}]}"#;
const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"bridge","disableCheck":true,"plugins":[
    {"type":"bridge","bridge":"bridge","addIf":"true","isDefaultGateway":true,"ipMasq":true,"hairpinMode":true,
     "ipam":{"type":"host-local","subnet":"10.244.0.0/16"}},
    {"type":"portmap","capabilities":{"portMappings":true}},{"type":"firewall"}]}"#;
const KINDNET: &str = r#"{"cniVersion":"0.3.1","name":"kindnet","plugins":[
    {"type":"ptp","ipMasq":false,"ipam":{"type":"host-local","dataDir":"/run/cni-ipam-state",
     "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"ranges":[[{"subnet":"10.244.0.0/24"}],[{"subnet":"fd00:10:244::/64"}]]},"mtu":1500},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;
const LISTS: [&str; 5] = [FLANNEL, CALICO, CILIUM, BRIDGE, KINDNET];

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn plugin() -> Value {
    json!({"type": PLUGIN, "socket": "/run/warren/n1/pods.sock"})
}

#[test]
fn the_plugin_comes_last_once_and_the_rest_stays() {
    for text in LISTS {
        let list = read(text);
        let chained = chain(&list, &plugin()).unwrap();
        let plugins = chained["plugins"].as_array().unwrap();
        let (last, others) = plugins.split_last().unwrap();
        assert_eq!(
            (last, others),
            (&plugin(), &list["plugins"].as_array().unwrap()[..])
        );
        for (key, value) in list
            .as_object()
            .unwrap()
            .iter()
            .filter(|(k, _)| *k != "plugins")
        {
            assert_eq!(&chained[key], value, "{key}");
        }
        assert!(is_chained(&chained) && !is_chained(&list));
        assert_eq!(
            chain(&chained, &plugin()).unwrap(),
            chained,
            "twice is once"
        );
        assert_eq!(unchain(&chained).unwrap(), list, "there and back");
        assert_eq!(unchain(&list).unwrap(), list);
    }
}

#[test]
fn wherever_it_was_and_however_often_it_ends_up_last_as_it_is_now() {
    let old = json!({"type": PLUGIN, "socket": "/elsewhere"});
    for text in LISTS {
        let list = read(text);
        let count = list["plugins"].as_array().unwrap().len();
        for at in 0..=count {
            for times in 1..=2 {
                let mut mixed = list.clone();
                for _ in 0..times {
                    mixed["plugins"]
                        .as_array_mut()
                        .unwrap()
                        .insert(at, old.clone());
                }
                assert_eq!(chain(&mixed, &plugin()), chain(&list, &plugin()));
                assert_eq!(unchain(&mixed).unwrap(), list);
            }
        }
    }
}

#[test]
fn a_single_plugin_becomes_a_list_of_one() {
    let conf = read(
        r#"{"cniVersion":"0.4.0","name":"mynet","type":"macvlan","master":"eth0","ipam":{"type":"dhcp"}}"#,
    );
    assert_eq!(
        from_single(&conf).unwrap(),
        json!({"cniVersion": "0.4.0", "name": "mynet", "plugins": [conf]})
    );
    let no_version = read(r#"{"name":"lo","type":"loopback"}"#);
    assert_eq!(from_single(&no_version).unwrap().get("cniVersion"), None);
}

#[test]
fn what_is_not_a_configuration_is_refused() {
    for (text, why) in [
        ("[]", Malformed::NotAnObject),
        ("{}", Malformed::NoPlugins),
        (r#"{"plugins":{}}"#, Malformed::NoPlugins),
        (r#"{"plugins":[]}"#, Malformed::NoPlugins),
        (
            r#"{"plugins":[{"type":"warren-cni"}]}"#,
            Malformed::NoPlugins,
        ),
        (r#"{"plugins":[{"type":"a"},{}]}"#, Malformed::NoType),
        (r#"{"plugins":[{"type":"a"},7]}"#, Malformed::NoType),
    ] {
        assert_eq!(chain(&read(text), &plugin()), Err(why), "{text}");
    }
    for (text, why) in [
        ("7", Malformed::NotAnObject),
        (r#"{"name":"x"}"#, Malformed::NoType),
        (r#"{"type":"bridge"}"#, Malformed::NoName),
    ] {
        assert_eq!(from_single(&read(text)), Err(why), "{text}");
    }
    assert_eq!(
        chain(&read(FLANNEL), &json!({"type": "other"})),
        Err(Malformed::NoType)
    );
}

#[test]
fn the_first_name_that_runtimes_read_is_theirs() {
    for (names, expect) in [
        (
            &["99-loopback.conf", "10-flannel.conflist", "05-note.txt"][..],
            Some("10-flannel.conflist"),
        ),
        (&["10-a.conflist", "10-a.conf"][..], Some("10-a.conf")),
        (
            &[
                "00-x.conflist.cilium_bak",
                "05-cilium.conflist",
                "10-b.json",
            ][..],
            Some("05-cilium.conflist"),
        ),
        (&["calico-kubeconfig", ".conflist"][..], None),
    ] {
        assert_eq!(chosen(names.iter().copied()), expect, "{names:?}");
    }
    assert!(is_list("10-a.conflist") && !is_list("10-a.conf") && !is_list("a.json"));
}
