//! Whether the process is ready, and what it waits for.
//!
//! Invariant: ready means that every part that was announced said so and none has died since.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::observe::ReadyCheck;

/// All parts whose readiness counts. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

#[derive(Clone, Debug)]
enum State {
    Ready,
    Waiting(String),
    Dead,
}

/// One part. Dropping it means that the part has died.
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    all: Readiness,
}

impl Readiness {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, State>> {
        self.parts
            .lock()
            .expect("no code panics while it holds the readiness")
    }

    /// Announces a part; until it says otherwise, it waits for `what`.
    pub fn part(&self, name: &'static str, what: &str) -> Part {
        self.lock().insert(name, State::Waiting(what.to_owned()));
        Part {
            name,
            all: self.clone(),
        }
    }

    /// Whether all are ready; if not, who waits for what.
    pub fn check(&self) -> Result<(), String> {
        let missing: Vec<String> = self
            .lock()
            .iter()
            .filter_map(|(name, state)| match state {
                State::Ready => None,
                State::Waiting(what) => Some(format!("{name} waits for {what}")),
                State::Dead => Some(format!("{name} has ended")),
            })
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(missing.join("; "))
        }
    }

    /// The same, for the HTTP server.
    pub fn as_check(&self) -> ReadyCheck {
        let all = self.clone();
        Arc::new(move || all.check())
    }
}

impl Part {
    /// The part is ready.
    pub fn ready(&self) {
        self.all.lock().insert(self.name, State::Ready);
    }

    /// The part waits for something.
    pub fn waits(&self, what: &str) {
        self.all
            .lock()
            .insert(self.name, State::Waiting(what.to_owned()));
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.all.lock().insert(self.name, State::Dead);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_all_are_and_none_has_died() {
        let all = Readiness::default();
        let (config, pods) = (
            all.part("configuration", "the controller"),
            all.part("pods", "what an earlier process left"),
        );
        assert_eq!(
            all.check().unwrap_err(),
            "configuration waits for the controller; pods waits for what an earlier process left"
        );
        config.ready();
        pods.ready();
        assert_eq!(all.check(), Ok(()));
        config.waits("a certificate");
        assert!((all.as_check())().unwrap_err().contains("a certificate"));
        config.ready();
        drop(pods);
        assert_eq!(all.check().unwrap_err(), "pods has ended");
    }
}
