//! Who gets through: chains that must prove nothing, handshakes that must fail, configurations that must change.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_model::reason::Reason;
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{
    testing::{Authority, Leaf, identity},
    tls::provider,
    verify::{Usage, verify, verify_peer},
    *,
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn judge(
    chain: &[CertificateDer<'_>],
    trust: &Trust,
    usage: Usage,
) -> Result<mesh_model::name::Identity, PeerError> {
    let now = UnixTime::since_unix_epoch(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970"),
    );
    let algorithms = provider().signature_verification_algorithms.all;
    verify(
        chain,
        trust,
        &"cluster.local".into(),
        usage,
        algorithms,
        now,
    )
}

/// What this thread has used of its core: however busy the machine is with something else.
fn spent() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("a thread may ask for its own");
    let micros = |time: nix::sys::time::TimeVal| {
        u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).expect("time passes forward")
    };
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

#[test]
fn only_a_chain_with_one_fitting_identity_proves_anything() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let trust = ours.trust();
    let check = |what: &str, chain: Vec<CertificateDer<'static>>, expect: &str| {
        let began = spent();
        for usage in [Usage::Client, Usage::Server] {
            let outcome = judge(&chain, &trust, usage);
            let text = outcome.map_or_else(|e| e.to_string(), |i| i.to_string());
            assert!(
                text.contains(expect),
                "{what} as {usage:?}: {text:?} does not contain {expect:?}"
            );
        }
        let took = spent() - began;
        assert!(took < Duration::from_millis(500), "{what} took {took:?}");
    };
    let one = |leaf: &Leaf| vec![ours.sign(leaf).0];
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    check("a good one", one(&Leaf::of(&[WEB])), WEB);
    check(
        "below an intermediate",
        ours.sign_deep(&Leaf::of(&[WEB]), 2),
        WEB,
    );
    check("none", Vec::new(), "no certificate");
    check(
        "another trust domain",
        one(&Leaf::of(&["spiffe://evil.local/ns/shop/sa/web"])),
        "not of trust domain",
    );
    check(
        "a node",
        one(&Leaf::of(&["spiffe://cluster.local/warren/node/n1"])),
        "not a workload identity",
    );
    check(
        "two URIs",
        one(&Leaf::of(&[WEB, "spiffe://cluster.local/ns/shop/sa/admin"])),
        "2 URI SANs",
    );
    check(
        "the same URI twice",
        one(&Leaf::of(&[WEB, WEB])),
        "2 URI SANs",
    );
    check(
        "no URI",
        one(&Leaf {
            sans: vec![SanType::DnsName("web.shop".try_into().expect("ASCII"))],
            ..Leaf::of(&[])
        }),
        "0 URI SANs",
    );
    check("no SAN", one(&Leaf::of(&[])), "0 URI SANs");
    check(
        "expired",
        one(&Leaf {
            from: now - hour * 2,
            until: now - hour,
            ..Leaf::of(&[WEB])
        }),
        "not valid at this time",
    );
    check(
        "not yet valid",
        one(&Leaf {
            from: now + hour,
            until: now + hour * 2,
            ..Leaf::of(&[WEB])
        }),
        "not valid at this time",
    );
    check(
        "no usage",
        one(&Leaf {
            usages: Vec::new(),
            ..Leaf::of(&[WEB])
        }),
        "not meant for",
    );
    check(
        "another usage",
        one(&Leaf {
            usages: vec![ExtendedKeyUsagePurpose::CodeSigning],
            ..Leaf::of(&[WEB])
        }),
        "not meant for",
    );
    check(
        "another root",
        vec![theirs.sign(&Leaf::of(&[WEB])).0],
        "chain",
    );
    check(
        "another root, with that root shown",
        vec![theirs.sign(&Leaf::of(&[WEB])).0, theirs.root()],
        "chain",
    );
    check(
        "too deep",
        ours.sign_deep(&Leaf::of(&[WEB]), 20),
        "21 certificates",
    );
    check(
        "not a certificate",
        vec![CertificateDer::from(vec![0x30, 0x03, 0x02, 0x01, 0x00])],
        "cannot be read",
    );
    check(
        "nothing but bytes",
        vec![CertificateDer::from(vec![0xff; 64])],
        "cannot be read",
    );
    check(
        "too large",
        vec![CertificateDer::from(vec![0x30; 20_000])],
        "too large",
    );
    let mut trailing = ours.sign(&Leaf::of(&[WEB])).0.to_vec();
    trailing.push(0);
    check(
        "with bytes after its end",
        vec![trailing.into()],
        "cannot be read",
    );
}

