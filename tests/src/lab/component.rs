//! The lab's long-running programs: controller, node proxies, resolver, kubelets. Started, restarted, replaced.
//!
//! Invariants: a program that ends without being told is started again; one that was stopped stays stopped;
//! during an upgrade the old process is left to drain by itself.

use std::{fs::OpenOptions, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};

use super::{cgroup, enter::Surroundings};

/// How to start a program.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What people call it: `controller`, `n1`, ...
    pub name: String,
    /// Where it runs.
    pub surroundings: Surroundings,
    /// The lab's program, which enters the surroundings.
    pub lab: PathBuf,
    /// The program with its arguments.
    pub program: Vec<String>,
    /// Its environment on top of the lab's.
    pub env: Vec<(String, String)>,
    /// Its log.
    pub log: PathBuf,
}

/// What can be done to a component.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// End it with grace; it stays ended.
    Stop,
    /// Start it when it does not run.
    Start,
    /// Stop, then start.
    Restart,
    /// Send a signal; it comes back when it dies of it.
    Signal(i32),
    /// Send a signal; it stays ended when it dies of it.
    SignalAndLeave(i32),
    /// Start a second process, which takes over; the first one drains and ends.
    Upgrade,
}

/// How a component is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Condition {
    /// The process that serves now.
    pub pid: Option<u32>,
    /// Processes that drain after an upgrade.
    pub draining: Vec<u32>,
    /// How often it was started.
    pub starts: u64,
    /// How the last process ended.
    pub last_end: String,
}

/// A running component.
#[derive(Debug)]
pub struct Component {
    orders: mpsc::Sender<(Order, oneshot::Sender<Result<()>>)>,
    /// How it is, kept up to date.
    pub condition: watch::Receiver<Condition>,
}

impl Component {
    /// Starts it.
    pub fn launch(recipe: Recipe) -> Self {
        let (orders, taken) = mpsc::channel(16);
        let (told, condition) = watch::channel(Condition::default());
        tokio::spawn(
            Keeper {
                recipe,
                told,
                current: None,
                old: Vec::new(),
                wanted: true,
                begun: Instant::now(),
                again_at: None,
            }
            .run(taken),
        );
        Self { orders, condition }
    }

    /// Gives an order; the result comes when it is carried out.
    pub fn order(&self, order: Order) -> impl Future<Output = Result<()>> + use<> {
        let orders = self.orders.clone();
        async move {
            let (reply, done) = oneshot::channel();
            orders
                .send((order, reply))
                .await
                .ok()
                .context("the component's keeper has ended")?;
            done.await.context("the component's keeper has ended")?
        }
    }
}

struct Keeper {
    recipe: Recipe,
    told: watch::Sender<Condition>,
    current: Option<Child>,
    old: Vec<Child>,
    wanted: bool,
    begun: Instant,
    again_at: Option<Instant>,
}

impl Keeper {
    async fn run(mut self, mut orders: mpsc::Receiver<(Order, oneshot::Sender<Result<()>>)>) {
        if let Err(e) = self.start() {
            self.told.send_modify(|c| c.last_end = format!("{e:#}"));
            eprintln!("{}: {e:#}", self.recipe.name);
        }
        loop {
            let again = self
                .again_at
                .unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            let (running, waits) = (self.current.is_some(), self.again_at.is_some());
            tokio::select! {
                order = orders.recv() => {
                    let Some((order, reply)) = order else { return };
                    let done = self.carry_out(order).await;
                    // Whoever asked may have gone meanwhile.
                    let _ = reply.send(done);
                }
                status = async { self.current.as_mut().expect("checked by the guard").wait().await }, if running => {
                    self.ended(&status.map_or_else(|e| e.to_string(), |s| s.to_string()));
                }
                index = first_end(&mut self.old), if !self.old.is_empty() => {
                    drop(self.old.swap_remove(index));
                    self.publish();
                }
                () = sleep_until(again), if waits => {
                    if let Err(e) = self.start() {
                        self.ended(&format!("{e:#}"));
                    }
                }
            }
        }
    }

