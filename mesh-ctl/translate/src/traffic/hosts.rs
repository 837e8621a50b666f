//! Hosts as objects write them, and the services that they mean.
//!
//! Invariant: a host means services that the writer's namespace sees, and no others; of several by one name its own
//! comes first, then the oldest.

use std::collections::HashMap;

use mesh_k8s::{Kind, core::Service};
use mesh_model::{mesh::service::Visibility, name::ServiceName};

use crate::{core::service::ServiceDraft, settings::Settings};

/// What a host stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Pattern {
    /// One name.
    Exact(String),
    /// Every name below a suffix; every name at all when it is empty.
    Below(String),
}

impl Pattern {
    /// Reads a host that an object of a namespace writes. A name without a dot is a service of that namespace.
    pub(crate) fn read(settings: &Settings, namespace: &str, host: &str) -> Result<Self, String> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if host == "*" {
            return Ok(Self::Below(String::new()));
        }
        let (wild, name) = match host.strip_prefix("*.") {
            Some(suffix) => (true, suffix),
            None => (false, host.as_str()),
        };
        if name.len() > 253 || !name.split('.').all(is_label) {
            let shown = host.escape_debug().to_string();
            return Err(format!("{shown:?} is not a host's name"));
        }
        Ok(match (wild, name.contains('.')) {
            (true, _) => Self::Below(name.to_owned()),
            (false, true) => Self::Exact(name.to_owned()),
            (false, false) => Self::Exact(settings.hostname(namespace, name).as_str().to_owned()),
        })
    }

    /// How much it says: one name most of all, then the longest suffix.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Exact(_) => usize::MAX,
            Self::Below(suffix) => suffix.len(),
        }
    }

    /// Whether it stands for a name.
    pub(crate) fn covers(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Below(suffix) if suffix.is_empty() => true,
            Self::Below(suffix) => host
                .strip_suffix(suffix.as_str())
                .is_some_and(|rest| rest.ends_with('.') && rest.len() > 1),
        }
    }

    /// The namespace of the services that it stands for, when the name says so.
    pub(crate) fn namespace(&self, settings: &Settings) -> Option<String> {
        let name = match self {
            Self::Exact(name) => name.split_once('.')?.1,
            Self::Below(suffix) => suffix,
        };
        let domain = format!(".svc.{}", settings.mesh.cluster_domain);
        let namespace = name.strip_suffix(&domain)?;
        (!namespace.is_empty() && !namespace.contains('.')).then(|| namespace.to_owned())
    }
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Every suffix of a name that a host with `*` could have, the longest first; the last is empty.
pub(crate) fn suffixes(host: &str) -> impl Iterator<Item = &str> {
    let below = std::iter::successors(host.split_once('.').map(|(_, rest)| rest), |rest| {
        rest.split_once('.').map(|(_, rest)| rest)
    });
    below.chain([""])
}

/// Services by their host names.
pub(crate) struct Hosts<'s, 'a> {
    services: &'s [ServiceDraft<'a>],
    by_name: HashMap<&'s str, Vec<usize>>,
}

