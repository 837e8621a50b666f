//! DNS for pods: names of the mesh are answered, everything else goes on to the resolver that was asked.

mod handle;

pub use handle::{DnsEvent, DnsGone, DnsHandle, PodDns};
