//! Calls of a runtime, with a node proxy and without one.

use std::{
    io::IoSliceMut,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    thread,
};

use nix::{
    cmsg_space,
    sys::socket::{
        AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
        accept, bind, listen, recvmsg, send, socket,
    },
};
use serde_json::json;
use tempfile::TempDir;

use super::*;

const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u-1";

/// A node, and what its proxy was asked.
struct Place {
    dir: TempDir,
    fail_open: bool,
}

impl Place {
    fn new(enrolled: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("enrolled"), enrolled).unwrap();
        fs::write(dir.path().join("netns"), "").unwrap();
        let veth = dir.path().join("net/veth1");
        fs::create_dir_all(&veth).unwrap();
        fs::write(veth.join("ifindex"), "9\n").unwrap();
        fs::write(veth.join("iflink"), "2\n").unwrap();
        Self {
            dir,
            fail_open: false,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A node proxy that gives these answers, and then tells what it was asked and with how many descriptors.
    fn agent(&self, answers: Vec<Value>) -> thread::JoinHandle<Vec<(Value, usize)>> {
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let door = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(
            door.as_raw_fd(),
            &UnixAddr::new(&self.path("pods.sock")).unwrap(),
        )
        .unwrap();
        listen(&door, Backlog::new(4).unwrap()).unwrap();
        thread::spawn(move || answers.iter().map(|a| answer(&door, a)).collect())
    }

    fn call(&self, command: &str, args: &str) -> Outcome {
        self.call_with(command, args, &result())
    }

    fn call_with(&self, command: &str, args: &str, result: &Value) -> Outcome {
        let environment = Environment {
            command: command.into(),
            netns: self.path("netns").display().to_string(),
            args: args.into(),
        };
        let input = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "warren-cni", "socket": self.path("pods.sock"),
            "enrolled": self.path("enrolled"), "failOpen": self.fail_open, "timeoutMs": 50, "prevResult": result,
        });
        run(
            &environment,
            input.to_string().as_bytes(),
            &self.path("net"),
        )
    }
}

fn answer(door: &OwnedFd, reply: &Value) -> (Value, usize) {
    let raw = accept(door.as_raw_fd()).unwrap();
    let mut bytes = vec![0; 64 << 10];
    let mut space = cmsg_space!([i32; 4]);
    let (length, descriptors) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg::<()>(
            raw,
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .unwrap();
        let rights = got.cmsgs().unwrap().map(|c| match c {
            ControlMessageOwned::ScmRights(fds) => fds.len(),
            _ => 0,
        });
        (got.bytes, rights.sum())
    };
    if !reply.is_null() {
        send(raw, reply.to_string().as_bytes(), MsgFlags::MSG_NOSIGNAL).unwrap();
    }
    nix::unistd::close(raw).unwrap();
    (
        serde_json::from_slice(&bytes[..length]).unwrap(),
        descriptors,
    )
}

fn result() -> Value {
    json!({"cniVersion":"1.1.0","interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"/n"}],
        "ips":[{"interface":1,"address":"10.1.1.5/24"}],"dns":{"nameservers":["10.96.0.10"]},"theirs":{"kept":[1,2.5,null]}})
}

fn listed(state: &str, address: &str) -> Value {
    json!({"ok":true,"pods":[{"uid":"u-0","namespace":"shop","name":"a","serviceAccount":"","addresses":["10.1.1.4"],"state":"out"},
        {"uid":"u-1","namespace":"shop","name":"web-1","serviceAccount":"","addresses":[address],"state":state,"vethIfindex":9}]})
}

fn code(outcome: &Outcome) -> Option<u64> {
    let told = outcome.stdout.as_ref()?;
    assert!(!outcome.failed || (told["msg"].is_string() && told["details"].is_string()));
    outcome.failed.then(|| told["code"].as_u64().unwrap())
}

#[test]
fn add_registers_and_passes_the_result_on_once_capture_is_complete() {
    for state in ["captured", "out"] {
        let place = Place::new("shop\n");
        let agent = place.agent(vec![json!({"ok":true,"state":state})]);
        let outcome = place.call("ADD", ARGS);
        assert_eq!((outcome.failed, outcome.stdout), (false, Some(result())));
        assert_eq!(
            agent.join().unwrap(),
            [(
                json!({"op":"add","timeoutMs":50,"pod":{"uid":"u-1","namespace":"shop","name":"web-1",
                "addresses":["10.1.1.5"],"vethIfindex":9}}),
                1
            )]
        );
    }
}

#[test]
fn without_a_word_that_it_is_complete_enrolled_pods_fail_and_others_pass() {
    let answers = [
        Some(json!({"ok":false,"error":"it could not be enrolled"})),
        Some(json!({"ok":true,"state":"waiting"})),
        Some(json!({"what":"ever"})),
        Some(Value::Null), // it closes the connection
        None,              // it is not there
    ];
    for given in answers {
        for (enrolled, fail_open, expect) in [
            ("a\nshop\n", false, Some(11)),
            ("a\nshop\n", true, None),
            ("shopping\nsho\n", false, None),
        ] {
            let mut place = Place::new(enrolled);
            place.fail_open = fail_open;
            let agent = given.clone().map(|a| place.agent(vec![a]));
            let outcome = place.call("ADD", ARGS);
            assert_eq!(code(&outcome), expect, "{given:?} {enrolled:?} {fail_open}");
            assert_eq!(
                outcome.notes.len(),
                usize::from(expect.is_none()),
                "passing is never silent"
            );
            if let Some(agent) = agent {
                agent.join().unwrap();
            }
        }
    }
}

