//! What idle connections cost in user space, measured in a process of its own.

use mesh_node::{
    tunnel::{CutSignal, Meter, splice},
    wire::Limits,
};
use tokio::{net::TcpStream, task::spawn_local};

use crate::support::*;

#[test]
fn an_idle_connection_adds_less_than_half_a_kilobyte_to_its_socket() {
    let name = "cost::an_idle_connection_adds_less_than_half_a_kilobyte_to_its_socket";
    alone(name, async {
        let mut pairs = Vec::new();
        for _ in 0..11 {
            pairs.push(tunnels(Limits::client(), Limits::server()).await);
        }
        // The applications' ends are plain descriptors, which cost nothing in user space. First the floor: a
        // registered socket and a task that waits for it; then the same with a tunnel's stream behind it.
        let mut held: Vec<std::net::TcpStream> = Vec::with_capacity(8000);
        const EACH: usize = 90;
        const ENDS: usize = 10 * EACH * 2;
        for _ in 0..100 {
            idle(&mut held).await;
        }
        let before = resident();
        for _ in 0..ENDS {
            idle(&mut held).await;
        }
        let floor = resident().saturating_sub(before) / ENDS;
        let mut before = 0;
        for (i, (near, far)) in pairs.iter_mut().enumerate() {
            if i == 1 {
                // Everything that is made once is there after the first pair.
                before = resident();
            }
            for _ in 0..EACH {
                let (near, far) = stream(near, far).await;
                for end in [near, far] {
                    let (app, own) = sockets().await;
                    held.push(own.into_std().unwrap());
                    drop(spawn_local(splice(
                        app,
                        end,
                        &Meter::new(),
                        CutSignal::never(),
                    )));
                }
            }
        }
        let each = resident().saturating_sub(before) / ENDS;
        println!(
            "{each} bytes for one end of an idle connection, {floor} of them for its socket and its task"
        );
        assert!(
            each > floor && each - floor < 512,
            "{each} bytes, {floor} of them not ours"
        );
    });
}

/// A socket in a task that waits for it.
async fn idle(held: &mut Vec<std::net::TcpStream>) {
    let (app, own): (TcpStream, TcpStream) = sockets().await;
    held.push(own.into_std().unwrap());
    drop(spawn_local(async move { drop(app.readable().await) }));
}
