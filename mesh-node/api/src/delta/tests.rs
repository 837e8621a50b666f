//! Client against server: random interleavings, lost streams, partial lists, refusals.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use mesh_model::mesh::Change;

use super::*;
use crate::{
    any::Any,
    convert,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    resource::{COMPLETE, Kind, Resource, Update},
    sample, warren,
};

/// A client and a server with a wire between them that holds messages until they are delivered.
struct Pair {
    client: Client,
    server: Server,
    peer: Peer,
    up: VecDeque<DeltaDiscoveryRequest>,
    down: VecDeque<DeltaDiscoveryResponse>,
    held: BTreeMap<(Kind, String), Bytes>,
    sent: Vec<String>,
    completed: usize,
    refused: Vec<Rejection>,
}

const NODE: &str = "n1";

impl Pair {
    fn new(client: Client) -> Self {
        Self::of(client, peer())
    }

    fn of(client: Client, peer: Peer) -> Self {
        let mut pair = Self {
            client,
            server: Server::new(Peer::default()),
            peer,
            up: VecDeque::new(),
            down: VecDeque::new(),
            held: BTreeMap::new(),
            sent: Vec::new(),
            completed: 0,
            refused: Vec::new(),
        };
        pair.reconnect();
        pair
    }

    /// The stream breaks: what is under way is lost, and the server knows nothing any more.
    fn reconnect(&mut self) {
        self.up.clear();
        self.down.clear();
        self.server = Server::new(self.peer.clone());
        self.up.extend(self.client.connect());
    }

    fn deliver_up(&mut self) {
        if let Some(request) = self.up.pop_front()
            && let Some(Event::Refused(_, rejections)) =
                self.server.receive(request).expect("is legal")
        {
            self.refused.extend(rejections);
        }
    }

    fn produce(&mut self, view: &View) -> bool {
        let Some(response) = self.server.next(view).expect("is legal") else {
            return false;
        };
        self.sent.extend(
            response
                .resources
                .iter()
                .map(|r| r.name.clone())
                .filter(|n| n != COMPLETE),
        );
        self.down.push_back(response);
        true
    }

    fn deliver_down(&mut self) {
        let Some(response) = self.down.pop_front() else {
            return;
        };
        let received = self.client.receive(response).expect("is legal");
        for update in received.updates {
            match update {
                Update::Set(r) => self.held.insert((r.kind, r.name.to_string()), r.body),
                Update::Remove(kind, name) => self.held.remove(&(kind, name.to_string())),
            };
        }
        self.completed += received
            .changes
            .iter()
            .filter(|c| matches!(c, Change::Complete))
            .count();
        self.up.push_back(received.reply);
    }

    fn settle(&mut self, view: &View) {
        loop {
            while !self.up.is_empty() {
                self.deliver_up();
            }
            if !self.produce(view) && self.down.is_empty() {
                break;
            }
            self.deliver_down();
        }
        assert!(self.server.is_at(view));
    }

    #[track_caller]
    fn holds(&self, view: &View) {
        let node = |r: &Resource| r.node.as_deref().is_none_or(|n| n == NODE);
        let (everywhere, client) = (self.peer.everywhere, &self.client);
        let expect: BTreeMap<_, _> = view
            .iter()
            .filter(|r| client.kinds.contains_key(&r.kind) && (everywhere || node(r)))
            .map(|r| ((r.kind, r.name.to_string()), r.body.clone()))
            .collect();
        assert_eq!(
            self.held.keys().collect::<Vec<_>>(),
            expect.keys().collect::<Vec<_>>()
        );
        assert!(self.held == expect, "contents differ");
    }
}

fn peer() -> Peer {
    Peer {
        node: Some(NODE.into()),
        ours: true,
        everywhere: false,
    }
}

fn server() -> Server {
    Server::new(peer())
}

fn waypoint() -> (Client, Peer) {
    let peer = Peer {
        everywhere: true,
        ..peer()
    };
    (client().with_kinds(Kind::WAYPOINT), peer)
}

fn client() -> Client {
    Client::new("warren~n1", "Kubernetes")
}

