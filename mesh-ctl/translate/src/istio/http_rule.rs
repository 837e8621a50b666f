//! One HTTP rule of a virtual service.
//!
//! Invariant: a rule that cannot be understood keeps its place and refuses.

use std::{collections::HashMap, sync::Arc};

use mesh_k8s::networking::virtual_service::{Destination, HttpRoute};
use mesh_model::{
    resilience::{Destination as Uses, Share},
    route::http::{Action, Backend, Filters, Match, Mirror, Rule},
};

use super::{http_filter, http_match};
use crate::{
    settings::Settings,
    traffic::{
        hosts::{Hosts, Pattern, unknown},
        reader::Reader,
        values,
    },
};

/// What a rule is read beside.
pub(super) struct Around<'r, 'a> {
    pub(super) settings: &'r Settings,
    pub(super) hosts: &'r Hosts<'r, 'a>,
    /// How services' endpoints are used, by index.
    pub(super) uses: &'r HashMap<usize, Uses>,
    /// The namespace of the object that has the rule.
    pub(super) namespace: &'r str,
    /// Paths in the object that no type knows.
    pub(super) unknown: &'r [String],
}

impl Around<'_, '_> {
    /// Reads a rule at a path; `None` when it is for gateways only.
    pub(super) fn rule(
        &self,
        reader: &mut Reader,
        path: &str,
        name: Arc<str>,
        wire: &HttpRoute,
    ) -> Option<Rule> {
        reader.invalid = None;
        let matches = http_match::read(reader, path, &wire.matches)?;
        // A condition that is not known could have kept any request away.
        let beside = format!("{path}.match[");
        if let Some(field) = self.unknown.iter().find(|f| f.starts_with(&beside)) {
            reader.fail(
                field,
                "is not a condition that this version knows".to_owned(),
            );
        }
        let mut filters = http_filter::filters(reader, path, wire.headers.as_ref());
        filters.rewrite = wire
            .rewrite
            .as_ref()
            .map(|rewrite| http_filter::rewrite(reader, path, rewrite));
        let action = self.action(reader, path, wire);
        let timeout = wire.timeout.as_ref().and_then(|text| {
            let field = format!("{path}.timeout");
            let time = values::duration(text);
            reader.want(&field, time, "requests may take for ever")
        });
        let rule = Rule {
            name,
            matches: matches.into(),
            filters,
            timeout: timeout.filter(|time| !time.is_zero()),
            retries: http_filter::retries(reader, path, wire.retries.as_ref()),
            fault: wire
                .fault
                .as_ref()
                .and_then(|fault| http_filter::fault(reader, path, fault)),
            mirrors: self.mirrors(reader, path, wire).into(),
            cors: wire
                .cors_policy
                .as_ref()
                .map(|cors| http_filter::cors(reader, path, cors)),
            session: None,
            action,
        };
        Some(match reader.invalid.take() {
            None => rule,
            Some(reason) => refusing(rule.name, rule.matches, reason),
        })
    }

    /// Says of what a rule has no use for that sends nothing on.
    pub(super) fn warn_of_idle(reader: &mut Reader, path: &str, wire: &HttpRoute) {
        if wire.redirect.is_none() && wire.direct_response.is_none() {
            return;
        }
        for (name, given) in [
            ("rewrite", wire.rewrite.is_some()),
            ("timeout", wire.timeout.is_some()),
            ("retries", wire.retries.is_some()),
            ("mirror", wire.mirror.is_some()),
            ("mirrors", !wire.mirrors.is_empty()),
        ] {
            if given {
                let text =
                    "is not looked at: of a request that is answered here nothing is sent on";
                reader.warn(format!("{path}.{name}"), text);
            }
        }
    }

    fn action(&self, reader: &mut Reader, path: &str, wire: &HttpRoute) -> Action {
        let ways = [
            !wire.route.is_empty(),
            wire.redirect.is_some(),
            wire.direct_response.is_some(),
        ];
        if ways.into_iter().filter(|way| *way).count() != 1 {
            let text = "needs exactly one of route, redirect, directResponse and delegate";
            reader.fail(path, text.to_owned());
        }
        if let Some(redirect) = &wire.redirect {
            return Action::Redirect(http_filter::redirect(reader, path, redirect));
        }
        if let Some(respond) = &wire.direct_response {
            return Action::Respond(http_filter::respond(reader, path, respond));
        }
        let only = wire.route.len() == 1;
        let mut backends = Vec::new();
        for (i, to) in wire.route.iter().enumerate() {
            let path = format!("{path}.route[{i}]");
            let weight = match u32::try_from(to.weight) {
                Ok(0) if only => 100,
                Ok(weight) => weight,
                Err(_) => {
                    let text = format!("{} is less than 0", to.weight);
                    reader.fail(&format!("{path}.weight"), text);
                    0
                }
            };
            let filters = http_filter::filters(reader, &path, to.headers.as_ref());
            let field = format!("{path}.destination");
            backends.extend(self.backend(reader, &field, &to.destination, weight, filters));
        }
        if !only && !backends.is_empty() && backends.iter().all(|b| b.weight == 0) {
            let field = format!("{path}.route");
            reader.fail(
                &field,
                "the weights of its destinations are all 0".to_owned(),
            );
        }
        Action::Forward(backends.into())
    }

