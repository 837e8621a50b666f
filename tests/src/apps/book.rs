//! The book and rating pair: `book` asks `rating` for a book's stars; `rating` can be told to misbehave.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use anyhow::Result;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::web::{self, Body};

/// The port of both services.
pub const PORT: u16 = 8080;

/// `book`: `/book/{id}` answers the book with its rating; without a rating the answer is 503 with no body.
pub async fn book(port: u16) -> Result<()> {
    web::serve(port, |req, _| async move {
        let Some(id) = req
            .uri()
            .path()
            .strip_prefix("/book/")
            .and_then(|id| id.parse::<u64>().ok())
        else {
            return web::text(StatusCode::NOT_FOUND, "not found: try /book/1\n");
        };
        let host = web::host("RATING_HOSTNAME", "rating");
        match web::get(
            &host,
            PORT,
            &format!("/rate/{id}"),
            web::forwarded(req.headers()),
        )
        .await
        {
            Ok((status, body)) if status.is_success() => {
                let rating = serde_json::from_slice::<Value>(&body)
                    .map(|v| v["rating"].clone())
                    .unwrap_or(Value::Null);
                web::json(
                    StatusCode::OK,
                    &json!({"bookId": id, "name": format!("Book {id}"), "rating": rating}),
                )
            }
            Ok((status, _)) => {
                println!("rating answered {status}");
                web::text(StatusCode::SERVICE_UNAVAILABLE, "")
            }
            Err(e) => {
                println!("rating: {e:#}");
                web::text(StatusCode::SERVICE_UNAVAILABLE, "")
            }
        }
    })
    .await
}

/// `rating`: v1 gives every book 1; v2 gives each book a number drawn when the process starts.
pub async fn rating(port: u16, version: String) -> Result<()> {
    let state = Arc::new(Rating {
        seed: (version == "v2").then(|| fastrand::u64(..)),
        misbehaving: AtomicBool::new(false),
        requests: AtomicU64::new(0),
    });
    web::serve(port, move |req, _| {
        let answer = state.answer(req.uri().path());
        async move { answer }
    })
    .await
}

struct Rating {
    seed: Option<u64>,
    misbehaving: AtomicBool,
    requests: AtomicU64,
}

impl Rating {
    fn answer(&self, path: &str) -> Response<Body> {
        match path.strip_prefix("/rate/") {
            Some("misbehave") => {
                self.misbehaving.store(true, Relaxed);
                web::text(StatusCode::OK, "Ratings endpoint returns 503 error.\n")
            }
            Some("behave") => {
                self.misbehaving.store(false, Relaxed);
                web::text(StatusCode::OK, "Back to normal\n")
            }
            Some(id) => match id.parse::<u64>() {
                Ok(id) => self.rate(id),
                Err(_) => web::text(StatusCode::BAD_REQUEST, "not a book id\n"),
            },
            None => web::text(StatusCode::NOT_FOUND, "not found: try /rate/1\n"),
        }
    }

    fn rate(&self, id: u64) -> Response<Body> {
        println!("Request {}", self.requests.fetch_add(1, Relaxed) + 1);
        if self.misbehaving.load(Relaxed) {
            return web::text(StatusCode::SERVICE_UNAVAILABLE, "");
        }
        let rating = self.seed.map_or(1, |seed| {
            2 + seed.wrapping_add(id.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % 4
        });
        web::json(StatusCode::OK, &json!({"rating": rating}))
    }
}
