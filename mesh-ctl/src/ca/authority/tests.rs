//! What is signed and what is not, and the order of a rotation.

use std::os::unix::fs::PermissionsExt;

use super::*;

const TTL: Duration = Duration::from_secs(60);

fn csr(san: &str) -> String {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(san.try_into().expect("a URI"))];
    params
        .serialize_request(&key)
        .expect("a request")
        .pem()
        .expect("PEM")
}

fn open(dir: &Path) -> Authority {
    Authority::open(dir, None, "cluster.local".into()).expect("an authority")
}

#[test]
fn a_certificate_says_what_was_granted_and_not_what_was_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = open(dir.path());
    let id = "spiffe://cluster.local/ns/a/sa/b";
    let grant = Grant::Workload(id.parse().expect("an identity"));
    let chain = ca
        .sign(
            &csr("spiffe://cluster.local/ns/kube-system/sa/admin"),
            &grant,
            &Member::Node("n1".into()),
            SystemTime::now(),
            TTL,
        )
        .expect("signed");
    assert_eq!(chain.len(), 2);
    let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).expect("PEM");
    let cert = pem.parse_x509().expect("a certificate");
    let sans = &cert
        .subject_alternative_name()
        .expect("parses")
        .expect("a SAN")
        .value
        .general_names;
    assert_eq!(
        sans.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("URI({id})")]
    );
    assert!(!cert.is_ca());
}

#[test]
fn requests_that_cannot_be_used_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = open(dir.path());
    let grant = Grant::Node("cluster.local".into(), "n1".into());
    let check = |csr: &str| {
        matches!(
            ca.sign(
                csr,
                &grant,
                &Member::Node("n1".into()),
                SystemTime::now(),
                TTL
            ),
            Err(CaError::Request(_))
        )
    };
    assert!(check(""));
    assert!(check(
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
    ));
    assert!(check(&"x".repeat(MAX_CSR + 1)));
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    assert!(check(
        &CertificateParams::default()
            .serialize_request(&p384)
            .expect("a request")
            .pem()
            .expect("PEM")
    ));
    let mut forged = csr("spiffe://a/ns/b/sa/c");
    let middle = forged.len() - 60;
    let flipped = if &forged[middle..=middle] == "A" {
        "B"
    } else {
        "A"
    };
    forged.replace_range(middle..=middle, flipped);
    assert!(check(&forged), "a request whose signature does not verify");
}

#[test]
fn the_root_is_kept_private_and_rotates_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = open(dir.path());
    let mode = std::fs::metadata(dir.path().join("ca.json"))
        .expect("kept")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let first = ca.roots();
    assert_eq!(open(dir.path()).roots(), first, "a restart keeps the root");
    let now = SystemTime::now();
    let step = |step| ca.rotate(step, None, false, &Usage::default(), now, TTL);
    assert!(
        step(Step::Switch).is_err() && step(Step::Finish).is_err() && step(Step::Abort).is_err()
    );
    step(Step::Prepare).expect("prepared");
    assert_eq!(step(Step::Abort).expect("taken back"), first);
    let both = step(Step::Prepare).expect("prepared");
    assert!(both.starts_with(&first) && both.len() > first.len());
    assert!(step(Step::Prepare).is_err() && step(Step::Finish).is_err());
    let switched = step(Step::Switch).expect("switched");
    assert!(switched.ends_with(&first) && switched.len() == both.len());
    assert_eq!(
        std::fs::read_to_string(dir.path().join("ca.pem")).expect("is public"),
        switched
    );
    assert_eq!(
        open(dir.path()).phase(),
        Phase::Switched,
        "a restart keeps the phase"
    );
    let last = ca
        .rotate(Step::Finish, None, false, &Usage::default(), now + TTL, TTL)
        .expect("finished");
    assert!(!last.contains(&first) && switched.starts_with(&last));
    assert_eq!(open(dir.path()).roots(), last);
}

