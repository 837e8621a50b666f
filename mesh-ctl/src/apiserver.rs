//! Tests only: an API server as small as it can be, over real connections, that can be told to misbehave.
//!
//! Invariant: every change has a version of its own, and watches see changes in their order.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{StreamExt, wrappers::UnboundedReceiverStream};

type Body = BoxBody<Bytes, Infallible>;
type Answer = Box<dyn Fn(&Value) -> (u16, Value) + Send>;

/// The server's handle; clones share it.
#[derive(Clone, Default)]
pub(crate) struct ApiServer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    version: u64,
    /// Kinds by the path of their version: plural and kind.
    served: BTreeMap<String, Vec<(String, String)>>,
    /// Objects by collection (`/api/v1/pods`), then `namespace/name`.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    /// What watches were told: collection, version, event.
    events: Vec<(String, u64, Value)>,
    watches: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    /// Answers in place of the ordinary one, by `METHOD path` or `watch path`.
    answers: BTreeMap<String, Answer>,
    /// Every request, in order, as `METHOD path?query`.
    requests: Vec<String>,
}

/// The parts of a path.
struct Target {
    /// The collection over all namespaces.
    collection: String,
    namespace: String,
    name: Option<String>,
}

impl Target {
    fn of(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let base = match parts.first()? {
            &"api" => 2,
            _ => 3,
        };
        let (head, rest) = parts.split_at_checked(base)?;
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        Some(Self {
            collection: format!("/{}/{}", head.join("/"), rest.first()?),
            namespace: namespace.to_owned(),
            name: rest.get(1).map(|name| (*name).to_owned()),
        })
    }
}

impl ApiServer {
    /// Starts one that has Events, and what tests have them said of: pods and policies.
    pub(crate) async fn with_events() -> (Self, kube::Client) {
        let (server, client) = Self::start().await;
        server.serve("/api/v1", "pods", "Pod");
        server.serve("/apis/events.k8s.io/v1", "events", "Event");
        server.serve(
            "/apis/security.istio.io/v1",
            "authorizationpolicies",
            "AuthorizationPolicy",
        );
        (server, client)
    }

    /// Starts a server and a client of it.
    pub(crate) async fn start() -> (Self, kube::Client) {
        let server = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| server.clone().answer(request));
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        let mut config = kube::Config::new(format!("http://{address}").parse().expect("is a URL"));
        config.default_retry = false;
        (server, kube::Client::try_from(config).expect("a client"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it is held")
    }

    /// Serves a kind below this path, such as `/apis/security.istio.io/v1`.
    pub(crate) fn serve(&self, path: &str, plural: &str, kind: &str) {
        let mut state = self.lock();
        let kinds = state.served.entry(path.to_owned()).or_default();
        kinds.push((plural.to_owned(), kind.to_owned()));
        state.objects.entry(format!("{path}/{plural}")).or_default();
    }

    /// Serves it no longer.
    pub(crate) fn unserve(&self, path: &str) {
        let mut state = self.lock();
        state.served.remove(path);
        state
            .objects
            .retain(|collection, _| !collection.starts_with(path));
        state
            .watches
            .retain(|(collection, _)| !collection.starts_with(path));
    }

    /// Answers this instead (`GET /api/v1/pods`, `watch /api/v1/pods`), until it is forgotten.
    pub(crate) fn answers(
        &self,
        what: &str,
        answer: impl Fn(&Value) -> (u16, Value) + Send + 'static,
    ) {
        self.lock()
            .answers
            .insert(what.to_owned(), Box::new(answer));
    }

    /// Answers the ordinary again.
    pub(crate) fn forget(&self, what: &str) {
        self.lock().answers.remove(what);
    }

    /// Creates or replaces an object, and tells the watches.
    pub(crate) fn put(&self, collection: &str, object: Value) {
        self.lock().put(collection, object);
    }

    /// Replaces an object while no watch is told.
    pub(crate) fn put_unseen(&self, collection: &str, object: Value) {
        let mut state = self.lock();
        let (watches, told) = (std::mem::take(&mut state.watches), state.events.len());
        state.put(collection, object);
        state.watches = watches;
        state.events.truncate(told);
    }

    /// Deletes an object; `told` says whether watches hear of it.
    pub(crate) fn delete(&self, collection: &str, key: &str, told: bool) {
        let mut state = self.lock();
        state.version += 1;
        let gone = state
            .objects
            .get_mut(collection)
            .and_then(|all| all.remove(key));
        if let (Some(gone), true) = (gone, told) {
            state.tell(collection, &json!({"type": "DELETED", "object": gone}));
        }
    }

    /// Sends this on every watch of a collection, as it is.
    pub(crate) fn send(&self, collection: &str, text: &str) {
        for (_, watch) in self
            .lock()
            .watches
            .iter()
            .filter(|(of, _)| of == collection)
        {
            let _ = watch.send(Bytes::from(format!("{text}\n")));
        }
    }

    /// Ends every watch of a collection.
    pub(crate) fn cut(&self, collection: &str) {
        self.lock().watches.retain(|(of, _)| of != collection);
    }

    /// An object as it is now, by `namespace/name`.
    pub(crate) fn object(&self, collection: &str, key: &str) -> Option<Value> {
        self.lock().objects.get(collection)?.get(key).cloned()
    }

    /// The objects of a collection as they are now.
    pub(crate) fn all(&self, collection: &str) -> Vec<Value> {
        let state = self.lock();
        let all = state.objects.get(collection);
        all.into_iter()
            .flat_map(|all| all.values().cloned())
            .collect()
    }

    /// The objects of a collection, each as `namespace/name`.
    pub(crate) fn keys(&self, collection: &str) -> Vec<String> {
        let state = self.lock();
        let all = state.objects.get(collection);
        all.into_iter()
            .flat_map(|all| all.keys().cloned())
            .collect()
    }

    /// Every request so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body
            .collect()
            .await
            .map(|b| b.to_bytes())
            .unwrap_or_default();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(self.lock().answer(&parts.method, &parts.uri, &body))
    }
}

