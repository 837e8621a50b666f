//! Tests with real programs in a lab: one module per subject, every test named in the list below.
//!
//! Run them by `cargo xtask test lab [filter]`; without root each is printed as ignored, with the reason.

mod around;
mod automatic;
mod bench;
mod beside;
mod beyond;
mod boot;
mod capture;
mod circles;
mod clock;
mod cluster;
mod control;
mod demo;
mod destinations;
mod discovery;
mod errors;
mod faults;
mod flows;
mod frames;
mod handed;
mod hbone;
mod hostile;
mod interop;
mod interrupt;
mod life;
mod limits;
mod load;
mod node;
mod packets;
mod play;
mod policy;
mod programs;
mod protocols;
mod reuse;
mod samples;
mod secrecy;
mod seeds;
mod spans;
mod streams;
mod trust;
mod tunnel;
mod vanish;
mod waypoint;
mod wire;

use std::process::ExitCode;

use mesh_tests::{lab::suite, lab_tests};

fn main() -> ExitCode {
    // In a pod this program is what a test wants to be there.
    if let Some(played) = play::asked() {
        return played;
    }
    suite::main(lab_tests![
        bench::a_short_benchmark_finds_every_figure,
        bench::idle_connections_cost_memory_whatever_ran_before,
        interrupt::an_interrupted_benchmark_leaves_nothing,
        interrupt::an_interrupted_demo_and_lab_leave_nothing,
        interrupt::a_demo_that_nobody_reads_ends_quietly,
        demo::the_demo_of_requests_shows_each_step_to_its_end,
        cluster::pods_reach_services_by_name_and_both_families,
        cluster::scaling_rescheduling_and_deletion_by_apply,
        cluster::down_removes_what_a_killed_supervisor_left,
        cluster::labs_side_by_side_do_not_meet,
        cluster::images_of_the_user_become_programs,
        cluster::a_closed_pipe_ends_quietly,
        capture::t32_nobody_speaks_in_an_enrolled_pods_name,
        beside::t31_programs_of_others_and_ours_let_each_other_work,
        capture::a_detached_anchor_withdraws_the_direct_path,
        capture::an_open_port_keeps_the_direct_path_withdrawn,
        node::t33_only_kubelet_probes_a_strict_pod,
        node::t34_pods_that_cannot_be_captured_are_left_alone,
        node::a_captured_pod_that_begins_to_forward_is_refused,
        node::t36_a_flood_costs_the_neighbours_nothing,
        tunnel::an_echo_across_nodes_is_encrypted_and_logged,
        faults::t03_a_killed_node_proxy_leaks_nothing_and_comes_back,
        life::t01_an_upgrade_under_load_loses_nothing,
        life::t04_a_hung_proxy_fails_closed_and_recovers,
        life::t09_without_a_controller_a_restarted_proxy_serves_and_enforces,
        control::t08_an_outage_with_churn_is_caught_up_without_sending_all_again,
        control::t11_a_list_that_breaks_off_removes_nothing,
        control::t10_a_workload_is_never_open_before_its_policy,
        policy::t15_a_deny_cuts_live_connections_of_whom_it_names,
        policy::t15_a_deny_cuts_live_direct_connections,
        policy::t19_strict_refuses_who_is_not_in_the_mesh,
        policy::an_allow_refuses_everybody_else,
        policy::a_policy_with_a_bad_part_denies,
        programs::redis_answers,
        programs::nginx_serves_wrk,
        programs::iperf_moves_bytes_both_ways,
        programs::postgres_answers_psql,
        programs::websocket_and_grpc_echo_every_message,
        boot::t06_whatever_starts_first_nothing_leaves_unprotected,
        secrecy::every_kind_of_address_is_encrypted,
        secrecy::a_proxy_that_restarts_under_traffic_lets_nothing_out,
        secrecy::a_pod_that_is_being_deleted_lets_nothing_out,
        hostile::what_is_not_tls_is_ended_and_named,
        hostile::wrong_certificates_get_no_tunnel,
        hostile::hostile_frames_end_their_tunnel_and_no_other,
        hostile::the_proxys_other_ports_serve_nobody,
        hostile::floods_where_requests_belong_cost_others_nothing,
        interop::openssl_and_hyper_h2_reach_a_captured_pod,
        interop::a_captured_pod_reaches_openssl_and_hyper_h2,
        interop::envoy_reaches_a_captured_pod,
        interop::a_captured_pod_reaches_envoy,
        samples::every_sample_answers_on_every_path,
        samples::the_readme_works_word_by_word,
        programs::t21_a_server_that_speaks_first_is_heard_at_once,
        programs::t21_a_connection_that_says_little_goes_on,
        trust::t12_without_a_ca_certificates_serve_until_they_expire,
        trust::t13_rotation_under_load_fails_nothing,
        trust::t16_a_stolen_or_made_up_identity_is_refused,
        clock::a_clock_that_is_set_lets_nothing_in_and_is_made_good,
        trust::an_upgrade_hands_keys_over_in_memory,
        wire::t17_a_connect_to_anything_but_the_pod_is_refused_undialed,
        wire::t18_early_bytes_of_a_denied_stream_reach_nobody,
        wire::t20_connections_end_as_they_would_without_the_mesh,
        vanish::t20_a_flow_over_a_cut_link_ends_on_both_sides,
        limits::t25_without_descriptors_live_streams_go_on,
        limits::t25_without_memory_nothing_leaks_and_service_comes_back,
        reuse::t28_an_address_that_is_used_again_brings_no_old_identity,
        reuse::t37_no_connection_is_taken_for_another,
        errors::t40_what_nobody_answers_is_refused_at_once,
        errors::t40_a_dead_node_looks_like_one,
        discovery::services_lead_where_they_say,
        discovery::what_is_outside_and_what_a_port_accepts,
        discovery::a_host_that_is_known_by_name_is_found_and_followed,
        discovery::a_running_node_tells_and_is_told,
        spans::a_waypoint_is_a_span_in_its_clients_trace,
        waypoint::requests_are_split_by_weight_and_seen_as_the_clients,
        waypoint::requests_for_a_pod_itself_are_seen_by_its_waypoint,
        waypoint::faults_and_retries_of_a_waypoint,
        waypoint::policies_mean_the_client_and_nothing_goes_around_a_waypoint,
        waypoint::policies_by_address_mean_the_clients_behind_a_waypoint,
        destinations::an_endpoint_that_answers_no_connect_is_given_up_in_its_rules_time,
        destinations::places_come_in_the_order_of_their_rule,
        destinations::a_place_spills_over_while_half_of_it_is_left_out,
        destinations::places_get_the_shares_of_their_rule,
        destinations::who_is_busy_gets_less_unless_all_take_turns,
        destinations::headers_of_a_destination_are_those_of_its_requests_only,
        circles::whatever_points_at_what_a_request_passes_once,
        beyond::routes_lead_to_other_teams_as_the_waypoints_own,
        automatic::a_waypoint_appears_for_a_rule_and_goes_with_it,
        automatic::a_gateway_brings_its_waypoint,
        automatic::who_restricts_is_obeyed_from_the_first_moment,
        around::every_way_past_a_waypoint_that_is_demanded_is_refused,
        around::load_balancers_lead_past_no_waypoint,
        around::a_pod_of_two_services_is_behind_both_waypoints,
        around::a_node_that_has_not_heard_of_a_waypoint_leads_past_none,
        handed::who_is_outside_reaches_a_guarded_service_through_its_waypoint,
        handed::policies_mean_who_is_outside_and_strict_refuses,
        handed::a_waypoint_that_is_gone_leaves_no_way_in_for_who_is_outside,
        handed::a_connection_is_handed_over_by_the_pods_own_node_only,
        streams::connections_are_routed_by_weight_and_by_name,
        streams::a_node_proxy_keeps_to_what_is_said_of_connections,
        protocols::http2_is_spoken_as_its_specification_says,
        protocols::grpc_peers_of_other_make_understand_each_other,
        protocols::websocket_frames_are_carried_as_they_are,
        seeds::shares_are_as_the_articles_say,
        seeds::tries_and_time_are_bounded_as_the_articles_say,
        seeds::a_circuit_breaker_leaves_out_who_misbehaves,
        seeds::faults_and_copies_are_as_many_as_the_articles_say,
    ])
}