    fn start(&mut self) -> Result<()> {
        self.again_at = None;
        if let Some(dir) = &self.recipe.surroundings.cgroup {
            cgroup::create(dir)?;
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.recipe.log)
            .with_context(|| format!("opening {}", self.recipe.log.display()))?;
        let mut command = Command::from(
            self.recipe
                .surroundings
                .command(&self.recipe.lab, &self.recipe.program),
        );
        command.envs(self.recipe.env.iter().map(|(k, v)| (k, v)));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.current = Some(
            command
                .spawn()
                .with_context(|| format!("starting {}", self.recipe.name))?,
        );
        self.begun = Instant::now();
        self.told.send_modify(|c| c.starts += 1);
        self.publish();
        Ok(())
    }

    fn ended(&mut self, how: &str) {
        eprintln!("{} ended: {how}", self.recipe.name);
        self.current = None;
        self.told.send_modify(|c| c.last_end = how.to_owned());
        if self.wanted {
            let lived = self.begun.elapsed();
            // A program that fails at once is not started in a tight loop.
            let pause = if lived < Duration::from_secs(2) {
                Duration::from_secs(1)
            } else {
                Duration::from_millis(100)
            };
            self.again_at = Some(Instant::now() + pause);
        }
        self.publish();
    }

    fn publish(&self) {
        let (pid, draining) = (
            self.current.as_ref().and_then(Child::id),
            self.old.iter().filter_map(Child::id).collect(),
        );
        self.told
            .send_modify(|c| (c.pid, c.draining) = (pid, draining));
    }

    async fn carry_out(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Start => {
                self.wanted = true;
                if self.current.is_none() {
                    self.start()
                } else {
                    Ok(())
                }
            }
            Order::Stop => self.stop().await,
            Order::Restart => {
                self.stop().await?;
                self.wanted = true;
                self.start()
            }
            Order::Signal(number) => self.signal(number),
            Order::SignalAndLeave(number) => {
                self.wanted = false;
                self.again_at = None;
                self.signal(number)?;
                if matches!(Signal::try_from(number), Ok(Signal::SIGKILL)) {
                    self.wait_end().await;
                }
                Ok(())
            }
            Order::Upgrade => {
                let Some(old) = self.current.take() else {
                    bail!("{} does not run: start it instead", self.recipe.name)
                };
                self.old.push(old);
                self.start()
            }
        }
    }

    fn signal(&mut self, number: i32) -> Result<()> {
        let signal =
            Signal::try_from(number).with_context(|| format!("{number} is not a signal"))?;
        let pid = self
            .current
            .as_ref()
            .and_then(Child::id)
            .with_context(|| format!("{} does not run", self.recipe.name))?;
        // The child is not reaped yet, so the number is still its own.
        kill(Pid::from_raw(i32::try_from(pid)?), signal)
            .with_context(|| format!("sending {signal} to {}", self.recipe.name))
    }

    async fn stop(&mut self) -> Result<()> {
        self.wanted = false;
        self.again_at = None;
        if self.current.is_some() {
            self.signal(Signal::SIGTERM as i32)?;
            self.wait_end().await;
        }
        Ok(())
    }

    async fn wait_end(&mut self) {
        let Some(mut child) = self.current.take() else {
            return;
        };
        let how = match timeout(Duration::from_secs(45), child.wait()).await {
            Ok(status) => status.map_or_else(|e| e.to_string(), |s| s.to_string()),
            Err(_) => {
                let _ = child.kill().await;
                "killed: it did not end within 45 s of SIGTERM".to_owned()
            }
        };
        self.ended(&how);
    }
}

async fn first_end(children: &mut [Child]) -> usize {
    let waits = children.iter_mut().map(|c| Box::pin(c.wait()));
    futures_util::future::select_all(waits).await.1
}