impl State {
    fn put(&mut self, collection: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let text = |field: &str| {
            object["metadata"][field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let key = format!("{}/{}", text("namespace"), text("name"));
        let all = self.objects.entry(collection.to_owned()).or_default();
        let kind = match all.insert(key, object.clone()) {
            Some(_) => "MODIFIED",
            None => "ADDED",
        };
        self.tell(collection, &json!({"type": kind, "object": object}));
    }

    fn tell(&mut self, collection: &str, event: &Value) {
        let seen = (collection.to_owned(), self.version, event.clone());
        self.events.push(seen);
        self.watches.retain(|(of, watch)| {
            of != collection || watch.send(Bytes::from(format!("{event}\n"))).is_ok()
        });
    }

    fn answer(&mut self, method: &Method, uri: &hyper::Uri, body: &Value) -> Response<Body> {
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        self.requests.push(format!("{method} {path}?{query}"));
        let watch = query.contains("watch=true");
        let asked = match watch {
            true => format!("watch {path}"),
            false => format!("{method} {path}"),
        };
        if let Some(answer) = self.answers.get(&asked) {
            let (code, value) = answer(body);
            return whole(code, &value);
        }
        if let Some(kinds) = self.served.get(path) {
            let resources: Vec<Value> = kinds
                .iter()
                .map(|(plural, kind)| json!({"name": plural, "kind": kind, "singularName": "", "namespaced": true, "verbs": ["list", "watch"]}))
                .collect();
            return whole(
                200,
                &json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": path, "resources": resources}),
            );
        }
        let Some(target) = Target::of(path) else {
            // As a real one does for a path that no API has.
            let mut answer = whole(404, &Value::Null);
            *answer.body_mut() = BodyExt::boxed(Full::from("404 page not found\n"));
            return answer;
        };
        if !self.objects.contains_key(&target.collection) && *method == Method::GET {
            return failure(404, "NotFound");
        }
        if watch {
            let (send, receive) = mpsc::unbounded_channel();
            let since = query
                .split('&')
                .find_map(|p| p.strip_prefix("resourceVersion="));
            let since: u64 = since.and_then(|v| v.parse().ok()).unwrap_or_default();
            for (of, version, event) in &self.events {
                if *of == target.collection && *version > since {
                    let _ = send.send(Bytes::from(format!("{event}\n")));
                }
            }
            self.watches.push((target.collection, send));
            let body =
                StreamBody::new(UnboundedReceiverStream::new(receive).map(|b| Ok(Frame::data(b))));
            return Response::new(BodyExt::boxed(body));
        }
        self.ordinary(method, &target, body)
    }

    fn ordinary(&mut self, method: &Method, target: &Target, body: &Value) -> Response<Body> {
        let Target {
            collection,
            namespace,
            name,
        } = target;
        let version = self.version.to_string();
        let Some(all) = self.objects.get_mut(collection) else {
            return failure(404, "NotFound");
        };
        let Some(name) = name else {
            if *method == Method::POST {
                let mut object = body.clone();
                object["metadata"]["namespace"] = namespace.as_str().into();
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                if all.contains_key(&format!("{namespace}/{name}")) {
                    return failure(409, "AlreadyExists");
                }
                let key = format!("{namespace}/{name}");
                self.put(collection, object);
                return whole(201, &self.objects[collection][&key]);
            }
            let items: Vec<&Value> = all.values().collect();
            return whole(
                200,
                &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
            );
        };
        let found = match all.get(&format!("{namespace}/{name}")) {
            Some(found) => found.clone(),
            // Server-side apply makes what is not there.
            None if *method == Method::PATCH && body["apiVersion"].is_string() => json!({}),
            None => return failure(404, "NotFound"),
        };
        let mut object = found.clone();
        match *method {
            Method::PUT => object = body.clone(),
            Method::PATCH => merge(&mut object, body),
            Method::DELETE => {
                all.remove(&format!("{namespace}/{name}"));
                self.version += 1;
                self.tell(collection, &json!({"type": "DELETED", "object": found}));
                return whole(
                    200,
                    &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
                );
            }
            _ => return whole(200, &found),
        }
        let given = &object["metadata"]["resourceVersion"];
        if *given != found["metadata"]["resourceVersion"] && !given.is_null() {
            return failure(409, "Conflict");
        }
        object["metadata"]["namespace"] = namespace.as_str().into();
        self.put(collection, object.clone());
        let now = self.objects[collection][&format!("{namespace}/{name}")].clone();
        whole(200, &now)
    }
}

/// RFC 7386.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in fields {
        match value {
            Value::Null => {
                into.as_object_mut().map(|o| o.remove(key));
            }
            value => merge(&mut into[key], value),
        }
    }
}

/// A failure as the API says it.
pub(crate) fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": format!("told to fail: {reason}")})
}

fn failure(code: u16, reason: &str) -> Response<Body> {
    whole(code, &status(code, reason))
}

fn whole(code: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(BodyExt::boxed(Full::from(value.to_string())));
    *response.status_mut() = code.try_into().expect("is a code");
    response
}
