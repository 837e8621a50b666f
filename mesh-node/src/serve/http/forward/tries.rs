//! Try after try: which endpoint is next, what came of it, and whether there is another.
//!
//! Invariants: what was tried is avoided while there is something else; a body that is gone is not tried again; what
//! comes of each try is known to the cluster before the next one.

use http::{HeaderValue, Response};
use hyper::body::Incoming;
use mesh_model::{
    name::WorkloadUid,
    reason::Reason,
    resilience::{Affinity, Retries, retry::Outcome},
    route::http::{Endpoint, Rule},
};
use tokio::time::{Instant, sleep, timeout_at};

use super::{FOREVER, Failed, Message, Way, viewpoint};
use crate::{
    exchange::{Counted, Kept, Key, Local, Opened, Picked, Reply},
    observe::RequestGuard,
    serve::parties,
};

impl Way {
    /// Tries until there is an answer to give.
    pub(super) async fn tries(
        self,
        message: &Message,
        query: Option<&str>,
        rule: Option<&Rule>,
        kept: &Kept,
        guard: &mut RequestGuard,
    ) -> Result<Response<Reply>, Local> {
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
        let now = Instant::now();
        let limit = rule.and_then(|r| r.timeout).map(|t| now + t);
        let (mut tried, mut cookie) = (Vec::new(), None);
        let mut retrying: Option<Counted> = None;
        for attempt in 1.. {
            let avoided: &[WorkloadUid] = match retries {
                Some(retries) if retries.avoid_previous => &tried,
                Some(_) | None => &[],
            };
            let mut picked = self.pick(message, query, avoided, &mut cookie)?;
            self.to(&picked.endpoint, guard);
            guard.record.attempts = attempt;
            let per_try = retries
                .and_then(|r| r.per_try_timeout)
                .map(|t| Instant::now() + t);
            let until = [per_try, limit].into_iter().flatten().min();
            let until = until.unwrap_or_else(|| Instant::now() + FOREVER);
            let began = Instant::now();
            let body = kept.begin().ok_or(Local::TERMINATED)?;
            let sent = self.send(message, &picked.endpoint, body, kept, attempt);
            let outcome = timeout_at(until, sent).await.unwrap_or(Err(Failed::Late));
            self.learn(&picked.endpoint.workload.uid, &outcome);
            if limit.is_some_and(|l| Instant::now() >= l) && outcome.is_err() {
                return Err(Local::TIMEOUT);
            }
            let again = retries.filter(|r| attempt <= r.attempts && wants(r, &outcome, kept));
            drop(retrying.take());
            if let Some(retries) = again
                && kept.begin().is_some()
                && let Some(counted) = self.may_retry()
            {
                tried.push(picked.endpoint.workload.uid.clone());
                retrying = Some(counted);
                let pause = retries.pause(attempt, fastrand::u64(..));
                let limit = limit.unwrap_or_else(|| Instant::now() + FOREVER);
                if timeout_at(limit, sleep(pause)).await.is_err() {
                    return Err(Local::TIMEOUT);
                }
                continue;
            }
            if again.is_some()
                || retries.is_some_and(|r| {
                    r.attempts > 0 && attempt > r.attempts && wants(r, &outcome, kept)
                })
            {
                guard.flag("URX");
            }
            let response = outcome.map_err(|failed| failed.local())?;
            guard.record.upstream = Some(began.elapsed());
            picked.taken.request = under_way.take();
            let mut response = self.answered(response, picked, limit, began);
            if let Some(cookie) = cookie {
                response
                    .headers_mut()
                    .append(http::header::SET_COOKIE, cookie);
            }
            return Ok(response);
        }
        Err(Local::TERMINATED)
    }

    /// The endpoint for the next try; a cookie that is to be made is made once.
    pub(super) fn pick(
        &self,
        message: &Message,
        query: Option<&str>,
        avoided: &[WorkloadUid],
        cookie: &mut Option<HeaderValue>,
    ) -> Result<Picked, Local> {
        let client = self.session.carry.client.ip();
        let made = std::cell::RefCell::new(None);
        let hash = |affinity: &Affinity| {
            let found = affinity.hash(&message.headers, query, client);
            found.or_else(|| {
                let (hash, text) = affinity.new_cookie(fastrand::u64(..))?;
                *made.borrow_mut() = HeaderValue::try_from(text).ok();
                Some(hash)
            })
        };
        let snapshot = &self.permitted.snapshot;
        let shared = &self.session.data.shared;
        let from = viewpoint(&shared.node, &self.permitted.permit.subject().source);
        let view = (&snapshot.mesh, snapshot.generation, from);
        let now = Instant::now().into_std();
        let picked = self.cluster.pick(view, hash, avoided, now);
        if cookie.is_none() {
            *cookie = made.into_inner();
        }
        picked.map_err(|reason| {
            tracing::debug!(cluster = %self.cluster.key, reason = reason.shown().key, "no endpoint");
            match reason {
                Reason::NoSuchPort => Local::NO_CLUSTER,
                Reason::RouteInvalid => Local::NO_CLUSTER,
                _ => Local::UNHEALTHY,
            }
        })
    }

    /// Says in the report where a try goes.
    fn to(&self, endpoint: &Endpoint, guard: &mut RequestGuard) {
        parties::chosen(&endpoint.candidate, &mut guard.flow);
    }

    /// One more retry, where the destination's bounds allow it.
    fn may_retry(&self) -> Option<Counted> {
        let by_budget = self.policy.retry_budget.map(|(share, least)| {
            let active = u64::from(self.cluster.requests.get()) * u64::from(share.parts());
            u32::try_from(active / 1_000_000)
                .unwrap_or(u32::MAX)
                .max(least)
        });
        let most = [by_budget, self.policy.pool.max_retries];
        self.cluster.retries.take(most.into_iter().flatten().min())
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
            Err(Failed::Connect | Failed::Broken | Failed::Late) => self.cluster.failed(who, now),
            // Neither says anything of the endpoint.
            Err(Failed::Overflow | Failed::Denied) => false,
        };
        if out {
            tracing::info!(cluster = %self.cluster.key, workload = %who, "an endpoint failed too often and is left out for a while");
        }
    }
}

/// Whether a rule's retries want another try after this.
fn wants(
    retries: &Retries,
    outcome: &Result<(Response<Incoming>, Opened, Key), Failed>,
    kept: &Kept,
) -> bool {
    retries.on.wants(match outcome {
        Ok((response, ..)) => Outcome::Response {
            status: response.status().as_u16(),
            headers: response.headers(),
            grpc: response
                .headers()
                .get("grpc-status")
                .and_then(|v| v.to_str().ok()?.parse().ok()),
        },
        Err(Failed::Connect) => Outcome::ConnectFailure,
        Err(Failed::Broken) => Outcome::Reset {
            request_sent: kept.begun(),
        },
        Err(Failed::Late) => Outcome::TimedOut,
        Err(Failed::Overflow | Failed::Denied) => return false,
    })
}
