//! Agents come and go; what is pinned stays.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_loader::{Datapath, Leave, LoadError, Outcome};

use crate::cases::captured;
use crate::world::{World, eventually, spec};

pub fn adopt(w: &mut World) {
    let to = SocketAddr::new(w.b.v4, 8080);
    let cookie = w.a.info.as_ref().unwrap().cookie;
    let dp = w.dp.take().unwrap();
    dp.set_verdict(cookie, to, Outcome::Refuse(1), dp.epoch(to.ip()), None)
        .unwrap();
    drop(dp);
    assert_eq!(
        w.a.app.ask(&format!("connect {to}")).unwrap_err(),
        "111",
        "pinned programs go on deciding"
    );
    let dp = Datapath::open(&w.config).unwrap();
    let mut known: Vec<_> = dp.pods();
    known.sort_by_key(|p| p.id);
    let expect = [w.a.info.clone().unwrap(), w.b.info.clone().unwrap()];
    assert_eq!(known, expect, "the pods are known");
    for (uid, pod) in [("uid-a", &w.a), ("uid-b", &w.b)] {
        assert_eq!(
            dp.enrol(&spec(uid, pod)).unwrap(),
            *pod.info.as_ref().unwrap()
        );
    }
    w.dp = Some(dp);
    captured(w, "connect", to);
}

pub fn withdraw(w: &mut World) {
    let dp = w.dp.take().unwrap();
    let to = SocketAddr::new(w.stranger.v4, 8500);
    let l = w.stranger.app.must(&format!("listen {to}")).id;
    assert!(dp.withdraw("uid-a").unwrap());
    assert!(!dp.withdraw("uid-a").unwrap());
    let c = w.a.app.must(&format!("connect {to}"));
    let s = w.stranger.app.must(&format!("accept {l}"));
    assert_eq!(
        s.words[0], c.words[0],
        "a pod that left the mesh talks as it did before"
    );
    w.a.app.must(&format!("close {}", c.id));
    w.stranger.app.must(&format!("close {}", s.id));
    w.stranger.app.must(&format!("close {l}"));
    // The kernel lets go of a program a moment after its pin went.
    let mut again = None;
    eventually("it is enrolled again", || {
        again = dp.enrol(&spec("uid-a", &w.a)).ok();
        again.is_some()
    });
    w.a.info = again;
    w.dp = Some(dp);
    captured(w, "connect", to);
}

/// A mesh that leaves first lets everybody in, then lets everybody out; whoever opens it again captures again, also
/// where an earlier version comes back to a layout that had retired.
pub fn leave(w: &mut World) {
    let config = w.config.clone();
    let leave = |step| Datapath::leave(&config.bpffs, &config.instance, step).unwrap();
    let (into, out) = (
        SocketAddr::new(w.b.v4, 8210),
        SocketAddr::new(w.stranger.v4, 8510),
    );
    let (inside, outside) = (
        w.b.app.must(&format!("listen {into}")).id,
        w.stranger.app.must(&format!("listen {out}")).id,
    );
    let plain_in = |w: &mut World| {
        let c = w.stranger.app.must(&format!("connect {into}"));
        let s = w.b.app.must(&format!("accept {inside}"));
        assert_eq!(
            s.words[0], c.words[0],
            "it was not the application that accepted"
        );
        w.stranger.app.must(&format!("close {}", c.id));
        w.b.app.must(&format!("close {}", s.id));
    };
    assert!(!w.dp().is_leaving());
    assert!(leave(Leave::Open));
    assert!(w.dp().is_leaving());
    plain_in(w);
    captured(w, "connect", out);
    assert!(leave(Leave::Release));
    plain_in(w);
    let c = w.a.app.must(&format!("connect {out}"));
    let s = w.stranger.app.must(&format!("accept {outside}"));
    assert_eq!(s.words[0], c.words[0], "it is still captured");
    w.a.app.must(&format!("close {}", c.id));
    w.stranger.app.must(&format!("close {}", s.id));
    w.b.app.must(&format!("close {inside}"));
    w.stranger.app.must(&format!("close {outside}"));

    drop(w.dp.take());
    let dp = Datapath::open(&config).unwrap();
    assert!(!dp.is_leaving());
    assert!(dp.pods().is_empty(), "what a retired layout knew is old");
    dp.heartbeat();
    for (uid, pod) in [("uid-a", &mut w.a), ("uid-b", &mut w.b)] {
        // The kernel lets go of a program a moment after its pin went.
        let mut again = None;
        eventually("it is enrolled again", || {
            again = dp.enrol(&spec(uid, pod)).ok();
            again.is_some()
        });
        pod.info = again;
    }
    w.dp = Some(dp);
    captured(w, "connect", out);
    let nobody = Datapath::leave(&config.bpffs, "nobody-is-called-so", Leave::Release);
    assert!(!nobody.unwrap());
}

