//! The policies, filed so that a connection finds the few rules that could match it.
//!
//! Invariants: what is filed is exactly what `Mesh::policies` holds; every rule that matches a connection is among
//! those it finds; a change touches only the buckets of the changed policy. Cost grows with the rules
//! that share a connection's rarest property, not with the number of policies.

mod feature;

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hash},
    sync::Arc,
};

use super::matches::{self, Facts};
use crate::{
    mesh::{
        Action, Policy, PolicyScope, Validity,
        shard::{Hashed, Sharded, Sip},
    },
    name::{Namespace, PolicyName},
};
use feature::{Shape, Shown, mix};

/// Policies with a selector are evaluated rule by rule up to this many; longer ones are filed.
const SHORT: usize = 8;

/// All policies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    global: Arc<Scope>,
    namespaces: Sharded<Namespace, Arc<Scope>>,
    long: Sharded<PolicyName, Arc<Scope>>,
    buckets: Sharded<u64, Arc<Bucket>, Hashed>,
    filed: Sharded<PolicyName, Arc<[Filed]>>,
}

/// Policies that govern the same workloads, apart from their rules.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    seed: u64,
    shapes: Vec<(Shape, u32)>,
    /// How many policies are in it.
    policies: usize,
    /// How many ALLOW policies are in force.
    pub demanding: usize,
    /// Invalid policies that refuse.
    pub invalid: BTreeSet<PolicyName>,
    /// Invalid AUDIT policies.
    pub invalid_audit: BTreeSet<PolicyName>,
    /// Invalid dry-run policies.
    pub invalid_dry_run: BTreeSet<PolicyName>,
    /// Dry-run ALLOW policies.
    pub would_demand: BTreeSet<PolicyName>,
}

/// Where one rule of a policy was filed.
#[derive(Clone, Debug)]
struct Filed {
    rule: u32,
    shape: Shape,
    key: u64,
}

/// Rules with one feature in common, by name of their policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bucket {
    deny: Vec<Entry>,
    allow: Vec<Entry>,
    report: Vec<Entry>,
}

/// One rule of a policy.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    policy: Arc<Policy>,
    rule: u32,
}

/// Where a found rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drawer {
    Deny,
    Allow,
    Report,
}

impl Entry {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        matches::rule(
            &self.policy.rules[self.rule as usize],
            self.policy.action,
            facts,
        )
    }
}

impl Bucket {
    fn drawer(&mut self, drawer: Drawer) -> &mut Vec<Entry> {
        match drawer {
            Drawer::Deny => &mut self.deny,
            Drawer::Allow => &mut self.allow,
            Drawer::Report => &mut self.report,
        }
    }

    fn len(&self) -> usize {
        self.deny.len() + self.allow.len() + self.report.len()
    }

    /// The first enforced DENY policy that matches, by name.
    pub fn denies(&self, facts: &Facts<'_>) -> Option<&PolicyName> {
        self.deny
            .iter()
            .find(|e| e.matches(facts))
            .map(|e| &e.policy.name)
    }

    /// The first enforced ALLOW policy that matches, by name.
    pub fn allows(&self, facts: &Facts<'_>) -> Option<&PolicyName> {
        self.allow
            .iter()
            .find(|e| e.matches(facts))
            .map(|e| &e.policy.name)
    }

    /// AUDIT and dry-run policies that match; one with several rules may come more than once.
    pub fn reports(&self, facts: &Facts<'_>) -> impl Iterator<Item = &Policy> {
        self.report
            .iter()
            .filter(|e| e.matches(facts))
            .map(|e| &*e.policy)
    }
}

