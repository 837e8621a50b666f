//! Tests in a real Kubernetes cluster: one module per subject, every test named in the list below.
//!
//! Run them by `cargo xtask test kube [filter]`, which starts a cluster and loads Warren's images; without one each is
//! printed as ignored, with the reason.

mod enrol;
mod life;
mod workloads;

use std::process::ExitCode;

use mesh_tests::{
    kube::{Cluster, reason_to_skip},
    lab::suite,
    lab_tests,
};

fn main() -> ExitCode {
    let skip = reason_to_skip();
    let only_listed = std::env::args().any(|a| a == "--list");
    if skip.is_none() && !only_listed {
        let installed = suite::on_runtime(async { Cluster::running()?.install().await });
        if let Err(e) = installed {
            println!("installing Warren in the cluster: {e:#}");
            return ExitCode::FAILURE;
        }
    }
    suite::run(
        lab_tests![
            enrol::running_pods_talk_mtls_once_their_namespace_is_labelled,
            workloads::probes_pass_under_strict,
            workloads::pods_of_the_hosts_network_are_left_alone,
            workloads::jobs_end_and_init_containers_are_in_the_mesh,
            workloads::stateful_sets_and_headless_services_are_reached_by_name,
            workloads::node_ports_and_host_ports_lead_in,
            life::uninstalling_restores_every_node,
        ],
        skip,
    )
}