/// Resources under few names, so that changes and removals hit.
fn resource(rng: &mut Rng, names: usize) -> Resource {
    let n = rng.usize(0..names);
    let host = |n: usize| format!("s{n}.shop.svc");
    let change = match rng.u8(0..5) {
        3 => {
            let mut r = sample::routes::routes(rng);
            r.service.hostname = host(n).as_str().into();
            r.service.namespace = "shop".into();
            Change::Routes(r)
        }
        4 => {
            let mut d = sample::routes::destination(rng);
            d.service.hostname = host(n).as_str().into();
            d.service.namespace = "shop".into();
            Change::Destination(d)
        }
        0 => {
            let mut w = sample::workload(rng);
            w.uid = sample::uid("shop", &format!("w{n}"));
            Change::Workload(w)
        }
        1 => Change::WorkloadExtra(
            sample::uid("shop", &format!("w{n}")),
            sample::workload_extra(rng),
        ),
        _ => {
            let mut p = sample::policy(rng);
            p.name.name = format!("p{n}").into();
            p.name.namespace = "shop".into();
            Change::Policy(p)
        }
    };
    let Update::Set(mut r) = convert::encode(&change).remove(0) else {
        panic!("is set")
    };
    if r.kind == Kind::Companion {
        r.node = Some(["n1", "n2"][rng.usize(0..2)].into());
    }
    r
}

fn churn(view: &View, rng: &mut Rng, names: usize) -> View {
    let updates: Vec<_> = (0..rng.usize(1..20))
        .map(|_| {
            let r = resource(rng, names);
            if rng.u8(0..3) == 0 {
                Update::Remove(r.kind, r.name)
            } else {
                Update::Set(r)
            }
        })
        .collect();
    view.apply(updates)
}

fn filled(rng: &mut Rng, names: usize) -> View {
    let all: Vec<_> = (0..names * 6)
        .map(|_| Update::Set(resource(rng, names)))
        .collect();
    View::default().apply(all)
}

#[test]
fn any_interleaving_ends_with_the_newest_view() {
    for seed in 0..300 {
        let mut rng = Rng::with_seed(seed);
        let mut view = filled(&mut rng, 40);
        let above = if rng.bool() { 0 } else { 10_000 };
        let (client, peer) = match seed % 4 {
            0 => waypoint(),
            _ => (client(), peer()),
        };
        let mut pair = Pair::of(client.digests_above(above), peer);
        for _ in 0..rng.usize(0..400) {
            match rng.u8(0..20) {
                0..=5 => pair.deliver_up(),
                6..=11 => pair.deliver_down(),
                12..=16 => drop(pair.produce(&view)),
                17..=18 => view = churn(&view, &mut rng, 40),
                _ => pair.reconnect(),
            }
        }
        pair.settle(&view);
        pair.holds(&view);
        assert_eq!(pair.completed, 1, "seed {seed}");
        assert!(pair.refused.is_empty(), "seed {seed}: {:?}", pair.refused);
    }
}

#[test]
fn each_role_gets_its_own_kinds_in_their_order() {
    let mut rng = Rng::with_seed(8);
    let view = filled(&mut rng, 200);
    let kinds = |client, peer| {
        let mut pair = Pair::of(client, peer);
        pair.settle(&view);
        pair.holds(&view);
        let mut kinds: Vec<Kind> = pair.held.keys().map(|(kind, _)| *kind).collect();
        kinds.dedup();
        kinds
    };
    assert_eq!(kinds(client(), peer()), Kind::NODE);
    let (as_waypoint, everywhere) = waypoint();
    assert_eq!(kinds(as_waypoint, everywhere), Kind::WAYPOINT);
    let of = |url: &str| DeltaDiscoveryResponse {
        type_url: url.into(),
        ..Default::default()
    };
    // What nobody asked for is no part of the stream, and from disk it says nothing.
    assert!(client().receive(of(Kind::Routes.url())).is_err());
    let routes = resource_of(&mut rng, Kind::Routes);
    let seeded = client().seed(routes.clone()).map(|d| d.changes);
    assert_eq!(seeded, Ok(Vec::new()));
    let (mut as_waypoint, _) = waypoint();
    assert_eq!(as_waypoint.seed(routes).map(|d| d.changes.len()), Ok(1));
    // Foreign peers have no use for what is ours.
    let mut foreign = Server::new(Peer::default());
    let unknown = foreign.receive(DeltaDiscoveryRequest {
        type_url: Kind::Routes.url().into(),
        ..Default::default()
    });
    assert_eq!(
        unknown,
        Ok(Some(Event::UnknownType(Kind::Routes.url().into())))
    );
}

/// A pod that is not served, for this reason.
fn outside(name: &str, reason: &str) -> Outside {
    Outside {
        uid: format!("Kubernetes//Pod/shop/{name}").as_str().into(),
        reason: reason.to_owned(),
        outcome: Outcome::LeftAlone,
    }
}

