//! The live flows of one data thread, found by what a change of policy can affect.
//!
//! Invariants: a flow is in here from before its first byte until its end; a change re-authorizes only flows
//! to workloads that it names, to workloads of namespaces whose policies changed, or all when the mesh's own
//! policies or settings changed; a flow that is no longer allowed is cut.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
};

use mesh_model::{
    authz::{self, Conn, Denial},
    mesh::{Diff, Mesh},
    name::{Namespace, WorkloadUid},
    reason::Reason,
};

use crate::{
    accept::PodUid,
    observe::FlowGuard,
    relay::{Cutter, Meter},
    state::{MeshState, Snapshot},
};

/// The live flows of a thread. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Rc<RefCell<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// Boxed: a table has about as many empty places as it has flows.
    flows: HashMap<u64, Box<Flow>>,
    by_pod: HashMap<PodUid, HashSet<u64>>,
    by_destination: HashMap<WorkloadUid, HashSet<u64>>,
    by_namespace: HashMap<Namespace, HashSet<WorkloadUid>>,
}

/// What was authorized of a live flow, and is again when something changes.
#[derive(Clone, Debug)]
pub enum Reviewed {
    /// That it enters its pod.
    Entered(Conn),
    /// That it arrived for its pod and goes by way of a waypoint; where it ends it is decided about as well.
    Handed(Conn),
}

impl Reviewed {
    fn conn(&self) -> &Conn {
        match self {
            Self::Entered(conn) | Self::Handed(conn) => conn,
        }
    }

    fn refused(&self, mesh: &Mesh) -> Option<Denial> {
        match self {
            Self::Entered(conn) => authz::ingress(mesh, conn.clone()).outcome.err(),
            Self::Handed(conn) => authz::arrive(mesh, conn.clone()).outcome.err(),
        }
    }
}

/// A live flow.
#[derive(Debug)]
pub struct Flow {
    /// The pod of this node that the flow belongs to.
    pub pod: PodUid,
    /// What was authorized, for flows that arrive here.
    pub conn: Option<Reviewed>,
    /// Ends the flow.
    pub cutter: Cutter,
    /// Its bytes.
    pub meter: Meter,
    /// Whether the client is the relay's first side.
    pub client_first: bool,
    /// Its report.
    pub guard: Rc<RefCell<FlowGuard>>,
}

impl Flow {
    /// Brings the report up to the bytes carried so far.
    pub fn count(&self) {
        let (first, second) = (self.meter.forward(), self.meter.backward());
        let (from_client, to_client) = if self.client_first {
            (first, second)
        } else {
            (second, first)
        };
        let mut guard = self.guard.borrow_mut();
        let (from, to) = guard.bytes();
        guard.carried(from_client - from, to_client - to);
    }
}

/// A flow's place in the table; dropping it takes the flow out.
#[derive(Debug)]
pub struct Registered {
    sessions: Sessions,
    id: u64,
}

impl Sessions {
    /// Puts a flow in. `decided_in` is the generation of the snapshot that permitted it: when the mesh has
    /// changed since, the flow is decided again at once, so that no change falls between.
    pub fn register(&self, flow: Flow, decided_in: u64, state: &MeshState) -> Registered {
        let mut table = self.0.borrow_mut();
        let id = table.next;
        table.next += 1;
        table.by_pod.entry(flow.pod.clone()).or_default().insert(id);
        if let Some(conn) = flow.conn.as_ref().map(Reviewed::conn) {
            let uid = conn.workload.uid.clone();
            table
                .by_namespace
                .entry(conn.workload.namespace.clone())
                .or_default()
                .insert(uid.clone());
            table.by_destination.entry(uid).or_default().insert(id);
        }
        if state.generation() != decided_in {
            review(&flow, &state.load());
        }
        table.flows.insert(id, Box::new(flow));
        Registered {
            sessions: self.clone(),
            id,
        }
    }

    /// Decides again what a change can affect; gives how many flows were cut.
    pub fn review(&self, diff: &Diff, snapshot: &Snapshot) -> usize {
        let table = self.0.borrow();
        if diff.config || diff.everyone {
            return table.flows.values().filter(|f| review(f, snapshot)).count();
        }
        let mut affected: HashSet<&WorkloadUid> = diff.workloads.iter().collect();
        for policy in &diff.policies {
            affected.extend(
                table
                    .by_namespace
                    .get(&policy.namespace)
                    .into_iter()
                    .flatten(),
            );
        }
        let flows = affected
            .into_iter()
            .filter_map(|uid| table.by_destination.get(uid))
            .flatten();
        flows
            .filter_map(|id| table.flows.get(id))
            .filter(|f| review(f, snapshot))
            .count()
    }

    /// Ends every flow of a pod.
    pub fn cut_pod(&self, pod: &PodUid, reason: Reason) {
        let table = self.0.borrow();
        for flow in table
            .by_pod
            .get(pod)
            .into_iter()
            .flatten()
            .filter_map(|id| table.flows.get(id))
        {
            flow.cutter.cut(reason);
        }
    }

    /// Ends every flow.
    pub fn cut_all(&self, reason: Reason) {
        self.0
            .borrow()
            .flows
            .values()
            .for_each(|f| f.cutter.cut(reason));
    }

    /// Makes the bytes of long flows visible in the metrics.
    pub fn progress(&self) {
        for flow in self.0.borrow().flows.values() {
            flow.count();
            flow.guard.borrow_mut().progress();
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.borrow().flows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Decides one flow again; cuts it when it may not go on. Says whether it was cut.
fn review(flow: &Flow, snapshot: &Snapshot) -> bool {
    let Some(reviewed) = &flow.conn else {
        return false;
    };
    let Some(denial) = reviewed.refused(&snapshot.mesh) else {
        return false;
    };
    let gone = snapshot
        .mesh
        .workload(&reviewed.conn().workload.uid)
        .is_none();
    let reason = if gone {
        Reason::WorkloadGone
    } else {
        Reason::PolicyChanged
    };
    let mut guard = flow.guard.borrow_mut();
    guard.record_mut().policy_name = denial.policy.clone();
    guard.record_mut().policy = Some(crate::observe::Verdict::Deny);
    guard.fail(reason, format!("{}: {denial}", reason.shown().text));
    flow.cutter.cut(reason);
    true
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut table = self.sessions.0.borrow_mut();
        let Some(flow) = table.flows.remove(&self.id) else {
            return;
        };
        flow.count();
        leave(&mut table.by_pod, &flow.pod, &self.id);
        if let Some(conn) = flow.conn.as_ref().map(Reviewed::conn) {
            let uid = &conn.workload.uid;
            leave(&mut table.by_destination, uid, &self.id);
            if !table.by_destination.contains_key(uid) {
                leave(&mut table.by_namespace, &conn.workload.namespace, uid);
            }
        }
    }
}

fn leave<K: std::hash::Hash + Eq, V: std::hash::Hash + Eq>(
    map: &mut HashMap<K, HashSet<V>>,
    key: &K,
    value: &V,
) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
