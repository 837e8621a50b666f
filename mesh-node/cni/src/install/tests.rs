//! A node's directories before, with and after our plugin.

use serde_json::json;
use tempfile::TempDir;

use super::*;

const LIST: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel"}]}"#;
const SINGLE: &str = r#"{"name":"mynet","cniVersion":"0.4.0","type":"bridge"}"#;

struct Place {
    dir: TempDir,
    node: Node,
}

impl Place {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node {
            conf_dir: dir.path().join("net.d"),
            bin_dir: dir.path().join("bin"),
        };
        fs::create_dir(&node.conf_dir).unwrap();
        fs::create_dir(&node.bin_dir).unwrap();
        for (name, text) in files {
            fs::write(node.conf_dir.join(name), text).unwrap();
        }
        fs::write(dir.path().join("program"), "\x7fELF").unwrap();
        Self { dir, node }
    }

    fn install(&self) -> Result<bool, InstallError> {
        self.node
            .install(&self.dir.path().join("program"), &plugin())
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.node.conf_dir.join(name)
    }

    fn names(&self) -> Vec<String> {
        self.node.names().unwrap()
    }

    fn program(&self) -> PathBuf {
        self.node.bin_dir.join(PLUGIN)
    }
}

fn plugin() -> Value {
    json!({"type": PLUGIN})
}

#[test]
fn a_list_is_chained_kept_and_released() {
    let place = Place::new(&[("10-flannel.conflist", LIST), ("87-other.conflist", LIST)]);
    let file = place.conf("10-flannel.conflist");
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    assert!(place.install().unwrap());
    assert!(conflist::is_chained(&read(&file).unwrap()));
    assert!(!conflist::is_chained(
        &read(&place.conf("87-other.conflist")).unwrap()
    ));
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
    assert_eq!(fs::metadata(place.program()).unwrap().mode() & 0o777, 0o755);
    let inode = fs::metadata(&file).unwrap().ino();
    assert!(!place.install().unwrap(), "a second time nothing changes");
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
    fs::write(&file, LIST).unwrap();
    assert!(place.node.keep(&plugin()).unwrap(), "its owner rewrote it");
    assert!(place.node.uninstall().unwrap());
    assert_eq!(
        read(&file).unwrap(),
        serde_json::from_str::<Value>(LIST).unwrap()
    );
    assert!(!place.program().exists());
    assert!(
        !place.node.uninstall().unwrap(),
        "a second time nothing changes"
    );
    assert_eq!(place.names(), ["10-flannel.conflist", "87-other.conflist"]);
}

#[test]
fn a_provider_that_comes_to_the_front_is_chained_and_both_are_released() {
    let place = Place::new(&[("10-flannel.conflist", LIST)]);
    place.install().unwrap();
    fs::write(place.conf("05-cilium.conflist"), LIST).unwrap();
    assert!(place.node.keep(&plugin()).unwrap());
    assert!(place.node.uninstall().unwrap());
    for name in place.names() {
        assert!(
            !conflist::is_chained(&read(&place.conf(&name)).unwrap()),
            "{name}"
        );
    }
}

#[test]
fn a_single_plugin_gives_way_to_a_list_and_comes_back() {
    for name in ["10-mynet.conf", "10-mynet.json"] {
        let place = Place::new(&[(name, SINGLE)]);
        assert!(place.install().unwrap());
        assert_eq!(
            conflist::chosen(place.names().iter().map(String::as_str)),
            Some("10-mynet.conflist")
        );
        assert!(conflist::is_chained(
            &read(&place.conf("10-mynet.conflist")).unwrap()
        ));
        assert!(!place.install().unwrap());
        assert!(place.node.uninstall().unwrap());
        assert_eq!(place.names(), [name]);
        assert_eq!(fs::read_to_string(place.conf(name)).unwrap(), SINGLE);
    }
}

#[test]
fn what_its_owner_did_meanwhile_is_kept() {
    let place = Place::new(&[("10-mynet.conf", SINGLE)]);
    place.install().unwrap();
    let newer = SINGLE.replace("mynet", "newer");
    fs::write(place.conf("10-mynet.conf"), &newer).unwrap();
    assert!(
        place.node.keep(&plugin()).unwrap(),
        "the single one is the runtime's again"
    );
    assert_eq!(
        read(&place.conf("10-mynet.conflist")).unwrap()["name"],
        "newer"
    );
    fs::write(place.conf("10-mynet.conf"), SINGLE).unwrap();
    place.node.uninstall().unwrap();
    assert_eq!(place.names(), ["10-mynet.conf"]);
    assert_eq!(
        fs::read_to_string(place.conf("10-mynet.conf")).unwrap(),
        SINGLE
    );

    let place = Place::new(&[("10-mynet.conf", SINGLE)]);
    place.install().unwrap();
    let list = place.conf("10-mynet.conflist");
    let mut edited = read(&list).unwrap();
    edited["disableCheck"] = json!(true);
    fs::write(&list, edited.to_string()).unwrap();
    place.node.uninstall().unwrap();
    assert_eq!(place.names(), ["10-mynet.conflist"]);
    let left = read(&list).unwrap();
    assert!(left["disableCheck"] == json!(true) && !conflist::is_chained(&left));
}

#[test]
fn a_link_stays_a_link() {
    let place = Place::new(&[]);
    let real = place.dir.path().join("real.conflist");
    fs::write(&real, LIST).unwrap();
    std::os::unix::fs::symlink(&real, place.conf("10-a.conflist")).unwrap();
    place.install().unwrap();
    assert!(place.conf("10-a.conflist").is_symlink());
    assert!(conflist::is_chained(&read(&real).unwrap()));
}

#[test]
fn what_cannot_be_done_is_said_and_nothing_is_left() {
    let none = Place::new(&[("README", "")]);
    assert!(matches!(
        none.install(),
        Err(InstallError::NoConfiguration(_))
    ));
    let broken = Place::new(&[("10-a.conflist", "{")]);
    assert!(matches!(
        broken.install(),
        Err(InstallError::NotJson { .. })
    ));
    assert_eq!(
        fs::read_to_string(broken.conf("10-a.conflist")).unwrap(),
        "{"
    );
    let taken = Place::new(&[("10-a.conf", SINGLE), ("10-a.conflist", LIST)]);
    assert!(matches!(taken.install(), Err(InstallError::Taken { .. })));
    assert_eq!(taken.names(), ["10-a.conf", "10-a.conflist"]);
    broken.node.uninstall().unwrap();
    assert_eq!(
        broken.names(),
        ["10-a.conflist"],
        "no temporary file is left"
    );
}
