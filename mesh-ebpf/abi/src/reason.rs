//! The reasons that the kernel can give. The numbers are those of `mesh_model::reason::Reason`, which
//! explains them; a test of the loader compares the two.

macro_rules! reasons { ($($name:ident = $n:literal, $key:literal;)*) => {
    $(#[doc = $key] pub const $name: u16 = $n;)*
    /// Number and key of each reason.
    pub const ALL: &[(u16, &str)] = &[$(($n, $key)),*];
} }

reasons! {
    POLICY_DENIED = 1, "policy_denied";
    NOT_ALLOWED = 2, "policy_not_allowed";
    STRICT_REQUIRED = 3, "mtls_required";
    POLICY_INVALID = 4, "policy_invalid";
    NOT_READY = 5, "config_not_ready";
    UNKNOWN_WORKLOAD = 6, "unknown_workload";
    NO_ENDPOINTS = 7, "no_endpoints";
    NO_SUCH_PORT = 8, "no_such_port";
    BAD_AUTHORITY = 9, "bad_authority";
    OUTSIDE_MESH = 10, "outside_mesh";
    CONNECT_TIMEOUT = 11, "connect_timeout";
    CONNECT_REFUSED = 12, "connect_refused";
    TLS_FAILURE = 13, "tls_failure";
    IDENTITY_MISMATCH = 14, "identity_mismatch";
    PEER_DENIED = 15, "peer_denied";
    TUNNEL_FAILURE = 16, "tunnel_failure";
    NO_CERTIFICATE = 17, "no_certificate";
    OVERLOADED = 18, "overloaded";
    AGENT_STALE = 19, "agent_stale";
    NO_ORIGINAL_DESTINATION = 20, "no_original_destination";
    LOOP = 21, "loop";
    WAYPOINT_REQUIRED = 22, "waypoint_required";
    DRAINING = 23, "draining";
    POLICY_CHANGED = 24, "policy_changed";
    PEER_RESET = 25, "peer_reset";
    WORKLOAD_GONE = 26, "workload_gone";
    BYPASS = 27, "bypass";
    ADDRESS_CLAIMED = 28, "address_claimed";
    UNPARSABLE = 29, "unparsable";
    NO_LISTENER = 30, "no_listener";
    INTERNAL = 31, "internal";
    OTHER_NETWORK = 32, "other_network";
    NAME_UNRESOLVED = 33, "name_unresolved";
    FORWARDS_OTHERS = 34, "forwards_others";
    ROUTE_INVALID = 35, "route_invalid";
    NOT_WAYPOINT = 36, "not_waypoint";
    IDLE_TIMEOUT = 37, "idle_timeout";
    MAX_DURATION = 38, "max_duration";
    NOT_ITS_NODE = 39, "not_its_node";
    WAYPOINT_GONE = 40, "waypoint_gone";
}

/// Linux's ECONNREFUSED.
pub const ECONNREFUSED: i32 = 111;
/// Linux's EHOSTUNREACH.
pub const EHOSTUNREACH: i32 = 113;

/// What `connect()` returns for a reason.
#[inline(always)]
pub const fn errno(reason: u16) -> i32 {
    match reason {
        NOT_READY | CONNECT_TIMEOUT | AGENT_STALE | OTHER_NETWORK => EHOSTUNREACH,
        _ => ECONNREFUSED,
    }
}
