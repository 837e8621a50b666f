//! From the proxy to the application inside the pod.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_model::{
    authz::{Conn, Permit},
    route,
};
use tokio::{net::TcpStream, time::timeout};

use super::{DialError, tcp};
use crate::accept::Pod;

/// Connects to the application that the permit is for; it sees `client` as its peer.
pub async fn to_application(
    pod: &Arc<Pod>,
    permit: &Permit<Conn>,
    client: SocketAddr,
    within: Duration,
) -> Result<TcpStream, DialError> {
    let address = route::inbound(permit);
    // A client behind a waypoint may be of the other family, which a socket could not show.
    let shown = Some(client).filter(|c| c.is_ipv4() == address.is_ipv4());
    let connect = tcp::connect(pod, address, shown, None);
    timeout(within, connect)
        .await
        .unwrap_or(Err(DialError::Timeout))
}
