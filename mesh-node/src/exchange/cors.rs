//! Cross-origin requests, as a rule's policy says (Fetch standard, 3.2).
//!
//! Invariant: an origin that is not let in gets no header that lets it read anything.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use mesh_model::route::http::Cors;

use super::Reply;

/// What is to be done about a request's origin.
#[derive(Debug)]
pub enum Crossing {
    /// Nothing.
    None,
    /// Its preflight is answered with this.
    Preflight(Box<Response<Reply>>),
    /// Its response gets these headers.
    Actual(HeaderMap),
}

/// Looks at a request's origin.
pub fn crossing(cors: &Cors, method: &Method, headers: &HeaderMap) -> Crossing {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Crossing::None;
    };
    let text = origin.to_str().unwrap_or_default();
    let let_in = cors.origins.iter().any(|o| o.matches(text));
    let preflight =
        *method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if !let_in {
        let ours = preflight && !cors.forward_unmatched;
        return match ours {
            true => Crossing::Preflight(Box::new(Response::new(Reply::of(Bytes::new())))),
            false => Crossing::None,
        };
    }
    let mut told = HeaderMap::new();
    told.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.credentials {
        let yes = HeaderValue::from_static("true");
        told.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
    }
    let mut list = |name, values: &[std::sync::Arc<str>]| {
        if let (false, Ok(value)) = (values.is_empty(), values.join(",").try_into()) {
            told.insert(name, value);
        }
    };
    if !preflight {
        list(header::ACCESS_CONTROL_EXPOSE_HEADERS, &cors.expose);
        return Crossing::Actual(told);
    }
    list(header::ACCESS_CONTROL_ALLOW_METHODS, &cors.methods);
    list(header::ACCESS_CONTROL_ALLOW_HEADERS, &cors.headers);
    if let Some(age) = cors.max_age {
        told.insert(header::ACCESS_CONTROL_MAX_AGE, age.as_secs().into());
    }
    let mut response = Response::new(Reply::of(Bytes::new()));
    *response.status_mut() = StatusCode::OK;
    *response.headers_mut() = told;
    Crossing::Preflight(Box::new(response))
}
