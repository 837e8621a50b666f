//! Sessions: requests that stay at the endpoint which answered the first of them, for as long as a rule says. What they need
//! to be known is in the value that the client brings, so that every proxy knows the same.
//!
//! Invariants: a value is a number that means an endpoint only while that is one, so that a client can choose among
//! endpoints that it may use anyway, and no others; one that cannot be read, or has no times where times count, is no
//! session; an answer never makes a session older or younger than it is.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, header::SET_COOKIE};

use super::{
    AffinityKey,
    affinity::{TOKEN, token},
};
use crate::{balance, name::WorkloadUid};

/// Hexadecimal digits of a time, in milliseconds since 1970.
const TIME: usize = 12;
/// How far another proxy's clock may be ahead. What is from a later time is no session, or it would never end.
const SKEW: Duration = Duration::from_secs(60);
/// How old the time of the last request may become in what a client has, or a tenth of the time that a session may be
/// unused where that is less: by so much a session may end early.
const GRAIN: Duration = Duration::from_secs(1);

/// What keeps requests of a session at the endpoint that answered the first one (Gateway API's `sessionPersistence`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The cookie or header that answers give and later requests bring. A cookie with a time to live outlives the
    /// client.
    pub key: AffinityKey,
    /// When it ends, after its first request.
    pub absolute: Option<Duration>,
    /// When it ends, after its last request.
    pub idle: Option<Duration>,
}

/// A session that a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The endpoint, as [`session_of`] names it.
    pub endpoint: u64,
    times: Option<Times>,
}

/// When a session was used, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    first: u64,
    last: u64,
}

/// What stands for an endpoint in sessions. Every proxy makes the same of it, and it says nothing of where the endpoint is.
pub fn session_of(endpoint: &WorkloadUid) -> u64 {
    balance::hash(endpoint.as_str().as_bytes())
}

impl Session {
    /// The session that a request says it belongs to, unless it is over by now.
    pub fn held(&self, headers: &HeaderMap, now: SystemTime) -> Option<Held> {
        let held = Held::read(self.key.brought(headers)?)?;
        self.goes_on(&held, now).then_some(held)
    }

    fn goes_on(&self, held: &Held, now: SystemTime) -> bool {
        if !self.is_timed() {
            return true;
        }
        let Some(Times { first, last }) = held.times else {
            return false;
        };
        let now = millis(now);
        let within = |since: u64, bound: Option<Duration>| {
            bound.is_none_or(|bound| now.saturating_sub(since) <= whole(bound))
        };
        first <= last
            && last <= now.saturating_add(whole(SKEW))
            && within(first, self.absolute)
            && within(last, self.idle)
    }

    /// The header of an answer after which requests belong to an endpoint's session, where what the client has does not
    /// say so already, or will not for long enough.
    pub fn given(
        &self,
        endpoint: &WorkloadUid,
        held: Option<Held>,
        now: SystemTime,
    ) -> Option<(HeaderName, HeaderValue)> {
        let endpoint = session_of(endpoint);
        let held = held.filter(|held| held.endpoint == endpoint);
        if held.is_some_and(|held| !self.is_stale(&held, now)) {
            return None;
        }
        let now = millis(now);
        let first = held.and_then(|held| held.times).map_or(now, |t| t.first);
        let times = Times {
            first,
            last: now.max(first),
        };
        let times = self.is_timed().then_some(times);
        let value = Held { endpoint, times }.text();
        let (name, value) = match &self.key {
            AffinityKey::Header(name) => (name.clone(), value),
            AffinityKey::Cookie { ttl, .. } => {
                // One that is given anew ends when the first one would have.
                let age = Duration::from_millis(now.saturating_sub(first));
                let left = ttl.map(|ttl| ttl.saturating_sub(age));
                (SET_COOKIE, self.key.cookie(&value, left)?)
            }
            AffinityKey::Source | AffinityKey::Query(_) => return None,
        };
        Some((name, HeaderValue::try_from(value).ok()?))
    }

    /// Whether the client should hear that its session was used.
    fn is_stale(&self, held: &Held, now: SystemTime) -> bool {
        let (Some(idle), Some(times)) = (self.idle, held.times) else {
            return false;
        };
        millis(now).saturating_sub(times.last) >= whole(GRAIN.min(idle / 10))
    }

    fn is_timed(&self) -> bool {
        self.absolute.is_some() || self.idle.is_some()
    }
}

impl Held {
    fn read(text: &[u8]) -> Option<Self> {
        let (endpoint, times) = text.split_at_checked(TOKEN)?;
        let times = match times.len() {
            0 => None,
            all if all == 2 * TIME => {
                let (first, last) = times.split_at(TIME);
                Some(Times {
                    first: number(first)?,
                    last: number(last)?,
                })
            }
            _ => return None,
        };
        Some(Self {
            endpoint: number(endpoint)?,
            times,
        })
    }

    fn text(&self) -> String {
        let mut text = token(self.endpoint);
        if let Some(Times { first, last }) = self.times {
            text.push_str(&format!("{first:0TIME$x}{last:0TIME$x}"));
        }
        text
    }
}

/// A number of hexadecimal digits alone.
fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    let all = text.bytes().all(|b| b.is_ascii_hexdigit());
    all.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// Milliseconds since 1970, as many as there are digits for.
fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    whole(since.unwrap_or_default()).min((1 << (4 * TIME)) - 1)
}

