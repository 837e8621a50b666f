//! Which node of which test has which addresses: `127.7.N.*`, at which port 15008 is as fixed as anywhere else.
//!
//! Invariant: a number is one node's for as long as the tests run, and nobody else's afterwards. Two tests that spell the
//! same number fail when all tests are run, whether or not they meet.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

/// Who has each: a node by its number, and the test that began it.
static TAKEN: Mutex<BTreeMap<[u8; 3], (usize, String)>> = Mutex::new(BTreeMap::new());

/// Takes the addresses around this one for a node.
pub(super) fn take(node: usize, ip: IpAddr) {
    let IpAddr::V4(v4) = ip else {
        panic!("{ip} is no address of a test's node");
    };
    let [a, b, net, _] = v4.octets();
    let owner = {
        // A test that fails here leaves the map as it is.
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.entry([a, b, net]) {
            Entry::Occupied(entry) => entry.get().clone(),
            Entry::Vacant(entry) => {
                let thread = std::thread::current();
                let test = thread.name().unwrap_or("a test").to_owned();
                entry.insert((node, test)).clone()
            }
        }
    };
    assert!(
        owner.0 == node,
        "{a}.{b}.{net}.* is what {} has: take a number that no other node has",
        owner.1
    );
}

#[test]
fn a_number_is_one_nodes() {
    let [first, second] = [usize::MAX, usize::MAX - 1];
    let at = |ip: &str| ip.parse::<IpAddr>().expect("an address");
    take(first, at("127.7.249.1"));
    take(first, at("127.7.249.9"));
    take(second, at("127.7.248.1"));
    let again = std::panic::catch_unwind(|| take(second, at("127.7.249.2")));
    let told = again.expect_err("taken twice");
    let told = told.downcast::<String>().expect("a text");
    assert!(told.starts_with("127.7.249.* is what "), "{told}");
    // The one that was refused has changed nothing.
    take(first, at("127.7.249.3"));
}