    fn mirrors(&self, reader: &mut Reader, path: &str, wire: &HttpRoute) -> Vec<Mirror> {
        let mut mirrors = Vec::new();
        let mut add = |reader: &mut Reader, path: &str, to: &Destination, share: Share| {
            let before = reader.invalid.clone();
            let backend = self.backend(reader, path, to, 1, Filters::default());
            // Whoever gets no copy is no reason to refuse the original.
            reader.invalid = before;
            mirrors.extend(backend.map(|backend| Mirror { backend, share }));
        };
        if let Some(to) = &wire.mirror {
            let field = format!("{path}.mirrorPercentage");
            let percent = wire.mirror_percent.map(f64::from);
            let share = http_filter::share(reader, &field, wire.mirror_percentage, percent);
            let share = share.unwrap_or(Share::ALL);
            add(reader, &format!("{path}.mirror"), to, share);
        }
        for (name, given) in [
            ("mirrorPercent", wire.mirror_percent.is_some()),
            ("mirrorPercentage", wire.mirror_percentage.is_some()),
        ] {
            if given && wire.mirror.is_none() {
                let text = "is for mirror, which is missing: nobody gets a copy by it";
                reader.warn(format!("{path}.{name}"), text);
            }
        }
        for (i, mirror) in wire.mirrors.iter().enumerate() {
            let path = format!("{path}.mirrors[{i}]");
            let field = format!("{path}.percentage");
            let share = http_filter::share(reader, &field, mirror.percentage, None);
            let share = share.unwrap_or(Share::ALL);
            add(
                reader,
                &format!("{path}.destination"),
                &mirror.destination,
                share,
            );
        }
        mirrors
    }

    pub(super) fn backend(
        &self,
        reader: &mut Reader,
        path: &str,
        to: &Destination,
        weight: u32,
        filters: Filters,
    ) -> Option<Backend> {
        let field = format!("{path}.host");
        let host = match Pattern::read(self.settings, self.namespace, &to.host) {
            Ok(Pattern::Exact(host)) => host,
            Ok(Pattern::Below(_)) => {
                reader.fail(&field, "a destination cannot have a *".to_owned());
                return None;
            }
            Err(text) => {
                reader.fail(&field, text);
                return None;
            }
        };
        let number = to.port.map_or(0, |port| port.number);
        let port = http_match::port(reader, &format!("{path}.port.number"), number);
        let found = self.hosts.find(self.namespace, &host);
        match found {
            None => {
                let text = format!(
                    "{host} is no service that namespace {} sees; until there is one, requests to it are answered 503",
                    self.namespace
                );
                reader.warn(field, text);
            }
            Some(index) => self.check(reader, path, to, index, port),
        }
        let service = match found {
            Some(index) => self.hosts.get(index).service.name.clone(),
            None => unknown(self.settings, self.namespace, &host),
        };
        Some(Backend {
            service,
            port,
            subset: (!to.subset.is_empty()).then(|| to.subset.as_str().into()),
            weight,
            filters,
            invalid: None,
        })
    }

    /// Says what a service lacks of what is asked of it.
    fn check(
        &self,
        reader: &mut Reader,
        path: &str,
        to: &Destination,
        index: usize,
        port: Option<u16>,
    ) {
        let service = &self.hosts.get(index).service;
        let name = &service.name.hostname;
        if let Some(port) = port
            && !service.ports.iter().any(|known| known.port == port)
        {
            let text = format!("{name} has no port {port}; requests to it are answered 503");
            reader.warn(format!("{path}.port.number"), text);
        }
        let uses = self.uses.get(&index);
        let known = uses.is_some_and(|uses| uses.subsets.iter().any(|s| *s.name == *to.subset));
        if !to.subset.is_empty() && !known {
            let text = format!(
                "no DestinationRule in force for {name} has a subset {:?}; requests to it are answered 503",
                to.subset
            );
            reader.warn(format!("{path}.subset"), text);
        }
    }
}

/// A rule that refuses, in the place of one that could not be understood.
pub(crate) fn refusing(name: Arc<str>, matches: Box<[Match]>, reason: String) -> Rule {
    Rule {
        name,
        matches,
        filters: Filters::default(),
        action: Action::Invalid(reason.into()),
        timeout: None,
        retries: None,
        fault: None,
        mirrors: Box::default(),
        cors: None,
        session: None,
    }
}
