//! Where spans may go: the providers of the mesh's settings, and what holds where no Telemetry says anything.
//!
//! Invariant: a provider that cannot be used stays known by its name, so that whoever asks for it gets none instead of
//! another one.

use std::collections::BTreeMap;

use mesh_k8s::warren::{ExtensionProvider, MeshConfigSpec, OpenTelemetryProvider};
use mesh_model::{
    mesh::Collector,
    name::{Hostname, Namespace},
    resilience::Share,
};

/// The share of requests that is traced where nobody says another one (Istio's default: 1 %).
const SAMPLING: u32 = 10_000;

/// What the mesh's settings say of spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Providers {
    /// By name; none where it cannot be used.
    named: BTreeMap<String, Option<Collector>>,
    /// The one that is used where nobody names one.
    standard: Option<String>,
    /// The share of requests where nobody says another one.
    pub(crate) sampling: Share,
    /// Whether there are spans at all.
    pub(crate) enabled: bool,
}

impl Default for Providers {
    fn default() -> Self {
        Self {
            named: BTreeMap::new(),
            standard: None,
            sampling: Share::per_million(SAMPLING),
            enabled: true,
        }
    }
}

impl Providers {
    /// Reads them; `wrong` is told of fields below `spec` and what is wrong with them.
    pub(crate) fn read(
        spec: &MeshConfigSpec,
        cluster_domain: &Hostname,
        mut wrong: impl FnMut(&str, String),
    ) -> Self {
        let mut read = Self {
            enabled: spec.enable_tracing != Some(false),
            ..Self::default()
        };
        for (index, provider) in spec.extension_providers.iter().enumerate() {
            let field = format!("extensionProviders[{index}]");
            let ExtensionProvider {
                name,
                opentelemetry,
            } = provider;
            if name.is_empty() || read.named.contains_key(name) {
                let text = format!("{name:?} is empty or the name of an earlier one");
                wrong(&format!("{field}.name"), text);
                continue;
            }
            // Of other kinds the unknown field is named already, and whoever asks for one hears that it is none.
            let collector = opentelemetry.as_ref().and_then(|found| {
                let collector = collector(found, cluster_domain);
                collector
                    .map_err(|(below, text)| {
                        wrong(&format!("{field}.opentelemetry.{below}"), text);
                    })
                    .ok()
            });
            read.named.insert(name.clone(), collector);
        }
        if let Some(percent) = spec.default_config.tracing.sampling {
            match Share::percent(percent) {
                Some(share) => read.sampling = share,
                None => wrong(
                    "defaultConfig.tracing.sampling",
                    format!("{percent} is no percentage; taken for 1"),
                ),
            }
        }
        if let Some(first) = spec.default_providers.tracing.first() {
            if spec.default_providers.tracing.len() > 1 {
                let text = "only the first is used".to_owned();
                wrong("defaultProviders.tracing", text);
            }
            read.standard = Some(first.clone());
            if let Err(text) = read.get(first) {
                wrong("defaultProviders.tracing[0]", text);
            }
        }
        read
    }

    /// A provider by name.
    pub(crate) fn get(&self, name: &str) -> Result<Collector, String> {
        match self.named.get(name) {
            Some(Some(collector)) => Ok(collector.clone()),
            Some(None) => Err(format!(
                "{name:?} is none that spans can go to: opentelemetry over gRPC is"
            )),
            None => Err(format!("no extension provider is named {name:?}")),
        }
    }

    /// The one that is used where nobody names one.
    pub(crate) fn standard(&self) -> Option<Collector> {
        self.standard.as_ref().and_then(|name| self.get(name).ok())
    }
}

/// A collector, or the field below `opentelemetry` that keeps it from being one.
fn collector(
    provider: &OpenTelemetryProvider,
    cluster_domain: &Hostname,
) -> Result<Collector, (&'static str, String)> {
    let OpenTelemetryProvider {
        service,
        port,
        http,
    } = provider;
    if http.is_some() {
        let text = "OTLP over HTTP is not spoken, only over gRPC; nothing is sent";
        return Err(("http", text.to_owned()));
    }
    let (named, host) = match service.split_once('/') {
        Some((namespace, host)) => (Some(namespace), host),
        None => (None, service.as_str()),
    };
    let mut host = host.trim_end_matches('.').to_ascii_lowercase();
    let is_name = |text: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        !text.is_empty() && text.len() <= 253 && text.bytes().all(plain)
    };
    if !is_name(&host) || !named.is_none_or(is_name) {
        return Err(("service", format!("{service:?} is no host name")));
    }
    if host.ends_with(".svc") {
        host = format!("{host}.{cluster_domain}");
    }
    // Of a service of the cluster the name says where it lives.
    let below = host.strip_suffix(&format!(".svc.{cluster_domain}"));
    let own = below.and_then(|rest| Some(rest.split_once('.')?.1));
    let namespace = named.or(own).map(Namespace::new);
    let port = u16::try_from(*port).ok().filter(|p| *p != 0);
    Ok(Collector {
        namespace,
        hostname: Hostname::new(host.as_str()),
        port: port.ok_or_else(|| ("port", format!("{} is no port", provider.port)))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors_are_services_by_full_name() {
        let check = |service: &str, port: u32, expect: Result<(Option<&str>, &str), &str>| {
            let provider = OpenTelemetryProvider {
                service: service.to_owned(),
                port,
                http: None,
            };
            let found = collector(&provider, &"cluster.local".into());
            let found = found.as_ref().map(|c| {
                let namespace = c.namespace.as_ref().map(|n| n.as_str());
                (namespace, c.hostname.as_str())
            });
            assert_eq!(found.map_err(|(field, _)| *field), expect, "{service}");
        };
        let otel = "otel.obs.svc.cluster.local";
        check(otel, 4317, Ok((Some("obs"), otel)));
        check("Otel.obs.svc.", 4317, Ok((Some("obs"), otel)));
        check(
            "far/otel.example.org",
            1,
            Ok((Some("far"), "otel.example.org")),
        );
        check("otel.example.org", 1, Ok((None, "otel.example.org")));
        check("", 1, Err("service"));
        check("http://otel", 1, Err("service"));
        check("a/b/c", 1, Err("service"));
        check("otel.o", 0, Err("port"));
        check("otel.o", 65536, Err("port"));
    }
}
