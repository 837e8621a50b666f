//! PeerAuthentication: what each workload accepts, from the mesh down to the port.
//!
//! Invariant: an object that cannot be understood counts as STRICT for what it governs.

use std::collections::{BTreeMap, HashMap};

use mesh_k8s::{Kind, ObjectRef, security::PeerAuthentication};
use mesh_model::mesh::MtlsMode;

use crate::{
    core::draft::Draft,
    labels::LabelIndex,
    settings::Settings,
    status::{InForce, Message, Reports, Severity},
    view::{Broken, ClusterView, Entry, Key, Origin},
};

/// What one object says, once read.
#[derive(Clone, Debug, Default)]
struct Said {
    /// `None` inherits.
    mode: Option<MtlsMode>,
    ports: Vec<(u16, MtlsMode)>,
}

#[derive(Debug)]
struct Source<'a> {
    object: ObjectRef,
    origin: &'a Origin,
    labels: Option<&'a BTreeMap<String, String>>,
    age: (bool, String, String, String),
    said: Said,
}

/// Sets what every workload accepts.
pub(crate) fn apply(
    view: &ClusterView,
    settings: &Settings,
    labels: &LabelIndex<'_>,
    drafts: &mut [Draft<'_>],
    reports: &mut Reports,
) {
    let sources = sources(view, settings, reports);
    let mut mesh: Option<&Source<'_>> = None;
    let mut namespaces: HashMap<&str, &Source<'_>> = HashMap::new();
    let mut selected: HashMap<usize, &Source<'_>> = HashMap::new();
    for source in &sources {
        let namespace = &*source.object.namespace;
        if let Some(wanted) = source.labels {
            for index in labels.select(Some(namespace), wanted) {
                selected.entry(index).or_insert(source);
            }
        } else if settings.is_root(namespace) {
            match mesh {
                None => mesh = Some(source),
                Some(older) => conflict(source, older, " for the mesh", reports),
            }
        } else if let Some(older) = namespaces.get(namespace) {
            conflict(source, older, " for the namespace", reports);
        } else {
            namespaces.insert(namespace, source);
        }
    }
    overlaps(&sources, reports);
    for (index, draft) in drafts.iter_mut().enumerate() {
        let namespace = namespaces
            .get(draft.workload.namespace.as_str())
            .and_then(|source| source.said.mode);
        let inherited = namespace
            .or(mesh.and_then(|source| source.said.mode))
            .unwrap_or(MtlsMode::Permissive);
        let own = selected.get(&index).map(|source| &source.said);
        let mode = own.and_then(|said| said.mode).unwrap_or(inherited);
        draft.extra.mtls = mode;
        let ports = own.map(|said| said.ports.as_slice()).unwrap_or_default();
        draft.extra.mtls_ports = ports
            .iter()
            .copied()
            .filter(|(_, own)| *own != mode)
            .collect();
    }
}

/// Says where selectors can select the same workloads. What workloads there are makes no difference to it.
fn overlaps(sources: &[Source<'_>], reports: &mut Reports) {
    for (at, younger) in sources.iter().enumerate() {
        let Some(wanted) = younger.labels else {
            continue;
        };
        for older in &sources[..at] {
            let Some(other) = older
                .labels
                .filter(|_| older.object.namespace == younger.object.namespace)
            else {
                continue;
            };
            let agrees = |(key, value): (&String, &String)| wanted.get(key) == Some(value);
            let contradicts =
                |(key, value): (&String, &String)| wanted.get(key).is_some_and(|own| own != value);
            if other.iter().all(agrees) {
                conflict(younger, older, " for all that it selects", reports);
            } else if !other.iter().any(contradicts) {
                let text = format!("{} is older and holds for what both select", older.object);
                reports.say(
                    &younger.object,
                    younger.origin,
                    Severity::Info,
                    "spec.selector",
                    text,
                );
            }
        }
    }
}

fn conflict(younger: &Source<'_>, older: &Source<'_>, what: &str, reports: &mut Reports) {
    let text = format!("{} is older and holds{what}", older.object);
    reports.say(&younger.object, younger.origin, Severity::Warning, "", text);
    reports.in_force(&younger.object, younger.origin, InForce::Partly);
}

/// All objects, the oldest first.
fn sources<'a>(
    view: &'a ClusterView,
    settings: &Settings,
    reports: &mut Reports,
) -> Vec<Source<'a>> {
    let mut sources = Vec::new();
    for entry in view.peer_authentications.values() {
        let meta = entry.object.metadata();
        let object = ObjectRef::of::<PeerAuthentication>(meta);
        let selector = entry.object.spec.selector.as_ref();
        let labels = selector
            .map(|selector| &selector.match_labels)
            .filter(|labels| !labels.is_empty());
        let mut messages = Vec::new();
        let said = read(entry, labels.is_some(), &mut messages);
        if labels.is_some() && settings.is_root(&meta.namespace) {
            messages.push(Message {
                severity: Severity::Info,
                field: "spec.selector".to_owned(),
                text: "selects workloads of this namespace only".to_owned(),
            });
        }
        reports.in_force(&object, &entry.origin, InForce::Wholly);
        reports.say_all(&object, &entry.origin, messages);
        sources.push(Source {
            object,
            origin: &entry.origin,
            labels,
            age: crate::settings::age(meta),
            said,
        });
    }
    sources.extend(
        view.broken
            .iter()
            .filter_map(|(object, broken)| unreadable(view, object, broken)),
    );
    sources.sort_by(|a, b| a.age.cmp(&b.age));
    sources
}

