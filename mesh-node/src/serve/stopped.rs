//! Why a flow did not come about, how that is reported, and for how long it is worth remembering.

use std::time::Duration;

use mesh_model::{
    authz::Denial,
    mesh::Mesh,
    name::Namespace,
    reason::Reason,
    route::{Candidate, Via},
};

use crate::{
    dial::DialError,
    observe::{FlowGuard, Verdict},
};

/// How long a refusal that configuration decides makes further dials fail at once; it falls with the
/// destination's epoch before that.
const DECIDED_LASTS: Duration = Duration::from_secs(1);
/// The same for what only the far side showed. Its recovery shows in no configuration, so that this is the
/// longest that an application can be refused after it: no longer than anyone would notice.
const SEEN_LASTS: Duration = Duration::from_millis(200);

/// So many NetworkPolicies are named at most.
const NAMED: usize = 3;

/// Why a flow did not come about.
pub(super) enum Stopped {
    /// The model refused.
    Denied(Denial),
    /// Nothing could be reached.
    Failed(DialError),
    /// No connection came about, and these NetworkPolicies may be why.
    Unanswered(DialError, String),
    /// The client gave up first.
    Abandoned,
}

impl From<Denial> for Stopped {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl From<DialError> for Stopped {
    fn from(error: DialError) -> Self {
        Self::Failed(error)
    }
}

impl Stopped {
    /// A dial that failed; one to a tunnel that nobody answered, or that was refused on the way, names the NetworkPolicies
    /// that let the application's port through and not the tunnel's.
    pub(super) fn dialing(
        error: DialError,
        mesh: &Mesh,
        from: &Namespace,
        tried: Option<&Candidate>,
    ) -> Self {
        let tunnelled = tried.filter(|c| matches!(c.via, Via::Hbone { .. }));
        let to = tunnelled.and_then(|c| c.workload.as_ref());
        let (true, Some(to), Some(config)) = (error.is_unconnected(), to, mesh.config()) else {
            return Self::Failed(error);
        };
        let named: Vec<String> = config
            .blockers(from, &to.namespace)
            .take(NAMED)
            .map(|b| {
                let way = if b.ingress { "in" } else { "out" };
                format!(
                    "{}/{} (lets ports {way}, and not TCP 15008)",
                    b.namespace, b.name
                )
            })
            .collect();
        match named.is_empty() {
            true => Self::Failed(error),
            false => Self::Unanswered(error, format!("likely {}", named.join(", "))),
        }
    }

    /// The reason that the flow ends with.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Denied(denial) => denial.reason,
            Self::Failed(error) | Self::Unanswered(error, _) => error.reason(),
            Self::Abandoned => Reason::PeerReset,
        }
    }

    /// For how long the next dial would certainly fare no better; `None` when nothing can be said.
    pub(super) fn lasting(&self) -> Option<Duration> {
        match self {
            Self::Denied(_) => Some(DECIDED_LASTS),
            Self::Failed(error) | Self::Unanswered(error, _) => {
                error.is_of_the_far_side().then_some(SEEN_LASTS)
            }
            Self::Abandoned => None,
        }
    }

    /// Fills in the flow's report.
    pub(super) fn report(&self, report: &mut FlowGuard) {
        match self {
            Self::Denied(denial) => report.refuse(denial),
            Self::Failed(error) => {
                if error.reason() == Reason::PeerDenied {
                    report.record_mut().policy = Some(Verdict::Deny);
                }
                report.fail(error.reason(), error.to_string());
            }
            Self::Unanswered(error, policies) => {
                report.fail(error.reason(), format!("{error}; {policies}"));
            }
            Self::Abandoned => report.fail(
                Reason::PeerReset,
                "the client gave up before the connection was made",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use mesh_model::{
        mesh::{Change, TunnelBlocker},
        route::Authority,
        testing::cast,
    };

    use super::*;

    #[test]
    fn who_is_not_answered_is_told_of_the_policies_that_may_be_why() {
        let blocker = |namespace: &str, name: &str, ingress| TunnelBlocker {
            namespace: namespace.into(),
            name: name.into(),
            ingress,
        };
        let mut config = cast::config();
        config.tunnel_blockers = Box::new([
            blocker("bank", "only-out", false),
            blocker("shop", "only-80", true),
            blocker("shop", "only-out", false),
        ]);
        let (mesh, _) = Mesh::empty().apply([Change::Config(config)]);
        let hbone = Via::Hbone {
            tunnel: "10.1.0.2:15008".parse().expect("an address"),
            authority: Authority::Address("10.1.0.2:80".parse().expect("an address")),
            identities: Box::new([]),
        };
        let to = |via: &Via| Candidate {
            workload: Some(std::sync::Arc::new(cast::pod(
                "shop", "web", "n2", "10.1.0.2",
            ))),
            via: via.clone(),
        };
        let check = |error, from: &str, via: &Via, expect: Option<&str>| {
            let stopped = Stopped::dialing(error, &mesh, &from.into(), Some(&to(via)));
            match (stopped, expect) {
                (Stopped::Unanswered(error, said), Some(expect)) => {
                    assert!(error.is_unconnected());
                    assert_eq!(said.as_str(), expect);
                }
                (Stopped::Failed(_), None) => {}
                (other, expect) => panic!("{:?} where {expect:?} was expected", other.reason()),
            }
        };
        let only_80 = "likely shop/only-80 (lets ports in, and not TCP 15008)";
        check(DialError::Timeout, "free", &hbone, Some(only_80));
        let both = "likely bank/only-out (lets ports out, and not TCP 15008), shop/only-80 (lets ports in, and not TCP 15008)";
        check(DialError::Timeout, "bank", &hbone, Some(both));
        let refused = || DialError::Tcp(std::io::Error::from_raw_os_error(libc::ECONNREFUSED));
        check(refused(), "bank", &hbone, Some(both));
        check(
            DialError::Shared(Rc::new(refused())),
            "bank",
            &hbone,
            Some(both),
        );
        check(DialError::NoCertificate, "bank", &hbone, None);
        let plain = Via::Plain("10.1.0.2:80".parse().expect("an address"));
        check(DialError::Timeout, "bank", &plain, None);
    }
}
