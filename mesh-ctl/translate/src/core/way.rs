//! How requests to a service come to a waypoint, and what the authors of rules are told where they do not.
//!
//! Invariant: what is told is what keeps requests from a waypoint, and what would lead them to one; where nothing would,
//! nothing is advised.

use mesh_model::mesh::AppProtocol;

use super::{enrolment::MESH_LABEL, service::ServiceDraft};
use crate::{
    gateway::waypoint::{CLASS, FOR, USE},
    status::InForce,
    traffic::reader::Reader,
    view::Key,
};

/// How requests to a service come to a waypoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the waypoint that was chosen, where one was.
    #[default]
    AsChosen,
    /// Not yet: what is waited for, and what happens meanwhile.
    Pending(String),
    /// By one that was made because they need it: which.
    Made(String),
    /// By none, and they are refused for want of it: why.
    Refused(String),
}

/// Why a service has no waypoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Nobody asks for one, or somebody asks for none.
    #[default]
    Unasked,
    /// None is made for it: its namespace is not in the mesh.
    Outside,
    /// The gateway that was chosen is not for services.
    NotForServices(Key),
}

/// What an object that needs a waypoint for a service finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Served<'d> {
    /// The one that was chosen.
    Chosen,
    /// One that was made: which.
    Made(&'d str),
    /// One that is not there yet: what is waited for, and what happens meanwhile.
    Pending(&'d str),
    /// None, and everybody is refused for want of it: why.
    Refused(String),
    /// None, and what goes to the service goes on without it: why, and what would help.
    Not(String),
}

/// Why an object is not in force for whose services everybody is refused.
pub(crate) const UNUSABLE: &str = "NoUsableWaypoint";

/// What an object finds at a service; `by_request` says that it is about requests alone.
pub(crate) fn served<'d>(draft: &'d ServiceDraft<'_>, by_request: bool) -> Served<'d> {
    let host = draft.service.name.hostname.as_str();
    if let Some(why) = cannot(draft, by_request) {
        return Served::Not(format!("{host} {why}"));
    }
    match &draft.way {
        Way::Pending(text) => Served::Pending(text),
        Way::Made(text) => Served::Made(text),
        Way::Refused(why) => Served::Refused(format!("{host} cannot be reached: {why}")),
        Way::AsChosen if draft.service.waypoint.is_some() => Served::Chosen,
        Way::AsChosen => Served::Not(format!("{host} {}", lacking(draft))),
    }
}

/// What an object finds at all of its services.
#[derive(Default)]
pub(crate) struct Found {
    /// Whether one has a waypoint that looks at some of it.
    served: bool,
    /// What the first waits for whose waypoint is being made.
    pending: Option<String>,
    /// Where the first goes whose waypoint was made because it is needed.
    made: Option<String>,
    /// What the first is told that has none.
    without: Option<String>,
    /// Why the first is refused for want of one.
    refused: Option<String>,
}

impl Found {
    /// Adds a service, at which something of the object holds or nothing, and says at a field what was found there.
    pub(crate) fn add(&mut self, found: Served<'_>, holds: bool, say: Option<(&mut Reader, &str)>) {
        self.served |= holds && matches!(found, Served::Chosen | Served::Made(_));
        let (first, text, is_well) = match found {
            Served::Chosen => return,
            Served::Made(text) => (&mut self.made, text.to_owned(), true),
            Served::Pending(text) => (&mut self.pending, text.to_owned(), true),
            Served::Refused(text) => (&mut self.refused, text, false),
            Served::Not(text) => (&mut self.without, text, false),
        };
        match say {
            Some((reader, field)) if is_well => reader.info(field, text.as_str()),
            Some((reader, field)) => reader.warn(field, text.as_str()),
            None => {}
        }
        first.get_or_insert(text);
    }

    /// Why nothing of the object is in force, as far as waypoints go.
    pub(crate) fn nothing(&self) -> Option<InForce> {
        let why = [
            (&self.pending, "Pending"),
            (&self.refused, UNUSABLE),
            (&self.without, "NoWaypoint"),
        ];
        let mut why = why.into_iter().filter(|_| !self.served);
        why.find_map(|(text, reason)| Some(InForce::Not(reason, text.clone()?)))
    }

    /// Whether there is a waypoint that looks at some of it.
    pub(crate) fn is_served(&self) -> bool {
        self.served
    }

    /// How an object is in force of which everything holds.
    pub(crate) fn wholly(self) -> InForce {
        self.made.map_or(InForce::Wholly, InForce::By)
    }
}

/// Whether what goes to a service can be sent to a waypoint.
pub(crate) fn has_address(draft: &ServiceDraft<'_>) -> bool {
    !draft.extra.headless && draft.extra.external_name.is_none()
}

/// Whether there may be requests to look at.
pub(crate) fn may_speak_http(draft: &ServiceDraft<'_>) -> bool {
    let mut ports = draft.service.ports.iter();
    ports.any(|port| may_carry(port.protocol, true))
}

/// Whether a port that declares a protocol may carry requests, or else connections of another kind.
pub(crate) fn may_carry(protocol: AppProtocol, requests: bool) -> bool {
    match protocol {
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => requests,
        AppProtocol::Tcp | AppProtocol::Tls => !requests,
        AppProtocol::Unknown => true,
    }
}

/// Why no waypoint whatsoever would help.
fn cannot(draft: &ServiceDraft<'_>, by_request: bool) -> Option<String> {
    if draft.extra.headless {
        let text = "has no address of its own (it is headless): its clients dial its pods, and no waypoint comes between";
        return Some(text.to_owned());
    }
    if let Some(name) = &draft.extra.external_name {
        let text = format!(
            "is another name for {name}, and has no address of its own: no waypoint comes between"
        );
        return Some(text);
    }
    (by_request && !may_speak_http(draft)).then(|| {
        let text = "has no port that may carry HTTP: there are no requests to look at; declare HTTP by the port's name or appProtocol";
        text.to_owned()
    })
}

/// Why a service has none that could have one, and what would help.
fn lacking(draft: &ServiceDraft<'_>) -> String {
    let service = &draft.object;
    let namespace = &service.namespace;
    let label = format!("{USE}: <name of a Gateway of class {CLASS}>");
    match &draft.lack {
        Lack::Unasked => format!(
            "has no waypoint, which requests need; label {service} or namespace {namespace} with {label}"
        ),
        Lack::Outside => format!(
            "has no waypoint, which requests need, and none is made for it, because namespace {namespace} is not in the mesh; label the namespace with {MESH_LABEL}: enabled, or it or {service} with {label}"
        ),
        Lack::NotForServices(Key { namespace, name }) => format!(
            "has no waypoint, which requests need: Gateway {namespace}/{name} is not for services ({FOR})"
        ),
    }
}
