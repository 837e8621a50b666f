//! The copy on disk: round trip, damage, and other people's files. And who is waited for.

use std::{fs, net::IpAddr, time::Duration};

use mesh_api::resource::{Kind, Resource};
use mesh_model::{mesh::Change, name::NetworkId, testing::cast};

use super::*;

fn resources() -> Vec<Resource> {
    vec![
        Resource::new(Kind::Companion, "mesh", vec![1, 2, 3]),
        Resource::new(Kind::Authorization, "shop/deny", Vec::new()),
        Resource::new(Kind::Destination, "shop/web.shop.svc", vec![4]),
        Resource::new(Kind::Routes, "shop/web.shop.svc", vec![5]),
        Resource::new(Kind::Address, "Kubernetes//Pod/shop/web-1", vec![0; 5000]),
    ]
}

fn kept() -> Kept {
    let mut kept = Kept::default();
    resources().iter().for_each(|r| kept.insert(r));
    kept
}

#[test]
fn what_was_saved_is_loaded() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("deep/config.bin");
    assert!(load(&path).expect("absent is fine").is_none());
    save(&path, &kept()).expect("writable");
    let (mut loaded, written) = load(&path).expect("readable").expect("a file");
    loaded.sort_by_key(|r| r.kind);
    assert_eq!(loaded, resources());
    // What is only on disk is written again from there.
    let again = Kept::of(written);
    save(&path, &again).expect("writable");
    let (mut loaded, _) = load(&path).expect("readable").expect("a file");
    loaded.sort_by_key(|r| r.kind);
    assert_eq!(loaded, resources());
    save(&path, &Kept::default()).expect("writable");
    let (loaded, _) = load(&path).expect("readable").expect("a file");
    assert_eq!(loaded, []);
}

#[test]
fn a_damaged_file_is_refused_whole() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config.bin");
    save(&path, &kept()).expect("writable");
    let good = fs::read(&path).expect("readable");
    for cut in [0, 7, 39, 40, 41, good.len() - 1] {
        fs::write(&path, &good[..cut]).expect("writable");
        let outcome = load(&path);
        assert!(outcome.is_err(), "cut to {cut} bytes: {outcome:?}");
    }
    for at in (0..good.len()).step_by(37) {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        fs::write(&path, &bad).expect("writable");
        assert!(load(&path).is_err(), "byte {at} changed");
    }
    fs::write(
        &path,
        b"something else that is long enough to hold a header, but is none",
    )
    .expect("writable");
    assert!(matches!(load(&path), Err(DiskError::Magic)));
}

#[tokio::test]
async fn an_unknown_address_among_captured_pods_is_waited_for_once() {
    let state = MeshState::new();
    state.apply([Change::Workload(cast::pod("shop", "web", "n1", "10.1.0.7"))]);
    let network = NetworkId::from("");
    let waited = async |ip: &str, most| {
        let ip: IpAddr = ip.parse().expect("an address");
        state.hear_of(&network, ip, most).await
    };
    let short = Duration::from_millis(10);
    assert!(!waited("10.1.0.7", short).await, "known");
    assert!(!waited("10.1.1.7", short).await, "nobody lives there");
    assert!(!waited("fd00::7", short).await, "nor there");
    assert!(waited("10.1.0.9", short).await, "it could be a pod");
    assert!(!waited("10.1.0.9", short).await, "it was none");
    let other = state.clone();
    let arrival = tokio::spawn(async move {
        other.apply([Change::Workload(cast::pod("shop", "db", "n1", "10.1.0.8"))]);
    });
    // Without the arrival this would not end before the test's own limit.
    let arrived = waited("10.1.0.8", Duration::from_secs(3600));
    let arrived = tokio::time::timeout(Duration::from_secs(60), arrived).await;
    assert!(arrived.expect("an end"), "it was waited for and came");
    arrival.await.expect("no panic");
}

#[test]
fn enrolled_namespaces_are_on_disk_as_soon_as_they_are_said_to_be() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let said = |names: &[&str]| {
        let mut config = cast::config();
        config.enrolled_namespaces = names.iter().map(|n| (*n).into()).collect();
        Change::Config(config)
    };
    let file = || fs::read_to_string(dir.path().join("enrolled")).ok();
    let list = EnrolledNamespaces::open(dir.path());
    let other = list.clone();
    let state = MeshState::new();
    state.apply([said(&["shop"])]);
    list.update(&state.load().mesh).expect("writable");
    assert_eq!(file(), None, "not everything was received yet");
    state.apply([Change::Complete]);
    list.update(&state.load().mesh).expect("writable");
    assert_eq!(file().as_deref(), Some("shop\n"), "it has no pods");
    assert!(other.contains(&"shop".into()), "whoever holds the list");
    state.apply([said(&["bank", "shop"])]);
    list.update(&state.load().mesh).expect("writable");
    assert_eq!(file().as_deref(), Some("bank\nshop\n"));
    state.apply([said(&[])]);
    list.update(&state.load().mesh).expect("writable");
    assert_eq!(file().as_deref(), Some(""));
    assert!(!other.contains(&"shop".into()));
    assert!(!EnrolledNamespaces::open(dir.path()).contains(&"bank".into()));
}