#[test]
fn the_old_root_goes_only_when_nobody_uses_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ca, now) = (open(dir.path()), SystemTime::now());
    let of = |node: &str| Member::Node(node.into());
    let grant = |node: &str| Grant::Node("cluster.local".into(), node.into());
    let sign = |node: &str, at| {
        let csr = csr("spiffe://a/ns/b/sa/c");
        ca.sign(&csr, &grant(node), &of(node), at, TTL)
    };
    let held = |node: &str| Held::new(&grant(node), &of(node));
    let finish = |there: &[&str], signed: Vec<(Held, Signed)>| {
        let there = there.iter().map(|n| held(n)).collect();
        ca.rotate(
            Step::Finish,
            None,
            false,
            &Usage { there, signed },
            now,
            TTL,
        )
    };
    let step = |step| ca.rotate(step, None, false, &Usage::default(), now, TTL);
    let old = sign("n1", now).expect("signed");
    assert!(sign("n2", now).is_ok() && old.len() == 2);
    step(Step::Prepare).expect("prepared");
    assert_eq!(
        sign("n1", now).expect("signed").last(),
        old.last(),
        "the old root signs until the switch"
    );
    step(Step::Switch).expect("switched");
    let later = now + Duration::from_secs(1);
    let new = sign("n1", later).expect("signed");
    assert!(
        new.len() == 3 && new.last() != old.last() && new[1] == old[1],
        "the chain tells both roots, its own last"
    );
    let who = |refused: Result<String, CaError>| match refused {
        Err(CaError::InUse(who)) => who,
        other => panic!("{other:?}"),
    };
    // n2 has the old one, n3 asked another replica, and who is gone does not count.
    assert!(who(finish(&["n1", "n2"], vec![])).contains("1 certificates of the old root"));
    assert!(who(finish(&["n1", "n3"], vec![])).contains("n3 held by n3"));
    let elsewhere = |root: &str, at| {
        let signed = Signed {
            root: root.into(),
            at,
        };
        vec![(held("n3"), signed)]
    };
    let (old_root, new_root) = (old.last().expect("a root"), new.last().expect("a root"));
    assert!(who(finish(&["n1", "n3"], elsewhere(old_root, later))).contains("n3"));
    // An older certificate of another replica is no longer in use.
    let (one, two) = (elsewhere(new_root, later), elsewhere(old_root, now));
    finish(&["n1", "n3"], [one, two].concat()).expect("nobody uses the old root");
    assert_eq!(sign("n1", later).expect("signed").len(), 2);
}

#[test]
fn after_a_restart_the_old_root_stays_until_the_last_certificate_has_expired() {
    let dir = tempfile::tempdir().expect("a directory");
    let now = SystemTime::now();
    let ca = open(dir.path());
    ca.rotate(Step::Prepare, None, false, &Usage::default(), now, TTL)
        .expect("prepared");
    ca.rotate(Step::Switch, None, false, &Usage::default(), now, TTL)
        .expect("switched");
    let ca = open(dir.path());
    assert!(matches!(
        ca.rotate(Step::Finish, None, false, &Usage::default(), now, TTL),
        Err(CaError::InUse(_))
    ));
    assert!(
        ca.rotate(Step::Finish, None, true, &Usage::default(), now, TTL)
            .is_ok()
    );
}

#[test]
fn a_given_ca_must_fit_its_key_and_leaves_the_old_root_trusted() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = open(dir.path()).roots();
    let signer = generate(&"cluster.local".into()).expect("a root");
    let other = generate(&"cluster.local".into()).expect("a root");
    let given = |chain: &str, key: &str| {
        Authority::open(
            dir.path(),
            Some(Given {
                chain: chain.into(),
                key: key.into(),
            }),
            "cluster.local".into(),
        )
    };
    assert!(given(&signer.chain[0], &other.key).is_err());
    assert!(given("", &signer.key).is_err());
    assert!(
        given(&signer.chain[0], &signer.key).is_err(),
        "a CA in use was replaced at once"
    );
    let ca = open(dir.path());
    let next = || Given {
        chain: signer.chain[0].clone(),
        key: signer.key.clone(),
    };
    let both = ca
        .rotate(
            Step::Prepare,
            Some(next()),
            false,
            &Usage::default(),
            SystemTime::now(),
            TTL,
        )
        .expect("prepared");
    assert_eq!(both, format!("{first}{}", signer.chain[0]));
    let fresh = tempfile::tempdir().expect("a directory");
    let ca = Authority::open(fresh.path(), Some(next()), "cluster.local".into()).expect("taken");
    assert_eq!(ca.roots(), signer.chain[0]);
}

#[test]
fn no_certificate_outlives_its_signer() {
    let dir = tempfile::tempdir().expect("a directory");
    let ca = open(dir.path());
    let until = expiry(&ca.watch().borrow().active).expect("has one");
    let sign = |now| {
        ca.sign(
            &csr("spiffe://a/ns/b/sa/c"),
            &Grant::Node("cluster.local".into(), "n1".into()),
            &Member::Node("n1".into()),
            now,
            TTL,
        )
    };
    let leaf = sign(until - Duration::from_secs(10)).expect("signed");
    assert!(
        expiry(&Signer {
            chain: vec![leaf[0].clone()],
            key: String::new()
        })
        .expect("has one")
            <= until
    );
    assert!(matches!(sign(until), Err(CaError::Expired)));
}