fn whole(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: f64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs_f64(1e6 + seconds)
    }

    fn session(absolute: u32, idle: u32) -> Session {
        let some = |seconds: u32| (seconds > 0).then(|| SECOND * seconds);
        Session {
            key: AffinityKey::Header("x-session".parse().expect("a name")),
            absolute: some(absolute),
            idle: some(idle),
        }
    }

    fn bringing(value: &str) -> HeaderMap {
        let value = value.parse().expect("a value");
        HeaderMap::from_iter([("x-session".parse().expect("a name"), value)])
    }

    fn given(session: &Session, held: Option<Held>, now: f64) -> Option<String> {
        let (_, value) = session.given(&"uid".into(), held, at(now))?;
        Some(value.to_str().expect("text").to_owned())
    }

    #[test]
    fn a_session_ends_when_its_times_say_so() {
        // A session's bounds; after how long its requests come; which of them still belong to it.
        let check = |(absolute, idle), asks: &[f64], expect: &[bool]| {
            let session = session(absolute, idle);
            let mut value = given(&session, None, 0.0).expect("a new one");
            for (ask, expect) in asks.iter().zip(expect) {
                let held = session.held(&bringing(&value), at(*ask));
                assert_eq!(
                    held.is_some(),
                    *expect,
                    "{absolute}, {idle} at {ask}: {value}"
                );
                if let Some(again) = given(&session, held, *ask) {
                    value = again;
                }
            }
        };
        check((0, 0), &[1.0, 1e6], &[true, true]);
        check((10, 0), &[1.0, 10.0, 10.1], &[true, true, false]);
        check(
            (0, 10),
            &[10.0, 20.0, 30.0, 40.1],
            &[true, true, true, false],
        );
        // What is used all the time ends all the same; then another one begins.
        check(
            (20, 10),
            &[9.0, 18.0, 21.0, 30.0],
            &[true, true, false, true],
        );
        check((10, 20), &[9.0, 11.0], &[true, false]);
    }

    #[test]
    fn it_is_given_anew_only_when_that_matters() {
        let check = |session: &Session, after: f64, expect: bool| {
            let value = given(session, None, 0.0).expect("a new one");
            let held = session.held(&bringing(&value), at(after));
            let again = given(session, Some(held.expect("it goes on")), after);
            assert_eq!(again.is_some(), expect, "{session:?} after {after}");
        };
        check(&session(0, 0), 100.0, false);
        check(&session(100, 0), 100.0, false);
        check(&session(0, 100), 0.9, false);
        check(&session(0, 100), 1.0, true);
        check(&session(0, 2), 0.1, false);
        check(&session(0, 2), 0.2, true);
        // Another endpoint's session begins anew.
        let timed = session(100, 0);
        let value = given(&timed, None, 0.0).expect("a new one");
        let held = timed.held(&bringing(&value), at(50.0)).expect("it goes on");
        let (_, other) = timed
            .given(&"other".into(), Some(held), at(50.0))
            .expect("a new one");
        let other = other.to_str().expect("text");
        let held = timed.held(&bringing(other), at(150.0));
        assert_eq!(held.map(|h| h.endpoint), Some(session_of(&"other".into())));
    }

    #[test]
    fn what_cannot_be_read_is_no_session() {
        let (plain, timed) = (session(0, 0), session(100, 100));
        let value = given(&timed, None, 0.0).expect("a new one");
        let endpoint = &value[..TOKEN];
        let check = |session: &Session, value: &str, expect: bool| {
            let held = session.held(&bringing(value), at(0.0));
            assert_eq!(held.is_some(), expect, "{session:?}: {value:?}");
        };
        check(&timed, &value, true);
        check(&plain, &value, true);
        check(&plain, endpoint, true);
        // Without times it would have no end.
        check(&timed, endpoint, false);
        for end in (0..value.len()).filter(|end| *end != TOKEN) {
            check(&plain, &value[..end], false);
            check(&timed, &value[..end], false);
        }
        let time = |seconds: f64| format!("{:0TIME$x}", millis(at(seconds)));
        check(
            &timed,
            &format!("{endpoint}{}{}", time(-1.0), time(0.0)),
            true,
        );
        check(
            &timed,
            &format!("{endpoint}{}{}", time(30.0), time(30.0)),
            true,
        );
        check(
            &timed,
            &format!("{endpoint}{}{}", time(61.0), time(61.0)),
            false,
        );
        check(
            &timed,
            &format!("{endpoint}{}{}", time(0.0), time(-1.0)),
            false,
        );
        check(
            &timed,
            &format!("{endpoint}+{}{}", &time(0.0)[1..], time(0.0)),
            false,
        );
        check(&timed, &format!("{value}0"), false);
        check(&plain, &"x".repeat(TOKEN), false);
        check(&plain, &format!("+{}", &endpoint[1..]), false);
    }

    #[test]
    fn a_cookie_that_outlives_its_client_ends_with_its_session() {
        let session = Session {
            key: AffinityKey::Cookie {
                name: "cart".into(),
                path: "/".into(),
                ttl: Some(SECOND * 100),
                attributes: Box::default(),
            },
            absolute: Some(SECOND * 100),
            idle: Some(SECOND * 50),
        };
        let first = given(&session, None, 0.0).expect("a new one");
        let (pair, rest) = first.split_once(';').expect("attributes");
        assert_eq!(rest, " Max-Age=100; Path=/; HttpOnly");
        let cookie = HeaderMap::from_iter([(http::header::COOKIE, pair.parse().expect("good"))]);
        let held = session.held(&cookie, at(30.5)).expect("it goes on");
        let again = given(&session, Some(held), 30.5).expect("it was used");
        assert!(again.ends_with("; Max-Age=70; Path=/; HttpOnly"), "{again}");
    }
}
