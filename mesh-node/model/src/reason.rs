//! One table of reasons: how each outcome of a flow shows in the kernel, on HBONE, in HTTP, in the
//! response flags of metrics, and in the access log.
//!
//! Invariant: every refusal in Warren names one of these; the table is exhaustive and exported to the docs.

/// An errno that `connect()` returns to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// ECONNREFUSED (111).
    Refused,
    /// EHOSTUNREACH (113).
    HostUnreachable,
}

/// How a reason is shown on each surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// What `connect()` returns when the kernel decides.
    pub errno: Errno,
    /// The status of a refused CONNECT on HBONE.
    pub hbone: u16,
    /// The status of a refused HTTP request.
    pub http: u16,
    /// `response_flags` in Istio's metrics.
    pub flag: &'static str,
    /// The value of `reason` in the access log and of the `reason` label in our own metrics.
    pub key: &'static str,
    /// What a person reads in the docs and in `mesh-ctl why`.
    pub text: &'static str,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $n:literal, $errno:ident, $hbone:literal, $http:literal, $flag:literal, $key:literal, $text:literal;)+) => {
        /// Why a flow was refused or ended early. The number is also used in the kernel's counters and events.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Reason { $($(#[$doc])* $name = $n,)+ }

        impl Reason {
            /// All reasons, in order.
            pub const ALL: &'static [Reason] = &[$(Reason::$name),+];

            /// How the reason is shown on each surface.
            pub const fn shown(self) -> Shown {
                match self {
                    $(Reason::$name => Shown { errno: Errno::$errno, hbone: $hbone, http: $http, flag: $flag, key: $key, text: $text },)+
                }
            }

            /// The reason with this number, if there is one.
            pub const fn from_number(n: u16) -> Option<Reason> {
                match n { $($n => Some(Reason::$name),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// A DENY policy matched.
    PolicyDenied = 1, Refused, 401, 403, "DENY", "policy_denied", "a DENY policy matched";
    /// ALLOW policies select the destination and none matched.
    NotAllowed = 2, Refused, 401, 403, "DENY", "policy_not_allowed", "ALLOW policies select the destination and none of them matched";
    /// STRICT demands mutual TLS and the peer used none.
    StrictRequired = 3, Refused, 401, 403, "DENY", "mtls_required", "the destination accepts mutual TLS only (STRICT)";
    /// A policy that applies could not be understood by this node.
    PolicyInvalid = 4, Refused, 401, 403, "DENY", "policy_invalid", "a policy that applies is invalid or needs a feature that this node does not have";
    /// Configuration that the decision needs has not arrived.
    NotReady = 5, HostUnreachable, 503, 503, "CONNECT", "config_not_ready", "configuration for the destination has not been received yet";
    /// No workload of the mesh has this address.
    UnknownWorkload = 6, Refused, 503, 503, "CONNECT", "unknown_workload", "the destination is not a workload of this node";
    /// The service has no endpoint that can take the connection.
    NoEndpoints = 7, Refused, 503, 503, "CONNECT", "no_endpoints", "the service has no healthy endpoint for this port";
    /// The service does not have this port.
    NoSuchPort = 8, Refused, 503, 503, "CONNECT", "no_such_port", "the service does not have this port";
    /// The authority of a CONNECT could not be used.
    BadAuthority = 9, Refused, 400, 400, "CONNECT", "bad_authority", "the CONNECT authority is malformed or belongs to another workload";
    /// A destination outside the mesh, which the mesh configuration forbids.
    OutsideMesh = 10, Refused, 503, 502, "DENY", "outside_mesh", "the destination is outside the mesh and outboundTrafficPolicy is REGISTRY_ONLY";
    /// The peer could not be reached in time.
    ConnectTimeout = 11, HostUnreachable, 503, 503, "CONNECT", "connect_timeout", "the peer did not answer in time; a NetworkPolicy that blocks port 15008 looks like this";
    /// The peer refused the TCP connection.
    ConnectRefused = 12, Refused, 503, 503, "CONNECT", "connect_refused", "the peer refused the connection";
    /// The peer's TLS handshake failed.
    TlsFailure = 13, Refused, 503, 503, "TLS_FAILURE", "tls_failure", "the TLS handshake with the peer failed";
    /// The peer proved another identity than was expected.
    IdentityMismatch = 14, Refused, 503, 503, "IDENTITY_ERROR", "identity_mismatch", "the peer proved another identity than the destination's";
    /// The peer refused the CONNECT.
    PeerDenied = 15, Refused, 401, 403, "DENY", "peer_denied", "the destination's node refused the connection by policy";
    /// The peer answered with something that is not HBONE.
    TunnelFailure = 16, Refused, 503, 503, "H2_HANDSHAKE_FAILURE", "tunnel_failure", "the tunnel to the peer failed or spoke something other than HBONE";
    /// No valid certificate for the source workload.
    NoCertificate = 17, Refused, 503, 503, "TLS_FAILURE", "no_certificate", "there is no valid certificate for the workload";
    /// A quota or a queue is full.
    Overloaded = 18, Refused, 503, 503, "CONNECT", "overloaded", "a limit is reached: quota, queue or memory";
    /// The proxy's heartbeat is stale.
    AgentStale = 19, HostUnreachable, 503, 503, "CONNECT", "agent_stale", "the node proxy is not answering";
    /// A captured connection without a recorded original destination.
    NoOriginalDestination = 20, Refused, 400, 400, "CONNECT", "no_original_destination", "a connection to the proxy's own port that was not captured";
    /// The connection would come back to the proxy itself.
    Loop = 21, Refused, 400, 508, "CONNECT", "loop", "the connection would come back to the proxy";
    /// The waypoint that guards the destination was gone around.
    WaypointRequired = 22, Refused, 401, 403, "DENY", "waypoint_required", "the destination is guarded by a waypoint and the connection did not come through it";
    /// The proxy is shutting down.
    Draining = 23, Refused, 503, 503, "CONNECT", "draining", "the proxy is shutting down";
    /// A live connection that policy no longer allows.
    PolicyChanged = 24, Refused, 401, 403, "DENY", "policy_changed", "a policy change ended the live connection";
    /// The peer reset the stream.
    PeerReset = 25, Refused, 503, 502, "-", "peer_reset", "the peer reset the connection";
    /// The workload is being removed.
    WorkloadGone = 26, Refused, 503, 503, "CONNECT", "workload_gone", "the workload was removed";
    /// A packet left an enrolled pod past the proxy.
    Bypass = 27, Refused, 401, 403, "DENY", "bypass", "traffic of an enrolled pod tried to leave without the mesh";
    /// A packet claimed an address that belongs to another pod.
    AddressClaimed = 28, Refused, 401, 403, "DENY", "address_claimed", "a packet claimed the address of an enrolled pod from another interface";
    /// TCP that cannot be parsed: fragments, or hidden behind extension headers.
    Unparsable = 29, Refused, 400, 400, "DENY", "unparsable", "TCP that cannot be parsed was dropped";
    /// No listener of the proxy was there to take an inbound connection.
    NoListener = 30, Refused, 503, 503, "CONNECT", "no_listener", "no listener of the node proxy in the pod";
    /// A failure inside the proxy.
    Internal = 31, Refused, 503, 500, "CONNECT", "internal", "the proxy failed";
    /// Everything that could take the connection is on another network, to which there is no way.
    OtherNetwork = 32, HostUnreachable, 503, 503, "CONNECT", "other_network", "the destination is on another network and no gateway to it is known";
    /// The destination is known by a host name only, which does not resolve.
    NameUnresolved = 33, Refused, 503, 503, "CONNECT", "name_unresolved", "the destination is known by its host name only, and the name could not be resolved";
    /// The pod carries traffic of others.
    ForwardsOthers = 34, Refused, 503, 503, "CONNECT", "forwards_others", "the pod forwards packets of others, whose connections the mesh does not see";
    /// What is to become of a service's requests could not be understood by this build.
    RouteInvalid = 35, Refused, 503, 500, "CONNECT", "route_invalid", "the routes or the destination rule of the service are invalid or need a feature that this build does not have";
    /// A peer speaks for another client without being a waypoint of the destination.
    NotWaypoint = 36, Refused, 401, 403, "DENY", "not_waypoint", "the peer speaks for another client and is no waypoint of the destination, as far as is known here";
    /// A connection that carried nothing for as long as its destination allows.
    IdleTimeout = 37, Refused, 503, 503, "-", "idle_timeout", "the connection carried nothing for its destination's idleTimeout and was closed";
    /// A connection that lived as long as its destination allows.
    MaxDuration = 38, Refused, 503, 503, "DT", "max_duration", "the connection lived for its destination's maxConnectionDuration and was closed";
    /// A connection is handed to a waypoint for a pod, by somebody who is not the pod's node.
    NotItsNode = 39, Refused, 401, 403, "DENY", "not_its_node", "a connection from outside the mesh is handed over for a pod by a peer that is not the node of it, or the pod is no endpoint of what was asked for";
    /// A service is reached through a waypoint that has nobody who could take the connection.
    WaypointGone = 40, Refused, 503, 503, "CONNECT", "waypoint_gone", "the waypoint that the destination names has no healthy replica: look at its Gateway and its pods";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_keys_are_unique_and_round_trip() {
        let mut keys = std::collections::BTreeSet::new();
        for &r in Reason::ALL {
            assert_eq!(Reason::from_number(r as u16), Some(r));
            assert!(keys.insert(r.shown().key), "{} twice", r.shown().key);
        }
        assert_eq!(Reason::from_number(0), None);
    }
}
