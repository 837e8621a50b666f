//! What one flow of a tunnel does not do, or does too slowly, costs the others nothing.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mesh_node::wire::Limits;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
};

use crate::support::*;

/// What each of the others sends in a round.
const EACH: usize = 64 << 10;
/// What the slow flow wants to send: far more than its window and all socket buffers take.
const MUCH: usize = 96 << 20;

/// All paths send and receive at the same time.
async fn round(paths: &mut [Path]) -> Duration {
    let watch = Watch::start();
    let data = [7; EACH];
    let data = &data;
    join_all(paths.iter_mut().map(|path| async move {
        let mut got = vec![0; EACH];
        let sent = path.client.write_all(data);
        let (sent, received) = tokio::join!(sent, path.server.read_exact(&mut got));
        sent.unwrap();
        received.unwrap();
    }))
    .await;
    watch.elapsed()
}

/// Time without the time in which this thread was kept from running: on a machine that is busy with
/// something else it says the same.
struct Watch(Instant, Duration);

impl Watch {
    fn start() -> Self {
        Self(Instant::now(), Self::kept())
    }

    fn elapsed(&self) -> Duration {
        let kept = Self::kept() - self.1;
        self.0.elapsed().saturating_sub(kept)
    }

    /// How long the thread has waited for a core so far. Nothing where the kernel does not count it.
    fn kept() -> Duration {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let waited = stat.split_whitespace().nth(1).and_then(|n| n.parse().ok());
        Duration::from_nanos(waited.unwrap_or(0))
    }
}

#[test]
fn a_reader_that_stands_still_costs_99_others_nothing() {
    let name = "fair::a_reader_that_stands_still_costs_99_others_nothing";
    alone(name, async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let (calm_near, mut calm_far) = tunnels(Limits::client(), Limits::server()).await;
        let (mut others, mut calm) = (Vec::new(), Vec::new());
        for _ in 0..99 {
            others.push(path(&near, &mut far).await);
            calm.push(path(&calm_near, &mut calm_far).await);
        }
        // What is made once is there after the first rounds.
        for _ in 0..3 {
            round(&mut others).await;
            round(&mut calm).await;
        }
        let before = resident();
        let mut slow = path(&near, &mut far).await;
        let mut client = slow.client;
        let writer = spawn_local(async move {
            let data = [9; 64 << 10];
            for _ in 0..MUCH / data.len() {
                client.write_all(&data).await.unwrap();
            }
            client.shutdown().await.unwrap();
        });
        // It stands still when nothing of it moved in a whole round of the others.
        let mut moved = 0;
        while moved == 0 || moved != slow.near_meter.forward() {
            moved = slow.near_meter.forward();
            round(&mut others).await;
        }
        let grown = resident().saturating_sub(before);
        let window = Limits::server().stream_window as usize;
        println!("{moved} bytes under way, {grown} bytes more memory");
        assert!(grown < 3 * window, "{grown} bytes more");

        let mut best = [Duration::MAX; 2];
        for _ in 0..12 {
            best[0] = best[0].min(round(&mut calm).await);
            best[1] = best[1].min(round(&mut others).await);
        }
        println!(
            "best rounds: without it {:?}, with it {:?}",
            best[0], best[1]
        );
        assert!(best[1] <= best[0] * 10 / 9, "{best:?}");

        // Its reader begins only when another flow of the tunnel says so.
        let other = &mut others[0];
        other.client.write_all(b"go").await.unwrap();
        other.server.read_exact(&mut [0; 2]).await.unwrap();
        let (mut total, mut buf) = (0, vec![0; 256 << 10]);
        while let n @ 1.. = slow.server.read(&mut buf).await.unwrap() {
            total += n;
        }
        assert_eq!(total, MUCH);
        writer.await.unwrap();
    });
}

#[test]
fn readers_that_stand_still_cannot_use_up_the_window_of_all() {
    run(async {
        let (near, mut far) = tunnels(Limits::client(), Limits::server()).await;
        let mut others = vec![path(&near, &mut far).await];
        // Together their windows are larger than the connection's.
        let limits = Limits::server();
        let count = limits.connection_window / limits.stream_window + 2;
        let mut slow = Vec::new();
        for _ in 0..count {
            let mut path = path(&near, &mut far).await;
            let writer = spawn_local(async move {
                let data = vec![9; MUCH];
                let _ = path.client.write_all(&data).await;
            });
            slow.push((path.near_meter, path.server, writer));
        }
        let under_way = |slow: &[(mesh_node::tunnel::Meter, _, _)]| {
            slow.iter()
                .map(|(meter, _, _)| meter.forward())
                .sum::<u64>()
        };
        let mut moved = 0;
        while moved == 0 || moved != under_way(&slow) {
            moved = under_way(&slow);
            round(&mut others).await;
        }
        assert!(moved > u64::from(limits.connection_window), "{moved} bytes");
        for (_, _, writer) in slow {
            writer.abort();
        }
    });
}
