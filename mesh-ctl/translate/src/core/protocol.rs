//! The declared protocol of a port.

use mesh_model::mesh::AppProtocol;

/// The protocol that `appProtocol`, else the port's name up to the first `-`, else a well-known number declares.
pub(crate) fn declared(app_protocol: &str, name: &str, port: u16) -> AppProtocol {
    let declared = match (app_protocol, name) {
        // The one protocol whose name contains the separator.
        ("", name) if name.starts_with("grpc-web") => "grpc-web",
        ("", name) => name.split('-').next().unwrap_or_default(),
        (app_protocol, _) => app_protocol,
    };
    known(declared).unwrap_or(match port {
        25 | 53 | 3306 | 27017 => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    })
}

fn known(protocol: &str) -> Option<AppProtocol> {
    Some(match protocol.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" | "grpc-web" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" | "kubernetes.io/wss" => AppProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_protocol_beats_the_name_and_the_name_beats_the_number() {
        let check = |app, name, port, expect| {
            assert_eq!(declared(app, name, port), expect, "{app} {name} {port}")
        };
        check("", "http", 80, AppProtocol::Http11);
        check("", "http-web", 80, AppProtocol::Http11);
        check("", "httpweb", 80, AppProtocol::Unknown);
        check("", "http2-x", 80, AppProtocol::Http2);
        check("", "grpc-web", 80, AppProtocol::Http11);
        check("", "grpc", 80, AppProtocol::Grpc);
        check("https", "http", 80, AppProtocol::Tls);
        check("kubernetes.io/h2c", "", 80, AppProtocol::Http2);
        check("linkerd.io/opaque", "http", 80, AppProtocol::Unknown);
        check("", "db", 3306, AppProtocol::Tcp);
        check("", "", 8080, AppProtocol::Unknown);
        check("", "redis-main", 6379, AppProtocol::Tcp);
        check("HTTP", "", 1, AppProtocol::Http11);
    }
}
