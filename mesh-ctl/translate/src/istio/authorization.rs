//! AuthorizationPolicy to policies of the mesh.
//!
//! Invariant: a policy that cannot be understood, or that asks for something this version cannot do, still governs
//! what it names, and refuses.

use std::collections::{BTreeMap, BTreeSet};

use mesh_k8s::{
    Kind, ObjectRef,
    security::{AuthorizationPolicy, PolicyTargetReference},
};
use mesh_model::{
    mesh::{
        Action, Policy, PolicyScope, Validity,
        policy::{Clause, Match, Rule},
    },
    name::{Namespace, PolicyName},
};

use super::matches::RuleReader;
use crate::{
    core::service::ServiceDraft,
    settings::Settings,
    status::{InForce, Message, Reports, Severity},
    view::{Broken, ClusterView, Entry, Key},
};

/// A policy with what it selects.
#[derive(Debug)]
pub(crate) struct Governing {
    pub(crate) policy: Policy,
    pub(crate) selects: Selects,
}

/// What a policy with scope `Selector` selects.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Selects {
    /// Its scope says all.
    ByScope,
    /// Workloads with these labels, in one namespace or everywhere.
    Labels {
        namespace: Option<String>,
        labels: BTreeMap<String, String>,
    },
    /// Endpoints of these services, as indices.
    Services(BTreeSet<usize>),
}

/// Translates all policies, ordered by name.
pub(crate) fn collect(
    view: &ClusterView,
    settings: &Settings,
    services: &[ServiceDraft<'_>],
    reports: &mut Reports,
) -> Vec<Governing> {
    let read = view.authorization_policies.values().filter_map(|entry| {
        let object = ObjectRef::of::<AuthorizationPolicy>(entry.object.metadata());
        let (governing, messages, in_force) = Translation {
            settings,
            services,
            entry,
        }
        .run();
        reports.say_all(&object, &entry.origin, messages);
        reports.in_force(&object, &entry.origin, in_force);
        governing
    });
    let mut all: Vec<_> = read.collect();
    all.extend(
        view.broken
            .iter()
            .filter_map(|(object, broken)| unreadable(view, settings, object, broken)),
    );
    all.sort_by(|a, b| a.policy.name.cmp(&b.policy.name));
    all
}

/// A policy of which no version was ever readable refuses what it seems to govern.
fn unreadable(
    view: &ClusterView,
    settings: &Settings,
    object: &ObjectRef,
    broken: &Broken,
) -> Option<Governing> {
    let key = Key {
        namespace: object.namespace.clone(),
        name: object.name.clone(),
    };
    if &*object.kind != AuthorizationPolicy::KIND || view.authorization_policies.contains_key(&key)
    {
        return None;
    }
    let (scope, selects) = scope(settings, &object.namespace, broken.selector.as_ref());
    let validity = Validity::Invalid(format!("{}: {}", broken.field, broken.message).into());
    let policy = Policy {
        name: name(object),
        scope,
        action: Action::Deny,
        rules: [].into(),
        dry_run: false,
        validity,
    };
    Some(Governing { policy, selects })
}

fn name(object: &ObjectRef) -> PolicyName {
    PolicyName {
        namespace: Namespace::from(&*object.namespace),
        name: object.name.clone(),
    }
}

fn scope(
    settings: &Settings,
    namespace: &str,
    labels: Option<&BTreeMap<String, String>>,
) -> (PolicyScope, Selects) {
    let root = settings.is_root(namespace);
    match labels.filter(|labels| !labels.is_empty()) {
        Some(labels) => {
            let namespace = (!root).then(|| namespace.to_owned());
            (
                PolicyScope::Selector,
                Selects::Labels {
                    namespace,
                    labels: labels.clone(),
                },
            )
        }
        None if root => (PolicyScope::Global, Selects::ByScope),
        None => (PolicyScope::Namespace, Selects::ByScope),
    }
}

/// The objects that a policy is attached to, each with the field that says so.
pub(crate) fn targets(policy: &AuthorizationPolicy) -> Vec<(String, &PolicyTargetReference)> {
    let (one, many) = (
        policy.spec.target_ref.iter(),
        policy.spec.target_refs.iter(),
    );
    let one = one.map(|target| ("spec.targetRef".to_owned(), target));
    let many = many
        .enumerate()
        .map(|(i, target)| (format!("spec.targetRefs[{i}]"), target));
    one.chain(many).collect()
}

/// The namespace of an object that a policy of namespace `own` is attached to.
pub(crate) fn target_namespace<'a>(target: &'a PolicyTargetReference, own: &'a str) -> &'a str {
    match target.namespace.as_str() {
        "" => own,
        namespace => namespace,
    }
}

struct Translation<'t> {
    settings: &'t Settings,
    services: &'t [ServiceDraft<'t>],
    entry: &'t Entry<AuthorizationPolicy>,
}

