//! One container's life: started, probed, restarted, stopped with grace.
//!
//! Invariant: a sample program is looked at, never connected to, to learn that it listens; a declared probe is
//! made by the node's kubelet.

use std::{net::IpAddr, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use super::{
    enter::in_netns,
    kubelet,
    pod::{GLANCE, Happening, Life, stopped},
    podspec::{Action, Check, Container},
};

/// Keeps one container running.
pub(super) struct Keeper {
    pub(super) life: Life,
    pub(super) again: String,
    pub(super) ready: watch::Sender<bool>,
    pub(super) stop: watch::Receiver<bool>,
}

impl Keeper {
    /// Runs the container until it is to stop or stays ended; whether it succeeded.
    pub(super) async fn keep(mut self, container: Container) -> bool {
        let mut pause = Duration::from_millis(500);
        loop {
            let begun = Instant::now();
            let good = match self.life.start(&container) {
                Ok(Some(child)) => match self.attend(child, &container).await {
                    Some(good) => good,
                    None => return true,
                },
                Ok(None) => {
                    self.ready.send_replace(true);
                    stopped(&mut self.stop).await;
                    return true;
                }
                Err(e) => {
                    self.life.report(Happening::Note(format!("{e:#}"))).await;
                    false
                }
            };
            self.ready.send_replace(false);
            if self.again == "Never" || (self.again == "OnFailure" && good) {
                return good;
            }
            self.life.report(Happening::Restarted).await;
            if begun.elapsed() > Duration::from_secs(10) {
                pause = Duration::from_millis(500);
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = stopped(&mut self.stop) => return good,
            }
            pause = (pause * 2).min(Duration::from_secs(30));
        }
    }

    /// Watches a running program; `None` when it was told to stop, otherwise whether it succeeded.
    async fn attend(&mut self, mut child: Child, container: &Container) -> Option<bool> {
        let pid = child
            .id()
            .and_then(|p| i32::try_from(p).ok())
            .map(Pid::from_raw);
        let mut stop = self.stop.clone();
        tokio::select! {
            status = child.wait() => return Some(status.is_ok_and(|s| s.success())),
            () = self.probe(container) => {
                self.life.report(Happening::Note(format!("container {}: liveness probe failed; restarting", container.name))).await;
                let _ = child.kill().await;
                return Some(false);
            }
            () = stopped(&mut stop) => {}
        }
        self.ready.send_replace(false);
        if let Some(pid) = pid {
            // The child is not reaped yet, so the number is still its own.
            let _ = kill(pid, Signal::SIGTERM);
        }
        let grace = self.life.pod.value["spec"]["terminationGracePeriodSeconds"]
            .as_u64()
            .unwrap_or(30);
        if timeout(Duration::from_secs(grace), child.wait())
            .await
            .is_err()
        {
            let _ = child.kill().await;
        }
        None
    }

    /// Keeps readiness up to date; returns when the liveness probe has failed for good.
    async fn probe(&self, container: &Container) {
        let ready = async {
            match &container.readiness {
                Some(check) => {
                    self.watch(check, |good| {
                        self.ready.send_replace(good);
                    })
                    .await
                }
                None => {
                    self.listening(&container.sample_ports).await;
                    self.ready.send_replace(true);
                    std::future::pending::<()>().await;
                }
            }
        };
        let alive = async {
            match &container.liveness {
                Some(check) => {
                    let (told, mut dead) = watch::channel(true);
                    tokio::select! {
                        () = self.watch(check, |good| { told.send_replace(good); }) => {}
                        _ = async { sleep(check.delay + check.period).await; dead.wait_for(|good| !good).await.map(|_| ()) } => {}
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! { () = ready => {}, () = alive => {} }
    }

    async fn watch(&self, check: &Check, tell: impl Fn(bool)) {
        sleep(check.delay).await;
        let (mut failed, mut was_good) = (0, false);
        loop {
            let good = self.once(check).await;
            failed = if good { 0 } else { failed + 1 };
            if good || failed >= check.failures || !was_good {
                tell(good);
                was_good = good;
            }
            // Until the first success a pod is looked at more often, so that a lab starts quickly.
            sleep(if was_good {
                check.period
            } else {
                check.period.min(Duration::from_millis(200))
            })
            .await;
        }
    }

    async fn once(&self, check: &Check) -> bool {
        let (port, path, host) = match &check.action {
            Action::Http(port, path, host) => (*port, Some(path.clone()), host.clone()),
            Action::Tcp(port) => (*port, None, None),
            Action::Exec(program) => return self.run_inside(program, check.timeout).await,
        };
        let timeout_ms = u64::try_from(check.timeout.as_millis()).unwrap_or(u64::MAX);
        let probe = kubelet::Probe {
            ip: IpAddr::V4(self.life.pod.ips().0),
            port,
            path,
            host,
            timeout_ms,
        };
        kubelet::ask(
            &kubelet::socket(&self.life.place.node_run(&self.life.pod.node.name())),
            &probe,
        )
        .await
        .ok
    }

    async fn run_inside(&self, program: &[String], patience: Duration) -> bool {
        let surroundings = self.life.pod.surroundings(&self.life.place, "exec");
        let mut command = Command::from(surroundings.command(&self.life.programs.lab, program));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        matches!(timeout(patience, command.status()).await, Ok(Ok(status)) if status.success())
    }

    /// Waits until something listens on all these ports, by looking and not by connecting.
    async fn listening(&self, ports: &[u16]) {
        let netns = self.life.place.netns_path(&self.life.pod.netns());
        let mut missing = ports.to_vec();
        while !missing.is_empty() {
            let path = netns.clone();
            let open = spawn_blocking(move || in_netns(&path, || Ok(listening_ports()))).await;
            let open = open.ok().and_then(Result::ok).unwrap_or_default();
            missing.retain(|p| !open.contains(p));
            if !missing.is_empty() {
                sleep(GLANCE).await;
            }
        }
    }
}

/// TCP ports on which something listens in the calling thread's network namespace.
fn listening_ports() -> Vec<u16> {
    let tables = ["tcp", "tcp6"]
        .map(|t| std::fs::read_to_string(format!("/proc/thread-self/net/{t}")).unwrap_or_default());
    let lines = tables.iter().flat_map(|t| t.lines().skip(1));
    lines
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next()?, fields.nth(1)?);
            (state == "0A")
                .then(|| u16::from_str_radix(local.rsplit(':').next()?, 16).ok())
                .flatten()
        })
        .collect()
}
