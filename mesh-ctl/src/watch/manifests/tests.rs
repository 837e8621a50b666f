//! A real folder, really watched.

use std::time::Duration;

use super::*;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: NAME}\n---\n";

async fn next(source: &mut Manifests) -> Vec<String> {
    let batch = tokio::time::timeout(Duration::from_secs(10), source.next())
        .await
        .expect("a batch in time");
    let text = |delta| match delta {
        Delta::Applied { object, .. } => format!("+{}", object.metadata().name),
        Delta::Removed(object) => format!("-{}", object.name),
        Delta::Bad(object, _) => format!("!{}", object.name),
    };
    batch
        .expect("the folder can be watched")
        .into_iter()
        .map(text)
        .collect()
}

/// Gathers until everything expected has come, however it was batched.
async fn expect(source: &mut Manifests, wanted: &[&str]) {
    let mut found: Vec<String> = Vec::new();
    while !wanted
        .iter()
        .all(|one| found.iter().any(|other| other == one))
    {
        found.extend(next(source).await);
    }
    assert_eq!(found.len(), wanted.len(), "more than wanted: {found:?}");
}

fn pod(name: &str) -> String {
    POD.replace("NAME", name)
}

#[tokio::test]
async fn changes_are_seen_however_they_are_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("sub")).expect("created");
    fs::write(at("sub/a.yaml"), pod("a")).expect("written");
    fs::write(at("note.txt"), "not a manifest").expect("written");
    let mut source = Manifests::new(folder.path()).expect("watched");
    assert_eq!(next(&mut source).await, ["+a"]);

    // In place.
    fs::write(at("b.yml"), pod("b") + &pod("b2")).expect("written");
    expect(&mut source, &["+b", "+b2"]).await;
    // By rename, as editors do.
    fs::write(at(".b.tmp"), pod("b")).expect("written");
    fs::rename(at(".b.tmp"), at("b.yml")).expect("renamed");
    expect(&mut source, &["-b2"]).await;
    // In a folder that is new.
    fs::create_dir_all(at("new/deep")).expect("created");
    fs::write(
        at("new/deep/c.json"),
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"}}"#,
    )
    .expect("written");
    expect(&mut source, &["+c"]).await;
    // A folder that moves away takes its files along; one that moves in brings them.
    let aside = tempfile::tempdir().expect("a folder");
    fs::rename(at("new"), aside.path().join("new")).expect("renamed");
    expect(
        &mut source,
        &["-c", &format!("-{}", at("new/deep/c.json").display())],
    )
    .await;
    fs::remove_file(at("sub/a.yaml")).expect("removed");
    expect(
        &mut source,
        &["-a", &format!("-{}", at("sub/a.yaml").display())],
    )
    .await;
}

#[test]
fn a_file_is_not_read_while_it_is_written() {
    use notify::event::{DataChange, RenameMode};
    let pending = Pending::default();
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let touch = |kind, path: &str, millis| {
        pending.take(Ok(Event::new(kind).add_path(path.into())), at(millis))
    };
    let due = |millis| match pending.due(at(millis)) {
        Due::All => "all".to_owned(),
        Due::Files(files) => files
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
            .join(" "),
        Due::At(None) => "nothing".to_owned(),
        Due::At(Some(then)) => format!("at {}", then.duration_since(start).as_millis()),
    };
    let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
    assert_eq!(due(0), "nothing");
    // Emptied, written in parts, closed: read once, soon after it was closed.
    touch(written, "a.yaml", 0);
    assert_eq!(due(100), "at 250");
    touch(written, "a.yaml", 200);
    assert_eq!(due(300), "at 450");
    touch(closed, "a.yaml", 310);
    assert_eq!(due(311), "at 312");
    assert_eq!(due(312), "a.yaml");
    assert_eq!(due(312), "nothing");
    // Left open and quiet: read at last.
    touch(written, "a.yaml", 1000);
    touch(
        EventKind::Modify(ModifyKind::Name(RenameMode::To)),
        "b.yml",
        1000,
    );
    touch(written, "b.txt", 1000);
    touch(
        EventKind::Modify(ModifyKind::Name(RenameMode::From)),
        ".b.yml.swp",
        1000,
    );
    assert_eq!(due(1020), "b.yml");
    assert_eq!(due(1250), "a.yaml");
    // A mount's link moves, a folder moves, the system lost count: everything is compared.
    for kind in [
        EventKind::Modify(ModifyKind::Name(RenameMode::To)),
        EventKind::Remove(RemoveKind::Folder),
    ] {
        touch(kind, "..data", 2000);
        assert_eq!(due(2000), "all");
    }
    pending.take(Err(notify::Error::generic("lost")), at(3000));
    assert_eq!(due(3000), "all");
    (0..=MANY).for_each(|i| touch(closed, &format!("{i}.yaml"), 4000));
    assert_eq!(due(4000), "all");
}

