//! Looks after `guard` and `anchor` on the node's interfaces, and tells when the direct path is withdrawn.
//!
//! Invariants: what was found is logged when it begins, counted each time, and shown until it is over; while
//! an interface stays open, direct flows are cut, because anybody there can speak in a pod's name.

use std::{
    collections::BTreeSet,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh_loader::{Finding, Looked};
use serde_json::{Value, json};
use tokio::{io::unix::AsyncFd, sync::watch};

use super::{Kernel, sys};
use crate::observe::{Metrics, ProgramLabel};

/// How often the interfaces are looked at, whatever is heard of them.
const EVERY: Duration = Duration::from_secs(1);

/// What is known about the interfaces. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Guards {
    seen: Arc<Mutex<Seen>>,
    open: Arc<watch::Sender<Option<Arc<str>>>>,
}

#[derive(Debug, Default)]
struct Seen {
    last: Looked,
    /// Why the last look failed, if it did.
    failure: Option<String>,
    said: BTreeSet<String>,
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            seen: Arc::default(),
            open: Arc::new(watch::Sender::new(None)),
        }
    }
}

impl Guards {
    /// Looks for ever.
    pub async fn run(self, kernel: Arc<dyn Kernel>, metrics: Metrics) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut news = news_of(&*kernel);
        loop {
            let look = tokio::select! {
                _ = every.tick() => true,
                told = told(news.as_ref()) => match told.and(self.hear(&kernel).await) {
                    Ok(look) => look,
                    Err(error) => {
                        tracing::error!(%error, "changes of interfaces are no longer heard of; a new one is guarded within a second");
                        news = None;
                        true
                    }
                },
            };
            if !look {
                continue;
            }
            let looking = kernel.clone();
            let looked = tokio::task::spawn_blocking(move || looking.look()).await;
            match looked {
                Ok(Ok(looked)) => self.found(looked, &metrics),
                Ok(Err(error)) => self.failed(error.to_string(), &metrics),
                Err(error) => self.failed(error.to_string(), &metrics),
            }
        }
    }

    /// Takes in news of interfaces; true: everything is to be looked at.
    async fn hear(&self, kernel: &Arc<dyn Kernel>) -> io::Result<bool> {
        let mut look = false;
        loop {
            let hearing = kernel.clone();
            let heard = tokio::task::spawn_blocking(move || hearing.hear()).await;
            let heard = heard.map_err(io::Error::other)??;
            heard.found.iter().for_each(anchored);
            look |= heard.look;
            if !heard.more {
                return Ok(look);
            }
        }
    }

    /// Hears that interfaces are open, each time they are looked at; `None` when all are guarded again.
    pub fn opened(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.open.subscribe()
    }

    /// For the configuration dump.
    pub fn describe(&self) -> Value {
        let seen = self.lock();
        let list = |findings: &[Finding]| findings.iter().map(line).collect::<Vec<_>>();
        json!({
            "direct": seen.failure.is_none() && seen.last.direct,
            "watched": seen.last.watched,
            "open": list(&seen.last.open),
            "failure": seen.failure,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen
            .lock()
            .expect("no code panics while it holds what was seen")
    }

    /// Takes in what a look found.
    pub fn found(&self, looked: Looked, metrics: &Metrics) {
        let node = metrics.node();
        node.direct_allowed.set(i64::from(looked.direct));
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        node.interfaces_watched.set(count(looked.watched));
        node.interfaces_open.set(count(looked.open.len()));
        for f in &looked.mended {
            let label = ProgramLabel { program: f.program };
            node.programs_restored.get_or_create(&label).inc();
            tracing::warn!(
                interface = f.name,
                ifindex = f.ifindex,
                program = f.program,
                why = f.why,
                "a program on an interface was not in its place and is back at the head of its chain"
            );
        }
        looked.found.iter().for_each(anchored);
        let mut seen = self.lock();
        let now: BTreeSet<String> = looked.open.iter().map(line).collect();
        for text in now.difference(&seen.said) {
            tracing::error!(
                interface = text,
                "an interface is not guarded; pods of this node are reached through tunnels only until it is"
            );
        }
        seen.said = now;
        if looked.was_direct != looked.direct {
            tell(looked.direct);
        }
        let open = reason(&looked);
        seen.last = looked;
        seen.failure = None;
        drop(seen);
        self.publish(open);
    }

    fn failed(&self, error: String, metrics: &Metrics) {
        metrics.node().direct_allowed.set(0);
        let mut seen = self.lock();
        if seen.failure.as_ref() != Some(&error) {
            tracing::error!(
                error,
                "the node's interfaces cannot be looked at; pods of this node are reached through tunnels only"
            );
        }
        seen.failure = Some(error);
    }

    fn publish(&self, open: Option<Arc<str>>) {
        // As long as something is open, whoever listens hears of it again and again.
        self.open.send_if_modified(|last| {
            let told = open.is_some() || last.is_some();
            *last = open;
            told
        });
    }
}

/// The descriptor that is readable when interfaces have changed, watched.
fn news_of(kernel: &dyn Kernel) -> Option<AsyncFd<OwnedFd>> {
    let watched = kernel
        .news_fd()
        .and_then(|fd| fd.map(sys::watch_input).transpose());
    watched.unwrap_or_else(|error| {
        tracing::error!(%error, "changes of interfaces cannot be heard of; a new one is guarded within a second");
        None
    })
}

/// Waits for news of interfaces; for ever when nobody tells.
async fn told(news: Option<&AsyncFd<OwnedFd>>) -> io::Result<()> {
    match news {
        // Whatever comes from here on wakes again.
        Some(news) => news.readable().await.map(|mut ready| ready.clear_ready()),
        None => std::future::pending().await,
    }
}

fn anchored(f: &Finding) {
    tracing::info!(
        interface = f.name,
        ifindex = f.ifindex,
        "a port of the pods' bridge that nobody registered is anchored"
    );
}

fn tell(direct: bool) {
    match direct {
        true => tracing::info!(
            "every interface is guarded: connections between pods of this node may go direct"
        ),
        false => tracing::warn!(
            "the direct path is withdrawn: connections between pods of this node go through tunnels"
        ),
    }
}

fn line(f: &Finding) -> String {
    format!("{} ({}): {}: {}", f.name, f.ifindex, f.program, f.why)
}

fn reason(looked: &Looked) -> Option<Arc<str>> {
    let first = looked.open.first()?;
    Some(format!("interface {} is not guarded ({})", first.name, first.why).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::kernel::Heard;

    fn finding(why: &str) -> Finding {
        Finding {
            ifindex: 7,
            name: "veth7".into(),
            program: "anchor",
            why: why.into(),
        }
    }

    #[test]
    fn what_is_open_is_shown_and_told_until_it_is_over() {
        let (guards, metrics) = (Guards::default(), Metrics::new());
        let mut heard = guards.opened();
        heard.mark_unchanged();
        let open = Looked {
            watched: 2,
            open: vec![finding("it was detached")],
            was_direct: true,
            ..Looked::default()
        };
        for _ in 0..2 {
            guards.found(open.clone(), &metrics);
            assert!(
                heard.has_changed().expect("the sender lives"),
                "told each time"
            );
            assert!(
                heard
                    .borrow_and_update()
                    .as_ref()
                    .is_some_and(|w| w.contains("veth7"))
            );
        }
        let text = metrics.text().expect("it encodes");
        assert!(
            text.contains("warren_interfaces_open 1") && text.contains("warren_direct_allowed 0"),
            "{text}"
        );
        assert_eq!(guards.describe()["direct"], json!(false));
        assert!(
            guards.describe()["open"][0]
                .as_str()
                .is_some_and(|l| l.contains("veth7"))
        );
        let mended = Looked {
            watched: 2,
            mended: vec![finding("it was detached")],
            ..Looked::default()
        };
        guards.found(mended, &metrics);
        assert!(heard.borrow_and_update().is_none());
        guards.found(
            Looked {
                watched: 2,
                direct: true,
                ..Looked::default()
            },
            &metrics,
        );
        assert!(
            !heard.has_changed().expect("the sender lives"),
            "nothing new"
        );
        let text = metrics.text().expect("it encodes");
        for line in [
            "warren_interfaces_open 0",
            "warren_direct_allowed 1",
            "warren_programs_restored_total{program=\"anchor\"} 1",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[tokio::test]
    async fn news_are_taken_in_at_once() {
        use std::io::Write;
        let kernel = Arc::new(crate::capture::FakeDatapath::default());
        let (mut tell, news) = std::os::unix::net::UnixStream::pair().expect("a pair");
        kernel.told().news = Some(news.into());
        let heard = |look: bool, more: bool| Heard {
            look,
            more,
            ..Heard::default()
        };
        let (guards, shared) = (Guards::default(), kernel.clone() as Arc<dyn Kernel>);
        let news = news_of(&*shared);
        let patience = Duration::from_millis(20);
        let silent = tokio::time::timeout(patience, told(news.as_ref())).await;
        assert!(silent.is_err(), "nobody has said anything");
        for (said, expect) in [
            (vec![heard(false, false)], false),
            (vec![heard(true, false)], true),
            (vec![heard(true, true), heard(false, false)], true),
            (vec![heard(false, true), heard(true, false)], true),
        ] {
            kernel.told().heard = said.into();
            tell.write_all(b"!").expect("it is read");
            let told = tokio::time::timeout(Duration::from_secs(5), told(news.as_ref()));
            told.await.expect("it is woken").expect("it is readable");
            assert_eq!(guards.hear(&shared).await.expect("it hears"), expect);
            assert!(kernel.told().heard.is_empty(), "something was left");
        }
        assert!(
            tokio::time::timeout(patience, super::told(None))
                .await
                .is_err(),
            "without a descriptor it waits"
        );
    }

    #[test]
    fn a_look_that_fails_withdraws_the_direct_path() {
        let (guards, metrics) = (Guards::default(), Metrics::new());
        guards.found(
            Looked {
                direct: true,
                ..Looked::default()
            },
            &metrics,
        );
        guards.failed("no".into(), &metrics);
        assert_eq!(guards.describe()["direct"], json!(false));
        assert!(
            metrics
                .text()
                .expect("it encodes")
                .contains("warren_direct_allowed 0")
        );
    }
}