impl Rules {
    /// The policies of the whole mesh, and those of a namespace.
    pub fn scopes<'a>(&'a self, namespace: &Namespace) -> impl Iterator<Item = &'a Scope> {
        [Some(&self.global), self.namespaces.get(namespace)]
            .into_iter()
            .flatten()
            .map(|s| &**s)
    }

    /// A policy with a selector as a scope of its own, when it is long.
    pub fn long(&self, name: &PolicyName) -> Option<&Scope> {
        self.long.get(name).map(|s| &**s)
    }

    /// The buckets in which every rule lies that could match.
    pub fn find<'a>(
        &'a self,
        scope: &'a Scope,
        facts: &'a Facts<'_>,
    ) -> impl Iterator<Item = &'a Bucket> {
        let mut shown = Shown::new(facts);
        scope.shapes.iter().filter_map(move |(shape, _)| {
            self.buckets
                .get(&key(scope.seed, shown.in_shape(*shape)?))
                .map(|b| &**b)
        })
    }

    pub fn add(&mut self, policy: &Arc<Policy>) {
        let filed = self.change_scope(policy, |rules, scope| {
            scope.count(policy, true);
            if scope.seed == 0 {
                scope.seed = seed_of(policy);
            }
            let filed = rules.file(scope.seed, policy);
            filed.iter().for_each(|f| scope.shape(f.shape, true));
            filed
        });
        if !filed.is_empty() {
            self.filed.insert(policy.name.clone(), filed.into());
        }
    }

    pub fn remove(&mut self, policy: &Policy) {
        let filed = self.filed.remove(&policy.name).unwrap_or_default();
        self.change_scope(policy, |rules, scope| {
            scope.count(policy, false);
            for Filed { rule, shape, key } in &*filed {
                scope.shape(*shape, false);
                rules.buckets.update(key, Arc::default, |bucket| {
                    let bucket = Arc::make_mut(bucket);
                    if let Some(drawer) = drawer_of(policy) {
                        bucket
                            .drawer(drawer)
                            .retain(|e| e.rule != *rule || e.policy.name != policy.name);
                    }
                    bucket.len() > 0
                });
            }
        });
    }

    /// Files the rules of a policy that can be evaluated; an invalid one has none that count.
    fn file(&mut self, seed: u64, policy: &Arc<Policy>) -> Vec<Filed> {
        let Some(drawer) = drawer_of(policy) else {
            return Vec::new();
        };
        let mut filed = Vec::new();
        for (rule, content) in (0u32..).zip(&policy.rules) {
            let features = feature::of_rule(content, policy.action, |hash| {
                self.buckets.get(&key(seed, hash)).map_or(0, |b| b.len())
            });
            for (shape, hash) in features {
                let entry = Entry {
                    policy: Arc::clone(policy),
                    rule,
                };
                let key = key(seed, hash);
                self.buckets.update(&key, Arc::default, |bucket| {
                    let list = Arc::make_mut(bucket).drawer(drawer);
                    let at =
                        list.partition_point(|e| (&e.policy.name, e.rule) < (&policy.name, rule));
                    list.insert(at, entry);
                    true
                });
                filed.push(Filed { rule, shape, key });
            }
        }
        filed
    }

    /// Changes the scope that a policy belongs to. Short policies with a selector have none.
    fn change_scope<T: Default>(
        &mut self,
        policy: &Policy,
        change: impl FnOnce(&mut Self, &mut Scope) -> T,
    ) -> T {
        let name = &policy.name;
        let mut scope = match policy.scope {
            PolicyScope::Global => std::mem::take(&mut self.global),
            PolicyScope::Namespace => self.namespaces.remove(&name.namespace).unwrap_or_default(),
            PolicyScope::Selector if policy.rules.len() <= SHORT => return T::default(),
            PolicyScope::Selector => self.long.remove(name).unwrap_or_default(),
        };
        let result = change(self, Arc::make_mut(&mut scope));
        match policy.scope {
            PolicyScope::Global => self.global = scope,
            PolicyScope::Namespace | PolicyScope::Selector if scope.policies == 0 => {}
            PolicyScope::Namespace => self.namespaces.insert(name.namespace.clone(), scope),
            PolicyScope::Selector => self.long.insert(name.clone(), scope),
        }
        result
    }
}