#[test]
fn a_certificate_for_one_side_does_not_serve_the_other() {
    let ours = Authority::new("ours");
    let client_only = Leaf {
        usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
        ..Leaf::of(&[WEB])
    };
    let chain = vec![ours.sign(&client_only).0];
    assert!(judge(&chain, &ours.trust(), Usage::Client).is_ok());
    assert!(judge(&chain, &ours.trust(), Usage::Server).is_err());
}

#[test]
fn odd_encodings_of_the_name_prove_nothing() {
    let ours = Authority::new("ours");
    let san = |names: &[(u8, &[u8])]| {
        let mut content = Vec::new();
        for (tag, bytes) in names {
            content.extend([*tag, u8::try_from(bytes.len()).expect("short")]);
            content.extend(*bytes);
        }
        let mut der = vec![0x30, u8::try_from(content.len()).expect("short")];
        der.extend(content);
        Leaf {
            raw_san: Some(der),
            ..Leaf::of(&[])
        }
    };
    let check = |what: &str, leaf: Leaf, ok: bool| {
        let outcome = judge(&[ours.sign(&leaf).0], &ours.trust(), Usage::Client);
        assert_eq!(outcome.is_ok(), ok, "{what}: {outcome:?}");
    };
    const URI: u8 = 0x86;
    check("plain", san(&[(URI, WEB.as_bytes())]), true);
    check(
        "a NUL in it",
        san(&[(URI, b"spiffe://cluster.local/ns/shop/sa/web\0x")]),
        false,
    );
    check(
        "a NUL at its end",
        san(&[(URI, b"spiffe://cluster.local/ns/shop/sa/web\0")]),
        false,
    );
    check(
        "not ASCII",
        san(&[(URI, "spiffe://cluster.local/ns/shop/sa/w\u{e9}b".as_bytes())]),
        false,
    );
    check(
        "not UTF-8",
        san(&[(URI, b"spiffe://cluster.local/ns/shop/sa/w\xff")]),
        false,
    );
    check(
        "a second URI that cannot be read",
        san(&[(URI, WEB.as_bytes()), (URI, b"\xff")]),
        false,
    );
    check(
        "percent-encoded",
        san(&[(URI, b"spiffe://cluster.local/ns/shop/sa/%77eb")]),
        false,
    );
    check(
        "an OTHERNAME that looks like it",
        san(&[(0xa0, WEB.as_bytes())]),
        false,
    );
}

fn shake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let mut c = ClientConnection::new(
        client,
        ServerName::from(std::net::IpAddr::from([10, 0, 0, 1])),
    )?;
    let mut s = ServerConnection::new(server)?;
    let mut wire = Vec::new();
    for _ in 0..10 {
        wire.clear();
        c.write_tls(&mut wire).expect("memory takes all");
        let mut from = &wire[..];
        while !from.is_empty() {
            s.read_tls(&mut from).expect("memory gives all");
            s.process_new_packets()?;
        }
        wire.clear();
        s.write_tls(&mut wire).expect("memory takes all");
        let mut from = &wire[..];
        while !from.is_empty() {
            c.read_tls(&mut from).expect("memory gives all");
            c.process_new_packets()?;
        }
    }
    assert!(!c.is_handshaking() && !s.is_handshaking());
    Ok((c, s))
}

fn store(authority: &Authority, who: &[&mesh_model::name::Identity]) -> Certificates {
    let certificates = Certificates::new(SystemTime::now);
    who.iter()
        .for_each(|id| certificates.put(authority.issue(id)));
    certificates
}

