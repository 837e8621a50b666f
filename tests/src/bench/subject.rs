//! What is measured: the ways from a client to the application.

use clap::ValueEnum;

/// A way from a client to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Subject {
    /// No mesh, both pods on one node.
    NearDirect,
    /// Our mesh on one node, native TCP after the kernel has decided.
    Path,
    /// Our mesh on one node, through the tunnel.
    Tunnel,
    /// No mesh, between nodes.
    FarDirect,
    /// Our mesh between nodes.
    Far,
    /// A pair of Envoys between nodes: tcp_proxy into CONNECT over mutual TLS.
    Envoy,
}

/// Subjects that are compared with each other, between two runs of the first.
pub const GROUPS: [&[Subject]; 2] = [
    &[Subject::NearDirect, Subject::Path, Subject::Tunnel],
    &[Subject::FarDirect, Subject::Far, Subject::Envoy],
];

impl Subject {
    /// All of them, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        GROUPS.into_iter().flatten().copied()
    }

    /// Its name on the command line and in the JSON.
    pub fn id(self) -> &'static str {
        match self {
            Self::NearDirect => "near-direct",
            Self::Path => "path",
            Self::Tunnel => "tunnel",
            Self::FarDirect => "far-direct",
            Self::Far => "far",
            Self::Envoy => "envoy",
        }
    }

    /// What people read.
    pub fn title(self) -> &'static str {
        match self {
            Self::NearDirect => "no mesh, one node",
            Self::Path => "ours, direct path",
            Self::Tunnel => "ours, tunnel",
            Self::FarDirect => "no mesh, 2 nodes",
            Self::Far => "ours, 2 nodes",
            Self::Envoy => "Envoy L4, 2 nodes",
        }
    }

    /// Whether it is what the others are compared with.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::NearDirect | Self::FarDirect)
    }

    /// The namespace of its pods.
    pub fn namespace(self) -> &'static str {
        match self {
            Self::NearDirect | Self::FarDirect | Self::Envoy => "plain",
            Self::Path => "open",
            Self::Tunnel | Self::Far => "strict",
        }
    }

    /// The client's pod.
    pub fn client(self) -> String {
        let who = match self {
            Self::NearDirect | Self::Path | Self::Tunnel => "near",
            Self::FarDirect | Self::Far => "far",
            Self::Envoy => "envoy-far",
        };
        format!("{}/{who}", self.namespace())
    }

    /// The nodes whose proxies of ours carry it: the client's, then the server's; one when it is both.
    pub fn nodes(self) -> &'static [&'static str] {
        match self {
            Self::NearDirect | Self::FarDirect | Self::Envoy => &[],
            Self::Path | Self::Tunnel => &["n1"],
            Self::Far => &["n2", "n1"],
        }
    }

    /// The application's pod.
    pub fn server(self) -> String {
        let who = if self == Self::Envoy {
            "envoy-app"
        } else {
            "app"
        };
        format!("{}/{who}", self.namespace())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for subject in Subject::value_variants() {
            let typed = subject.to_possible_value().expect("none is hidden");
            assert_eq!(typed.get_name(), subject.id());
        }
        assert_eq!(Subject::all().count(), Subject::value_variants().len());
        assert!(GROUPS.iter().all(|g| g[0].is_direct()));
    }
}
