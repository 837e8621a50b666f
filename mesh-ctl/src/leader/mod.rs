//! Who of the replicas writes: the holder of the Lease `warren-controller`.
//!
//! Invariants: every replica serves nodes, only the leader writes to the API, but for Events of what nodes tell the
//! replica that they are connected to. A replica that could not renew counts itself out well before another may take
//! over. Whether another's lease has run out is told by how long it was seen unchanged here, never by comparing clocks.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

/// The Lease's name.
const NAME: &str = "warren-controller";
/// A lease that was not renewed for so long may be taken.
const LASTS: Duration = Duration::from_secs(15);
/// The leader counts itself out when it could not renew for so long.
const GIVEN_UP: Duration = Duration::from_secs(10);
/// How often the lease is renewed, or looked at; also how long the API server may take.
const LOOK: Duration = Duration::from_secs(3);

/// A replica that would lead.
pub struct Candidate {
    api: Api<Lease>,
    me: String,
    /// The lease's version as last seen, and since when it is that one.
    seen: Option<(String, Instant)>,
    renewed: Option<Instant>,
    leads: watch::Sender<bool>,
}

/// What is to be done about a lease.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    /// It is ours: renew it.
    Renew,
    /// Nobody holds it any more: take it.
    Take,
    /// Another holds it.
    Wait,
}

/// Decides about a lease that has been seen unchanged for so long.
fn decide(spec: &LeaseSpec, me: &str, unchanged: Duration) -> Act {
    match spec.holder_identity.as_deref() {
        Some(holder) if holder == me => Act::Renew,
        None | Some("") => Act::Take,
        Some(_) if unchanged > LASTS => Act::Take,
        Some(_) => Act::Wait,
    }
}

impl Candidate {
    /// A candidate under the name `me`, which no other replica has, in this namespace.
    pub fn new(client: Client, namespace: &str, me: String) -> (Self, watch::Receiver<bool>) {
        let (leads, told) = watch::channel(false);
        let candidate = Self {
            api: Api::namespaced(client, namespace),
            me,
            seen: None,
            renewed: None,
            leads,
        };
        (candidate, told)
    }

    /// Runs for the lease, for ever.
    pub async fn run(mut self) {
        loop {
            match timeout(LOOK, self.look()).await {
                Ok(Ok(true)) => self.renewed = Some(Instant::now()),
                Ok(Ok(false)) => self.renewed = None,
                Ok(Err(error)) => debug!(%error, "the lease could not be looked at"),
                Err(_) => debug!("the lease could not be looked at in time"),
            }
            let leads = self
                .renewed
                .is_some_and(|renewed| renewed.elapsed() < GIVEN_UP);
            self.leads.send_if_modified(|led| {
                let changed = *led != leads;
                match (changed, leads) {
                    (true, true) => {
                        info!(me = %self.me, "this replica leads: it writes statuses and roots")
                    }
                    (true, false) => warn!(me = %self.me, "this replica leads no longer"),
                    (false, _) => {}
                }
                *led = leads;
                changed
            });
            sleep(LOOK).await;
        }
    }

    /// Looks once; whether the lease is ours now.
    async fn look(&mut self) -> kube::Result<bool> {
        let Some(mut lease) = self.api.get_opt(NAME).await? else {
            let mut lease = Lease {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                ..Lease::default()
            };
            self.hold(&mut lease, true);
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            Some(_) | None => Instant::now(),
        };
        self.seen = Some((version, since));
        let spec = lease.spec.clone().unwrap_or_default();
        let take = match decide(&spec, &self.me, since.elapsed()) {
            Act::Wait => return Ok(false),
            Act::Take => true,
            Act::Renew => false,
        };
        self.hold(&mut lease, take);
        // The version that was read goes along: of two that take it at once, one is refused.
        won(self.api.replace(NAME, &PostParams::default(), &lease).await)
    }

    fn hold(&self, lease: &mut Lease, take: bool) {
        let now = MicroTime(Timestamp::now());
        let spec = lease.spec.get_or_insert_default();
        if take {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(-1).saturating_add(1));
        }
        spec.holder_identity = Some(self.me.clone());
        spec.lease_duration_seconds = i32::try_from(LASTS.as_secs()).ok();
        spec.renew_time = Some(now);
    }
}

/// A conflict means that another was faster.
fn won(written: kube::Result<Lease>) -> kube::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::ApiServer;

    const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";

    #[test]
    fn a_lease_is_taken_when_it_was_not_renewed_for_long() {
        let check = |holder: Option<&str>, unchanged, expect| {
            let spec = LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                ..LeaseSpec::default()
            };
            let got = decide(&spec, "a", Duration::from_secs(unchanged));
            assert_eq!(got, expect, "{holder:?} {unchanged}");
        };
        check(Some("a"), 100, Act::Renew);
        check(Some("b"), 0, Act::Wait);
        check(Some("b"), 15, Act::Wait);
        check(Some("b"), 16, Act::Take);
        check(Some(""), 0, Act::Take);
        check(None, 0, Act::Take);
    }

    #[tokio::test]
    async fn one_of_two_leads_and_the_other_follows_when_it_is_gone() {
        let (server, client) = ApiServer::start().await;
        server.serve("/apis/coordination.k8s.io/v1", "leases", "Lease");
        let candidate = |me: &str| Candidate::new(client.clone(), "warren-system", me.to_owned()).0;
        let (mut a, mut b) = (candidate("a"), candidate("b"));
        let (first, second) = tokio::join!(a.look(), b.look());
        let (first, second) = (first.expect("looks"), second.expect("looks"));
        assert!(first != second, "one of them leads");
        let (leader, other) = match first {
            true => (&mut a, &mut b),
            false => (&mut b, &mut a),
        };
        assert!(leader.look().await.expect("renews"));
        assert!(!other.look().await.expect("looks"));
        // As if nothing had changed for long enough.
        let (version, since) = other.seen.clone().expect("was seen");
        let long_ago = since
            .checked_sub(LASTS + LOOK)
            .expect("the machine is up that long");
        other.seen = Some((version, long_ago));
        assert!(other.look().await.expect("takes it"));
        assert!(!leader.look().await.expect("looks"));
        let lease = server.object(LEASES, "warren-system/warren-controller");
        let lease = lease.expect("there is one");
        assert_eq!(lease["spec"]["holderIdentity"], other.me.as_str());
        assert_eq!(lease["spec"]["leaseTransitions"], 1);
    }
}
