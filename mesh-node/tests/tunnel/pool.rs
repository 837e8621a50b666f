//! The pool shares tunnels as far as identity allows, makes each once, and lets go of them in time.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use mesh_node::{
    dial::pool::{Key, Pool, PoolError},
    tunnel::{ClientTunnel, OpenError, Stream, TunnelError, accept, connect},
    wire::{Headers, Limits},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_local,
};

use crate::support::*;

/// A server that accepts every stream of every tunnel, and counts tunnels.
struct Peer {
    address: SocketAddr,
    accepted: Rc<Cell<usize>>,
    trust: Rc<Trust>,
    streams: Rc<RefCell<Vec<Stream>>>,
    tasks: Rc<RefCell<Vec<tokio::task::JoinHandle<()>>>>,
}

impl Peer {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Self {
            address: listener.local_addr().unwrap(),
            accepted: Rc::default(),
            trust: Rc::new(trust()),
            streams: Rc::default(),
            tasks: Rc::default(),
        };
        let (accepted, trust) = (peer.accepted.clone(), peer.trust.clone());
        let (streams, tasks) = (peer.streams.clone(), peer.tasks.clone());
        spawn_local(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let mut tunnel = accept(tcp, trust.server.clone(), Limits::server())
                    .await
                    .unwrap();
                accepted.set(accepted.get() + 1);
                let streams = streams.clone();
                tasks.borrow_mut().push(spawn_local(async move {
                    while let Some(incoming) = tunnel.next().await {
                        let stream = incoming.accept(Headers::new());
                        streams.borrow_mut().push(stream);
                    }
                }));
            }
        });
        peer
    }

    async fn connect(
        address: SocketAddr,
        trust: Rc<Trust>,
        limits: Limits,
    ) -> Result<ClientTunnel, TunnelError> {
        let tcp = TcpStream::connect(address)
            .await
            .map_err(|e| TunnelError::Io(e.to_string()))?;
        connect(tcp, trust.client.clone(), limits).await
    }

    async fn open(
        &self,
        pool: &Pool<TunnelError>,
        key: Key,
    ) -> Result<Stream, PoolError<TunnelError>> {
        let make = || Self::connect(self.address, self.trust.clone(), Limits::client());
        pool.open(key, make, request("10.0.0.1:80")).await
    }

    fn key(&self, account: &str) -> Key {
        let id = |name: &str| {
            format!("spiffe://cluster.local/ns/shop/sa/{name}")
                .parse()
                .unwrap()
        };
        let accepted = [id("b"), id("a"), id("b")];
        Key::new(
            id(account),
            "10.0.0.9".parse().unwrap(),
            self.address,
            &accepted,
        )
    }
}

fn pool() -> Pool<TunnelError> {
    Pool::new(Duration::from_secs(5), Duration::from_secs(3600))
}

#[test]
fn flows_at_once_share_tunnels_up_to_the_limit_of_streams() {
    run(async {
        let (peer, pool) = (Rc::new(Peer::new().await), pool());
        let tasks: Vec<_> = (0..150)
            .map(|_| {
                let (peer, pool) = (peer.clone(), pool.clone());
                spawn_local(async move { peer.open(&pool, peer.key("web")).await.unwrap() })
            })
            .collect();
        let mut streams = Vec::new();
        for task in tasks {
            streams.push(task.await.unwrap());
        }
        assert_eq!(
            (peer.accepted.get(), pool.tunnels(), pool.streams()),
            (2, 2, 150)
        );
        drop(streams);
        let _again = peer.open(&pool, peer.key("web")).await.unwrap();
        assert_eq!((peer.accepted.get(), pool.streams()), (2, 1));
    });
}

#[test]
fn another_identity_never_shares_a_tunnel() {
    run(async {
        let (peer, pool) = (Peer::new().await, pool());
        let _web = peer.open(&pool, peer.key("web")).await.unwrap();
        let _other = peer.open(&pool, peer.key("other")).await.unwrap();
        let _same = peer.open(&pool, peer.key("web")).await.unwrap();
        assert_eq!((peer.accepted.get(), pool.streams()), (2, 3));
    });
}

