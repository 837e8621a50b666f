//! Tests with real programs in a lab: one module per subject, every test named in the list below.
//!
//! Run them by `cargo xtask test lab [filter]`; without root each is printed as ignored, with the reason.

mod cluster;
mod faults;
mod tunnel;

use std::process::ExitCode;

use mesh_tests::{lab::suite, lab_tests};

fn main() -> ExitCode {
    suite::main(lab_tests![
        cluster::pods_reach_services_by_name_and_both_families,
        cluster::scaling_rescheduling_and_deletion_by_apply,
        cluster::down_removes_what_a_killed_supervisor_left,
        tunnel::an_echo_across_nodes_is_encrypted_and_logged,
        faults::t03_a_killed_node_proxy_leaks_nothing_and_comes_back,
    ])
}
