//! What the kernel reports, as it shows in the log and in the metrics.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use super::*;
use crate::{
    capture::FakeDatapath,
    observe::{AccessFormat, LogSink, Metrics},
};

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

fn check(events: Vec<KernelEvent>) -> (String, String) {
    let (lines, fake) = (Lines::default(), Arc::new(FakeDatapath::default()));
    let sink = LogSink::new(lines.clone()).unwrap();
    let observer = Observer::new(Metrics::new(), sink.clone(), AccessFormat::Text, true);
    fake.told().events.extend(events);
    KernelReporter::new(
        fake,
        MeshState::new(),
        observer.clone(),
        "".into(),
        &Guards::default(),
    )
    .take();
    assert!(sink.flush(Duration::from_secs(5)));
    (
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap(),
        observer.metrics().text().unwrap(),
    )
}

fn flow() -> DirectFlow {
    let at = |text: &str| text.parse().unwrap();
    DirectFlow {
        source: at("10.1.1.5:40000"),
        destination: at("10.1.1.6:8080"),
        dialed: at("10.96.0.7:80"),
        cookie: 1,
    }
}

#[test]
fn a_direct_flow_leaves_one_line_and_both_ends_counters() {
    let end = DirectEnd {
        established: true,
        sent: 80,
        received: 175,
        duration: Duration::from_millis(1500),
        rtt: Duration::from_micros(42),
        retransmits: 3,
    };
    let (log, metrics) = check(vec![
        KernelEvent::DirectOpened(flow()),
        KernelEvent::DirectClosed(flow(), end),
    ]);
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("connection complete direction=direct src.addr=10.1.1.5:40000 dst.addr=10.1.1.6:8080 path=direct mtls=none policy=allow"), "{log}");
    assert!(
        log.contains("bytes_sent=80 bytes_recv=175 duration=1500ms rtt_us=42 retransmits=3\n"),
        "{log}"
    );
    assert_eq!(
        metrics
            .matches("istio_tcp_connections_closed_total{")
            .count(),
        2,
        "{metrics}"
    );
    assert!(!metrics.contains("mutual_tls"));
    for line in [
        "warren_direct_flows_total 1",
        "warren_direct_rtt_microseconds_total 42",
        "warren_direct_retransmits_total 3",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[test]
fn a_close_whose_open_was_lost_is_reported_all_the_same() {
    let end = DirectEnd {
        established: true,
        ..DirectEnd::default()
    };
    let (log, metrics) = check(vec![KernelEvent::DirectClosed(flow(), end)]);
    assert!(log.contains("connection complete"), "{log}");
    assert_eq!(
        metrics
            .matches("istio_tcp_connections_opened_total{")
            .count(),
        2,
        "{metrics}"
    );
    let (log, _) = check(vec![KernelEvent::DirectClosed(
        flow(),
        DirectEnd::default(),
    )]);
    assert!(
        log.contains("connection failed") && log.contains("reason=connect_refused"),
        "{log}"
    );
    assert!(
        !log.contains("rtt_us="),
        "nothing was measured of what was not established: {log}"
    );
}

#[test]
fn a_refusal_at_connect_names_its_reason() {
    let event = KernelEvent::Refused {
        reason: Some(Reason::NotAllowed),
        cookie: 1,
        source: flow().source,
        dialed: flow().dialed,
    };
    let (log, metrics) = check(vec![event]);
    assert!(
        log.contains("connection refused direction=outbound")
            && log.contains("reason=policy_not_allowed"),
        "{log}"
    );
    assert!(
        metrics.contains(r#"warren_flow_failures_total{reason="policy_not_allowed"} 1"#),
        "{metrics}"
    );
}

#[test]
fn an_open_flow_is_left_to_the_successor() {
    let (log, metrics) = check(vec![KernelEvent::DirectOpened(flow())]);
    assert!(log.is_empty(), "{log}");
    assert!(
        !metrics.contains("istio_tcp_connections_closed_total{"),
        "{metrics}"
    );
}