impl<'s, 'a> Hosts<'s, 'a> {
    /// Of all services, in the order in which they are preferred.
    pub(crate) fn of(services: &'s [ServiceDraft<'a>]) -> Self {
        let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, draft) in services.iter().enumerate().filter(|(_, s)| !s.hidden) {
            let name = draft.service.name.hostname.as_str();
            by_name.entry(name).or_default().push(index);
        }
        Self { services, by_name }
    }

    /// The service of an index.
    pub(crate) fn get(&self, index: usize) -> &'s ServiceDraft<'a> {
        &self.services[index]
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = usize> {
        let shown = self.services.iter().enumerate().filter(|(_, s)| !s.hidden);
        shown.map(|(index, _)| index)
    }

    /// The services of a pattern in any namespace.
    pub(crate) fn named(&self, pattern: &Pattern) -> Vec<usize> {
        match pattern {
            Pattern::Exact(host) => self.by_name.get(host.as_str()).cloned().unwrap_or_default(),
            Pattern::Below(_) => {
                let name = |i: usize| self.services[i].service.name.hostname.as_str();
                self.all().filter(|i| pattern.covers(name(*i))).collect()
            }
        }
    }

    /// The service of Kubernetes with a name, in a namespace.
    pub(crate) fn service(&self, namespace: &str, host: &str) -> Option<usize> {
        let found = self.by_name.get(host)?.iter().copied();
        let mut own = found.filter(|i| {
            let object = &self.services[*i].object;
            *object.kind == *Service::KIND && *object.namespace == *namespace
        });
        own.next()
    }

    /// The service that a name means to a namespace.
    pub(crate) fn find(&self, namespace: &str, host: &str) -> Option<usize> {
        let found = self.by_name.get(host)?;
        let seen = || found.iter().copied().filter(|i| self.sees(namespace, *i));
        let own = |i: &usize| self.services[*i].service.name.namespace.as_str() == namespace;
        seen().find(own).or_else(|| seen().next())
    }

    /// The services that a pattern means to a namespace, in order.
    pub(crate) fn matching(&self, namespace: &str, pattern: &Pattern) -> Vec<usize> {
        match pattern {
            Pattern::Exact(host) => self.find(namespace, host).into_iter().collect(),
            Pattern::Below(_) => (0..self.services.len())
                .filter(|i| {
                    let draft = &self.services[*i];
                    !draft.hidden
                        && self.sees(namespace, *i)
                        && pattern.covers(draft.service.name.hostname.as_str())
                })
                .collect(),
        }
    }

    fn sees(&self, namespace: &str, index: usize) -> bool {
        let draft = &self.services[index];
        draft.service.visibility == Visibility::Public
            || draft.service.name.namespace.as_str() == namespace
            || draft
                .extra
                .visible_to
                .iter()
                .any(|to| to.as_str() == namespace)
    }
}

/// What a host is called when no service has it: what clients would be refused by.
pub(crate) fn unknown(settings: &Settings, namespace: &str, host: &str) -> ServiceName {
    let owner = Pattern::Exact(host.to_owned()).namespace(settings);
    ServiceName {
        namespace: owner.as_deref().unwrap_or(namespace).into(),
        hostname: host.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_short_full_or_wild() {
        let settings = Settings::default();
        let check = |host: &str, expect: Option<Pattern>| {
            assert_eq!(
                Pattern::read(&settings, "shop", host).ok(),
                expect,
                "{host}"
            );
        };
        let exact = |host: &str| Some(Pattern::Exact(host.to_owned()));
        let below = |host: &str| Some(Pattern::Below(host.to_owned()));
        check("reviews", exact("reviews.shop.svc.cluster.local"));
        check("Reviews.", exact("reviews.shop.svc.cluster.local"));
        check("reviews.bank", exact("reviews.bank"));
        check("*", below(""));
        check("*.example.com", below("example.com"));
        check("*x.example.com", None);
        check("a..b", None);
        check("", None);
        check("*.a..b", None);
    }

    #[test]
    fn a_suffix_covers_what_is_below_it() {
        let below = Pattern::Below("example.com".to_owned());
        assert!(below.covers("a.example.com") && below.covers("a.b.example.com"));
        assert!(
            !below.covers("example.com")
                && !below.covers("aexample.com")
                && !below.covers(".example.com")
        );
        assert!(Pattern::Below(String::new()).covers("anything"));
        let all: Vec<_> = suffixes("a.b.c").collect();
        assert_eq!(all, ["b.c", "c", ""]);
    }

    #[test]
    fn names_of_the_cluster_tell_their_namespace() {
        let settings = Settings::default();
        let of = |host: &str| Pattern::Exact(host.to_owned()).namespace(&settings);
        assert_eq!(of("a.shop.svc.cluster.local").as_deref(), Some("shop"));
        assert_eq!(of("a.b.shop.svc.cluster.local"), None);
        assert_eq!(of("a.example.com"), None);
        let below = Pattern::Below("shop.svc.cluster.local".to_owned());
        assert_eq!(below.namespace(&settings).as_deref(), Some("shop"));
    }
}
