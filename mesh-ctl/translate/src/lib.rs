//! Objects of a cluster in, resources of a mesh out: a pure function with golden tests.
//!
//! Invariants: no I/O, no clock, no randomness. The result depends on the objects alone, never on the order in
//! which they came. Nothing is dropped in silence: what is not honoured is named in a status by object and field,
//! and what cannot be understood refuses.

#![forbid(unsafe_code)]

mod core;
pub mod dump;
mod foreign;
mod gateway;
mod istio;
mod labels;
mod relations;
mod settings;
pub mod status;
mod traffic;
mod translate;
mod translator;
mod unhonoured;
pub mod view;
mod wanted;

pub use foreign::{foreign_policies, foreign_policy_of};
pub use gateway::classes::CONTROLLER;
pub use istio::presence::IstioPresence;
pub use settings::Settings;
pub use status::{
    Condition, ConditionKind, ListenerStatus, Message, ParentStatus, Severity, Status,
};
pub use translate::{Output, translate, warnings};
pub use translator::{Refreshed, Translator};
pub use view::{Broken, ClusterView, Entry, Key, Origin};
pub use wanted::{
    ACTIVE, Extras, FOR_NAMESPACE, GATEWAY_NAME, HOME, MANAGED_BY, Purpose, Wanted, WantedBy,
};
