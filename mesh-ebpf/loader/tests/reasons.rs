//! The kernel's numbers for reasons are the model's.

use mesh_loader::abi::reason;
use mesh_model::reason::{Errno, Reason};

#[test]
fn the_kernel_and_the_model_agree_on_reasons() {
    let model: Vec<(u16, &str)> = Reason::ALL
        .iter()
        .map(|r| (*r as u16, r.shown().key))
        .collect();
    assert_eq!(reason::ALL, model);
    for &r in Reason::ALL {
        let expect = match r.shown().errno {
            Errno::Refused => reason::ECONNREFUSED,
            Errno::HostUnreachable => reason::EHOSTUNREACH,
        };
        assert_eq!(reason::errno(r as u16), expect, "{}", r.shown().key);
        assert!((r as u32) < mesh_loader::abi::counters::REASONS);
    }
}
