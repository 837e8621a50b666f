//! Tests with real programs in a lab: one module per subject, every test named in the list below.
//!
//! Run them by `cargo xtask test lab [filter]`; without root each is printed as ignored, with the reason.

mod cluster;
mod control;
mod faults;
mod life;
mod load;
mod policy;
mod programs;
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
        life::t01_an_upgrade_under_load_loses_nothing,
        life::t04_a_hung_proxy_fails_closed_and_recovers,
        life::t09_without_a_controller_a_restarted_proxy_serves_and_enforces,
        control::t08_an_outage_with_churn_is_caught_up_without_sending_all_again,
        control::t10_a_workload_is_never_open_before_its_policy,
        policy::t15_a_deny_cuts_live_connections_of_whom_it_names,
        policy::t15_a_deny_cuts_live_direct_connections,
        policy::t19_strict_refuses_who_is_not_in_the_mesh,
        policy::an_allow_refuses_everybody_else,
        policy::a_policy_with_a_bad_part_denies,
        programs::redis_answers,
        programs::nginx_serves_wrk,
        programs::iperf_moves_bytes_both_ways,
        programs::t21_a_server_that_speaks_first_is_heard_at_once,
    ])
}
