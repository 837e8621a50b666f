//! Roles: what one `mesh-node` process does, as data.
//!
//! Invariant: a role changes which parts run, never how a part decides.

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Captures and carries the L4 traffic of a node's pods.
    Node,
    /// Carries L7 traffic for services.
    Waypoint,
    /// Carries traffic into, out of and between meshes.
    Gateway,
    /// Asks a running node proxy and ends.
    Ready,
}

/// Which parts a role runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Kernel programs and listeners inside pods.
    pub capture: bool,
    /// Answers DNS for captured pods.
    pub dns: bool,
    /// Offers its state to a successor and takes over from a predecessor.
    pub handover: bool,
}

impl Role {
    /// Every role, in the order of help.
    pub const ALL: &'static [Role] = &[Role::Node, Role::Waypoint, Role::Gateway, Role::Ready];

    /// Its subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Role::Node => "node",
            Role::Waypoint => "waypoint",
            Role::Gateway => "gateway",
            Role::Ready => "ready",
        }
    }

    /// What a person reads about it.
    pub fn about(self) -> &'static str {
        match self {
            Role::Node => "Carry the L4 traffic of this node's enrolled pods (the default)",
            Role::Waypoint => "Carry L7 traffic for services, as an ordinary pod",
            Role::Gateway => "Carry traffic into and out of the mesh (not built yet)",
            Role::Ready => {
                "Ask the node proxy of this container whether it is ready, for a readiness probe"
            }
        }
    }

    /// The role with a name.
    pub fn named(name: &str) -> Option<Role> {
        Role::ALL.iter().copied().find(|r| r.name() == name)
    }

    /// Which parts it runs; `None` when this build does not have the role yet.
    pub fn profile(self) -> Option<Profile> {
        match self {
            Role::Node => Some(Profile {
                capture: true,
                dns: true,
                handover: true,
            }),
            Role::Waypoint => Some(Profile {
                capture: false,
                dns: false,
                handover: false,
            }),
            Role::Gateway | Role::Ready => None,
        }
    }
}
