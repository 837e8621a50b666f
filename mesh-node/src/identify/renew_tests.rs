//! Renewal: against a CA that answers as it is told, with real certificates that live for seconds.

use std::{
    os::unix::fs::MetadataExt,
    sync::{
        Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst},
    },
};

use rustls::pki_types::CertificateDer;

use super::*;
use crate::identify::{
    Admits,
    testing::{Authority, Leaf, identity},
};

struct Ca {
    authority: Mutex<Authority>,
    life: Duration,
    broken: Mutex<bool>,
    calls: AtomicUsize,
    now: fn() -> SystemTime,
}

#[derive(Clone)]
struct FakeSigner(Arc<Ca>);

impl Signer for FakeSigner {
    async fn sign(
        &self,
        csr_pem: &str,
        identity: Option<&Identity>,
        credential: &Credential,
    ) -> Result<Vec<String>, SignError> {
        self.0.calls.fetch_add(1, SeqCst);
        if *self.0.broken.lock().expect("not poisoned") {
            return Err(SignError::Refused("the CA is away".into()));
        }
        if identity.is_some() && matches!(credential, Credential::Token) {
            return Err(SignError::Refused("a token is for the node only".into()));
        }
        let uri = identity.map_or(
            "spiffe://cluster.local/warren/node/n1".to_owned(),
            ToString::to_string,
        );
        let now = (self.0.now)();
        let leaf = Leaf {
            // Dated back far further than it lives, as CAs do for clocks that are late.
            from: now - Duration::from_secs(300),
            until: now + self.0.life,
            ..Leaf::of(&[&uri])
        };
        let authority = self.0.authority.lock().expect("not poisoned");
        Ok(authority.answer(csr_pem, &leaf))
    }
}

fn ca(life: Duration) -> FakeSigner {
    ca_by(SystemTime::now, life)
}

fn ca_by(now: fn() -> SystemTime, life: Duration) -> FakeSigner {
    FakeSigner(Arc::new(Ca {
        now,
        authority: Mutex::new(Authority::new("ca")),
        life,
        broken: Mutex::new(false),
        calls: AtomicUsize::new(0),
    }))
}

async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen"))
}

#[tokio::test]
async fn the_node_comes_first_and_then_every_held_identity() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = ca(Duration::from_secs(3600));
    let certificates = Certificates::new(SystemTime::now);
    let web = identity("shop", "web");
    let held = certificates.hold(&web);
    let keys = KeyDir::open(dir.path().join("keys")).expect("writable");
    let renewer = Renewer::new(
        certificates.clone(),
        keys.clone(),
        signer.clone(),
        "n1".into(),
        &Metrics::new(),
    );
    let task = tokio::spawn(renewer.run());
    within(
        "a certificate",
        certificates.server(&web, Admits::Workloads),
    )
    .await;
    assert!(certificates.node().is_some());
    task.abort();
    drop(held);
    let files = std::fs::read_dir(dir.path().join("keys")).expect("readable");
    let modes: Vec<u32> = files
        .map(|f| f.expect("a file").metadata().expect("there").mode() & 0o7777)
        .collect();
    assert_eq!(modes, [0o600, 0o600], "nobody else reads keys");

    // A new process without a CA starts with what the directory holds.
    *signer.0.broken.lock().expect("not poisoned") = true;
    let after = Certificates::new(SystemTime::now);
    let _renewer = Renewer::new(after.clone(), keys, signer, "n1".into(), &Metrics::new());
    assert!(after.node().is_some());
    assert!(after.try_server(&web, Admits::Workloads).is_ok());
}

