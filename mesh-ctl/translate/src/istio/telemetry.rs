//! Telemetry: which requests leave spans. Nothing else of it is honoured, and what is not is named.
//!
//! Invariants: of several objects for one scope the oldest holds; a narrower scope inherits field by field what it does
//! not say (Istio's Telemetry API); who asks for a provider that cannot be used gets no spans, never another provider.

use std::{collections::BTreeMap, sync::Arc};

use mesh_k8s::{
    ObjectRef,
    security::PolicyTargetReference,
    telemetry::{CustomTag, Telemetry, Tracing as Asked},
};
use mesh_model::{
    mesh::{Collector, SpanTag, TagValue, Tracing, TracingScope},
    name::Namespace,
    resilience::Share,
};

use crate::{
    settings::{Settings, age},
    status::{InForce, Message, Reports, Severity},
    view::{ClusterView, Entry},
};

/// What one object says, as far as it says it.
#[derive(Clone, Debug, Default)]
struct Said {
    /// None inside where the one that is asked for cannot be used.
    collector: Option<Option<Collector>>,
    sampling: Option<Share>,
    silent: Option<bool>,
    tags: Option<Box<[SpanTag]>>,
}

/// An object, read.
struct Source<'v> {
    entry: &'v Entry<Telemetry>,
    scopes: Vec<TracingScope>,
    said: Said,
    messages: Vec<Message>,
    /// Whether there is anything about spans in it.
    speaks: bool,
}

/// The rules that nodes are told, the narrowest first.
pub(crate) fn rules(view: &ClusterView, settings: &Settings) -> Box<[Arc<Tracing>]> {
    let providers = &settings.tracing;
    if !providers.enabled {
        return Box::default();
    }
    let mut by_scope: BTreeMap<TracingScope, Said> = BTreeMap::new();
    for source in sources(view, settings) {
        for scope in source.scopes {
            by_scope.entry(scope).or_insert_with(|| source.said.clone());
        }
    }
    let mesh = by_scope.get(&TracingScope::Mesh).cloned();
    let standard = Said {
        collector: Some(providers.standard()),
        sampling: Some(providers.sampling),
        silent: Some(false),
        tags: Some(Box::default()),
    };
    let mesh = mesh.unwrap_or_default().or(&standard);
    let within = |namespace: &Namespace| {
        let found = by_scope.get(&TracingScope::Namespace(namespace.clone()));
        found.cloned().unwrap_or_default().or(&mesh)
    };
    let inherited = |scope: &TracingScope| match scope {
        TracingScope::Service(name) | TracingScope::Waypoint(name) => within(&name.namespace),
        TracingScope::Namespace(_) | TracingScope::Mesh => mesh.clone(),
    };
    let mut rules: Vec<Arc<Tracing>> = by_scope
        .iter()
        .filter(|(scope, _)| **scope != TracingScope::Mesh)
        .map(|(scope, said)| said.clone().or(&inherited(scope)).rule(scope.clone()))
        .collect();
    rules.push(mesh.rule(TracingScope::Mesh));
    // Where nothing is ever sent nothing need be told.
    match rules.iter().any(|rule| rule.collector.is_some()) {
        true => rules.into(),
        false => Box::default(),
    }
}

/// Says what becomes of each object.
pub(crate) fn check(view: &ClusterView, settings: &Settings, reports: &mut Reports) {
    let mut held: BTreeMap<TracingScope, ObjectRef> = BTreeMap::new();
    for source in sources(view, settings) {
        let Source {
            entry,
            scopes,
            messages,
            speaks,
            said: _,
        } = source;
        let object = ObjectRef::of::<Telemetry>(&entry.object.metadata);
        let not = |reason, text: &str| InForce::Not(reason, text.to_owned());
        let mut older = Vec::new();
        for scope in &scopes {
            match held.get(scope) {
                Some(first) => older.push(first.clone()),
                None => drop(held.insert(scope.clone(), object.clone())),
            }
        }
        let graver = messages.iter().any(|m| m.severity > Severity::Info);
        let conflict = |older: &ObjectRef| format!("{older} is older and holds");
        let all = older.len() == scopes.len();
        let in_force = match &older[..] {
            _ if !speaks => not("Unsupported", "only spans (spec.tracing) are honoured"),
            _ if scopes.is_empty() => not("Unsupported", "there is nothing that it is about"),
            _ if !settings.tracing.enabled => {
                not("Disabled", "MeshConfig's enableTracing is false")
            }
            [older, ..] if all => InForce::Not("Conflicted", conflict(older)),
            [] if !graver => InForce::Wholly,
            _ => InForce::Partly,
        };
        reports.in_force(&object, &entry.origin, in_force);
        if !all {
            for older in &older {
                let (origin, severity) = (&entry.origin, Severity::Warning);
                let text = format!("{} for one of its targets", conflict(older));
                reports.say(&object, origin, severity, "spec.targetRefs", text);
            }
        }
        reports.say_all(&object, &entry.origin, messages);
    }
}

/// All objects, the oldest first.
fn sources<'v>(view: &'v ClusterView, settings: &Settings) -> Vec<Source<'v>> {
    let mut entries: Vec<_> = view.telemetries.values().collect();
    entries.sort_by_key(|entry| age(&entry.object.metadata));
    entries.into_iter().map(|e| source(e, settings)).collect()
}