/// One of which no version was ever readable.
fn unreadable<'a>(
    view: &ClusterView,
    object: &ObjectRef,
    broken: &'a Broken,
) -> Option<Source<'a>> {
    let key = Key {
        namespace: object.namespace.clone(),
        name: object.name.clone(),
    };
    if &*object.kind != PeerAuthentication::KIND || view.peer_authentications.contains_key(&key) {
        return None;
    }
    Some(Source {
        object: object.clone(),
        origin: &broken.origin,
        labels: broken.selector.as_ref().filter(|labels| !labels.is_empty()),
        age: (
            true,
            String::new(),
            object.namespace.to_string(),
            object.name.to_string(),
        ),
        said: Said {
            mode: Some(MtlsMode::Strict),
            ports: Vec::new(),
        },
    })
}

fn read(entry: &Entry<PeerAuthentication>, selected: bool, messages: &mut Vec<Message>) -> Said {
    let spec = &entry.object.spec;
    let mut wrong = Vec::new();
    for path in entry
        .unknown
        .iter()
        .filter(|path| path.starts_with("spec."))
    {
        wrong.push((
            path.clone(),
            "is not a field that this version knows".to_owned(),
        ));
    }
    let mode = spec.mtls.as_ref().map_or(Ok(None), |mtls| mode(&mtls.mode));
    let mode = mode.unwrap_or_else(|text| {
        wrong.push(("spec.mtls.mode".to_owned(), text));
        None
    });
    let mut said = Said {
        mode,
        ports: Vec::new(),
    };
    for (key, mtls) in &spec.port_level_mtls {
        let field = format!("spec.portLevelMtls[{key}]");
        match (
            key.parse::<u16>().ok().filter(|port| *port != 0),
            self::mode(&mtls.mode),
        ) {
            (None, _) => wrong.push((field, "is not a port between 1 and 65535".to_owned())),
            (_, Err(text)) => wrong.push((format!("{field}.mode"), text)),
            (Some(_), Ok(_)) if !selected => messages.push(Message {
                severity: Severity::Warning,
                field,
                text: "is only used together with a selector; ignored".to_owned(),
            }),
            (Some(_), Ok(None)) => {}
            (Some(port), Ok(Some(mode))) => said.ports.push((port, mode)),
        }
    }
    said.ports.sort_unstable_by_key(|(port, _)| *port);
    if wrong.is_empty() {
        return said;
    }
    messages.extend(wrong.into_iter().map(|(field, text)| Message {
        severity: Severity::Error,
        field,
        text: format!("{text}; the object is taken for STRICT on all ports"),
    }));
    Said {
        mode: Some(MtlsMode::Strict),
        ports: Vec::new(),
    }
}

fn mode(text: &str) -> Result<Option<MtlsMode>, String> {
    match text {
        "" | "UNSET" => Ok(None),
        "DISABLE" => Ok(Some(MtlsMode::Disable)),
        "PERMISSIVE" => Ok(Some(MtlsMode::Permissive)),
        "STRICT" => Ok(Some(MtlsMode::Strict)),
        other => Err(format!(
            "{other:?} is none of UNSET, DISABLE, PERMISSIVE, STRICT"
        )),
    }
}
