//! Whether a pod forwards packets for others, whose connections do not come from sockets of its own.
//!
//! Invariant: a setting counts only when it differs from what every new namespace inherits: nodes forward, and
//! hand that on to pods that do not.

use std::{fs, io, sync::OnceLock, thread};

use nix::sched::{CloneFlags, unshare};

use super::Netns;

/// Settings that make a namespace forward.
const SETTINGS: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// The settings of a namespace, in the order of the names.
type State = [bool; SETTINGS.len()];

/// The setting that says that a pod forwards, if one does.
pub fn forwards(pod: &Netns) -> io::Result<Option<String>> {
    static FRESH: OnceLock<State> = OnceLock::new();
    let own = pod.enter(|| Ok(here()))?;
    if own == State::default() {
        return Ok(None);
    }
    let inherited = match FRESH.get() {
        Some(state) => *state,
        None => *FRESH.get_or_init(|| fresh().unwrap_or([true; SETTINGS.len()])),
    };
    Ok(differing(own, inherited))
}

fn differing(own: State, inherited: State) -> Option<String> {
    let at = (0..SETTINGS.len()).find(|i| own[*i] && !inherited[*i])?;
    Some(SETTINGS[at].replace('/', "."))
}

/// The settings of the calling thread's namespace. One that is not there is off.
fn here() -> State {
    SETTINGS.map(|name| {
        fs::read_to_string(format!("/proc/sys/{name}")).is_ok_and(|text| text.trim() != "0")
    })
}

/// What a new namespace begins with.
fn fresh() -> io::Result<State> {
    let made = thread::Builder::new()
        .name("fresh-netns".into())
        .spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(here())
        })?;
    made.join()
        .unwrap_or_else(|_| Err(io::Error::other("the helper thread panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_inherited_counts() {
        for (own, inherited, expect) in [
            ([false, false], [false, false], None),
            ([true, false], [true, false], None),
            ([true, false], [false, false], Some("net.ipv4.ip_forward")),
            (
                [true, true],
                [true, false],
                Some("net.ipv6.conf.all.forwarding"),
            ),
            ([false, false], [true, true], None),
        ] {
            assert_eq!(
                differing(own, inherited).as_deref(),
                expect,
                "{own:?} {inherited:?}"
            );
        }
    }
}
