//! Which requests leave spans, within the companion `mesh`.

use std::sync::Arc;

use mesh_model::{
    mesh::{Collector, SpanTag, TagValue, Tracing, TracingScope},
    resilience::Share,
};

use super::field::{
    Bad, Problem, all, hostname, label, namespace, need, opt_text, real_port, service_name, share,
    within,
};
use crate::warren::{self as wire, span_tag::Value, tracing::Scope};

pub(super) fn wire(tracing: &Tracing) -> wire::Tracing {
    let Tracing {
        scope,
        sampling,
        collector,
        tags,
    } = tracing;
    let scope = match scope {
        TracingScope::Service(name) => Scope::Service(name.to_string()),
        TracingScope::Waypoint(name) => Scope::Waypoint(name.to_string()),
        TracingScope::Namespace(name) => Scope::Namespace(name.to_string()),
        TracingScope::Mesh => Scope::Mesh(()),
    };
    let tag = |tag: &SpanTag| wire::SpanTag {
        name: tag.name.to_string(),
        value: Some(match &tag.value {
            TagValue::Literal(text) => Value::Literal(text.to_string()),
            TagValue::Header(name, otherwise) => Value::Header(wire::HeaderTag {
                name: name.to_string(),
                otherwise: opt_text(otherwise),
            }),
        }),
    };
    wire::Tracing {
        scope: Some(scope),
        sampling: sampling.parts(),
        collector: collector.as_ref().map(|c| wire::Collector {
            namespace: c.namespace.as_ref().map(ToString::to_string),
            hostname: c.hostname.to_string(),
            port: c.port.into(),
        }),
        tags: tags.iter().map(tag).collect(),
    }
}

pub(super) fn read(t: wire::Tracing) -> Result<Tracing, Bad> {
    let scope = match need("scope", t.scope)? {
        Scope::Service(name) => TracingScope::Service(service_name("service", &name)?),
        Scope::Waypoint(name) => TracingScope::Waypoint(service_name("waypoint", &name)?),
        Scope::Namespace(name) => TracingScope::Namespace(namespace("namespace", &name)?),
        Scope::Mesh(()) => TracingScope::Mesh,
    };
    let sampling: Share = share("sampling", t.sampling)?;
    Ok(Tracing {
        scope,
        sampling,
        collector: within("collector", t.collector, collector)?,
        tags: all("tags", t.tags, tag)?,
    })
}

fn collector(c: wire::Collector) -> Result<Collector, Bad> {
    let own = c.namespace.as_deref();
    Ok(Collector {
        namespace: own.map(|n| namespace("namespace", n)).transpose()?,
        hostname: hostname("hostname", &c.hostname)?,
        port: real_port("port", c.port)?,
    })
}

fn tag(tag: wire::SpanTag) -> Result<SpanTag, Bad> {
    if tag.name.is_empty() {
        return Err(Bad::new("name", Problem::Missing));
    }
    let value = match need("value", tag.value)? {
        Value::Literal(text) => TagValue::Literal(text.into()),
        Value::Header(header) => TagValue::Header(
            label("header.name", &header.name)?.into(),
            header.otherwise.map(Arc::from),
        ),
    };
    Ok(SpanTag {
        name: tag.name.into(),
        value,
    })
}