#[test]
fn a_retired_tunnel_keeps_its_flows_and_takes_no_more() {
    run(async {
        let (peer, pool) = (Peer::new().await, pool());
        let old = peer.open(&pool, peer.key("web")).await.unwrap();
        let kept = peer.open(&pool, peer.key("other")).await.unwrap();
        pool.retire(|key| key.source.to_string().ends_with("/web"));
        assert_eq!(pool.tunnels(), 1);
        let new = peer.open(&pool, peer.key("web")).await.unwrap();
        assert_eq!(peer.accepted.get(), 3);
        assert_eq!(peer.streams.borrow().len(), 3);
        drop((old, kept, new));
    });
}

#[test]
fn a_tunnel_of_some_age_keeps_its_flows_and_takes_no_more() {
    run(async {
        let age = Duration::from_millis(300);
        let (peer, pool) = (Peer::new().await, Pool::new(Duration::from_secs(5), age));
        let old = peer.open(&pool, peer.key("web")).await.unwrap();
        let young = peer.open(&pool, peer.key("web")).await.unwrap();
        assert_eq!(peer.accepted.get(), 1);
        tokio::time::sleep(age).await;
        let new = peer.open(&pool, peer.key("web")).await.unwrap();
        assert_eq!(
            (peer.accepted.get(), pool.tunnels(), pool.streams()),
            (2, 1, 1)
        );
        assert_eq!(peer.streams.borrow().len(), 3);
        drop((old, young, new));
    });
}

#[test]
fn all_who_wait_learn_why_there_is_no_tunnel_and_the_next_tries_anew() {
    run(async {
        let peer = Rc::new(Peer::new().await);
        let pool = pool();
        let attempts = Rc::new(Cell::new(0));
        let nobody = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        for round in 1..=2 {
            let tasks: Vec<_> = (0..10)
                .map(|_| {
                    let (peer, pool, attempts) = (peer.clone(), pool.clone(), attempts.clone());
                    spawn_local(async move {
                        let make = || {
                            attempts.set(attempts.get() + 1);
                            Peer::connect(nobody, peer.trust.clone(), Limits::client())
                        };
                        pool.open(peer.key("web"), make, request("10.0.0.1:80"))
                            .await
                    })
                })
                .collect();
            for task in tasks {
                let result = task.await.unwrap();
                assert!(matches!(result, Err(PoolError::Connect(_))), "{result:?}");
            }
            assert_eq!(attempts.get(), round, "one attempt for all who wait");
        }
        assert_eq!(pool.tunnels(), 0);
    });
}

#[test]
fn a_tunnel_that_died_in_the_pool_is_replaced_once() {
    run(async {
        let (peer, pool) = (Peer::new().await, pool());
        let first = peer.open(&pool, peer.key("web")).await.unwrap();
        drop(first);
        // The peer vanishes without a word that this thread has seen yet.
        peer.tasks
            .borrow_mut()
            .drain(..)
            .for_each(|task| task.abort());
        peer.streams.borrow_mut().clear();
        let second = peer.open(&pool, peer.key("web")).await;
        second.unwrap();
        assert_eq!(peer.accepted.get(), 2);
    });
}

#[test]
fn an_idle_tunnel_leaves_the_pool() {
    run(async {
        let (peer, pool) = (Peer::new().await, pool());
        let limits = Limits {
            idle: Duration::from_millis(50),
            ..Limits::client()
        };
        let make = || Peer::connect(peer.address, peer.trust.clone(), limits.clone());
        let stream = pool
            .open(peer.key("web"), make, request("10.0.0.1:80"))
            .await
            .unwrap();
        assert_eq!(pool.tunnels(), 1);
        drop(stream);
        while pool.tunnels() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_connect_that_hangs_is_given_up() {
    run(async {
        let (peer, pool) = (
            Peer::new().await,
            Pool::<TunnelError>::new(Duration::from_millis(30), Duration::from_secs(3600)),
        );
        let result = pool
            .open(
                peer.key("web"),
                std::future::pending,
                request("10.0.0.1:80"),
            )
            .await;
        assert!(matches!(result, Err(PoolError::Timeout(_))), "{result:?}");
        let bad = pool
            .open(
                peer.key("web"),
                || Peer::connect(peer.address, peer.trust.clone(), Limits::client()),
                request("a b"),
            )
            .await;
        assert!(
            matches!(bad, Err(PoolError::Open(OpenError::BadRequest { .. }))),
            "{bad:?}"
        );
    });
}
