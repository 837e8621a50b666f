//! The plugin is put in its place, kept there, and taken out for good.

use std::fs;

use tempfile::TempDir;

use super::*;

const LIST: &str = r#"{"name":"cbr0","cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#;

struct Place {
    dir: TempDir,
    cni: Cni,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node {
            conf_dir: dir.path().join("net.d"),
            bin_dir: dir.path().join("bin"),
        };
        fs::create_dir(&node.conf_dir).unwrap();
        fs::create_dir(&node.bin_dir).unwrap();
        fs::write(dir.path().join("warren-cni"), "\x7fELF").unwrap();
        let cni = Cni::new(Plugin {
            node,
            whose: "a test".into(),
            program: dir.path().join("warren-cni"),
            entry: json!({"type": PLUGIN, "socket": "/s"}),
        });
        Self { dir, cni }
    }

    fn write(&self, text: &str) {
        let next = self.dir.path().join("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, self.file()).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("net.d/10-x.conflist")
    }

    fn chained(&self) -> bool {
        fs::read_to_string(self.file()).is_ok_and(|t| t.contains(PLUGIN))
    }

    async fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let look = async {
            while !done(self) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), look)
            .await
            .unwrap_or_else(|_| panic!("waited in vain for {what}: {}", self.cni.describe()));
    }
}

#[tokio::test]
async fn the_plugin_waits_for_a_network_and_is_kept_until_it_is_taken_out() {
    let place = Place::new();
    let metrics = Metrics::new();
    let task = tokio::spawn(place.cni.clone().run(metrics.clone()));
    place
        .until("a reason", |p| p.cni.describe()["state"] == "waiting")
        .await;
    let why = place.cni.describe()["reason"].to_string();
    assert!(why.contains("network provider"), "{why}");
    place.write(LIST);
    place.until("the plugin", Place::chained).await;
    // The network provider writes its file again.
    place.write(LIST);
    place.until("the plugin again", Place::chained).await;
    place
        .until("the count", |_| {
            metrics
                .text()
                .unwrap()
                .contains("warren_cni_mended_total 2")
        })
        .await;
    assert!(metrics.text().unwrap().contains("warren_cni_chained 1"));
    assert!(place.dir.path().join("bin").join(PLUGIN).exists());

    assert!(place.cni.remove().await.unwrap());
    assert!(!place.chained() && !place.dir.path().join("bin").join(PLUGIN).exists());
    assert!(
        !place.cni.remove().await.unwrap(),
        "there is nothing left to do"
    );
    place.write(LIST);
    place
        .until("the end of keeping", |_| {
            metrics.text().unwrap().contains("warren_cni_chained 0")
        })
        .await;
    assert!(!place.chained(), "it is not put back");
    assert_eq!(place.cni.describe()["state"], "removed");
    task.abort();
}
