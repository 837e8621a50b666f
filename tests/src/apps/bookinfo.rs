//! A bookinfo look-alike: productpage, details, reviews v1-v3 and ratings v1-v2, with the paths, ports and
//! JSON shapes that tutorials and their scripts rely on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::web::{self, Body};

/// The port of every bookinfo service.
pub const PORT: u16 = 9080;

/// `details`: facts about a book.
pub async fn details(port: u16) -> Result<()> {
    web::serve(port, |req, _| async move {
        match req.uri().path() {
            "/health" => web::json(StatusCode::OK, &json!({"status": "Details is healthy"})),
            path => match path.strip_prefix("/details/").and_then(|id| id.parse::<u32>().ok()) {
                Some(id) => web::json(StatusCode::OK, &json!({
                    "id": id, "author": "William Shakespeare", "year": 1595, "type": "paperback", "pages": 200,
                    "publisher": "PublisherA", "language": "English", "ISBN-10": "1234567890", "ISBN-13": "123-1234567890",
                })),
                None => web::json(StatusCode::BAD_REQUEST, &json!({"error": "please provide numeric product id"})),
            },
        }
    })
    .await
}

/// `ratings`: stars by reviewer. v1 and v2 differ in their stars only.
pub async fn ratings(port: u16, version: String) -> Result<()> {
    let stars = if version == "v2" { (4, 3) } else { (5, 4) };
    let stored: Arc<Mutex<BTreeMap<u32, Value>>> = Arc::default();
    web::serve(port, move |req, _| {
        let stored = stored.clone();
        async move { rate(req, &stored, stars).await }
    })
    .await
}

async fn rate(
    req: Request<Incoming>,
    stored: &Mutex<BTreeMap<u32, Value>>,
    stars: (u8, u8),
) -> Response<Body> {
    if req.uri().path() == "/health" {
        return web::json(StatusCode::OK, &json!({"status": "Ratings is healthy"}));
    }
    let Some(id) = req
        .uri()
        .path()
        .strip_prefix("/ratings/")
        .and_then(|id| id.parse::<u32>().ok())
    else {
        return web::json(
            StatusCode::BAD_REQUEST,
            &json!({"error": "please provide numeric product ID"}),
        );
    };
    if req.method() == Method::POST {
        let body = req
            .into_body()
            .collect()
            .await
            .map(|b| b.to_bytes())
            .unwrap_or_default();
        return match serde_json::from_slice::<Value>(&body) {
            Ok(ratings) if ratings.is_object() => {
                let answer = json!({"id": id, "ratings": ratings});
                stored
                    .lock()
                    .expect("no handler panics with the lock")
                    .insert(id, answer.clone());
                web::json(StatusCode::OK, &answer)
            }
            _ => web::json(
                StatusCode::BAD_REQUEST,
                &json!({"error": "please provide valid ratings JSON"}),
            ),
        };
    }
    let known = stored
        .lock()
        .expect("no handler panics with the lock")
        .get(&id)
        .cloned();
    web::json(
        StatusCode::OK,
        &known.unwrap_or_else(
            || json!({"id": id, "ratings": {"Reviewer1": stars.0, "Reviewer2": stars.1}}),
        ),
    )
}

/// `reviews`: v1 shows no stars, v2 black stars, v3 red stars.
pub async fn reviews(port: u16, version: String) -> Result<()> {
    let color: Option<&'static str> = match version.as_str() {
        "v2" => Some("black"),
        "v3" => Some("red"),
        _ => None,
    };
    web::serve(port, move |req, _| async move {
        match req.uri().path() {
            "/health" => web::json(StatusCode::OK, &json!({"status": "Reviews is healthy"})),
            path => match path
                .strip_prefix("/reviews/")
                .and_then(|id| id.parse::<u32>().ok())
            {
                Some(id) => web::json(StatusCode::OK, &review(id, color, req.headers()).await),
                None => web::text(StatusCode::NOT_FOUND, "not found"),
            },
        }
    })
    .await
}

async fn review(id: u32, color: Option<&str>, headers: &HeaderMap) -> Value {
    let mut reviews = [
        json!({"reviewer": "Reviewer1", "text": "Twins, mistaken for each other all over town. I laughed from start to finish."}),
        json!({"reviewer": "Reviewer2", "text": "Light and quick. It does not have the depth of the later plays."}),
    ];
    if let Some(color) = color {
        let stars = ratings_of(id, headers).await;
        for review in &mut reviews {
            let name = review["reviewer"].as_str().unwrap_or_default().to_owned();
            review["rating"] = match stars.as_ref().ok().and_then(|s| s["ratings"].get(&name)) {
                Some(stars) => json!({"stars": stars, "color": color}),
                None => json!({"error": "Ratings service is currently unavailable"}),
            };
        }
    }
    json!({"id": id.to_string(), "podname": web::pod_name(), "clustername": "null", "reviews": reviews})
}

async fn ratings_of(id: u32, headers: &HeaderMap) -> Result<Value> {
    let host = web::host("RATINGS_HOSTNAME", "ratings");
    let (status, body) = web::get(
        &host,
        PORT,
        &format!("/ratings/{id}"),
        web::forwarded(headers),
    )
    .await?;
    anyhow::ensure!(status.is_success(), "ratings answered {status}");
    Ok(serde_json::from_slice(&body)?)
}

/// `productpage`: the page, its parts as JSON, and a login that sets `end-user`.
pub async fn productpage(port: u16) -> Result<()> {
    web::serve(port, |req, _| async move { page(&req).await }).await
}

