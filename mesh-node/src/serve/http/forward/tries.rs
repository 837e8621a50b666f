//! Try after try: which endpoint is next, what came of it, and whether there is another.
//!
//! Invariants: what was tried is avoided while there is something else; a body that is gone is not tried again; what
//! comes of each try is known to the cluster before the next one.

use std::time::SystemTime;

use http::{HeaderValue, Response};
use hyper::body::Incoming;
use mesh_model::{
    balance::Viewpoint,
    name::WorkloadUid,
    reason::Reason,
    resilience::{Affinity, Retries, retry::Outcome},
    route::http::Endpoint,
};
use tokio::time::{Instant, sleep};

use super::{Asking, Failed, Message, Way};
use crate::{
    exchange::{Counted, Kept, Key, Local, Opened, Over, Picked, Reply, Wish},
    observe::RequestGuard,
    serve::parties,
};

/// What follows a try.
enum Again<'r> {
    /// Its outcome is what the client gets.
    Unwanted,
    /// Another try, counted among the cluster's retries.
    Yes(&'r Retries, Counted),
    /// It was the last one of those that are wanted.
    Used,
    /// The destination's bound of retries is reached.
    Overflow,
    /// The body is not there any more.
    Gone,
}

impl Way {
    /// Tries until there is an answer to give.
    pub(super) async fn tries(
        self,
        message: &Message,
        asked: Asking<'_>,
        kept: &Kept,
        guard: &mut RequestGuard,
    ) -> Result<Response<Reply>, Local> {
        let Asking {
            query,
            session,
            rule,
            grpc,
            patience,
        } = asked;
        let under_way = self.cluster.requests.take(self.policy.pool.max_requests);
        let mut under_way = Some(under_way.ok_or(Local::OVERFLOW)?);
        let standard;
        let retries = match rule {
            Some(rule) => rule.retries.as_ref(),
            None => {
                standard = Retries::default_of_istio();
                Some(&standard)
            }
        };
        let each = retries.and_then(|r| r.per_try_timeout);
        let (mut tried, mut made) = (Vec::<WorkloadUid>::new(), None);
        let mut retrying: Option<Counted> = None;
        for attempt in 1.. {
            let wish = Wish {
                session: session.map(|held| held.endpoint),
                tried: match retries {
                    Some(retries) if retries.avoid_previous => &tried,
                    Some(_) | None => &[],
                },
                leave_hash: retries.is_some_and(|r| r.avoid_hashed),
                elsewhere: retries.is_some_and(|r| r.remote_localities),
                dialed: Some(self.session.carry.permitted.permit.subject().original),
            };
            let mut picked = self.pick(message, query, wish, &mut made)?;
            self.to(&picked.endpoint, guard);
            guard.record.attempts = attempt;
            let began = Instant::now();
            let body = kept.begin().ok_or(Local::TERMINATED)?;
            let told = grpc.then(|| patience.told(each)).flatten();
            let sent = self.send(message, &picked.endpoint, body, kept, (attempt, told));
            let (outcome, over) = tokio::select! {
                biased;
                outcome = sent => (outcome, None),
                over = patience.over(began, each) => (Err(Failed::Late), Some(over)),
            };
            self.learn(&picked.endpoint.workload.uid, &outcome);
            drop(retrying.take());
            if let Some(over) = over.and_then(ended) {
                return Err(over);
            }
            match self.again(retries, attempt, &outcome, kept) {
                Again::Unwanted => {}
                Again::Yes(retries, counted) => {
                    tried.push(picked.endpoint.workload.uid.clone());
                    retrying = Some(counted);
                    let pause = retries.pause(attempt, fastrand::u64(..));
                    let over = tokio::select! {
                        () = sleep(pause) => None,
                        over = patience.over(began, None) => ended(over),
                    };
                    if let Some(over) = over {
                        return Err(over);
                    }
                    continue;
                }
                Again::Used => guard.flag("URX"),
                Again::Overflow => guard.flag("UO"),
                Again::Gone => guard.detail("request_payload_exceeded_retry_buffer_limit"),
            }
            let response = outcome.map_err(|failed| {
                let told = failed.local();
                guard.record.failure = failed.why();
                told
            })?;
            guard.record.upstream = Some(began.elapsed());
            picked.taken.request = under_way.take();
            let sticky = rule.and_then(|r| r.session.as_ref());
            let endpoint = &picked.endpoint.workload.uid;
            let given = sticky.and_then(|s| s.given(endpoint, session, SystemTime::now()));
            let mut response = self.answered(message, response, picked, patience.rest(), began);
            if let Some((_, cookie)) = made {
                let headers = response.headers_mut();
                headers.append(http::header::SET_COOKIE, cookie);
            }
            if let Some((name, value)) = given {
                response.headers_mut().append(name, value);
            }
            return Ok(response);
        }
        Err(Local::TERMINATED)
    }

