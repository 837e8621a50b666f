//! Kinds of the Gateway API. Their definitions are the user's to install.

pub mod filter;
mod gateway_class;
mod gateway_kind;
mod grpc_route;
mod http_route;
mod reference_grant;
pub mod refs;
mod session_persistence;
mod tcp_route;
mod tls_route;

pub use filter::RouteFilter;
pub use gateway_class::{GatewayClass, GatewayClassSpec};
pub use gateway_kind::{
    AllowedRoutes, Gateway, GatewaySpec, GatewayStatus, GatewayStatusAddress, Infrastructure,
    LabelExpression, Listener, NamespaceSelector, ParametersReference, RouteNamespaces,
};
pub use grpc_route::{GrpcMethodMatch, GrpcRoute, GrpcRouteMatch, GrpcRouteRule, GrpcRouteSpec};
pub use http_route::{
    HttpPathMatch, HttpRoute, HttpRouteMatch, HttpRouteRetry, HttpRouteRule, HttpRouteSpec,
    HttpRouteTimeouts, NameValueMatch,
};
pub use reference_grant::{ReferenceGrant, ReferenceGrantSpec};
pub use refs::{BackendRef, ParentReference};
pub use session_persistence::{CookieConfig, SessionPersistence};
pub use tcp_route::{StreamRouteRule, TcpRoute, TcpRouteSpec};
pub use tls_route::{TlsRoute, TlsRouteSpec};
