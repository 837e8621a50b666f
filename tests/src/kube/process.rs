//! A container's process as this machine, on which the nodes are, sees it, and its cgroup.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The first process of a container, by its id, and the directory of its memory cgroup.
pub(super) fn of(container: &str) -> Option<(u32, Option<PathBuf>)> {
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if groups.contains(container) {
            return Some((pid, memory_group(&groups)));
        }
    }
    None
}

/// In version 1 the hierarchy of the controller `memory`, else the only one.
fn memory_group(groups: &str) -> Option<PathBuf> {
    let mut found = None;
    for line in groups.lines() {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            c if c.split(',').any(|c| c == "memory") => "/sys/fs/cgroup/memory",
            _ => continue,
        };
        let path = Path::new(root).join(path.trim_start_matches('/'));
        let counts = ["memory.current", "memory.usage_in_bytes"];
        if counts.iter().any(|f| path.join(f).is_file()) {
            found = Some(path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_without_a_counter_is_none() {
        assert_eq!(memory_group("0::/no/such/group\n"), None);
        assert_eq!(
            memory_group("4:memory:/no/such/group\n0::/nor/this\n"),
            None
        );
        assert_eq!(memory_group(""), None);
    }
}