impl Scope {
    fn count(&mut self, policy: &Policy, here: bool) {
        let Self {
            seed: _,
            shapes: _,
            policies,
            demanding,
            invalid,
            invalid_audit,
            invalid_dry_run,
            would_demand,
        } = self;
        let set = match (policy.action, policy.dry_run, &policy.validity) {
            (Action::Audit, _, Validity::Invalid(_)) => Some(invalid_audit),
            (Action::Allow | Action::Deny, true, Validity::Invalid(_)) => Some(invalid_dry_run),
            (Action::Allow | Action::Deny, false, Validity::Invalid(_)) => Some(invalid),
            (Action::Allow, true, Validity::Valid) => Some(would_demand),
            (Action::Allow, false, Validity::Valid) => {
                *demanding = if here { *demanding + 1 } else { *demanding - 1 };
                None
            }
            (Action::Deny | Action::Audit, _, Validity::Valid) => None,
        };
        *policies = if here { *policies + 1 } else { *policies - 1 };
        match set {
            Some(set) if here => drop(set.insert(policy.name.clone())),
            Some(set) => drop(set.remove(&policy.name)),
            None => {}
        }
    }

    fn shape(&mut self, shape: Shape, here: bool) {
        match (self.shapes.binary_search_by_key(&shape, |(s, _)| *s), here) {
            (Ok(at), true) => self.shapes[at].1 += 1,
            (Ok(at), false) => {
                self.shapes[at].1 -= 1;
                if self.shapes[at].1 == 0 {
                    self.shapes.remove(at);
                }
            }
            (Err(at), true) => self.shapes.insert(at, (shape, 1)),
            (Err(_), false) => unreachable!("what is taken out was filed"),
        }
    }
}

/// Where a policy's matches count; nowhere when it is invalid, since its rules are not to be trusted.
fn drawer_of(policy: &Policy) -> Option<Drawer> {
    match (&policy.validity, policy.action, policy.dry_run) {
        (Validity::Invalid(_), ..) => None,
        (Validity::Valid, Action::Deny, false) => Some(Drawer::Deny),
        (Validity::Valid, Action::Allow, false) => Some(Drawer::Allow),
        (Validity::Valid, Action::Audit, _) | (Validity::Valid, _, true) => Some(Drawer::Report),
    }
}

fn seed_of(policy: &Policy) -> u64 {
    fn of(value: impl Hash) -> u64 {
        Sip::default().hash_one(value) | 1
    }
    match policy.scope {
        PolicyScope::Global => of(0),
        PolicyScope::Namespace => of((1, &policy.name.namespace)),
        PolicyScope::Selector => of((2, &policy.name)),
    }
}

fn key(seed: u64, feature: u64) -> u64 {
    mix(seed ^ feature)
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::{Rng, world};

    #[test]
    fn what_is_taken_out_leaves_nothing_behind() {
        let mut rng = Rng::with_seed(7);
        let mut rules = Rules::default();
        let mut held: std::collections::BTreeMap<PolicyName, Arc<Policy>> = Default::default();
        for _ in 0..3_000 {
            let policy = Arc::new(world::policy(&mut rng));
            if let Some(old) = held.insert(policy.name.clone(), Arc::clone(&policy)) {
                rules.remove(&old);
            }
            rules.add(&policy);
        }
        assert!(rules.buckets.len() > 10, "{}", rules.buckets.len());
        held.values().for_each(|p| rules.remove(p));
        let Rules {
            global,
            namespaces,
            long,
            buckets,
            filed,
        } = &rules;
        assert_eq!(
            (namespaces.len(), long.len(), buckets.len(), filed.len()),
            (0, 0, 0, 0)
        );
        assert_eq!(
            (
                global.policies,
                global.demanding,
                global.shapes.len(),
                global.invalid.len()
            ),
            (0, 0, 0, 0)
        );
    }
}