impl Translation<'_> {
    fn run(&self) -> (Option<Governing>, Vec<Message>, InForce) {
        let AuthorizationPolicy { metadata, spec } = &*self.entry.object;
        let mut reader = RuleReader {
            action: Action::Allow,
            namespace: &metadata.namespace,
            trust_domain: self.settings.mesh.trust_domain.as_str(),
            messages: Vec::new(),
            invalid: None,
        };
        reader.action = self.action(&mut reader);
        let dry_run = self.dry_run(&mut reader);
        // A field beside the rules that is not known could have changed all of them.
        for path in self
            .entry
            .unknown
            .iter()
            .filter(|path| !path.starts_with("spec.rules["))
        {
            if path.starts_with("spec.") {
                reader.fail(path, "is not a field that this version knows".to_owned());
            }
        }
        let mut rules = Vec::new();
        for (i, rule) in spec.rules.iter().enumerate() {
            rules.extend(reader.rule(&format!("spec.rules[{i}]"), rule, &self.entry.unknown));
        }
        self.empty(&mut reader);
        let (scope, selects) = self.scope(&mut reader);
        let waypoint = matches!(selects, Some(Selects::Services(_)));
        if waypoint {
            rules.iter_mut().for_each(beyond);
        }
        let in_force = in_force(&reader, selects.as_ref());
        let validity = reader
            .invalid
            .map_or(Validity::Valid, |reason| Validity::Invalid(reason.into()));
        let object = ObjectRef::of::<AuthorizationPolicy>(metadata);
        let policy = Policy {
            name: name(&object),
            scope,
            action: reader.action,
            rules: rules.into(),
            dry_run,
            validity,
        };
        (
            selects.map(|selects| Governing { policy, selects }),
            reader.messages,
            in_force,
        )
    }

    fn action(&self, reader: &mut RuleReader<'_>) -> Action {
        let spec = &self.entry.object.spec;
        match spec.action.as_str() {
            "" | "ALLOW" => Action::Allow,
            "DENY" => Action::Deny,
            "AUDIT" => Action::Audit,
            "CUSTOM" => {
                let provider = spec
                    .provider
                    .as_ref()
                    .map_or("", |provider| provider.name.as_str());
                let text = format!(
                    "CUSTOM (provider {provider:?}) needs a waypoint, which this version does not provide; \
                     until then every connection to what the policy governs is refused"
                );
                reader.fail("spec.action", text);
                Action::Deny
            }
            other => {
                reader.fail(
                    "spec.action",
                    format!("{other:?} is none of ALLOW, DENY, AUDIT, CUSTOM"),
                );
                Action::Deny
            }
        }
    }

    fn dry_run(&self, reader: &mut RuleReader<'_>) -> bool {
        match self.entry.object.metadata.annotation("istio.io/dry-run") {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                reader.messages.push(Message {
                    severity: Severity::Warning,
                    field: "metadata.annotations[istio.io/dry-run]".to_owned(),
                    text: format!(
                        "{other:?} is neither \"true\" nor \"false\"; the policy is in force"
                    ),
                });
                false
            }
        }
    }

    fn empty(&self, reader: &mut RuleReader<'_>) {
        if !self.entry.object.spec.rules.is_empty() {
            return;
        }
        let (severity, text) = match reader.action {
            Action::Allow => (Severity::Info, "no rules: nothing is allowed"),
            Action::Deny | Action::Audit => {
                (Severity::Warning, "no rules: the policy never matches")
            }
        };
        let field = "spec.rules".to_owned();
        reader.messages.push(Message {
            severity,
            field,
            text: text.to_owned(),
        });
    }

    /// What the policy governs; `None` when nothing that exists here.
    fn scope(&self, reader: &mut RuleReader<'_>) -> (PolicyScope, Option<Selects>) {
        let AuthorizationPolicy { metadata, spec } = &*self.entry.object;
        let labels = spec
            .selector
            .as_ref()
            .map(|selector| &selector.match_labels);
        let targets = targets(&self.entry.object);
        if targets.is_empty() {
            let (scope, selects) = scope(self.settings, &metadata.namespace, labels);
            return (scope, Some(selects));
        }
        if spec.selector.is_some() {
            reader.fail("spec.selector", "cannot stand beside targetRefs".to_owned());
            let (scope, selects) = scope(self.settings, &metadata.namespace, labels);
            return (scope, Some(selects));
        }
        let mut found = BTreeSet::new();
        let mut service_kind = false;
        for (field, target) in targets {
            match (target.group.as_str(), target.kind.as_str()) {
                ("" | "core", "Service") | ("networking.istio.io", "ServiceEntry") => {
                    service_kind = true;
                    found.extend(self.target(&field, target, reader));
                }
                (_, kind) => reader.messages.push(Message {
                    severity: Severity::Error,
                    field,
                    text: format!("not enforced: a {kind} is governed by its own proxy, which this version does not provide"),
                }),
            }
        }
        (
            PolicyScope::Selector,
            service_kind.then_some(Selects::Services(found)),
        )
    }

    fn target(
        &self,
        field: &str,
        target: &PolicyTargetReference,
        reader: &mut RuleReader<'_>,
    ) -> Vec<usize> {
        let own = &self.entry.object.metadata.namespace;
        let namespace = target_namespace(target, own);
        let is_target = |service: &ServiceDraft<'_>| {
            *service.object.kind == *target.kind
                && *service.object.namespace == *namespace
                && *service.object.name == *target.name
        };
        let all = self
            .services
            .iter()
            .enumerate()
            .filter(|(_, service)| is_target(service));
        let found: Vec<_> = all.map(|(index, _)| index).collect();
        let effect = match reader.action {
            Action::Allow => {
                "until then its workloads accept nothing that only this policy would allow"
            }
            Action::Deny => {
                "until then its workloads refuse, on every port, what the rules say without layer 7"
            }
            Action::Audit => "until then nothing is logged",
        };
        let text = match found.is_empty() {
            true => format!("{} {namespace}/{} is not known", target.kind, target.name),
            false => {
                format!(
                    "governs a {}, which needs a waypoint; this version provides none; {effect}",
                    target.kind
                )
            }
        };
        reader.messages.push(Message {
            severity: Severity::Warning,
            field: field.to_owned(),
            text,
        });
        found
    }
}

/// Marks every way through a rule as beyond what the node knows.
fn beyond(rule: &mut Rule) {
    let only = Clause {
        matches: [Match {
            beyond_l4: true,
            ..Match::default()
        }]
        .into(),
    };
    rule.clauses = rule.clauses.iter().cloned().chain([only]).collect();
}

fn in_force(reader: &RuleReader<'_>, selects: Option<&Selects>) -> InForce {
    if let Some(reason) = &reader.invalid {
        let text = format!("refuses every connection to what it governs: {reason}");
        return InForce::Not("Invalid", text);
    }
    match selects {
        None => InForce::Not("NotEnforced", "nothing here enforces it".to_owned()),
        Some(_)
            if reader
                .messages
                .iter()
                .any(|message| message.severity >= Severity::Warning) =>
        {
            InForce::Partly
        }
        Some(_) => InForce::Wholly,
    }
}