#[test]
fn what_a_node_does_not_serve_is_heard_whole_and_bounded() {
    let mut server = server();
    let mut hear = |pods: &[Outside]| match server.receive(tell_outside(pods)) {
        Ok(Some(Event::NotCaptured(heard))) => heard,
        other => panic!("{other:?}"),
    };
    for outcome in [
        Outcome::LeftAlone,
        Outcome::TriedAgain,
        Outcome::Refused,
        Outcome::Unknown,
    ] {
        let pod = Outside {
            outcome,
            ..outside("web", "it forwards")
        };
        assert_eq!(hear(std::slice::from_ref(&pod)), [pod]);
    }
    assert_eq!(hear(&[]), []);
    let long = outside("web", &"ä\n".repeat(1_000));
    let heard = hear(&vec![long; MAX_OUTSIDE + 1]);
    assert_eq!(heard.len(), MAX_OUTSIDE);
    assert!(heard[0].reason.len() <= 512 && heard[0].reason.starts_with("ä ä "));
    // Whoever sends may be of another build, and may be hostile.
    let pod = |n: usize, uid: &str| warren::NotCapturedPod {
        uid: format!("{uid}{n}"),
        reason: "no".repeat(1_000),
        outcome: 77,
    };
    let mut pods = vec![pod(0, &"x".repeat(2_000))];
    pods.extend((0..1_000).map(|n| pod(n, "p")));
    let mut request = tell_outside(&[]);
    let told = warren::NotCaptured { pods };
    let detail = |request: &mut DeltaDiscoveryRequest, with: Any| {
        request.error_detail.as_mut().expect("there").details = vec![with];
    };
    detail(&mut request, Any::pack(NOT_CAPTURED, &told));
    match server.receive(request.clone()).expect("is legal") {
        Some(Event::NotCaptured(heard)) => {
            assert_eq!((heard.len(), heard[0].uid.as_str()), (MAX_OUTSIDE, "p0"));
            assert_eq!(heard[0].outcome, Outcome::Unknown);
            assert_eq!(heard[0].reason.len(), 512);
        }
        other => panic!("{other:?}"),
    }
    let nonsense = Any {
        type_url: NOT_CAPTURED.to_owned(),
        value: Bytes::from_static(b"\xff\xff"),
    };
    detail(&mut request, nonsense);
    let skipped = Ok(Some(Event::UnknownType(NOT_CAPTURED.to_owned())));
    assert_eq!(server.receive(request), skipped);
    // Neither a waypoint nor somebody else's proxy is a node.
    for peer in [Peer::default(), waypoint().1] {
        let request = tell_outside(&[outside("web", "no")]);
        assert_eq!(Server::new(peer).receive(request), skipped);
    }
}

/// An earlier build, to which the type is as unknown as any other, goes on and says nothing of it.
#[test]
fn a_type_that_is_not_known_stops_no_stream() {
    let mut rng = Rng::with_seed(5);
    let view = filled(&mut rng, 300);
    let mut pair = Pair::new(client());
    for n in 0..100 {
        pair.up.insert(
            n % (pair.up.len() + 1),
            DeltaDiscoveryRequest {
                type_url: "type.googleapis.com/warren.v1.Later".to_owned(),
                ..tell_outside(&[outside("web", "no")])
            },
        );
    }
    pair.settle(&view);
    pair.holds(&view);
    assert_eq!(pair.refused, []);
}

fn resource_of(rng: &mut Rng, kind: Kind) -> Resource {
    loop {
        let r = resource(rng, 10);
        if r.kind == kind {
            return r;
        }
    }
}

#[test]
fn nothing_is_sent_again_when_nothing_changed() {
    for above in [0, 1_000_000] {
        let mut rng = Rng::with_seed(1);
        let view = filled(&mut rng, 3_000);
        let mut pair = Pair::new(client().digests_above(above));
        pair.settle(&view);
        pair.holds(&view);
        pair.sent.clear();
        pair.reconnect();
        assert!(
            above != 0
                || pair
                    .up
                    .iter()
                    .map(prost::Message::encoded_len)
                    .sum::<usize>()
                    < Kind::NODE.len() * 2_700,
            "the request is large"
        );
        pair.settle(&view);
        assert!(
            pair.client.is_complete() && pair.sent.is_empty(),
            "{} were sent again",
            pair.sent.len()
        );
        pair.reconnect();
        let mut drawn = std::iter::repeat_with(|| resource(&mut rng, 3_000));
        let of_nodes = drawn.find(|r| Kind::NODE.contains(&r.kind));
        let r = of_nodes.expect("one that nodes get");
        let changed = view.apply([Update::Set(Resource {
            node: None,
            ..r.clone()
        })]);
        pair.settle(&changed);
        pair.holds(&changed);
        assert!(
            pair.sent.contains(&r.name.to_string()) && pair.sent.len() < 100,
            "{} sent",
            pair.sent.len()
        );
    }
}

