//! A million random (policies, connection) pairs: the compiled decision against the naive one, and what
//! the kernel's functions make of it.

use mesh_abi::{VERDICT_DIRECT, VERDICT_PROXY, VERDICT_REFUSE, Verdict, decide};
use mesh_model::{
    authz,
    reason::Reason,
    testing::{
        Rng,
        oracle::{self, Expected},
        world::World,
    },
};

const PAIRS: usize = 1_000_000;
const WORLDS: usize = 400;
const STEPS: usize = 25;

#[test]
fn a_million_decisions_agree_with_the_oracle() {
    let threads = 2;
    let seen: Vec<[usize; 32]> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|t| scope.spawn(move || run(0xdec1_5105 + t, WORLDS / threads as usize)))
            .collect();
        workers
            .into_iter()
            .map(|w| w.join().expect("all decisions agree"))
            .collect()
    });
    let total = |n: usize| seen.iter().map(|s| s[n]).sum::<usize>();
    assert!((0..32).map(total).sum::<usize>() >= PAIRS);
    // Every outcome that policies can have must have been met often, or the generator proves nothing.
    for reason in [
        Reason::PolicyDenied,
        Reason::NotAllowed,
        Reason::StrictRequired,
        Reason::PolicyInvalid,
        Reason::NotReady,
    ] {
        assert!(
            total(reason as usize) > PAIRS / 200,
            "{reason:?} came up {} times only",
            total(reason as usize)
        );
    }
    assert!(total(0) > PAIRS / 10, "allowed {} times only", total(0));
}

/// What the kernel makes of an outcome that was given to it: its functions, compiled for the host.
fn carried_out(outcome: Result<(), Reason>) -> Result<(), Reason> {
    let (action, reason) = match outcome {
        Ok(()) => (VERDICT_DIRECT, 0),
        Err(Reason::NotReady) => (VERDICT_PROXY, 0),
        Err(why) => (VERDICT_REFUSE, why as u16),
    };
    let judged = decide::judge(Some(&Verdict::new(0, 1, action, reason)), 1, 1);
    let idle = mesh_abi::Use::new(0, 0, 0);
    match decide::connect(judged, true, &idle, &idle) {
        decide::Connect::Direct => Ok(()),
        // The proxy waits for what is not ready, and then refuses for that reason.
        decide::Connect::Proxy | decide::Connect::Diverted => Err(Reason::NotReady),
        decide::Connect::Refuse(n) => Err(Reason::from_number(n).expect("a reason of the table")),
    }
}

/// Counts of outcomes by reason; 0 is "allowed".
fn run(seed: u64, worlds: usize) -> [usize; 32] {
    let mut rng = Rng::with_seed(seed);
    let mut seen = [0; 32];
    for n in 0..worlds {
        let mut world = World::new(&mut rng);
        for step in 0..STEPS {
            world.step(&mut rng);
            let shuffled = (step % 8 == 0).then(|| world.shuffled(&mut rng));
            for _ in 0..PAIRS / WORLDS / STEPS {
                let conn = world.connection(&mut rng);
                let expected = oracle::decide(&world, &conn);
                assert_eq!(carried_out(expected.outcome), expected.outcome);
                seen[expected.outcome.err().map_or(0, |r| r as usize)] += 1;
                for mesh in [Some(&world.mesh), shuffled.as_ref()].into_iter().flatten() {
                    let decision = authz::ingress(mesh, conn.clone());
                    let actual = Expected {
                        outcome: decision.outcome.as_ref().map(drop).map_err(|d| d.reason),
                        policy: decision
                            .outcome
                            .as_ref()
                            .map_or_else(|d| d.policy.clone(), |p| p.by().cloned()),
                        audited: decision.audited.iter().cloned().collect(),
                        dry_run: decision.dry_run.iter().cloned().collect(),
                    };
                    assert_eq!(
                        actual, expected,
                        "seed {seed:#x}, world {n}, step {step}: {conn:#?}\n{:#?}",
                        world.policies
                    );
                    assert_eq!(
                        (actual.audited.len(), actual.dry_run.len()),
                        (decision.audited.len(), decision.dry_run.len()),
                        "a policy is reported twice"
                    );
                }
            }
        }
    }
    seen
}
