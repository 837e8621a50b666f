//! The rules of an AuthorizationPolicy as clauses of matches.
//!
//! Invariant: a value that cannot be understood makes the whole policy invalid; a field that only layer 7 can
//! know, or that no type knows, marks its match. Neither ever makes a rule wider.

use std::sync::Arc;

use ipnet::IpNet;
use mesh_k8s::security::{self as wire, Condition, Operation, Source};
use mesh_model::{
    mesh::{
        Action,
        policy::{Clause, Match, Rule, ServiceAccountMatch, StringMatch},
    },
    name::{Namespace, ServiceAccount},
};

use crate::status::{Message, Severity};

/// Reads the rules of one policy.
pub(crate) struct RuleReader<'a> {
    pub(crate) action: Action,
    /// The namespace of service accounts that name none.
    pub(crate) namespace: &'a str,
    /// The mesh's trust domain.
    pub(crate) trust_domain: &'a str,
    pub(crate) messages: Vec<Message>,
    /// The first thing that could not be understood.
    pub(crate) invalid: Option<String>,
}

impl RuleReader<'_> {
    /// One rule; several when trust domains must hold together with principals.
    pub(crate) fn rule(&mut self, at: &str, rule: &wire::Rule, unknown: &[String]) -> Vec<Rule> {
        let mut common = Vec::new();
        if !rule.to.is_empty() {
            let matches = rule
                .to
                .iter()
                .enumerate()
                .map(|(i, to)| self.to(&format!("{at}.to[{i}]"), to));
            common.push(Clause {
                matches: matches.collect(),
            });
        }
        for (i, condition) in rule.when.iter().enumerate() {
            let matches = [self.condition(&format!("{at}.when[{i}]"), condition)].into();
            common.push(Clause { matches });
        }
        let below = |path: &&String| {
            path.strip_prefix(at)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        for path in unknown.iter().filter(below) {
            self.beyond(path.clone(), "is not a field that this version knows");
            common.push(Clause {
                matches: [Match {
                    beyond_l4: true,
                    ..Match::default()
                }]
                .into(),
            });
        }
        let sources: Vec<_> = rule
            .from
            .iter()
            .enumerate()
            .map(|(i, from)| self.from(&format!("{at}.from[{i}]"), from))
            .collect();
        combine(sources, common)
    }

    fn from(&mut self, at: &str, from: &wire::From) -> (Match, Option<Match>) {
        let Some(source) = &from.source else {
            self.fail(&format!("{at}.source"), "is missing".to_owned());
            return Default::default();
        };
        let at = &format!("{at}.source");
        if *source == Source::default() {
            self.fail(at, "names nothing".to_owned());
        }
        let Source {
            principals,
            not_principals,
            request_principals,
            not_request_principals,
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            ip_blocks,
            not_ip_blocks,
            remote_ip_blocks,
            not_remote_ip_blocks,
            trust_domains,
            not_trust_domains,
        } = source;
        let mut found = Match {
            principals: self.principals(&format!("{at}.principals"), principals),
            not_principals: self.principals(&format!("{at}.notPrincipals"), not_principals),
            namespaces: self.strings(&format!("{at}.namespaces"), namespaces),
            not_namespaces: self.strings(&format!("{at}.notNamespaces"), not_namespaces),
            service_accounts: self.accounts(&format!("{at}.serviceAccounts"), service_accounts),
            not_service_accounts: self
                .accounts(&format!("{at}.notServiceAccounts"), not_service_accounts),
            source_ips: self.networks(&format!("{at}.ipBlocks"), ip_blocks),
            not_source_ips: self.networks(&format!("{at}.notIpBlocks"), not_ip_blocks),
            ..Match::default()
        };
        for (field, values) in [
            ("requestPrincipals", request_principals),
            ("notRequestPrincipals", not_request_principals),
            ("remoteIpBlocks", remote_ip_blocks),
            ("notRemoteIpBlocks", not_remote_ip_blocks),
        ] {
            self.layer7(&mut found, &format!("{at}.{field}"), values);
        }
        let second = self.trust_domains(at, trust_domains, not_trust_domains, &mut found);
        (found, second)
    }

    /// Trust domains are beginnings of principals. They go into a match of their own when both are asked for.
    fn trust_domains(
        &mut self,
        at: &str,
        is: &[String],
        not: &[String],
        found: &mut Match,
    ) -> Option<Match> {
        let (not, not_known) = self.domains(&format!("{at}.notTrustDomains"), not);
        found.not_principals = found.not_principals.iter().cloned().chain(not).collect();
        let (is, known) = self.wanted_domains(&format!("{at}.trustDomains"), is);
        found.beyond_l4 |= !known || !not_known;
        if is.is_empty() {
            return None;
        }
        if found.principals.is_empty() {
            found.principals = is.into();
            return None;
        }
        Some(Match {
            principals: is.into(),
            ..Match::default()
        })
    }

    fn domains(&mut self, at: &str, values: &[String]) -> (Vec<StringMatch>, bool) {
        let (mut domains, mut known) = (Vec::new(), true);
        for (i, found) in self.strings(at, values).into_iter().enumerate() {
            domains.push(match found {
                StringMatch::Exact(domain) => {
                    StringMatch::Prefix(format!("{}/", self.domain(&domain)).into())
                }
                prefix @ StringMatch::Prefix(_) => prefix,
                StringMatch::Presence => StringMatch::Presence,
                StringMatch::Suffix(_) => {
                    known = false;
                    self.beyond(
                        format!("{at}[{i}]"),
                        "trust domains by their end are not supported",
                    );
                    continue;
                }
            });
        }
        (domains, known)
    }

    /// A list of which one entry is not understood must not narrow what a DENY refuses.
    fn wanted_domains(&mut self, at: &str, values: &[String]) -> (Vec<StringMatch>, bool) {
        match self.domains(at, values) {
            (_, false) => (Vec::new(), false),
            known => known,
        }
    }

    /// `cluster.local` stands for the mesh's own trust domain, whatever its name.
    fn domain<'d>(&'d self, domain: &'d str) -> &'d str {
        if domain == "cluster.local" {
            self.trust_domain
        } else {
            domain
        }
    }

    fn to(&mut self, at: &str, to: &wire::To) -> Match {
        let at = &format!("{at}.operation");
        let Some(operation) = &to.operation else {
            self.fail(at, "is missing".to_owned());
            return Match::default();
        };
        if *operation == Operation::default() {
            self.fail(at, "names nothing".to_owned());
        }
        let Operation {
            hosts,
            not_hosts,
            ports,
            not_ports,
            methods,
            not_methods,
            paths,
            not_paths,
        } = operation;
        let mut found = Match {
            destination_ports: self.ports(&format!("{at}.ports"), ports),
            not_destination_ports: self.ports(&format!("{at}.notPorts"), not_ports),
            ..Match::default()
        };
        for (field, values) in [
            ("hosts", hosts),
            ("notHosts", not_hosts),
            ("methods", methods),
            ("notMethods", not_methods),
            ("paths", paths),
            ("notPaths", not_paths),
        ] {
            self.layer7(&mut found, &format!("{at}.{field}"), values);
        }
        found
    }

    fn condition(&mut self, at: &str, condition: &Condition) -> Match {
        let Condition {
            key,
            values,
            not_values,
        } = condition;
        if values.is_empty() && not_values.is_empty() {
            self.fail(at, "needs values or notValues".to_owned());
        }
        let (is, not) = (&format!("{at}.values"), &format!("{at}.notValues"));
        let mut found = Match::default();
        match key.as_str() {
            "source.ip" => {
                found.source_ips = self.networks(is, values);
                found.not_source_ips = self.networks(not, not_values);
            }
            "source.namespace" => {
                found.namespaces = self.strings(is, values);
                found.not_namespaces = self.strings(not, not_values);
            }
            "source.serviceAccount" => {
                found.service_accounts = self.accounts(is, values);
                found.not_service_accounts = self.accounts(not, not_values);
            }
            "source.principal" => {
                found.principals = self.principals(is, values);
                found.not_principals = self.principals(not, not_values);
            }
            "source.trustDomain" => {
                let (is, known) = self.wanted_domains(is, values);
                let (not, not_known) = self.domains(not, not_values);
                (found.principals, found.not_principals) = (is.into(), not.into());
                found.beyond_l4 = !known || !not_known;
            }
            "destination.ip" => {
                found.destination_ips = self.networks(is, values);
                found.not_destination_ips = self.networks(not, not_values);
            }
            "destination.port" => {
                found.destination_ports = self.ports(is, values);
                found.not_destination_ports = self.ports(not, not_values);
            }
            key if is_layer7(key) => {
                found.beyond_l4 = true;
                self.beyond(
                    format!("{at}.key"),
                    &format!("{key} is only known at layer 7"),
                );
            }
            other => self.fail(
                &format!("{at}.key"),
                format!("{other:?} is not an attribute"),
            ),
        }
        found
    }

    fn layer7(&mut self, found: &mut Match, at: &str, values: &[String]) {
        if !values.is_empty() {
            found.beyond_l4 = true;
            self.beyond(at.to_owned(), "is only known at layer 7");
        }
    }

    fn beyond(&mut self, field: String, what: &str) {
        let effect = match self.action {
            Action::Allow => "at the node this never matches, so it allows nothing",
            Action::Deny => {
                "it is left out at the node, so the rule refuses whatever matches the rest"
            }
            Action::Audit => "at the node this never matches, so nothing is logged",
        };
        self.messages.push(Message {
            severity: Severity::Warning,
            field,
            text: format!("{what}: {effect}"),
        });
    }

    /// Notes what cannot be understood; the policy is invalid from then on.
    pub(crate) fn fail(&mut self, field: &str, text: String) {
        self.invalid
            .get_or_insert_with(|| format!("{field}: {text}"));
        self.messages.push(Message {
            severity: Severity::Error,
            field: field.to_owned(),
            text,
        });
    }

    fn strings(&mut self, at: &str, values: &[String]) -> Box<[StringMatch]> {
        let mut found = Vec::new();
        for (i, value) in values.iter().enumerate() {
            match pattern(value) {
                Some(pattern) => found.push(pattern),
                None => self.fail(
                    &format!("{at}[{i}]"),
                    format!("{value:?} is not a pattern: use text, text*, *text or *"),
                ),
            }
        }
        found.into()
    }

    fn principals(&mut self, at: &str, values: &[String]) -> Box<[StringMatch]> {
        let trust_domain = self.trust_domain;
        let own = |text: Arc<str>| -> Arc<str> {
            let text = text.strip_prefix("spiffe://").unwrap_or(&text);
            match text.strip_prefix("cluster.local/") {
                Some(rest) => format!("{trust_domain}/{rest}").into(),
                None => text.into(),
            }
        };
        let found = self
            .strings(at, values)
            .into_iter()
            .map(|found| match found {
                StringMatch::Exact(text) => StringMatch::Exact(own(text)),
                StringMatch::Prefix(text) => StringMatch::Prefix(own(text)),
                other => other,
            });
        found.collect()
    }

    fn accounts(&mut self, at: &str, values: &[String]) -> Box<[ServiceAccountMatch]> {
        let mut found = Vec::new();
        for (i, value) in values.iter().enumerate() {
            let (namespace, account) = value.split_once('/').unwrap_or((self.namespace, value));
            if [namespace, account]
                .iter()
                .any(|part| part.is_empty() || part.contains(['*', '/']))
            {
                let text = format!(
                    "{value:?} is not a service account: use namespace/name or name, without *"
                );
                self.fail(&format!("{at}[{i}]"), text);
                continue;
            }
            found.push(ServiceAccountMatch {
                namespace: Namespace::from(namespace),
                service_account: ServiceAccount::from(account),
            });
        }
        found.into()
    }

    fn networks(&mut self, at: &str, values: &[String]) -> Box<[IpNet]> {
        let mut found = Vec::new();
        for (i, value) in values.iter().enumerate() {
            match network(value) {
                Some(network) => found.push(network),
                None => self.fail(
                    &format!("{at}[{i}]"),
                    format!("{value:?} is neither an address nor a CIDR block"),
                ),
            }
        }
        found.into()
    }

    fn ports(&mut self, at: &str, values: &[String]) -> Box<[u16]> {
        let mut found = Vec::new();
        for (i, value) in values.iter().enumerate() {
            match value.parse() {
                Ok(port) if port != 0 => found.push(port),
                _ => self.fail(
                    &format!("{at}[{i}]"),
                    format!("{value:?} is not a port between 1 and 65535"),
                ),
            }
        }
        found.into()
    }
}