#[test]
fn a_node_is_taken_for_one_only_where_nodes_are_admitted() {
    let ours = Authority::new("ours");
    let wp = identity("mesh", "wp");
    let (here, there) = (store(&ours, &[&wp]), store(&ours, &[]));
    let expected = std::slice::from_ref(&wp);
    assert_eq!(
        there.try_node_client(expected).err(),
        Some(Reason::NoCertificate)
    );
    there.put_node(ours.issue_node("n1"));
    let dial = |from: &Certificates, admits| {
        let client = from.try_node_client(expected).expect("there");
        let server = here.try_server(&wp, admits).expect("there");
        let (_, s) = shake(client, server).map_err(|e| e.to_string())?;
        let shown = s.peer_certificates().expect("shown");
        let proven = peer(shown, admits, UnixTime::now());
        proven
            .map(|p| p.peer.to_string())
            .map_err(|e| e.to_string())
    };
    let node = "spiffe://cluster.local/warren/node/n1";
    assert_eq!(dial(&there, Admits::Nodes), Ok(node.to_owned()));
    assert!(dial(&there, Admits::Workloads).is_err());
    // Workloads are admitted where nodes are, and are none.
    let web = identity("shop", "web");
    let pods = store(&ours, &[&web]);
    let client = pods.try_client(&web, expected).expect("there");
    let server = here.try_server(&wp, Admits::Nodes).expect("there");
    let (_, s) = shake(client, server).expect("both prove who they are");
    let shown = s.peer_certificates().expect("shown");
    let proven = peer(shown, Admits::Nodes, UnixTime::now()).expect("proven");
    assert_eq!(proven.peer, Peer::Workload(web));
    // Neither another root's, nor another trust domain's, nor what is no node.
    let strangers = store(&Authority::new("theirs"), &[]);
    strangers.put_node(Authority::new("theirs").issue_node("n1"));
    assert!(dial(&strangers, Admits::Nodes).is_err());
    for uri in [
        "spiffe://evil.local/warren/node/n1",
        "spiffe://cluster.local/warren/waypoint/mesh/wp/wp-1",
        "spiffe://cluster.local/warren/controller",
    ] {
        let chain = [ours.sign(&Leaf::of(&[uri])).0];
        let who = (Usage::Client, Admits::Nodes);
        let all = provider().signature_verification_algorithms.all;
        let domain = "cluster.local".into();
        let now = UnixTime::now();
        let got = verify_peer(&chain, &ours.trust(), &domain, who, all, now);
        assert!(got.is_err(), "{uri} is taken for {got:?}");
    }
    // With another certificate the old configuration is gone, and with other roots.
    let (first, generation) = (there.try_node_client(expected), there.node_generation());
    let same = there.try_node_client(expected);
    assert!(Arc::ptr_eq(
        &first.clone().expect("there"),
        &same.expect("there")
    ));
    there.put_node(ours.issue_node("n1"));
    let second = there.try_node_client(expected).expect("there");
    assert!(!Arc::ptr_eq(&first.expect("there"), &second));
    there.publish_roots(Authority::new("next").trust());
    assert!(there.node_generation() >= generation + 2);
    assert!(
        dial(&there, Admits::Nodes).is_err(),
        "the old roots are trusted"
    );
}

#[test]
fn a_handshake_is_mutual_and_meets_the_expectation() {
    let ours = Authority::new("ours");
    let (web, db) = (identity("shop", "web"), identity("shop", "db"));
    let here = store(&ours, &[&web, &db]);
    let client = here
        .try_client(&web, std::slice::from_ref(&db))
        .expect("a certificate is there");
    let (c, s) = shake(
        client.clone(),
        here.try_server(&db, Admits::Workloads).expect("there"),
    )
    .expect("both prove who they are");
    let now = UnixTime::now();
    assert_eq!(
        peer(
            c.peer_certificates().expect("shown"),
            Admits::Workloads,
            now
        )
        .expect("proven")
        .peer,
        Peer::Workload(db.clone())
    );
    assert_eq!(
        peer(
            s.peer_certificates().expect("shown"),
            Admits::Workloads,
            now
        )
        .expect("proven")
        .peer,
        Peer::Workload(web.clone())
    );
    assert_eq!(c.alpn_protocol(), Some(&b"h2"[..]));
    let group = c
        .negotiated_key_exchange_group()
        .expect("negotiated")
        .name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);

    let error = shake(
        client,
        here.try_server(&web, Admits::Workloads).expect("there"),
    )
    .expect_err("not whom it expected");
    let peer = peer_error(&error).expect("it was the identity");
    assert_eq!(peer.reason(), Reason::IdentityMismatch, "{error}");

    let strangers = store(&Authority::new("theirs"), &[&web]);
    let stranger = strangers
        .try_client(&web, std::slice::from_ref(&db))
        .expect("there");
    assert!(
        shake(
            stranger,
            here.try_server(&db, Admits::Workloads).expect("there")
        )
        .is_err(),
        "a stranger gets in"
    );
}