fn source<'v>(entry: &'v Entry<Telemetry>, settings: &Settings) -> Source<'v> {
    let (meta, spec) = (&entry.object.metadata, &entry.object.spec);
    let mut messages = Vec::new();
    let mut say = |severity, field: String, text: String| {
        messages.push(Message {
            severity,
            field,
            text,
        });
    };
    let one = spec.target_ref.iter().map(|t| ("targetRef".to_owned(), t));
    let many = spec.target_refs.iter().enumerate();
    let many = many.map(|(i, t)| (format!("targetRefs[{i}]"), t));
    let targets: Vec<_> = one.chain(many).collect();
    let selects = spec
        .selector
        .as_ref()
        .filter(|s| !s.match_labels.is_empty());
    let mut scopes = Vec::new();
    if spec.tracing.is_empty() {
        // It is about nothing here, and stands in nobody's way.
    } else if selects.is_some() {
        let text = "spans are made by waypoints, which no selector means; use targetRefs";
        say(Severity::Warning, "spec.selector".into(), text.into());
    } else if targets.is_empty() && settings.is_root(&meta.namespace) {
        scopes.push(TracingScope::Mesh);
    } else if targets.is_empty() {
        scopes.push(TracingScope::Namespace(Namespace::new(
            meta.namespace.as_str(),
        )));
    } else {
        for (field, target) in &targets {
            match scope(target, &meta.namespace, settings) {
                Ok(scope) => scopes.push(scope),
                Err(text) => say(Severity::Warning, format!("spec.{field}"), text),
            }
        }
    }
    let mut said = Said::default();
    for (index, asked) in spec.tracing.iter().enumerate() {
        let mode = asked.r#match.as_ref().map_or("", |m| m.mode.as_str());
        let at = format!("spec.tracing[{index}]");
        match mode {
            "" | "CLIENT_AND_SERVER" | "SERVER" => {
                let mut say =
                    |severity, field: &str, text| say(severity, format!("{at}.{field}"), text);
                said = read(asked, settings, &mut say).or(&said);
            }
            "CLIENT" => {
                let text = "a waypoint makes the server's spans only: not applied";
                say(Severity::Info, format!("{at}.match.mode"), text.into());
            }
            other => {
                let text = format!("{other:?} is none of CLIENT_AND_SERVER, CLIENT, SERVER");
                say(Severity::Error, format!("{at}.match.mode"), text);
            }
        }
    }
    Source {
        entry,
        scopes,
        said,
        messages,
        speaks: !spec.tracing.is_empty(),
    }
}

fn scope(
    target: &PolicyTargetReference,
    own: &str,
    settings: &Settings,
) -> Result<TracingScope, String> {
    if !matches!(target.namespace.as_str(), "") && target.namespace != own {
        return Err("only objects of its own namespace can be meant".to_owned());
    }
    let name = || mesh_model::name::ServiceName {
        namespace: Namespace::new(own),
        hostname: settings.hostname(own, &target.name),
    };
    match (target.group.as_str(), target.kind.as_str()) {
        ("" | "core", "Service") => Ok(TracingScope::Service(name())),
        ("gateway.networking.k8s.io", "Gateway") => Ok(TracingScope::Waypoint(name())),
        (_, kind) => Err(format!("{kind:?} is neither a Service nor a Gateway")),
    }
}

fn read(asked: &Asked, settings: &Settings, say: &mut impl FnMut(Severity, &str, String)) -> Said {
    let Asked {
        r#match: _,
        providers,
        random_sampling_percentage,
        disable_span_reporting,
        custom_tags,
    } = asked;
    let collector = providers.first().map(|first| {
        if providers.len() > 1 {
            let text = "only the first is used".to_owned();
            say(Severity::Warning, "providers", text);
        }
        let found = settings.tracing.get(&first.name);
        found
            .map_err(|text| say(Severity::Error, "providers[0].name", text))
            .ok()
    });
    let sampling = random_sampling_percentage.and_then(|percent| {
        let share = Share::percent(percent);
        if share.is_none() {
            let text = format!("{percent} is no percentage; what is inherited holds");
            say(Severity::Error, "randomSamplingPercentage", text);
        }
        share
    });
    let tags = custom_tags.as_ref().map(|tags| {
        let read = tags
            .iter()
            .filter_map(|(name, from)| match tag(name, from) {
                Ok(tag) => Some(tag),
                Err(text) => {
                    say(Severity::Warning, &format!("customTags[{name}]"), text);
                    None
                }
            });
        read.collect()
    });
    Said {
        collector,
        sampling,
        silent: *disable_span_reporting,
        tags,
    }
}

fn tag(name: &str, from: &CustomTag) -> Result<SpanTag, String> {
    let value = match (&from.literal, &from.header) {
        (Some(literal), None) => TagValue::Literal(literal.value.as_str().into()),
        (None, Some(header)) => {
            let name = header.name.to_ascii_lowercase();
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            if name.is_empty() || !name.bytes().all(plain) {
                return Err(format!("{:?} is no header's name", header.name));
            }
            let otherwise = Some(header.default_value.as_str()).filter(|text| !text.is_empty());
            TagValue::Header(name.into(), otherwise.map(Into::into))
        }
        _ => return Err("is neither literal nor header, of which one is honoured".to_owned()),
    };
    match name {
        "" => Err("has no name".to_owned()),
        name => Ok(SpanTag {
            name: name.into(),
            value,
        }),
    }
}

impl Said {
    /// What another says where this says nothing.
    fn or(self, other: &Self) -> Self {
        Self {
            collector: self.collector.or_else(|| other.collector.clone()),
            sampling: self.sampling.or(other.sampling),
            silent: self.silent.or(other.silent),
            tags: self.tags.or_else(|| other.tags.clone()),
        }
    }

    fn rule(self, scope: TracingScope) -> Arc<Tracing> {
        let silent = self.silent.unwrap_or_default();
        Arc::new(Tracing {
            scope,
            sampling: self.sampling.unwrap_or(Share::NONE),
            collector: self.collector.flatten().filter(|_| !silent),
            tags: self.tags.unwrap_or_default(),
        })
    }
}
