//! The ports that the proxy listens on inside a pod. One constant, one file.

/// Captured outbound TCP; the first of `OUTBOUND_PORTS` listeners.
pub const OUTBOUND: u16 = 15001;
/// How many outbound listeners a pod can have: a destination is hashed over them, so that a pod is not
/// limited to one four-tuple space of some 28,000 flows.
pub const OUTBOUND_PORTS: u16 = 5;
/// Captured plaintext inbound TCP.
pub const INBOUND: u16 = 15006;
/// HBONE inbound.
pub const HBONE: u16 = 15008;
/// DNS, over UDP and TCP.
pub const DNS: u16 = 15053;
/// Where applications ask.
pub const DNS_ASKED: u16 = 53;

/// Whether nobody but the pod's own programs and the proxy may reach this port of a pod.
#[inline(always)]
pub const fn is_private(port: u16) -> bool {
    (port >= OUTBOUND && port <= INBOUND) || port == DNS
}