async fn page(req: &Request<Incoming>) -> Response<Body> {
    let mut headers = web::forwarded(req.headers());
    if let Some(user) = user(req.headers()).and_then(|u| u.parse().ok()) {
        headers.insert("end-user", user);
    }
    let path = req.uri().path();
    match path {
        "/" | "/index.html" => {
            html("<h1>Simple Bookstore App</h1><a href=\"/productpage\">product page</a>")
        }
        "/health" => web::text(StatusCode::OK, "Product page is healthy"),
        "/productpage" => whole_page(&headers).await,
        "/login" => login(req),
        "/logout" => redirect("session=; Max-Age=0"),
        "/api/v1/products" => web::json(StatusCode::OK, &json!([product()])),
        _ if path.starts_with("/static/") => web::answer(
            StatusCode::OK,
            "text/css",
            "body { font-family: sans-serif }",
        ),
        _ => api(path, &headers).await,
    }
}

async fn api(path: &str, headers: &HeaderMap) -> Response<Body> {
    let rest = path.strip_prefix("/api/v1/products/").unwrap_or_default();
    let (id, part) = rest.split_once('/').unwrap_or((rest, ""));
    if id.parse::<u32>().is_err() {
        return web::text(StatusCode::NOT_FOUND, "not found");
    }
    let (host, path) = match part {
        "" => (
            web::host("DETAILS_HOSTNAME", "details"),
            format!("/details/{id}"),
        ),
        "reviews" => (
            web::host("REVIEWS_HOSTNAME", "reviews"),
            format!("/reviews/{id}"),
        ),
        "ratings" => (
            web::host("RATINGS_HOSTNAME", "ratings"),
            format!("/ratings/{id}"),
        ),
        _ => return web::text(StatusCode::NOT_FOUND, "not found"),
    };
    match web::get(&host, PORT, &path, headers.clone()).await {
        Ok((status, body)) => web::answer(status, "application/json", body),
        Err(e) => web::json(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"error": format!("{e:#}")}),
        ),
    }
}

async fn whole_page(headers: &HeaderMap) -> Response<Body> {
    let details_host = web::host("DETAILS_HOSTNAME", "details");
    let reviews_host = web::host("REVIEWS_HOSTNAME", "reviews");
    let (details, reviews) = tokio::join!(
        web::get(&details_host, PORT, "/details/0", headers.clone()),
        web::get(&reviews_host, PORT, "/reviews/0", headers.clone()),
    );
    let mut page = format!(
        "<title>Simple Bookstore App</title><h1>{}</h1>",
        product()["title"].as_str().unwrap_or_default()
    );
    page += &part(
        "Book Details",
        "Error fetching product details!",
        details,
        |d| {
            format!(
                "<dl><dt>Author</dt><dd>{}</dd><dt>ISBN-10</dt><dd>{}</dd></dl>",
                show(&d["author"]),
                show(&d["ISBN-10"])
            )
        },
    );
    page += &part(
        "Book Reviews",
        "Error fetching product reviews!",
        reviews,
        |r| {
            let one = |r: &Value| {
                format!(
                    "<blockquote>{}<cite>{}</cite>{}</blockquote>",
                    show(&r["text"]),
                    show(&r["reviewer"]),
                    stars(&r["rating"])
                )
            };
            let served = format!("<p>Reviews served by: <u>{}</u></p>", show(&r["podname"]));
            r["reviews"]
                .as_array()
                .into_iter()
                .flatten()
                .map(one)
                .collect::<String>()
                + &served
        },
    );
    html(&page)
}

fn part(
    title: &str,
    failure: &str,
    got: Result<(StatusCode, bytes::Bytes)>,
    show: impl Fn(&Value) -> String,
) -> String {
    let value = got
        .ok()
        .filter(|(s, _)| s.is_success())
        .and_then(|(_, b)| serde_json::from_slice::<Value>(&b).ok());
    let inner = value.map_or_else(|| format!("<h3>{failure}</h3>"), |v| show(&v));
    format!("<section><h4>{title}</h4>{inner}</section>")
}

fn stars(rating: &Value) -> String {
    match (
        rating["stars"].as_u64(),
        rating["color"].as_str(),
        rating["error"].as_str(),
    ) {
        (Some(n), Some(color), _) => format!(
            "<font color=\"{color}\">{}</font>",
            "★".repeat(n.min(5) as usize)
        ),
        (_, _, Some(error)) => format!("<i>{error}</i>"),
        _ => String::new(),
    }
}

fn show(value: &Value) -> String {
    let text = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn product() -> Value {
    json!({"id": 0, "title": "The Comedy of Errors", "descriptionHtml": "A play by William Shakespeare about two pairs of twins."})
}

fn html(body: &str) -> Response<Body> {
    web::answer(
        StatusCode::OK,
        "text/html; charset=utf-8",
        format!("<!DOCTYPE html><html><body>{body}</body></html>"),
    )
}

fn login(req: &Request<Incoming>) -> Response<Body> {
    let user = req
        .uri()
        .query()
        .and_then(|q| q.split('&').find_map(|p| p.strip_prefix("username=")))
        .unwrap_or("guest");
    redirect(&format!("session={user}"))
}

fn redirect(cookie: &str) -> Response<Body> {
    let mut answer = web::text(StatusCode::FOUND, "");
    answer.headers_mut().insert(
        header::LOCATION,
        header::HeaderValue::from_static("/productpage"),
    );
    if let Ok(value) = cookie.parse() {
        answer.headers_mut().insert(header::SET_COOKIE, value);
    }
    answer
}

fn user(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    cookies
        .split(';')
        .find_map(|c| c.trim().strip_prefix("session="))
        .filter(|u| !u.is_empty())
        .map(str::to_owned)
}
