//! Finding the kubelet in a made-up `/proc` and cgroup hierarchy.

use std::os::unix::fs::symlink;

use super::*;
use crate::capture::FakeDatapath;

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for path in [
            "proc/self/net",
            "cg/kubepods/pod1",
            "cg/agent",
            "cg/system/kubelet",
        ] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        for path in [
            "",
            "kubepods",
            "kubepods/pod1",
            "agent",
            "system",
            "system/kubelet",
        ] {
            fs::write(root.join("cg").join(path).join("cgroup.procs"), "").unwrap();
        }
        fs::write(root.join("proc/self/net/tcp"), "header\n   0: 00000000:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1\n   1: 0100007F:280A 0100007F:9999 01 0:0 0:0 0 0 0 4712 1\n   2: 00000000:0016 00000000:0000 0A 0:0 0:0 0 0 0 4713 1\n").unwrap();
        Self { dir }
    }

    fn process(&self, pid: u32, name: &str, cgroup: &str, seen: &str, socket: &str) {
        let proc = self.dir.path().join(format!("proc/{pid}"));
        fs::create_dir_all(proc.join("fd")).unwrap();
        fs::write(proc.join("comm"), format!("{name}\n")).unwrap();
        fs::write(proc.join("cgroup"), format!("3:cpu:/x\n0::{seen}\n")).unwrap();
        symlink(format!("socket:[{socket}]"), proc.join("fd/3")).unwrap();
        let procs = self.dir.path().join("cg").join(cgroup).join("cgroup.procs");
        let before = fs::read_to_string(&procs).unwrap();
        fs::write(procs, format!("{before}{pid}\n")).unwrap();
    }

    fn parent(&self, pid: u32, name: &str, parent: u32) {
        let stat = self.dir.path().join(format!("proc/{pid}/stat"));
        fs::write(stat, format!("{pid} ({name}) S {parent} {pid} {pid} 0 -1")).unwrap();
    }

    fn kubelet(&self, configured: Option<&str>) -> Kubelet {
        let cg = self.dir.path().join("cg");
        let groups = Cgroups {
            own: cg.join("agent"),
            pods: cg.join("kubepods"),
            mount: cg.clone(),
        };
        Kubelet {
            proc: self.dir.path().join("proc"),
            cgroup_ids: |_| Ok(BTreeSet::new()),
            ..Kubelet::new(configured.map(|c| cg.join(c)), groups)
        }
    }
}

#[test]
fn the_owner_of_the_port_is_found_and_followed() {
    let machine = Machine::new();
    let (kubelet, fake) = (machine.kubelet(None), FakeDatapath::default());
    assert!(kubelet.look(&fake).unwrap_err().contains("cannot be seen"));
    assert_eq!(fake.told().kubelet, None);
    machine.process(7, "sshd", "system", "/system", "4713");
    machine.process(8, "kubelet", "system/kubelet", "/system/kubelet", "4711");
    let found = kubelet.look(&fake).unwrap();
    assert_eq!((found.pid, found.others.len()), (8, 0));
    assert_eq!(fake.told().kubelet, Some(found.cgroup.clone()));
    kubelet.tell(Ok(found));
    assert!(
        kubelet.describe()["cgroup"]
            .as_str()
            .unwrap()
            .ends_with("system/kubelet")
    );
    // It ends: what it had is taken back.
    fs::remove_dir_all(machine.dir.path().join("proc/8")).unwrap();
    kubelet.look(&fake).unwrap_err();
    assert_eq!(fake.told().kubelet, None);
}

#[test]
fn whoever_shares_its_cgroup_is_named() {
    let machine = Machine::new();
    machine.process(8, "kubelet", "system", "/../../system", "4711");
    machine.process(9, "containerd", "system", "/system", "1");
    machine.process(10, "shim", "system/kubelet", "/system/kubelet", "2");
    let found = machine
        .kubelet(None)
        .look(&FakeDatapath::default())
        .unwrap();
    assert_eq!(found.others, ["containerd", "shim"]);
}