#[test]
fn sessions_resume_only_within_one_expectation_and_one_set_of_roots() {
    let ours = Authority::new("ours");
    let (web, db) = (identity("shop", "web"), identity("shop", "db"));
    let here = store(&ours, &[&web, &db]);
    let kind = |client: &Arc<ClientConfig>, server: &Arc<ServerConfig>| {
        shake(client.clone(), server.clone())
            .expect("good")
            .0
            .handshake_kind()
    };
    let (client, server) = (
        here.try_client(&web, std::slice::from_ref(&db))
            .expect("there"),
        here.try_server(&db, Admits::Workloads).expect("there"),
    );
    assert_eq!(kind(&client, &server), Some(HandshakeKind::Full));
    assert_eq!(kind(&client, &server), Some(HandshakeKind::Resumed));
    let wider = here
        .try_client(&web, &[db.clone(), web.clone()])
        .expect("there");
    assert_eq!(kind(&wider, &server), Some(HandshakeKind::Full));

    let both = Trust::new(vec![ours.root(), Authority::new("next").root()]).expect("roots");
    here.publish_roots(both);
    let (again, server_again) = (
        here.try_client(&web, std::slice::from_ref(&db))
            .expect("there"),
        here.try_server(&db, Admits::Workloads).expect("there"),
    );
    assert!(!Arc::ptr_eq(&again, &client) && !Arc::ptr_eq(&server_again, &server));
    assert_eq!(kind(&again, &server_again), Some(HandshakeKind::Full));
}

#[test]
fn roots_rotate_in_three_steps() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (web, db) = (identity("shop", "web"), identity("shop", "db"));
    let (client, server) = (store(&old, &[&web]), store(&old, &[&db]));
    let talk = || {
        let c = client
            .try_client(&web, std::slice::from_ref(&db))
            .expect("there");
        shake(c, server.try_server(&db, Admits::Workloads).expect("there")).map(drop)
    };
    let both = || Trust::new(vec![old.root(), new.root()]).expect("roots");
    talk().expect("old and old");
    client.publish_roots(both());
    talk().expect("one knows both");
    server.publish_roots(both());
    client.put(new.issue(&web));
    talk().expect("new against old");
    server.put(new.issue(&db));
    client.publish_roots(new.trust());
    server.publish_roots(new.trust());
    talk().expect("new and new");
    client.put(old.issue(&web));
    assert!(talk().is_err(), "the old root is still good");
}

#[test]
fn an_expired_certificate_is_never_used() {
    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(7200)
    }
    let ours = Authority::new("ours");
    let web = identity("shop", "web");
    let certificates = Certificates::new(later);
    certificates.put(ours.issue(&web));
    assert_eq!(
        certificates.try_client(&web, &[]).err(),
        Some(Reason::NoCertificate)
    );
    assert_eq!(
        certificates.try_server(&web, Admits::Workloads).err(),
        Some(Reason::NoCertificate)
    );
}

#[test]
fn bundles_that_do_not_fit_are_refused() {
    let ours = Authority::new("ours");
    let web = identity("shop", "web");
    let other_key = ours.sign(&Leaf::of(&[WEB])).1;
    let (_, pem) = ours.sign(&Leaf::of(&[WEB]));
    let root = format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        base64_of(&ours.root())
    );
    let read = |text: String| {
        Issued::from_bundle(
            &issued::Bundle::from_pem(text, SystemTime::now()),
            &web,
            SystemTime::now(),
        )
    };
    read(format!("{pem}{root}")).expect("a good bundle");
    let key_of = |pem: &str| {
        pem.split_inclusive("-----END PRIVATE KEY-----\n")
            .next()
            .expect("a key")
            .to_owned()
    };
    let chain = pem.replace(&key_of(&pem), "");
    assert!(matches!(
        read(format!("{}{chain}{root}", key_of(&other_key))),
        Err(IssuedError::Key(_))
    ));
    assert!(matches!(read(pem.clone()), Err(IssuedError::NoRoot)));
    assert!(matches!(read(String::new()), Err(IssuedError::Pem(_))));
    let db = ours
        .sign(&Leaf::of(&["spiffe://cluster.local/ns/shop/sa/db"]))
        .1;
    assert!(matches!(
        read(format!("{db}{root}")),
        Err(IssuedError::Other { .. })
    ));
}

fn base64_of(der: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(der)
}
