//! Tests in a real Kubernetes cluster: one module per subject, every test named in the list below.
//!
//! Run them by `cargo xtask test kube [filter]`, which starts a cluster and loads Warren's images; without one each is
//! printed as ignored, with the reason.

mod absent;
mod chart;
mod enrol;
mod life;
mod outage;
mod policies;
mod power;
mod replicas;
mod routes;
mod seeds;
mod services;
mod trust;
mod waypoint;
mod webhook;
mod workloads;

use std::process::ExitCode;

use mesh_tests::{
    kube::{Cluster, on_runtime, reason_to_skip},
    lab::suite,
    lab_tests,
};

fn main() -> ExitCode {
    let skip = reason_to_skip();
    let only_listed = std::env::args().any(|a| a == "--list");
    if skip.is_none() && !only_listed {
        let installed = on_runtime(async { Cluster::running()?.install().await });
        if let Err(e) = installed {
            println!("installing Warren in the cluster: {e:#}");
            return ExitCode::FAILURE;
        }
    }
    suite::run(
        lab_tests![by on_runtime;
            life::installing_twice_changes_nothing,
            enrol::running_pods_talk_mtls_once_their_namespace_is_labelled,
            workloads::probes_pass_under_strict,
            workloads::pods_of_the_hosts_network_are_left_alone,
            workloads::jobs_end_and_init_containers_are_in_the_mesh,
            workloads::stateful_sets_and_headless_services_are_reached_by_name,
            workloads::node_ports_and_host_ports_lead_in,
            services::load_balancers_lead_in_by_either_policy,
            services::external_names_lead_to_the_service_they_name,
            services::a_terminating_endpoint_loses_no_request,
            services::pods_that_share_an_account_share_what_it_may,
            policies::t35_network_policies_are_never_weaker_in_the_mesh,
            seeds::the_articles_rules_hold_in_a_cluster,
            webhook::authors_hear_what_is_wrong_and_can_always_write,
            waypoint::a_rule_brings_a_waypoint_and_takes_it_along,
            waypoint::a_gateways_waypoint_is_missed_when_it_is_gone,
            life::a_rollout_of_every_node_proxy_loses_no_request,
            routes::routes_of_connections_classes_and_spans_are_honoured,
            replicas::an_evicted_leader_is_followed_and_no_request_fails,
            enrol::what_is_not_served_is_told_at_the_pod,
            life::two_upgrades_and_a_rollback_under_load_lose_nothing,
            life::another_layout_of_maps_keeps_pods_in_the_mesh,
            life::an_upgrade_keeps_what_was_set,
            outage::without_a_controller_pods_go_on,
            outage::without_an_api_server_pods_go_on,
            absent::without_a_node_proxy_enrolled_pods_wait_and_others_start,
            outage::a_killed_node_proxy_is_missed_and_nothing_else,
            outage::a_node_proxy_without_memory_is_missed_and_nothing_else,
            outage::restored_objects_are_in_force_again,
            trust::the_root_is_replaced_under_load,
            power::t07_a_node_comes_back_in_the_mesh,
            life::uninstalling_restores_every_node,
            chart::helm_installs_upgrades_and_removes_the_chart,
        ],
        skip,
    )
}
