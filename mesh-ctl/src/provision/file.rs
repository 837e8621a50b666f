//! The list of wanted waypoints as a file, for whoever makes them where there is no cluster.

use std::path::PathBuf;

use mesh_translate::Wanted;
use serde::Serialize;
use tokio::{sync::watch, task::spawn_blocking};
use tracing::warn;

use super::List;
use crate::status;

/// The content of the file.
#[derive(Debug, Serialize)]
struct Kept<'a> {
    /// The version of this file's form.
    version: u32,
    waypoints: &'a [Wanted],
}

/// Keeps the list in a file, which is replaced as a whole. Ends when nobody says any more what is wanted.
pub async fn keep(mut wanted: watch::Receiver<List>, path: PathBuf) {
    while wanted.changed().await.is_ok() {
        let Some(list) = wanted.borrow_and_update().clone() else {
            continue;
        };
        let file = path.clone();
        let written = spawn_blocking(move || {
            let kept = Kept {
                version: 1,
                waypoints: &list,
            };
            status::replace(&kept, &file)
        });
        if let Ok(Err(error)) = written.await {
            warn!(%error, file = %path.display(), "the list of wanted waypoints could not be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use serde_json::{Value, json};
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test]
    async fn the_file_says_what_is_wanted_also_when_it_is_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("waypoints.json");
        let (tell, wanted) = watch::channel(None);
        let keeping = tokio::spawn(keep(wanted, path.clone()));
        let read = || {
            let text = fs::read(&path).ok()?;
            serde_json::from_slice::<Value>(&text).ok()
        };
        let is = async |expect: Value| {
            let there = async {
                while read() != Some(expect.clone()) {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            let found = timeout(Duration::from_secs(10), there).await;
            assert!(found.is_ok(), "{:?} is not {expect}", read());
        };
        let one: Wanted = serde_json::from_value(
            json!({"namespace": "shop", "name": "wp", "origin": "gateway",
            "purpose": {"services": true, "workloads": false}}),
        )
        .expect("reads");
        tell.send_replace(Some([one.clone()].into()));
        is(json!({"version": 1, "waypoints": [one]})).await;
        tell.send_replace(Some([].into()));
        is(json!({"version": 1, "waypoints": []})).await;
        drop(tell);
        keeping.await.expect("ends");
    }
}
