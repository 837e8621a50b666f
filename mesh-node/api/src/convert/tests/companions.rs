//! Companions of a newer controller.

use mesh_model::mesh::{Change, MtlsMode};
use prost::Message;

use super::super::*;

#[test]
fn a_companion_of_a_newer_controller_denies_rather_than_opens() {
    let companion = |w: warren::Workload| {
        let content = Some(warren::companion::Content::Workload(w));
        let body = warren::Companion { content }.encode_to_vec();
        decode(
            Kind::Companion.url(),
            "workload/Kubernetes//Pod/shop/web",
            &body,
        )
    };
    let good = warren::Workload {
        enrolment: 1,
        mtls: 2,
        ..Default::default()
    };
    assert!(companion(good.clone()).is_ok());
    let newer = companion(warren::Workload {
        mtls: 9,
        ..good.clone()
    })
    .expect("is understood as strict");
    match &newer[..] {
        [Change::WorkloadExtra(_, x)] => {
            assert_eq!(x.mtls, MtlsMode::Strict);
            assert_eq!(x.features.len(), 1, "nothing demands a newer build");
        }
        other => panic!("{other:?}"),
    }
    let field = |w| companion(w).expect_err("is bad").field;
    assert_eq!(
        field(warren::Workload {
            enrolment: 9,
            ..good.clone()
        }),
        "enrolment"
    );
    assert_eq!(
        field(warren::Workload {
            enrolment: 0,
            ..good.clone()
        }),
        "enrolment"
    );
    assert_eq!(
        field(warren::Workload {
            probe_ports: vec![80, 65_536],
            ..good.clone()
        }),
        "probe_ports[1]"
    );
    let port = warren::PortMtls {
        port: 70_000,
        mtls: 1,
    };
    assert_eq!(
        field(warren::Workload {
            mtls_ports: vec![port],
            ..good
        }),
        "mtls_ports[0].port"
    );
}