#[test]
fn a_pod_that_cannot_be_captured_fails_whatever_the_list_says() {
    let place = Place::new("");
    let agent = place.agent(vec![
        json!({"ok":true,"state":"refused","reason":"it has no veth"}),
    ]);
    let outcome = place.call("ADD", ARGS);
    assert_eq!(code(&outcome), Some(100));
    assert!(
        outcome.stdout.unwrap()["details"]
            .as_str()
            .unwrap()
            .contains("it has no veth")
    );
    agent.join().unwrap();
}

#[test]
fn the_list_decides_while_the_node_proxy_is_away() {
    let place = Place::new("shop\n");
    assert_eq!(
        code(&place.call("ADD", "")),
        None,
        "not a pod of Kubernetes"
    );
    let no_uid = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1";
    assert_eq!(code(&place.call("ADD", no_uid)), Some(4));
    assert_eq!(code(&place.call("ADD", &no_uid.replace("shop", "b"))), None);
    fs::remove_file(place.path("enrolled")).unwrap();
    assert_eq!(
        code(&place.call("ADD", ARGS)),
        None,
        "never written: nobody is enrolled"
    );
    fs::create_dir(place.path("enrolled")).unwrap();
    assert_eq!(
        code(&place.call("ADD", ARGS)),
        Some(5),
        "unreadable: closed"
    );
}

#[test]
fn del_tells_of_the_sandbox_that_is_known_and_never_fails() {
    let place = Place::new("shop\n");
    let agent = place.agent(vec![
        listed("captured", "10.1.1.5"),
        json!({"ok":true,"state":"gone"}),
    ]);
    let outcome = place.call("DEL", ARGS);
    assert!(!outcome.failed && outcome.stdout.is_none() && outcome.notes.is_empty());
    let asked: Vec<Value> = agent.join().unwrap().into_iter().map(|(a, _)| a).collect();
    assert_eq!(
        asked,
        [json!({"op":"list"}), json!({"op":"del","uid":"u-1"})]
    );

    let place = Place::new("shop\n");
    let agent = place.agent(vec![listed("captured", "10.1.1.77")]);
    assert!(!place.call("DEL", ARGS).failed);
    assert_eq!(
        agent.join().unwrap().len(),
        1,
        "the pod has a newer sandbox, which stays"
    );

    let away = Place::new("shop\n");
    let outcome = away.call("DEL", ARGS);
    assert!(!outcome.failed && outcome.notes.len() == 1);
    assert!(!away.call_with("DEL", ARGS, &Value::Null).failed);
    let nothing = Environment {
        command: "DEL".into(),
        ..Environment::default()
    };
    assert!(!run(&nothing, b"{", Path::new("/")).failed);
}

#[test]
fn a_pod_is_found_on_a_later_page() {
    let place = Place::new("shop\n");
    let page = json!({"ok":true,"pods":[{"uid":"a","addresses":["10.1.1.9"],"state":"captured"}],"next":"a"});
    let agent = place.agent(vec![page, listed("captured", "10.1.1.5")]);
    assert_eq!(code(&place.call("CHECK", ARGS)), None);
    let asked: Vec<Value> = agent.join().unwrap().into_iter().map(|(a, _)| a).collect();
    assert_eq!(
        asked,
        [json!({"op":"list"}), json!({"op":"list","after":"a"})]
    );
}

#[test]
fn check_asks() {
    for (answer, enrolled, expect) in [
        (Some(listed("captured", "10.1.1.5")), "shop\n", None),
        (Some(listed("out", "10.1.1.5")), "shop\n", None),
        (Some(listed("refused", "10.1.1.5")), "", Some(100)),
        (Some(listed("captured", "10.1.1.6")), "shop\n", Some(11)),
        (Some(listed("captured", "10.1.1.6")), "", None),
        (None, "shop\n", Some(11)),
        (None, "", None),
    ] {
        let place = Place::new(enrolled);
        let agent = answer.clone().map(|a| place.agent(vec![a]));
        let outcome = place.call("CHECK", ARGS);
        assert_eq!(code(&outcome), expect, "{answer:?} {enrolled:?}");
        assert!(
            outcome.failed || outcome.stdout.is_none(),
            "CHECK says nothing when all is well"
        );
        if let Some(agent) = agent {
            agent.join().unwrap();
        }
    }
}

#[test]
fn the_rest_of_the_specification() {
    let place = Place::new("shop\n");
    for command in ["GC", "STATUS"] {
        let outcome = place.call(command, "");
        assert!(!outcome.failed && outcome.stdout.is_none(), "{command}");
    }
    assert_eq!(
        place.call("VERSION", "").stdout.unwrap()["cniVersion"],
        "1.1.0"
    );
    assert_eq!(code(&place.call("BURN", "")), Some(4));
    assert_eq!(
        code(&place.call_with("ADD", ARGS, &Value::Null)),
        Some(7),
        "alone it is of no use"
    );
}
