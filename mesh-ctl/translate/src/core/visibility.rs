//! Whose clients see a service: `exportTo` of service entries and of annotated services.
//!
//! Invariant: a limit that cannot be understood limits to the service's own namespace.

use mesh_model::{mesh::service::Visibility, name::Namespace};

use super::service::Say;
use crate::status::Severity;

/// What nodes must be able to do to keep a service from those who shall not see it.
pub(crate) const FEATURE: &str = "visibility";
/// How services of Kubernetes are limited.
pub(crate) const ANNOTATION: &str = "networking.istio.io/exportTo";

/// Who sees a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) visibility: Visibility,
    /// Further namespaces, when it is limited.
    pub(crate) to: Box<[Namespace]>,
    /// Nobody at all.
    pub(crate) nobody: bool,
}

impl Seen {
    /// What an extra part must say.
    pub(crate) fn features(&self) -> Box<[std::sync::Arc<str>]> {
        match self.visibility {
            Visibility::Public => [].into(),
            Visibility::Namespace => [FEATURE.into()].into(),
        }
    }
}

/// Reads a list of namespaces: `*` is everybody, `.` the own namespace, `~` nobody. No list is everybody.
pub(crate) fn read<'t>(
    own: &str,
    list: impl IntoIterator<Item = &'t str>,
    field: &str,
    say: &mut Say<'_>,
) -> Seen {
    let (mut some, mut public, mut here, mut to) = (false, false, false, Vec::new());
    for (i, namespace) in list.into_iter().map(str::trim).enumerate() {
        some = true;
        match namespace {
            "*" => public = true,
            "." => here = true,
            "~" => {}
            name if name == own => here = true,
            name if mesh_k8s::is_name(name) => to.push(Namespace::from(name)),
            other => {
                here = true;
                let text = format!(
                    "{other:?} is neither a namespace nor one of \".\", \"*\" and \"~\"; taken for \".\""
                );
                say.say(Severity::Error, format!("{field}[{i}]"), text);
            }
        }
    }
    if !some || public {
        return Seen::default();
    }
    to.sort();
    to.dedup();
    if !to.is_empty() {
        let text = format!("data planes of other make show it to clients of {own} only");
        say.say(Severity::Info, field.to_owned(), text);
    }
    Seen {
        visibility: Visibility::Namespace,
        nobody: !here && to.is_empty(),
        to: to.into(),
    }
}