    /// Whether there is another try after this one.
    fn again<'r>(
        &self,
        retries: Option<&'r Retries>,
        attempt: u32,
        outcome: &Result<(Response<Incoming>, Opened, Key), Failed>,
        kept: &Kept,
    ) -> Again<'r> {
        let wanting = retries.filter(|r| r.attempts > 0 && wants(r, outcome));
        let Some(retries) = wanting else {
            return Again::Unwanted;
        };
        if attempt > retries.attempts {
            return Again::Used;
        }
        if !kept.is_there() {
            return Again::Gone;
        }
        match self.may_retry() {
            Some(counted) => Again::Yes(retries, counted),
            None => Again::Overflow,
        }
    }

    /// The endpoint for the next try; a cookie that is to be made is made once, with its hash.
    pub(super) fn pick(
        &self,
        message: &Message,
        query: Option<&str>,
        wish: Wish<'_>,
        made: &mut Option<(u64, HeaderValue)>,
    ) -> Result<Picked, Local> {
        let client = self.session.carry.client.ip();
        let made = std::cell::RefCell::new(made);
        let hash = |affinity: &Affinity| {
            let found = affinity.hash(&message.headers, query, client);
            found.or_else(|| {
                let mut made = made.borrow_mut();
                if made.is_none() {
                    let (hash, text) = affinity.new_cookie(fastrand::u64(..))?;
                    **made = Some((hash, HeaderValue::try_from(text).ok()?));
                }
                made.as_ref().map(|(hash, _)| *hash)
            })
        };
        let snapshot = &self.permitted.snapshot;
        let shared = &self.session.data.shared;
        let source = &self.permitted.permit.subject().source;
        let from = Viewpoint::of_waypoint(&snapshot.mesh, &shared.node, source);
        let view = (&snapshot.mesh, snapshot.generation, from);
        let now = Instant::now().into_std();
        let picked = match &self.pinned {
            Some(endpoint) => self.cluster.take(view, endpoint.clone(), now),
            None => self.cluster.pick(view, hash, wish, now),
        };
        picked.map_err(|reason| {
            tracing::debug!(cluster = %self.cluster.key, reason = reason.shown().key, "no endpoint");
            unpicked(reason)
        })
    }

    /// Says in the report where a try goes.
    fn to(&self, endpoint: &Endpoint, guard: &mut RequestGuard) {
        parties::chosen(&endpoint.candidate, &mut guard.flow);
    }

    /// One more retry, where the destination's bounds allow it.
    fn may_retry(&self) -> Option<Counted> {
        let most = self.policy.most_retries(self.cluster.requests.get());
        self.cluster.retries.take(most)
    }

    /// Tells the cluster what came of a try.
    fn learn(
        &self,
        who: &WorkloadUid,
        outcome: &Result<(Response<Incoming>, Opened, Key), Failed>,
    ) {
        let now = Instant::now().into_std();
        let out = match outcome {
            Ok((response, ..)) => self.cluster.answered(who, response.status().as_u16(), now),
            Err(Failed::Connect(_)) => self.cluster.unreached(who, now),
            Err(Failed::Refused | Failed::Broken { .. } | Failed::Late) => {
                self.cluster.failed(who, now)
            }
            // Neither says anything of the endpoint.
            Err(Failed::Overflow | Failed::Denied(_)) => false,
        };
        if out {
            tracing::info!(cluster = %self.cluster.key, workload = %who, "an endpoint failed too often and is left out for a while");
        }
    }
}

/// What the client is told when its request's time is over; nothing when only a try's is.
fn ended(over: Over) -> Option<Local> {
    match over {
        Over::Request => Some(Local::TIMEOUT),
        Over::Client => Some(Local::DEADLINE),
        Over::Try => None,
    }
}

/// What the client is told when there is no endpoint.
pub(super) fn unpicked(reason: Reason) -> Local {
    match reason {
        Reason::NoSuchPort | Reason::RouteInvalid => Local::NO_CLUSTER,
        _ => Local::UNHEALTHY,
    }
}

/// Whether a rule's retries want another try after this.
fn wants(retries: &Retries, outcome: &Result<(Response<Incoming>, Opened, Key), Failed>) -> bool {
    retries.on.wants(match outcome {
        Ok((response, ..)) => Outcome::Response {
            status: response.status().as_u16(),
            headers: response.headers(),
            grpc: response
                .headers()
                .get("grpc-status")
                .and_then(|v| v.to_str().ok()?.parse().ok()),
        },
        Err(Failed::Connect(_)) => Outcome::ConnectFailure,
        Err(Failed::Refused) => Outcome::RefusedStream,
        Err(Failed::Broken { sent }) => Outcome::Reset {
            request_sent: *sent,
        },
        Err(Failed::Late) => Outcome::TimedOut,
        Err(Failed::Overflow | Failed::Denied(_)) => return false,
    })
}