/// Sources become one clause. A source that needs two matches at once becomes a rule of its own: rules are
/// alternatives just as sources are.
fn combine(sources: Vec<(Match, Option<Match>)>, common: Vec<Clause>) -> Vec<Rule> {
    if sources.is_empty() {
        return vec![Rule {
            clauses: common.into(),
        }];
    }
    let with = |first: Vec<Clause>| Rule {
        clauses: first.into_iter().chain(common.iter().cloned()).collect(),
    };
    let (mut plain, mut rules) = (Vec::new(), Vec::new());
    for (first, second) in sources {
        match second {
            None => plain.push(first),
            Some(second) => {
                let clauses = [first, second].into_iter().map(|only| Clause {
                    matches: [only].into(),
                });
                rules.push(with(clauses.collect()));
            }
        }
    }
    if !plain.is_empty() {
        rules.insert(
            0,
            with(vec![Clause {
                matches: plain.into(),
            }]),
        );
    }
    rules
}

fn is_layer7(key: &str) -> bool {
    matches!(key, "remote.ip" | "connection.sni")
        || ["request.headers[", "request.auth.", "experimental."]
            .iter()
            .any(|prefix| key.starts_with(prefix))
}

/// `*` is presence, `text*` a beginning, `*text` an end; anything else with a star is no pattern.
pub(crate) fn pattern(value: &str) -> Option<StringMatch> {
    let (matched, text): (fn(Arc<str>) -> StringMatch, &str) = match value {
        "*" => return Some(StringMatch::Presence),
        _ if value.starts_with('*') => (StringMatch::Suffix, &value[1..]),
        _ if value.ends_with('*') => (StringMatch::Prefix, &value[..value.len() - 1]),
        _ => (StringMatch::Exact, value),
    };
    (!text.is_empty() && !text.contains('*')).then(|| matched(text.into()))
}

/// What is wrong with a name that TLS is to ask for, if something is.
pub(crate) fn wrong_name(host: &str) -> Option<String> {
    let inner = host.strip_prefix("*.").unwrap_or(host);
    let wrong = inner.is_empty() || (host != "*" && inner.contains('*'));
    wrong.then(|| format!("{host:?} is no name; a * stands for its first labels only"))
}

/// An address or a block; IPv4 mapped into IPv6 means the IPv4 one.
pub(crate) fn network(value: &str) -> Option<IpNet> {
    let network = match value.split_once('/') {
        Some(_) => value.parse::<IpNet>().ok()?,
        None => IpNet::from(value.parse::<std::net::IpAddr>().ok()?),
    };
    let network = match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => IpNet::new(v4.into(), v6.prefix_len() - 96).ok()?,
            None => network,
        },
        other => other,
    };
    Some(network.trunc())
}