#[test]
fn its_own_helpers_are_no_others() {
    let machine = Machine::new();
    machine.process(8, "kubelet", "system", "/system", "4711");
    machine.parent(8, "kubelet", 1);
    for (pid, name, parent) in [
        (20, "mount", 8),
        (21, "mount) R 1 (nfs", 20),
        (22, "runtime", 1),
        (23, "shim", 22),
    ] {
        machine.process(pid, name, "system", "/system", "1");
        machine.parent(pid, name, parent);
    }
    // It ended between two looks.
    machine.process(24, "iptables", "system", "/system", "1");
    fs::remove_dir_all(machine.dir.path().join("proc/24")).unwrap();
    let found = machine
        .kubelet(None)
        .look(&FakeDatapath::default())
        .unwrap();
    assert_eq!(found.others, ["runtime", "shim"]);
}

#[test]
fn a_cgroup_that_holds_pods_or_the_agent_is_not_taken() {
    for (cgroup, who) in [
        ("", "the pods"),
        ("kubepods", "the pods"),
        ("agent", "this agent"),
    ] {
        let machine = Machine::new();
        machine.process(8, "kubelet", cgroup, &format!("/{cgroup}"), "4711");
        let fake = FakeDatapath::default();
        let why = machine.kubelet(None).look(&fake).unwrap_err();
        assert!(why.contains(who), "{why}");
        assert_eq!(fake.told().kubelet, None);
        let why = machine.kubelet(Some(cgroup)).look(&fake).unwrap_err();
        assert!(why.contains(who), "{why}");
    }
}

#[test]
fn what_is_configured_needs_no_owner() {
    let machine = Machine::new();
    fs::remove_file(machine.dir.path().join("proc/self/net/tcp")).unwrap();
    let found = machine
        .kubelet(Some("system/kubelet"))
        .look(&FakeDatapath::default())
        .unwrap();
    assert_eq!(found.pid, 0);
    assert!(
        machine
            .kubelet(None)
            .look(&FakeDatapath::default())
            .unwrap_err()
            .contains("nobody listens")
    );
}

#[test]
fn without_its_process_it_is_found_by_the_cgroup_of_its_socket() {
    let machine = Machine::new();
    // As many ids as a function without state needs: the inode, handed through a cell of the thread.
    thread_local!(static IDS: std::cell::RefCell<BTreeSet<u64>> = const { std::cell::RefCell::new(BTreeSet::new()) });
    let ids = |of: &[&str]| {
        let inode = |p: &&str| {
            fs::metadata(machine.dir.path().join("cg").join(p))
                .unwrap()
                .ino()
        };
        IDS.set(of.iter().map(inode).collect());
    };
    let kubelet = Kubelet {
        cgroup_ids: |_| Ok(IDS.with_borrow(Clone::clone)),
        ..machine.kubelet(None)
    };
    let fake = FakeDatapath::default();
    ids(&["system/kubelet"]);
    let found = kubelet.look(&fake).unwrap();
    assert_eq!(found.pid, 0);
    assert!(found.cgroup.ends_with("system/kubelet"));
    assert_eq!(fake.told().kubelet, Some(found.cgroup.clone()));
    kubelet.tell(Ok(found));
    assert!(kubelet.look(&fake).is_ok(), "and stays found");
    for (of, why) in [
        (&["kubepods/pod1"][..], "a pod listens"),
        (&[""], "holds the pods"),
        (&["system", "system/kubelet"], "several"),
        (&[], "Linux 5.9"),
    ] {
        ids(of);
        let said = kubelet.look(&fake).unwrap_err();
        assert!(said.contains(why), "{said}");
    }
    IDS.set(BTreeSet::from([u64::MAX]));
    assert!(
        kubelet
            .look(&fake)
            .unwrap_err()
            .contains("mount the node's hierarchy")
    );
    assert_eq!(fake.told().kubelet, None);
}