#[tokio::test]
async fn what_cannot_be_read_stays_in_force() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("f.yaml");
    fs::write(&path, pod("a")).expect("written");
    let mut source = Manifests::new(folder.path()).expect("watched");
    assert_eq!(next(&mut source).await, ["+a"]);
    fs::write(&path, [0xff, 0xfe, 0x00]).expect("written");
    expect(&mut source, &[&format!("!{}", path.display())]).await;
    fs::write(&path, pod("a") + &pod("d")).expect("written");
    expect(&mut source, &["+d", &format!("-{}", path.display())]).await;
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let error = Manifests::new(Path::new("/nonexistent/manifests"))
        .err()
        .expect("no such folder");
    assert!(
        error
            .to_string()
            .starts_with("cannot watch manifests in /nonexistent/manifests: "),
        "{error}"
    );
}

/// What a folder says of itself when it is read once: objects by name, and what is bad with the reason.
fn read_once(folder: &Path) -> (Vec<String>, Vec<String>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for delta in read_folder(folder).expect("is a folder") {
        match delta {
            Delta::Applied { object, .. } => good.push(object.metadata().name.clone()),
            Delta::Removed(object) => panic!("{object} was never there"),
            Delta::Bad(object, broken) => bad.push(format!("{object}: {}", broken.message)),
        }
    }
    (good, bad)
}

#[test]
fn odd_things_in_the_folder_stop_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::write(at("good.yaml"), pod("good")).expect("written");
    fs::create_dir(at("folder.yaml")).expect("created");
    nix::unistd::mkfifo(&at("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    std::os::unix::fs::symlink(at("nowhere"), at("dangling.yaml")).expect("linked");
    std::os::unix::fs::symlink(at("circle.yaml"), at("circle.yaml")).expect("linked");
    std::os::unix::fs::symlink(at("good.yaml"), at("link.yaml")).expect("linked");
    let huge = fs::File::create(at("huge.yaml")).expect("created");
    huge.set_len(LARGEST + 1).expect("made longer");
    fs::write(at("binary.yaml"), b"kind: \xff\xfe").expect("written");
    fs::write(at("empty.yaml"), "").expect("written");
    fs::write(
        at("nul.yaml"),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: \"a\\0b\"}\n",
    )
    .expect("written");
    let (good, bad) = read_once(folder.path());
    assert_eq!(good, ["good"]);
    for (file, why) in [
        ("circle.yaml", "cannot be opened"),
        ("huge.yaml", "bytes long"),
        ("binary.yaml", "is not UTF-8 text"),
        ("link.yaml", "is already given at"),
        ("nul.yaml", "is not a name"),
    ] {
        let named = |line: &&String| line.contains(why);
        assert!(
            bad.iter().any(|line| named(&line)),
            "{file} ({why}) is not named: {bad:#?}"
        );
    }
    assert_eq!(bad.len(), 5, "{bad:#?}");
}

#[tokio::test]
async fn a_mount_is_replaced_as_a_whole() {
    // As kubelet does it: files are links through `..data`, which is swapped.
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for (version, name) in [("..1", "one"), ("..2", "two")] {
        fs::create_dir(at(version)).expect("created");
        fs::write(at(version).join("pod.yaml"), pod(name)).expect("written");
    }
    std::os::unix::fs::symlink("..1", at("..data")).expect("linked");
    std::os::unix::fs::symlink("..data/pod.yaml", at("pod.yaml")).expect("linked");
    let mut source = Manifests::new(folder.path()).expect("watched");
    assert_eq!(next(&mut source).await, ["+one"]);
    std::os::unix::fs::symlink("..2", at("..data_tmp")).expect("linked");
    fs::rename(at("..data_tmp"), at("..data")).expect("renamed");
    fs::remove_dir_all(at("..1")).expect("removed");
    expect(&mut source, &["+two", "-one"]).await;
}
