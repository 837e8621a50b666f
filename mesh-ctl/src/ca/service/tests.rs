//! Who gets what from the certificate service.

use futures_util::FutureExt;

use super::*;
use crate::token::JoinKey;

struct OnN1;

impl Hosted for OnN1 {
    fn hosts(&self, node: &NodeName, identity: &Identity) -> bool {
        node.as_str() == "n1" && identity.namespace.as_str() == "shop"
    }

    fn is_waypoint(&self, waypoint: &Waypoint) -> bool {
        &*waypoint.pod == "waypoint-1" && waypoint.account.as_str() == "waypoint"
    }

    fn is_node(&self, node: &NodeName) -> bool {
        node.as_str() == "n1"
    }

    fn is_gone(&self, node: &NodeName) -> bool {
        node.as_str() == "gone"
    }

    fn all(&self) -> Vec<(NodeName, Identity)> {
        Vec::new()
    }
}

fn service(dir: &std::path::Path, per_minute: u32) -> CertificateService {
    let authority = Authority::open(dir, None, "cluster.local".into()).expect("an authority");
    let policy = Policy {
        per_minute,
        ..Policy::default()
    };
    CertificateService::new(
        Arc::new(authority),
        Arc::new(OnN1),
        MemberTokens::Join(JoinKey::open(dir).expect("a key")),
        policy,
        Arc::default(),
    )
}

fn request(
    identity: Option<&str>,
    node: Option<&str>,
    token: Option<&str>,
) -> Request<IstioCertificateRequest> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .expect("a request")
        .pem()
        .expect("PEM");
    let text = |t: &str| prost_types::Value {
        kind: Some(Kind::StringValue(t.into())),
    };
    let metadata = identity.map(|i| prost_types::Struct {
        fields: [("ImpersonatedIdentity".to_owned(), text(i))].into(),
    });
    let mut request = Request::new(IstioCertificateRequest {
        csr,
        validity_duration: 3600,
        metadata,
    });
    if let Some(node) = node {
        let name = if node.starts_with("spiffe:") {
            PeerName::Other(node.into())
        } else {
            PeerName::Member(member(node))
        };
        let address = "127.0.0.1:1".parse().expect("is one");
        request.extensions_mut().insert(Peer {
            address,
            name,
            not_after: None,
        });
    }
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().expect("ASCII");
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// A waypoint's name has slashes.
fn member(name: &str) -> Member {
    Waypoint::parse(name).map_or_else(|| Member::Node(name.into()), Member::Waypoint)
}

/// Join tokens are checked without waiting for anybody.
fn answer(
    service: &CertificateService,
    request: &Request<IstioCertificateRequest>,
) -> Result<(Grant, Vec<String>), Status> {
    let answer = service.answer(request).now_or_never();
    answer.expect("nothing is waited for")
}

#[test]
fn a_node_gets_itself_and_what_it_hosts() {
    let dir = tempfile::tempdir().expect("a directory");
    let service = service(dir.path(), 600);
    let later = SystemTime::now() + Duration::from_secs(60);
    let token = JoinKey::open(dir.path())
        .expect("a key")
        .issue(&member("n1"), later);
    let check = |identity, node, token, expect: Result<&str, tonic::Code>| {
        let got = answer(&service, &request(identity, node, token));
        assert_eq!(
            got.as_ref().map(|(g, _)| g.uri()).map_err(Status::code),
            expect.map(str::to_owned),
            "{identity:?} {node:?}: {got:?}"
        );
    };
    let (web, other) = (
        "spiffe://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/ns/bank/sa/web",
    );
    check(
        None,
        None,
        Some(&token),
        Ok("spiffe://cluster.local/warren/node/n1"),
    );
    check(
        None,
        Some("n2"),
        None,
        Ok("spiffe://cluster.local/warren/node/n2"),
    );
    check(None, Some("gone"), None, Err(tonic::Code::PermissionDenied));
    check(Some(web), Some("n1"), None, Ok(web));
    check(
        Some(web),
        Some("n2"),
        None,
        Err(tonic::Code::PermissionDenied),
    );
    check(
        Some(other),
        Some("n1"),
        None,
        Err(tonic::Code::PermissionDenied),
    );
    check(
        Some(web),
        None,
        Some(&token),
        Err(tonic::Code::PermissionDenied),
    );
    check(
        Some("spiffe://evil/ns/shop/sa/web"),
        Some("n1"),
        None,
        Err(tonic::Code::PermissionDenied),
    );
    check(
        Some("spiffe://cluster.local/warren/node/n2"),
        Some("n1"),
        None,
        Err(tonic::Code::InvalidArgument),
    );
    check(
        Some("spiffe://cluster.local/warren/controller"),
        Some("n1"),
        None,
        Err(tonic::Code::InvalidArgument),
    );
    check(
        Some("junk"),
        Some("n1"),
        None,
        Err(tonic::Code::InvalidArgument),
    );
    check(None, None, None, Err(tonic::Code::Unauthenticated));
    check(
        None,
        Some(web),
        Some(&token),
        Err(tonic::Code::PermissionDenied),
    );
    check(
        None,
        None,
        Some("warren1.e30.AAAA"),
        Err(tonic::Code::Unauthenticated),
    );
}

#[test]
fn a_waypoint_gets_itself_and_its_own_identity_while_its_pod_is_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let service = service(dir.path(), 600);
    let later = SystemTime::now() + Duration::from_secs(60);
    let key = JoinKey::open(dir.path()).expect("a key");
    let check = |identity, name: &str, with_token, expect: Result<&str, tonic::Code>| {
        let token = key.issue(&member(name), later);
        let request = match with_token {
            true => request(identity, None, Some(&token)),
            false => request(identity, Some(name), None),
        };
        let got = answer(&service, &request);
        assert_eq!(
            got.as_ref().map(|(g, _)| g.uri()).map_err(Status::code),
            expect.map(str::to_owned),
            "{identity:?} {name:?}: {got:?}"
        );
    };
    let refused = Err(tonic::Code::PermissionDenied);
    let name = "shop/waypoint/waypoint-1";
    let own = "spiffe://cluster.local/warren/waypoint/shop/waypoint/waypoint-1";
    let identity = "spiffe://cluster.local/ns/shop/sa/waypoint";
    check(None, name, true, Ok(own));
    check(None, name, false, Ok(own));
    check(Some(identity), name, false, Ok(identity));
    check(Some(identity), name, true, refused);
    for other in [
        "spiffe://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/ns/bank/sa/waypoint",
        "spiffe://evil/ns/shop/sa/waypoint",
    ] {
        check(Some(other), name, false, refused);
    }
    for nobody in ["shop/waypoint/web-1", "shop/web/waypoint-1"] {
        check(None, nobody, true, refused);
        check(Some(identity), nobody, false, refused);
    }
}

#[test]
fn a_node_that_asks_too_often_is_refused_and_others_are_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let service = service(dir.path(), 2);
    let ask = |node| {
        answer(&service, &request(None, Some(node), None))
            .map(drop)
            .map_err(|s| s.code())
    };
    assert_eq!((ask("n1"), ask("n1")), (Ok(()), Ok(())));
    assert_eq!(ask("n1"), Err(tonic::Code::ResourceExhausted));
    assert_eq!(ask("n2"), Ok(()));
}
