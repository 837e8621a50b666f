//! What the proxies are told to do with requests, for each in its own words.
//!
//! Invariant: the three say the same.

use std::{fmt::Write as _, net::SocketAddr, path::Path};

use serde_json::{Value, json};

/// Where nginx takes HTTP/1.1, and HTTP/2 with prior knowledge.
pub(super) const NGINX: [u16; 2] = [8081, 8082];

/// What finds the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// So many prefixes of which only the last, which is every path, is ever asked for.
    Prefixes(usize),
    /// One header that has to have a value; another is set, one taken away, and one added to the answer.
    Headers,
}

/// What requests say, which all rules let pass.
pub(super) const SAID: [&str; 4] = ["--header", "x-version: v1", "--header", "x-secret: s"];

impl Rules {
    /// For Warren.
    pub(super) fn virtual_service(self) -> String {
        let to = "route: [{destination: {host: app}}]";
        let rules = match self {
            Self::Prefixes(count) => {
                let rule = |i| format!("  - {{match: [{{uri: {{prefix: /route-{i}/}}}}], {to}}}\n");
                let rules: String = (1..count).map(rule).collect();
                format!("{rules}  - {{{to}}}\n")
            }
            Self::Headers => format!(
                "  - match: [{{headers: {{x-version: {{exact: v1}}}}}}]\n    {to}\n    headers:\n      \
                 request: {{set: {{x-routed: app}}, remove: [x-secret]}}\n      response: {{add: {{x-served-by: mesh}}}}\n"
            ),
        };
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: app, namespace: mesh}}\n\
             spec:\n  hosts: [app]\n  http:\n{rules}"
        )
    }

    /// For Envoy, with what Istio says of retries where nothing is said.
    pub(super) fn envoy(self) -> Vec<Value> {
        let retry = json!({"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2});
        let to = json!({"cluster": "app", "retry_policy": retry});
        match self {
            Self::Prefixes(count) => {
                let rule = |i| json!({"match": {"prefix": format!("/route-{i}/")}, "route": to});
                let mut all: Vec<Value> = (1..count).map(rule).collect();
                all.push(json!({"match": {"prefix": "/"}, "route": to}));
                all
            }
            Self::Headers => vec![json!({
                "match": {"prefix": "/", "headers": [{"name": "x-version", "string_match": {"exact": "v1"}}]},
                "route": to,
                "request_headers_to_add": [{"header": {"key": "x-routed", "value": "app"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
                "request_headers_to_remove": ["x-secret"],
                "response_headers_to_add": [{"header": {"key": "x-served-by", "value": "mesh"}}],
            })],
        }
    }

    /// For nginx, with its files in `dir`.
    pub(super) fn nginx(self, to: SocketAddr, threads: usize, dir: &Path) -> String {
        let pass =
            "proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\";";
        let mut locations = String::new();
        match self {
            Self::Prefixes(count) => {
                for i in 1..count {
                    let _ = writeln!(locations, "    location /route-{i}/ {{ {pass} }}");
                }
                let _ = writeln!(locations, "    location / {{ {pass} }}");
            }
            Self::Headers => {
                let _ = writeln!(
                    locations,
                    "    location / {{ if ($http_x_version != v1) {{ return 404; }} proxy_set_header x-routed app; \
                     proxy_set_header x-secret \"\"; add_header x-served-by mesh; {pass} }}"
                );
            }
        }
        let server = |listen: String| {
            format!(
                "  server {{\n    listen {listen};\n    keepalive_requests 100000000;\n{locations}  }}\n"
            )
        };
        let (dir, [h1, h2]) = (dir.display(), NGINX);
        format!(
            "daemon off;\nworker_processes {threads};\npid {dir}/nginx.pid;\nerror_log {dir}/nginx-error.log warn;\n\
             events {{ worker_connections 10000; }}\nhttp {{\n  access_log off;\n  client_body_temp_path {dir}/body;\n  \
             proxy_temp_path {dir}/proxy;\n  fastcgi_temp_path {dir}/fastcgi;\n  uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n  \
             upstream app {{ server {to}; keepalive {}; keepalive_requests 100000000; }}\n{}{}}}\n",
            64 * threads,
            server(h1.to_string()),
            server(format!("{h2} http2")),
        )
    }
}
