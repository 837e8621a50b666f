//! Endpoints of HTTP/2 that take no requests, and say so in each way there is, or say nothing.
//!
//! Invariant: what is asked of such an endpoint fails within the request's bound, and nothing of it is left behind.

use tokio::sync::Notify;

use super::{
    dialects::spoken_for,
    frames::{frame, settings},
    *,
};
use crate::wire::frame::{self as wire, setting};

/// An endpoint in the place of `v1`.
struct Endpoint {
    /// What it says on each of its connections, and is silent from then on; nothing of it while it behaves.
    says: Arc<Mutex<Option<Vec<u8>>>>,
    /// Ends all of its connections.
    restart: Arc<Notify>,
}

impl Endpoint {
    /// One that says it `at_once`, or when it is asked.
    async fn of(w: &World, at_once: bool) -> Self {
        let listener = spoken_for(w).await;
        let (says, restart) = (
            Arc::<Mutex<Option<Vec<u8>>>>::default(),
            Arc::<Notify>::default(),
        );
        let (told, ended) = (says.clone(), restart.clone());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let said = told.lock().expect("not poisoned").clone();
                let ended = ended.clone().notified_owned();
                tokio::spawn(async move {
                    let serving = async {
                        match said {
                            Some(said) => mean(tcp, &said, at_once).await,
                            None => behave(tcp).await,
                        }
                    };
                    tokio::select! { () = serving => {}, () = ended => {} }
                });
            }
        });
        Self { says, restart }
    }

    fn says(&self, said: Option<Vec<u8>>) {
        *self.says.lock().expect("not poisoned") = said;
    }
}

async fn behave(tcp: TcpStream) {
    let answer = |_| async { Response::builder().body(Full::<Bytes>::from("well")) };
    let builder = auto::Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection(TokioIo::new(tcp), service_fn(answer));
    let _ = serving.await;
}

async fn mean(mut tcp: TcpStream, said: &[u8], at_once: bool) {
    let mut all = Vec::new();
    if !at_once {
        let _ = tcp.write_all(&settings(&[])).await;
        while !is_asked(&all) && matches!(tcp.read_buf(&mut all).await, Ok(1..)) {}
    }
    let _ = tcp.write_all(said).await;
    while matches!(tcp.read_buf(&mut all).await, Ok(1..)) {}
}

/// Whether a client's frames have a request among them.
fn is_asked(all: &[u8]) -> bool {
    let mut rest = all.get(wire::PREFACE.len()..).unwrap_or_default();
    while let Some((head, more)) = rest.split_first_chunk() {
        let head = wire::Header::parse(head);
        if head.kind == wire::HEADERS {
            return true;
        }
        rest = more.get(head.len..).unwrap_or_default();
    }
    false
}

#[tokio::test]
async fn an_endpoint_that_takes_no_streams_harms_its_own_requests_only() {
    let goodbye = |code: u32| {
        let body = [0u32.to_be_bytes(), code.to_be_bytes()].concat();
        frame(wire::GOAWAY, 0, 0, &body)
    };
    let nothing = settings(&[]);
    let none = settings(&[(setting::MAX_CONCURRENT_STREAMS, 0)]);
    let one = settings(&[(setting::MAX_CONCURRENT_STREAMS, 1)]);
    for (net, at_once) in [("156", true), ("157", false)] {
        let w = world(net, AppProtocol::Http2).await;
        let endpoint = Endpoint::of(&w, at_once).await;
        let mut bounded = rule("/", to("v1"));
        bounded.timeout = Some(Duration::from_millis(500));
        w.routes(vec![rule("/beside", to("v2")), bounded]);
        let cluster = w.cluster(Some("v1"));
        for (name, says, is_goodbye) in [
            (
                "a goodbye, then none",
                [&nothing[..], &goodbye(0), &none].concat(),
                true,
            ),
            (
                "none, then a goodbye",
                [&none[..], &goodbye(0)].concat(),
                true,
            ),
            (
                "a goodbye for an error",
                [&nothing[..], &goodbye(2)].concat(),
                true,
            ),
            ("none", none.clone(), false),
            ("one that is not answered", one.clone(), false),
            ("nothing", Vec::new(), false),
        ] {
            endpoint.says(Some(says));
            let mut client = w.client2().await;
            let asking = (0..20).map(|_| {
                let mut client = client.clone();
                async move { ask2(&mut client, "/x").await.0.as_u16() }
            });
            let asking = futures_util::future::join_all(asking);
            let mut other = client.clone();
            let beside = ask2(&mut other, "/beside");
            let (statuses, beside) = tokio::join!(asking, beside);
            let failed = statuses.iter().all(|status| [503, 504].contains(status));
            assert!(failed, "{name}: {statuses:?}");
            assert_eq!(beside.2, "v2", "{name}");
            // Once the endpoint behaves, what comes next is answered; who said no goodbye has to end its connections.
            endpoint.says(None);
            if !is_goodbye {
                endpoint.restart.notify_waiters();
                until(|| cluster.connections.get() == 0).await;
            }
            let well = ask2(&mut client, "/x").await;
            let expect = (200, &b"well"[..]);
            assert_eq!((well.0.as_u16(), &well.2[..]), expect, "{name}");
            // Nothing of it is left for ever.
            endpoint.restart.notify_waiters();
            until(|| cluster.connections.get() == 0 && cluster.requests.get() == 0).await;
        }
        w.node.stop().await;
    }
}