#[test]
fn nothing_is_removed_before_the_list_is_complete() {
    for above in [0, 1_000_000] {
        let mut rng = Rng::with_seed(4);
        let view = filled(&mut rng, 3_000);
        let mut pair = Pair::new(client().digests_above(above));
        pair.settle(&view);
        let before = pair.held.len();
        // A controller that restarted and knows only a part says so, and is lost before it has said everything.
        let part = View::default().apply(
            view.iter()
                .take(2_500)
                .map(|r| Update::Set(Resource::clone(r))),
        );
        pair.reconnect();
        while !pair.up.is_empty() {
            pair.deliver_up();
        }
        let mut removals = 0;
        while let Some(mut response) = pair.server.next(&part).expect("is legal") {
            removals += response.removed_resources.len() + response.warren_replaced_shards.len();
            response.resources.retain(|r| r.name != COMPLETE);
            let reply = pair.client.receive(response).expect("is legal");
            assert!(
                reply.updates.iter().all(|u| matches!(u, Update::Set(_))),
                "removed before the end"
            );
            pair.server.receive(reply.reply).expect("is legal");
        }
        assert!(removals > 0, "the test announces no removal");
        pair.reconnect();
        pair.settle(&view);
        assert_eq!(pair.held.len(), before);
        pair.holds(&view);
        pair.reconnect();
        pair.settle(&part);
        pair.holds(&part);
    }
}

#[test]
fn a_bad_resource_is_refused_alone_and_not_sent_again_until_it_changes() {
    let mut rng = Rng::with_seed(9);
    let good = filled(&mut rng, 20);
    let bad = Resource::new(Kind::Address, "Kubernetes//Pod/shop/bad", vec![0xff, 0xff]);
    let view = good.apply([Update::Set(bad.clone())]);
    let mut pair = Pair::new(client());
    pair.settle(&view);
    pair.holds(&good);
    assert_eq!(
        pair.refused.iter().map(|r| &*r.name).collect::<Vec<_>>(),
        ["Kubernetes//Pod/shop/bad"]
    );
    assert!(
        pair.refused[0].message.contains("decoded"),
        "{:?}",
        pair.refused
    );
    assert_eq!(
        pair.completed, 1,
        "one bad resource kept the rest from being complete"
    );
    pair.sent.clear();
    let more = churn(&view, &mut rng, 20);
    pair.settle(&more);
    assert!(!pair.sent.contains(&bad.name.to_string()));
    let mut w = sample::workload(&mut rng);
    w.uid = "Kubernetes//Pod/shop/bad".into();
    let healed = more.apply(convert::encode(&Change::Workload(w)));
    pair.settle(&healed);
    pair.holds(&healed);
}

#[test]
fn a_refusal_without_detail_names_all_of_its_message() {
    let mut rng = Rng::with_seed(2);
    let view = filled(&mut rng, 3);
    let mut foreign = Server::new(Peer {
        node: None,
        ours: false,
        everywhere: false,
    });
    let ask = |url: &str| DeltaDiscoveryRequest {
        type_url: url.into(),
        ..Default::default()
    };
    assert!(
        matches!(
            foreign.receive(ask(Kind::Companion.url())),
            Ok(Some(Event::UnknownType(_)))
        ),
        "companions are ours alone"
    );
    foreign
        .receive(ask(Kind::Authorization.url()))
        .expect("is legal");
    let response = foreign
        .next(&view)
        .expect("is legal")
        .expect("there are policies");
    assert!(
        response.resources.iter().all(|r| r.name != COMPLETE),
        "a foreign peer got a marker"
    );
    let refusal = DeltaDiscoveryRequest {
        response_nonce: response.nonce,
        error_detail: Some(crate::discovery::Status {
            code: 13,
            message: "no".into(),
            details: vec![],
        }),
        ..ask(Kind::Authorization.url())
    };
    match foreign.receive(refusal).expect("is legal") {
        Some(Event::Refused(Kind::Authorization, names)) => {
            assert_eq!(names.len(), response.resources.len())
        }
        other => panic!("{other:?}"),
    }
    assert!(
        foreign.next(&view).expect("is legal").is_none(),
        "a refused resource was sent again"
    );
}