#[tokio::test]
async fn a_certificate_is_replaced_before_it_expires() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = ca(Duration::from_secs(4));
    let certificates = Certificates::new(SystemTime::now);
    let web = identity("shop", "web");
    let _held = certificates.hold(&web);
    let keys = KeyDir::open(dir.path()).expect("writable");
    let task = tokio::spawn(
        Renewer::new(
            certificates.clone(),
            keys,
            signer.clone(),
            "n1".into(),
            &Metrics::new(),
        )
        .run(),
    );
    let first = within(
        "a certificate",
        certificates.server(&web, Admits::Workloads),
    )
    .await;
    let replaced = async {
        let mut changes = certificates.changes();
        while Arc::ptr_eq(&first, &certificates.server(&web, Admits::Workloads).await) {
            changes.changed().await.expect("the store is alive");
        }
    };
    within("a rotation", replaced).await;
    let calls = signer.0.calls.load(SeqCst);
    assert!(
        calls <= 6,
        "{calls} requests for two certificates of which each was renewed once or twice"
    );
    task.abort();
}

#[tokio::test]
async fn certificates_follow_the_root_that_signs() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = ca(Duration::from_secs(3600));
    let certificates = Certificates::new(SystemTime::now);
    let web = identity("shop", "web");
    let _held = certificates.hold(&web);
    let keys = KeyDir::open(dir.path()).expect("writable");
    let metrics = Metrics::new();
    let mut renewer = Renewer::new(
        certificates.clone(),
        keys,
        signer.clone(),
        "n1".into(),
        &metrics,
    );
    renewer.follow = Duration::from_millis(200);
    let task = tokio::spawn(renewer.run());
    within(
        "a certificate",
        certificates.server(&web, Admits::Workloads),
    )
    .await;
    let calls = || signer.0.calls.load(SeqCst);
    let (old, new) = {
        let authority = signer.0.authority.lock().expect("not poisoned");
        (authority.root(), Authority::new("next"))
    };
    let roots = |roots: [&CertificateDer<'static>; 2]| {
        Trust::new(roots.map(Clone::clone).to_vec()).expect("anchors")
    };
    // Prepared: both are trusted, and nothing is to be renewed.
    certificates.publish_roots(roots([&old, &new.root()]));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(calls(), 2, "the node's and the workload's");
    // Switched, but who is asked signs by the old root yet: it is asked again, and not all the time.
    certificates.publish_roots(roots([&new.root(), &old]));
    let asked = async {
        while calls() < 6 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("both to be asked for twice more", asked).await;
    let root = new.root();
    *signer.0.authority.lock().expect("not poisoned") = new;
    let follows = async {
        let of_new = |trust: &Trust| trust.signed_by() == Some(&root);
        loop {
            let node = certificates.node().is_some_and(|n| of_new(&n.trust));
            if node && certificates.issued().iter().all(|i| of_new(&i.trust)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("certificates of the new root", follows).await;
    let settled = calls();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(calls(), settled, "nothing is renewed any more");
    task.abort();
}

#[tokio::test]
async fn a_failed_renewal_keeps_the_old_certificate_and_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = ca(Duration::from_secs(6));
    let certificates = Certificates::new(SystemTime::now);
    let web = identity("shop", "web");
    let _held = certificates.hold(&web);
    let keys = KeyDir::open(dir.path()).expect("writable");
    let task = tokio::spawn(
        Renewer::new(
            certificates.clone(),
            keys,
            signer.clone(),
            "n1".into(),
            &Metrics::new(),
        )
        .run(),
    );
    within(
        "a certificate",
        certificates.server(&web, Admits::Workloads),
    )
    .await;
    *signer.0.broken.lock().expect("not poisoned") = true;
    let failed = async {
        while certificates.status().iter().all(|s| s.failure.is_none()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("a failure", failed).await;
    assert!(
        certificates.try_server(&web, Admits::Workloads).is_ok(),
        "the old one is still good"
    );
    let expired = async {
        while certificates.try_server(&web, Admits::Workloads).is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("expiry", expired).await;
    *signer.0.broken.lock().expect("not poisoned") = false;
    within("recovery", certificates.server(&web, Admits::Workloads)).await;
    task.abort();
}

#[test]
fn times_are_spread_and_bounded() {
    let start = SystemTime::UNIX_EPOCH;
    let end = start + Duration::from_secs(1000);
    assert_eq!(half_life(start, end, 0.0), start + Duration::from_secs(400));
    assert_eq!(half_life(start, end, 0.5), start + Duration::from_secs(500));
    assert_eq!(half_life(start, end, 1.0), start + Duration::from_secs(600));
    assert_eq!(pause(1, LONGEST_PAUSE, 1.0), FIRST_PAUSE);
    assert_eq!(pause(1, LONGEST_PAUSE, 0.0), FIRST_PAUSE / 2);
    assert_eq!(pause(1_000_000, LONGEST_PAUSE, 1.0), LONGEST_PAUSE);
    assert_eq!(pause(1_000_000, LONGEST_WITHOUT, 1.0), LONGEST_WITHOUT);
}

/// The time plus what a test has set the clock ahead by, in seconds.
fn set_by(ahead: &AtomicI64) -> SystemTime {
    let ahead = ahead.load(SeqCst);
    let by = Duration::from_secs(ahead.unsigned_abs());
    match ahead >= 0 {
        true => SystemTime::now() + by,
        false => SystemTime::now() - by,
    }
}

const DAY: i64 = 86_400;

#[tokio::test]
async fn a_clock_that_jumps_past_the_end_fails_closed_and_is_made_good_at_once() {
    static AHEAD: AtomicI64 = AtomicI64::new(0);
    fn clock() -> SystemTime {
        set_by(&AHEAD)
    }
    let dir = tempfile::tempdir().expect("a directory");
    let signer = ca_by(clock, Duration::from_secs(3600));
    let certificates = Certificates::new(clock);
    let web = identity("shop", "web");
    let _held = certificates.hold(&web);
    let keys = KeyDir::open(dir.path()).expect("writable");
    let metrics = Metrics::new();
    let renewer = Renewer::new(certificates.clone(), keys, signer, "n1".into(), &metrics);
    let task = tokio::spawn(renewer.run());
    let first = within(
        "a certificate",
        certificates.server(&web, Admits::Workloads),
    )
    .await;
    // Time for the renewer to see that nothing is due, and to sleep for as long as it ever does.
    tokio::time::sleep(Duration::from_millis(100)).await;
    AHEAD.store(2 * DAY, SeqCst);
    assert_eq!(
        certificates.try_server(&web, Admits::Workloads).err(),
        Some(mesh_model::reason::Reason::NoCertificate),
        "an expired certificate is never used"
    );
    // Without being woken the renewer would sleep longer than this waits.
    let second = within(
        "a new certificate",
        certificates.server(&web, Admits::Workloads),
    )
    .await;
    assert!(!Arc::ptr_eq(&first, &second));
    assert!(certificates.node().is_some_and(|n| n.not_after > clock()));
    task.abort();
}

#[tokio::test]
async fn a_clock_that_jumps_back_makes_no_pause_longer() {
    static AHEAD: AtomicI64 = AtomicI64::new(0);
    fn clock() -> SystemTime {
        set_by(&AHEAD)
    }
    let dir = tempfile::tempdir().expect("a directory");
    let signer = ca_by(clock, Duration::from_secs(3600));
    *signer.0.broken.lock().expect("not poisoned") = true;
    let certificates = Certificates::new(clock);
    let web = identity("shop", "web");
    let _held = certificates.hold(&web);
    let keys = KeyDir::open(dir.path()).expect("writable");
    let metrics = Metrics::new();
    let renewer = Renewer::new(
        certificates.clone(),
        keys,
        signer.clone(),
        "n1".into(),
        &metrics,
    );
    let task = tokio::spawn(renewer.run());
    let asked = async {
        while signer.0.calls.load(SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("requests that fail", asked).await;
    AHEAD.store(-DAY, SeqCst);
    *signer.0.broken.lock().expect("not poisoned") = false;
    within(
        "a certificate",
        certificates.server(&web, Admits::Workloads),
    )
    .await;
    task.abort();
}
