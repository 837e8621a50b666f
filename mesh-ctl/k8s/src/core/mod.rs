//! Kinds of Kubernetes' core and discovery groups.

mod endpoint_slice;
mod namespace;
mod node;
mod pod;
mod service;
mod service_account;

pub use endpoint_slice::{
    Endpoint, EndpointConditions, EndpointPort, EndpointSlice, ObjectReference,
};
pub use namespace::Namespace;
pub use node::Node;
pub use pod::{
    Container, ContainerPort, Handler, HandlerPort, Pod, PodCondition, PodIp, PodSpec, PodStatus,
    Probe,
};
pub use service::{ClientIpConfig, Service, ServicePort, ServiceSpec, SessionAffinityConfig};
pub use service_account::ServiceAccount;