#[test]
fn a_subscriber_that_never_answers_gets_a_bounded_number_of_messages() {
    let mut rng = Rng::with_seed(2);
    let mut view = filled(&mut rng, 3_000);
    let mut slow = server();
    for request in client().connect() {
        slow.receive(request).expect("is legal");
    }
    let mut messages = 0;
    for _ in 0..1_000 {
        view = churn(&view, &mut rng, 3_000);
        messages += usize::from(slow.next(&view).expect("is legal").is_some());
    }
    assert!(messages <= 8, "{messages} messages");
    let ask = || DeltaDiscoveryRequest {
        type_url: Kind::Address.url().into(),
        resource_names_subscribe: vec!["a/b".into()],
        ..Default::default()
    };
    assert!(
        (0..100).any(|_| slow.receive(ask()).is_err()),
        "requests pile up without end"
    );
}

#[test]
fn names_are_answered_on_demand_and_kept_up_to_date() {
    let mut rng = Rng::with_seed(6);
    let mut w = sample::workload(&mut rng);
    w.addresses = ["10.0.0.9".parse().expect("is one")].into();
    w.network = "".into();
    let name = w.uid.to_string();
    let mut view = filled(&mut rng, 20).apply(convert::encode(&Change::Workload(w.clone())));
    let mut pair = Pair::new(client().on_demand());
    pair.settle(&view);
    assert_eq!(pair.client.held_count(Kind::Address), 0);
    assert!(pair.client.held_count(Kind::Authorization) > 0 && pair.client.is_complete());
    let ask = pair
        .client
        .subscribe(
            Kind::Address,
            ["/10.0.0.9".to_owned(), "/10.9.9.9".to_owned()],
        )
        .expect("is new");
    assert!(
        pair.client
            .subscribe(Kind::Address, ["/10.0.0.9".to_owned()])
            .is_none(),
        "asked twice"
    );
    pair.up.push_back(ask);
    pair.settle(&view);
    assert!(
        pair.held.contains_key(&(Kind::Address, name.clone())),
        "the alias was not resolved"
    );
    assert_eq!(pair.client.held_count(Kind::Address), 1);
    pair.sent.clear();
    pair.reconnect();
    pair.settle(&view);
    assert!(pair.sent.is_empty(), "{:?} sent again", pair.sent);
    w.healthy = !w.healthy;
    view = view.apply(convert::encode(&Change::Workload(w.clone())));
    pair.settle(&view);
    assert_eq!(pair.sent, std::slice::from_ref(&name));
    view = view.apply(convert::encode(&Change::RemoveWorkload(w.uid)));
    pair.settle(&view);
    assert!(!pair.held.contains_key(&(Kind::Address, name)));
    let mut late = sample::workload(&mut rng);
    late.addresses = ["10.9.9.9".parse().expect("is one")].into();
    late.network = "".into();
    view = view.apply(convert::encode(&Change::Workload(late.clone())));
    pair.settle(&view);
    assert!(
        pair.held
            .contains_key(&(Kind::Address, late.uid.to_string())),
        "a name asked for earlier came into being"
    );
}

#[test]
fn a_pass_never_mixes_two_views() {
    let mut rng = Rng::with_seed(8);
    let w = sample::workload(&mut rng);
    let extra = Change::WorkloadExtra(w.uid.clone(), sample::workload_extra(&mut rng));
    let both = View::default().apply(
        [
            convert::encode(&Change::Workload(w.clone())),
            convert::encode(&extra),
        ]
        .concat(),
    );
    let neither = both.apply(convert::encode(&Change::RemoveWorkload(w.uid.clone())));
    let mut pair = Pair::new(client());
    pair.settle(&both);
    // Gone and back while the removal is being sent: both parts must arrive again.
    assert!(pair.produce(&neither));
    pair.settle(&both);
    pair.holds(&both);
    let again: Vec<_> = pair
        .sent
        .iter()
        .filter(|n| n.ends_with(w.uid.as_str()))
        .collect();
    assert_eq!(again.len(), 4, "{again:?}");
}

#[test]
fn an_invalid_policy_of_the_root_namespace_governs_the_mesh() {
    use mesh_model::mesh::PolicyScope;
    let mut config = sample::config(&mut Rng::with_seed(1));
    config.root_namespace = "root".into();
    let mut client = client();
    let Update::Set(mesh) = convert::encode(&Change::Config(config)).remove(0) else {
        panic!("is set")
    };
    let scope = |client: &mut Client, name: &str| {
        let garbage = Resource::new(Kind::Authorization, name, vec![0xff]);
        match &client.seed(garbage).expect("is a policy").changes[..] {
            [Change::Policy(p)] => p.scope,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        scope(&mut client, "shop/p"),
        PolicyScope::Global,
        "the root namespace is not known yet"
    );
    client.seed(mesh).expect("is good");
    assert_eq!(scope(&mut client, "shop/p"), PolicyScope::Namespace);
    assert_eq!(scope(&mut client, "root/p"), PolicyScope::Global);
}
