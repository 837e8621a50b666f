//! Sample applications: small, real servers that know nothing of the mesh.
//!
//! Invariants: each app is an ordinary program with the paths, ports and JSON shapes that tutorials expect;
//! `program_for_image` is the only place that knows which container image is which app.

pub mod ask;
pub mod book;
pub mod bookinfo;
pub mod collector;
pub mod grpc_echo;
pub mod httpbin;
pub mod tcp_echo;
pub mod web;
pub mod ws_cases;

/// The arguments of `warren-sample` that stand in for a container image, or `None` when the image is unknown
/// (an unknown image becomes an idle pod). The registry, the tag's patch level and the digest do not matter.
pub fn program_for_image(image: &str) -> Option<Vec<String>> {
    let path = image.split('@').next().unwrap_or(image);
    let (name, tag) = match path
        .rsplit_once('/')
        .map_or(path, |(_, last)| last)
        .split_once(':')
    {
        Some((name, tag)) => (name, tag),
        None => (path.rsplit('/').next().unwrap_or(path), "latest"),
    };
    let major = if tag.trim_start_matches('v').starts_with('2') {
        "v2"
    } else {
        "v1"
    };
    let args: &[&str] = match name {
        "examples-bookinfo-productpage-v1" | "productpage" => &["productpage"],
        "examples-bookinfo-details-v1" | "details" => &["details"],
        "examples-bookinfo-reviews-v1" => &["reviews", "--version", "v1"],
        "examples-bookinfo-reviews-v2" => &["reviews", "--version", "v2"],
        "examples-bookinfo-reviews-v3" => &["reviews", "--version", "v3"],
        "examples-bookinfo-ratings-v1" => &["ratings", "--version", "v1"],
        "examples-bookinfo-ratings-v2" => &["ratings", "--version", "v2"],
        "book-service" => &["book"],
        "rating-service" => &["rating", "--version", major],
        "httpbin" | "go-httpbin" => &["httpbin"],
        "grpc-echo" | "goodsservice" => &["grpc-echo", "--version", major],
        "opentelemetry-collector" | "opentelemetry-collector-contrib" => &["collector"],
        "tcp-echo" | "tcp-echo-server" => &["tcp-echo"],
        "myapp" | "echo" => &["httpbin", "--version", major],
        _ => return None,
    };
    Some(args.iter().map(|a| (*a).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::program_for_image;

    #[test]
    fn images_become_programs() {
        let check = |image: &str, expect: Option<&str>| {
            assert_eq!(
                program_for_image(image).map(|a| a.join(" ")).as_deref(),
                expect,
                "{image}"
            );
        };
        check(
            "docker.io/istio/examples-bookinfo-productpage-v1:1.16.2",
            Some("productpage"),
        );
        check(
            "docker.io/istio/examples-bookinfo-reviews-v3:1.20.0",
            Some("reviews --version v3"),
        );
        check(
            "example.test:5000/lordofthejars/rating-service:v2.0.0",
            Some("rating --version v2"),
        );
        check("book-service", Some("book"));
        check("grpc-echo@sha256:00", Some("grpc-echo --version v1"));
        check("otel/opentelemetry-collector:0.100.0", Some("collector"));
        check("busybox:1.36", None);
    }
}
