//! A lab's status as a person reads it: components, pods and services in columns.

use super::control::Status;

/// The status as text.
pub fn text(status: &Status) -> String {
    let mut out = String::new();
    let mut rows = vec![
        ["COMPONENT", "PID", "STARTS", "LAST END"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(status.components.iter().map(|c| {
        let pid = c
            .condition
            .pid
            .map_or_else(|| "-".to_owned(), |p| p.to_string());
        vec![
            c.name.clone(),
            pid,
            c.condition.starts.to_string(),
            c.condition.last_end.clone(),
        ]
    }));
    table(&mut out, &rows);
    out.push('\n');
    let mut rows = vec![
        [
            "NAMESPACE",
            "POD",
            "READY",
            "STATUS",
            "RESTARTS",
            "NODE",
            "IP",
            "MESH",
            "NOTE",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    rows.extend(status.pods.iter().map(|p| {
        let yes = if p.ready { "yes" } else { "no" };
        vec![
            p.namespace.clone(),
            p.name.clone(),
            yes.into(),
            if p.idle && p.phase == "Running" {
                "idle".into()
            } else {
                p.phase.clone()
            },
            p.restarts.to_string(),
            p.node.clone(),
            p.ip.to_string(),
            p.mesh.clone(),
            p.note.clone(),
        ]
    }));
    table(&mut out, &rows);
    out.push('\n');
    let mut rows = vec![
        ["NAMESPACE", "SERVICE", "ADDRESSES"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(status.services.iter().map(|s| {
        let addresses = if s.cluster_ips.is_empty() {
            "headless".to_owned()
        } else {
            s.cluster_ips.join(" ")
        };
        vec![s.namespace.clone(), s.name.clone(), addresses]
    }));
    table(&mut out, &rows);
    for warning in &status.warnings {
        out += &format!("\nwarning: {warning}\n");
    }
    out
}

fn table(out: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        *out += line.join("  ").trim_end();
        out.push('\n');
    }
}
