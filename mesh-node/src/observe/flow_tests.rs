//! What a flow leaves behind in the log and in the metrics, for every way to end.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh_model::{
    authz::Denial,
    name::{PolicyName, ServiceName},
    reason::Reason,
};

use super::*;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs one flow, and gives the log and the metrics it left.
fn check(format: AccessFormat, flow: impl FnOnce(&mut FlowGuard)) -> (String, String) {
    let lines = Lines::default();
    let sink = LogSink::new(lines.clone()).unwrap();
    let observer = Observer::new(Metrics::new(), sink.clone(), format, true);
    let mut guard = observer.flow(Direction::Outbound, Some("10.1.1.5:40000".parse().unwrap()));
    flow(&mut guard);
    drop(guard);
    assert!(sink.flush(Duration::from_secs(5)));
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.lines().count(), 1, "{log}");
    (log, observer.metrics().text().unwrap())
}

fn fill(flow: &mut FlowGuard) {
    let record = flow.record_mut();
    record.source.identity = Some("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap());
    record.destination.addr = Some("10.1.2.6:8080".parse().unwrap());
    record.hbone_addr = Some("10.1.2.6:15008".parse().unwrap());
    record.service = Some(ServiceName {
        namespace: "shop".into(),
        hostname: "cart.shop.svc.cluster.local".into(),
    });
    record.path = Some(Path::Hbone);
    record.policy = Some(Verdict::Allow);
}

#[test]
fn a_complete_flow() {
    let (log, metrics) = check(AccessFormat::Json, |flow| {
        fill(flow);
        flow.opened();
        flow.opened();
        flow.carried(80, 175);
        flow.progress();
        flow.carried(20, 25);
    });
    let line: serde_json::Value = serde_json::from_str(&log).unwrap();
    assert_eq!(line["message"], "connection complete");
    assert_eq!(
        (&line["bytes_sent"], &line["bytes_recv"]),
        (&100.into(), &200.into())
    );
    assert_eq!(line["mtls"], "true");
    assert!(
        line.get("reason").is_none() && line.get("dst.workload").is_none(),
        "{log}"
    );
    let order = [
        "direction",
        "src.addr",
        "src.namespace",
        "src.identity",
        "dst.addr",
        "dst.hbone_addr",
        "dst.service",
        "path",
        "mtls",
        "policy",
        "bytes_sent",
        "bytes_recv",
        "duration",
    ];
    let places: Vec<_> = order
        .iter()
        .map(|k| {
            log.find(&format!("\"{k}\":"))
                .unwrap_or_else(|| panic!("{k} missing: {log}"))
        })
        .collect();
    assert!(places.is_sorted(), "{log}");
    for (name, value) in [
        ("connections_opened", 1),
        ("connections_closed", 1),
        ("sent_bytes", 200),
        ("received_bytes", 100),
    ] {
        let line = metrics
            .lines()
            .find(|l| l.starts_with(&format!("istio_tcp_{name}_total{{")))
            .unwrap_or_else(|| panic!("{name}: {metrics}"));
        assert!(line.ends_with(&format!(" {value}")), "{line}");
        assert!(
            line.contains(r#"{reporter="source",source_workload="unknown""#),
            "{line}"
        );
        assert!(
            line.contains(r#"destination_service_name="cart""#)
                && line.contains(r#"connection_security_policy="mutual_tls""#),
            "{line}"
        );
    }
    assert!(
        !metrics.contains("istio_tcp_connections_failed_total{"),
        "{metrics}"
    );
}

#[test]
fn a_refused_flow_names_its_policy() {
    let (log, metrics) = check(AccessFormat::Text, |flow| {
        fill(flow);
        let policy = PolicyName {
            namespace: "shop".into(),
            name: "no-web".into(),
        };
        flow.refuse(&Denial {
            reason: Reason::PolicyDenied,
            policy: Some(policy),
        });
        flow.fail(Reason::Internal, "a consequence");
    });
    assert!(
        log.contains(
            " INFO access: connection refused direction=outbound src.addr=10.1.1.5:40000 "
        ),
        "{log}"
    );
    assert!(
        log.contains(" policy=deny policy_name=shop/no-web reason=policy_denied bytes_sent=0 "),
        "{log}"
    );
    assert!(
        metrics.contains(r#"response_flags="DENY",connection_security_policy="mutual_tls"} 1"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"warren_flow_failures_total{reason="policy_denied"} 1"#),
        "{metrics}"
    );
    assert!(
        !metrics.contains("istio_tcp_connections_opened_total{"),
        "{metrics}"
    );
}

#[test]
fn a_flow_that_is_only_dropped_is_still_reported() {
    let (log, _) = check(AccessFormat::Text, |flow| {
        flow.fail(Reason::NoOriginalDestination, "who\nknows \"what\"")
    });
    assert!(
        log.contains("connection failed") && log.contains(r#"error="who\nknows \"what\"""#),
        "{log}"
    );
}

#[test]
fn a_direct_flow_says_what_tcp_saw() {
    let (log, _) = check(AccessFormat::Json, |flow| {
        flow.record_mut().path = Some(Path::Direct);
        flow.opened();
        flow.wire(Wire {
            rtt: Duration::from_micros(42),
            retransmits: 3,
        });
    });
    let line: serde_json::Value = serde_json::from_str(&log).unwrap();
    assert_eq!(
        (&line["rtt_us"], &line["retransmits"]),
        (&42.into(), &3.into()),
        "{log}"
    );
    let (log, _) = check(AccessFormat::Json, |flow| {
        fill(flow);
        flow.opened();
    });
    assert!(!log.contains("rtt_us"), "unknown, so left out: {log}");
}

#[test]
fn a_direct_flow_counts_for_both_ends_and_never_as_mutual_tls() {
    let observer = Observer::silent();
    let mut flow = observer.flow(Direction::Direct, None);
    flow.record_mut().path = Some(Path::Direct);
    flow.opened();
    drop(flow);
    let metrics = observer.metrics().text().unwrap();
    for reporter in ["source", "destination"] {
        assert!(
            metrics.contains(&format!(
                "istio_tcp_connections_opened_total{{reporter=\"{reporter}\""
            )),
            "{metrics}"
        );
    }
    assert!(!metrics.contains("mutual_tls"), "{metrics}");
}