pub fn replace_layout(w: &mut World) {
    let to = SocketAddr::new(w.b.v4, 8080);
    let dp = w.dp.take().unwrap();
    let current = dp.folder().to_owned();
    let long = w.a.app.must(&format!("connect {to}"));
    drop(dp);
    // As if an agent of another layout had pinned it.
    std::fs::rename(&current, current.with_file_name("0badf00d")).unwrap();
    let dp = Datapath::open(&w.config).unwrap();
    dp.heartbeat();
    assert_eq!(dp.previous().unwrap().len(), 1);
    assert!(dp.pods().is_empty(), "a new layout begins empty");
    for (uid, pod) in [("uid-a", &mut w.a), ("uid-b", &mut w.b)] {
        pod.info = Some(dp.enrol(&spec(uid, pod)).unwrap());
    }
    for l in
        w.a.outbound
            .iter()
            .chain(&w.a.outbound6)
            .chain(&w.b.outbound)
            .chain(&w.b.outbound6)
    {
        dp.mark_own(std::os::fd::AsFd::as_fd(l), None).unwrap();
    }
    while w.a.outbound.iter().any(|l| l.accept().is_ok()) {}
    assert_eq!(dp.retire_previous().unwrap(), 1);
    w.dp = Some(dp);
    captured(w, "connect", to);
    let names = w.a.app.must(&format!("names {}", long.id));
    assert_eq!(
        names.words[1],
        to.to_string(),
        "an old flow still shows what it dialed"
    );
    let left = w.dp().purge_previous().unwrap();
    assert!(left > 0, "an old flow lives");
    let names = w.a.app.must(&format!("names {}", long.id));
    assert_eq!(names.words[1], to.to_string(), "and still shows it");
    w.a.app.must(&format!("close {}", long.id));
    let until = Instant::now() + Duration::from_secs(10);
    while w.dp().purge_previous().unwrap() > 0 {
        assert!(Instant::now() < until, "it outlives its flows");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(w.dp().previous().unwrap().is_empty());
    captured(w, "connect", to);
}

pub fn bad_pods(w: &mut World) {
    let dp = w.dp();
    let mut twin = spec("uid-twin", &w.b);
    twin.netns = std::os::fd::AsFd::as_fd(&w.stranger.netns);
    twin.addresses = vec![w.a.v4];
    match dp.enrol(&twin).unwrap_err() {
        LoadError::DuplicateAddress { address, other, .. } => {
            assert_eq!((address, other.as_str()), (w.a.v4, "uid-a"))
        }
        other => panic!("{other}"),
    }
    let same = spec("uid-other", &w.a);
    let error = dp.enrol(&same).unwrap_err().to_string();
    assert!(
        error.contains("uid-other") && error.contains("uid-a"),
        "{error}"
    );
    let mut none = spec("uid-a", &w.a);
    none.addresses.clear();
    assert!(dp.enrol(&none).is_err());
    assert_eq!(dp.pods().len(), 2, "a refused pod leaves nothing");
}
