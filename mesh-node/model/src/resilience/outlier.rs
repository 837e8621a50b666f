//! Which endpoints are left out for a while because they failed.
//!
//! As Envoy's outlier detection by consecutive failures. Invariants: time is an argument and never goes back; at most
//! the allowed share of endpoints is ejected at a time, but always one may be; what is not a member is not remembered.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use super::Outlier;

/// The longest ejection, unless the first one already is longer (Envoy's `max_ejection_time`).
const LONGEST: Duration = Duration::from_secs(300);

/// What an endpoint did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It answered with this status.
    Status(u16),
    /// It did not answer: the connection failed, was reset or timed out.
    Local,
}

/// How the endpoints of a service do, from the view of one proxy.
#[derive(Clone, Debug)]
pub struct Ejections<K> {
    rules: Outlier,
    began: Instant,
    hosts: HashMap<K, Host>,
    /// How many endpoints there are, also those that never failed.
    members: usize,
}

#[derive(Clone, Debug, Default)]
struct Host {
    errors: u32,
    gateway: u32,
    local: u32,
    /// How often it was ejected, less one for each interval that it did well since.
    times: u32,
    /// Until when it is ejected, or was last.
    until: Option<Instant>,
}

impl<K: Eq + Hash + Clone> Ejections<K> {
    /// Nobody has failed yet, and there are no members.
    pub fn new(rules: Outlier, now: Instant) -> Self {
        Self {
            rules,
            began: now,
            hosts: HashMap::new(),
            members: 0,
        }
    }

    /// Changes the rules. Ejections that have begun end as they would have.
    pub fn set_rules(&mut self, rules: Outlier) {
        self.rules = rules;
    }

    /// Says who the endpoints are; the others are forgotten.
    pub fn set_members<'a>(&mut self, members: impl IntoIterator<Item = &'a K>)
    where
        K: 'a,
    {
        let mut kept = HashMap::new();
        self.members = 0;
        for member in members {
            self.members += 1;
            if let Some((key, host)) = self.hosts.remove_entry(member) {
                kept.insert(key, host);
            }
        }
        self.hosts = kept;
    }

    /// Whether a status counts as a failure.
    pub fn is_failure(&self, status: u16) -> bool {
        (500..600).contains(&status) || self.rules.statuses.contains(&status)
    }

    /// An endpoint answered; true when it is ejected for it.
    pub fn answered(&mut self, key: &K, status: u16, now: Instant) -> bool {
        if self.is_failure(status) {
            return self.failed(key, Failure::Status(status), now);
        }
        self.succeeded(key);
        false
    }

    /// An endpoint answered well: failures are counted anew.
    pub fn succeeded(&mut self, key: &K) {
        if let Some(host) = self.hosts.get_mut(key) {
            (host.errors, host.gateway, host.local) = (0, 0, 0);
        }
    }

    /// An endpoint failed; true when it is ejected for it.
    pub fn failed(&mut self, key: &K, what: Failure, now: Instant) -> bool {
        let rules = &self.rules;
        let host = self.hosts.entry(key.clone()).or_default();
        match what {
            Failure::Local if rules.split_local => host.local += 1,
            // Not told apart, a failure of our own is the 503 or 504 that the client gets.
            Failure::Local | Failure::Status(502..=504) => {
                host.errors += 1;
                host.gateway += 1;
            }
            Failure::Status(_) => {
                host.errors += 1;
                host.gateway = 0;
            }
        }
        if let Failure::Status(_) = what {
            // It answered, so that connections to it work.
            host.local = 0;
        }
        let reached = |count: u32, limit: u32| limit > 0 && count >= limit;
        let out = reached(host.errors, rules.consecutive_5xx)
            || reached(host.gateway, rules.consecutive_gateway)
            || (rules.split_local && reached(host.local, rules.consecutive_local));
        out && self.eject(key, now)
    }

    fn eject(&mut self, key: &K, now: Instant) -> bool {
        let already = self.hosts.get(key).is_some_and(|h| h.is_out(now));
        let ejected = self.ejected(now);
        let within = (ejected + 1) * 100 <= self.rules.max_ejected as usize * self.members;
        let healthy = self.members.saturating_sub(ejected) * 100;
        let enough = healthy >= self.rules.min_healthy as usize * self.members;
        if already || !(ejected == 0 || within) || !enough {
            return false;
        }
        let (began, interval) = (self.began, self.rules.interval);
        let base = self.rules.base_ejection;
        let Some(host) = self.hosts.get_mut(key) else {
            return false;
        };
        host.forgive(now, interval);
        host.times = host.times.saturating_add(1);
        let lasts = base.saturating_mul(host.times).min(LONGEST.max(base));
        host.until = Some(next_look(began, interval, now + lasts));
        (host.errors, host.gateway, host.local) = (0, 0, 0);
        true
    }

    /// Whether an endpoint is to be left out. Nobody is while too few are healthy (`min_healthy`).
    pub fn is_ejected(&self, key: &K, now: Instant) -> bool {
        self.hosts.get(key).is_some_and(|h| h.is_out(now)) && !self.is_suspended(now)
    }

    /// How many endpoints are ejected.
    pub fn ejected(&self, now: Instant) -> usize {
        self.hosts.values().filter(|h| h.is_out(now)).count()
    }

    /// Whether so few endpoints are healthy that all of them are used.
    pub fn is_suspended(&self, now: Instant) -> bool {
        let healthy = self.members.saturating_sub(self.ejected(now)) * 100;
        healthy < self.rules.min_healthy as usize * self.members
    }
}

impl Host {
    fn is_out(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Each interval since the last ejection ended makes the next one shorter again.
    fn forgive(&mut self, now: Instant, interval: Duration) {
        let Some(until) = self.until else { return };
        let well = now.saturating_duration_since(until).as_nanos();
        let intervals = well / interval.as_nanos().max(1);
        let intervals = u32::try_from(intervals).unwrap_or(u32::MAX);
        self.times = self.times.saturating_sub(intervals);
    }
}

/// The first look, one each interval, at or after a moment.
fn next_look(began: Instant, interval: Duration, at: Instant) -> Instant {
    let interval = interval.as_nanos();
    let since = at.saturating_duration_since(began).as_nanos();
    let over = since.checked_rem(interval).unwrap_or(0);
    if over == 0 {
        return at;
    }
    at + Duration::from_nanos(u64::try_from(interval - over).unwrap_or(u64::MAX))
}
