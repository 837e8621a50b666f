//! Random (policies, connection) pairs: what the model and a naive oracle decide, the kernel's compiled copy of
//! the decisions carries out; and with anything amiss, never more than that.

use mesh_loader::Compiled;
use mesh_loader::abi::trial::{self, Trial, answer};
use mesh_loader::abi::{
    Addr, POD_CAPTURE, POD_DIRECT, Pod, STATE_ANCHORED, State, Use, VERDICT_DIRECT, VERDICT_PROXY,
    VERDICT_REFUSE, Verdict, maps::size, ports,
};
use mesh_model::{
    authz,
    reason::Reason,
    testing::{Rng, oracle, world},
};

const WORLDS: usize = 50;
const STEPS: usize = 20;
const PAIRS: usize = 10_000;
const NOW: u64 = 1_000_000_000;
const EPOCH: u32 = 7;

pub fn agree(w: &mut crate::world::World) {
    let compiled = Compiled::load(&w.config.object, &std::env::temp_dir()).unwrap();
    let ask = |case: &Trial| compiled.ask(case).unwrap();
    let mut rng = Rng::with_seed(0x9a17_5000);
    let (mut direct, mut refused, mut proxy) = (0, 0, 0);
    for _ in 0..WORLDS {
        let mut world = world::World::new(&mut rng);
        for _ in 0..STEPS {
            world.step(&mut rng);
            for _ in 0..PAIRS / WORLDS / STEPS {
                let conn = world.connection(&mut rng);
                let expected = oracle::decide(&world, &conn).outcome;
                let decided = authz::ingress(&world.mesh, conn.clone()).outcome;
                assert_eq!(decided.map(drop).map_err(|d| d.reason), expected);
                let want = match expected {
                    Ok(()) => trial::DIRECT,
                    Err(Reason::NotReady) => trial::PROXY,
                    Err(why) => trial::REFUSED | u32::from(why as u16) << 16,
                };
                match want {
                    trial::DIRECT => direct += 1,
                    trial::PROXY => proxy += 1,
                    _ => refused += 1,
                }
                let case = Case::of(expected);
                assert_eq!(answer(&case.trial()), want, "{conn:#?}");
                assert_eq!(ask(&case.trial()), want, "{conn:#?}");
                let amiss = case.amiss(&mut rng);
                let said = ask(&amiss);
                assert_eq!(said, answer(&amiss), "{amiss:#?}");
                assert_ne!(said, trial::DIRECT, "something is amiss: {amiss:#?}");
                let other = any(&mut rng);
                assert_eq!(ask(&other), answer(&other), "{other:#?}");
            }
        }
    }
    assert_eq!(direct + proxy + refused, PAIRS);
    for count in [direct, refused, proxy] {
        assert!(
            count > PAIRS / 200,
            "{direct} direct, {refused} refused, {proxy} by the proxy"
        );
    }
}

/// A `connect` whose destination was decided, with all in order.
#[derive(Clone, Copy)]
struct Case {
    state: State,
    pod: Pod,
    verdict: Verdict,
    used: Use,
    epoch: u32,
    facts: u32,
}

impl Case {
    fn of(outcome: Result<(), Reason>) -> Case {
        let (action, reason) = match outcome {
            Ok(()) => (VERDICT_DIRECT, 0),
            Err(Reason::NotReady) => (VERDICT_PROXY, 0),
            Err(why) => (VERDICT_REFUSE, why as u16),
        };
        Case {
            state: state(STATE_ANCHORED, 0, NOW),
            pod: pod(POD_CAPTURE | POD_DIRECT),
            verdict: Verdict::new(0, EPOCH, action, reason),
            used: Use::new(0, 0, 0),
            epoch: EPOCH,
            facts: trial::KNOWN | trial::PLAIN | trial::FAMILY | trial::HERE,
        }
    }

    fn trial(self) -> Trial {
        let none = Addr::NONE;
        Trial::new(
            self.state,
            self.pod,
            self.verdict,
            self.used,
            NOW,
            self.epoch,
            trial::CONNECT,
            self.facts,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            none,
            none,
        )
    }

    /// The same with one thing not as it must be for going direct.
    fn amiss(mut self, rng: &mut Rng) -> Trial {
        match rng.u8(0..10) {
            0 => self.epoch += 1,
            1 => self.state = state(0, 0, NOW),
            2 => self.state = state(STATE_ANCHORED, 1, NOW),
            3 => self.state = state(STATE_ANCHORED, 0, 0),
            4 => self.pod = pod(POD_CAPTURE),
            5 => {
                self.verdict =
                    Verdict::new(NOW, EPOCH, self.verdict.action(), self.verdict.reason())
            }
            6 => self.used = Use::new(0, size::DIRECT_QUOTA.into(), 0),
            7 => self.facts &= !trial::PLAIN,
            8 => self.facts &= ![trial::FAMILY, trial::HERE][rng.usize(..2)],
            _ => self.facts &= !trial::KNOWN,
        }
        self.trial()
    }
}

fn state(flags: u32, retired: u32, heartbeat: u64) -> State {
    State::new(retired, flags, heartbeat, NOW / 2, 0, 0)
}

fn pod(flags: u32) -> Pod {
    Pod::new(3, flags, Addr::NONE, Addr::NONE, 5)
}

/// Anything, for the other hooks' decisions too.
fn any(rng: &mut Rng) -> Trial {
    let addr = |rng: &mut Rng| {
        let ip = ["10.1.1.5", "10.1.1.6", "fd00::5", "127.0.0.1"][rng.usize(..4)];
        Addr::from(ip.parse::<std::net::IpAddr>().expect("an address"))
    };
    let port = [
        80,
        ports::OUTBOUND,
        ports::INBOUND,
        ports::HBONE,
        ports::DNS,
    ][rng.usize(..5)];
    Trial::new(
        state(rng.u32(0..4), rng.u32(0..2), NOW),
        pod(rng.u32(0..8)),
        Verdict::new(
            rng.u64(0..2) * 2 * NOW,
            EPOCH,
            rng.u16(0..5),
            rng.u16(1..32),
        ),
        Use::new(rng.u64(0..2) * u64::from(size::ORIGINALS_QUOTA), 0, 0),
        NOW,
        EPOCH + rng.u32(0..2),
        rng.u32(0..3),
        rng.u32(0..256),
        rng.u32(0..3),
        rng.u32(0..3),
        rng.u32(0..3),
        rng.u32(0..3),
        rng.u32(0..3),
        rng.u32(0..256),
        port.into(),
        addr(rng),
        addr(rng),
    )
}
