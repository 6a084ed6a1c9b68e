use std::collections::BTreeMap;
use std::io::Read;
use std::process::Command;

use super::*;
use crate::run::output;

const TIME: u64 = 1_700_000_000;

fn commit() -> Commit {
    Commit {
        revision: Some("0123".to_owned()),
        seconds: TIME,
        time: "2023-11-14T22:13:20Z".to_owned(),
    }
}

/// The entries of an image whose program is a few bytes.
fn some_entries() -> Vec<Entry> {
    let packages = licenses::packages(&[Arch::Amd64.target()]).unwrap();
    entries(b"the program".to_vec(), &packages).unwrap()
}

/// Writes an image of both architectures and returns its folder, its archive in it.
fn write(folder: &std::path::Path) -> PathBuf {
    let mut layout = Layout::default();
    let labels = labels(&commit(), Some("https://example.com/portolan"));
    let manifests: Vec<Value> = [Arch::Amd64, Arch::Arm64]
        .into_iter()
        .map(|arch| {
            let layer = Layer::pack(&some_entries(), TIME).unwrap();
            manifest(&mut layout, arch, &layer, &commit(), &labels).unwrap()
        })
        .collect();
    let index = index(&mut layout, &manifests, &labels).unwrap();
    let archive = folder.join("image.tar");
    let oci = folder.join("oci");
    std::fs::create_dir_all(folder).unwrap();
    layout
        .write(&oci, &archive, index, "localhost/portolan:v1", TIME)
        .unwrap();
    archive
}

#[test]
fn the_same_entries_in_any_order_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let first = std::fs::read(write(&folder.path().join("a"))).unwrap();
    let second = std::fs::read(write(&folder.path().join("b"))).unwrap();
    assert!(first == second, "two archives differ");
    let mut entries = some_entries();
    let forward = Layer::pack(&entries, TIME).unwrap();
    entries.reverse();
    assert!(forward.compressed == Layer::pack(&entries, TIME).unwrap().compressed);
}

#[test]
fn tar_unpacks_links_modes_times_and_capabilities() {
    let folder = tempfile::tempdir().unwrap();
    let layer = Layer::pack(&some_entries(), TIME).unwrap();
    let file = folder.path().join("layer.tar");
    std::fs::write(&file, &layer.unpacked).unwrap();
    let list = output(
        Command::new("tar")
            .args(["--full-time", "--utc", "-tvf"])
            .arg(&file),
    );
    let list = String::from_utf8(list.unwrap()).unwrap();
    let program = "-rwxr-xr-x 0/0              11 2023-11-14 22:13:20 usr/local/bin/portolan\n";
    assert!(list.contains(program), "{list}");
    for link in LINKS {
        let up = "../".repeat(link.matches('/').count());
        let line = format!("{link} -> {up}usr/local/bin/portolan\n");
        assert!(list.contains(&line), "{list}");
    }
    let tree = folder.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let mut unpack = Command::new("tar");
    unpack.args(["--xattrs", "--xattrs-include=security.capability", "-xf"]);
    output(unpack.arg(&file).arg("-C").arg(&tree)).unwrap();
    let Ok(printed) = Command::new("/usr/sbin/getcap")
        .arg(tree.join(PROGRAM))
        .output()
    else {
        eprintln!("SKIPPED: getcap (package libcap2-bin) is not installed");
        return;
    };
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(
        printed.trim_end().ends_with("cap_net_admin,cap_net_raw=p"),
        "{printed}"
    );
}

#[test]
fn the_unpacked_tree_has_links_and_capabilities_too() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    Layer::pack(&some_entries(), TIME)
        .unwrap()
        .unpack(&tree)
        .unwrap();
    let program = std::fs::metadata(tree.join(PROGRAM)).unwrap();
    for link in LINKS {
        assert_eq!(
            std::fs::metadata(tree.join(link)).unwrap().ino(),
            program.ino()
        );
    }
    // A second hard link would cost the capabilities in containerd.
    assert_eq!(program.nlink(), 1);
    assert_eq!(program.mode() & 0o7777, 0o755);
}

#[test]
fn every_digest_and_size_of_the_archive_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let archive = std::fs::read(write(folder.path())).unwrap();
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), content);
    }
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        let content = &files[&format!("blobs/{}", digest.replace(':', "/"))];
        assert_eq!(layout::digest(content), digest);
        assert_eq!(descriptor["size"], content.len());
        content.clone()
    };
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let top = read(&files["index.json"]);
    let index = read(&blob(&top["manifests"][0]));
    let platforms: Vec<_> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|manifest| {
            let document = read(&blob(manifest));
            let config = read(&blob(&document["config"]));
            let layer = blob(&document["layers"][0]);
            let mut unpacked = Vec::new();
            flate2::read::GzDecoder::new(layer.as_slice())
                .read_to_end(&mut unpacked)
                .unwrap();
            assert_eq!(config["rootfs"]["diff_ids"][0], layout::digest(&unpacked));
            assert_eq!(config["architecture"], manifest["platform"]["architecture"]);
            assert_eq!(
                config["config"]["Labels"]["org.opencontainers.image.version"],
                VERSION
            );
            manifest["platform"]["architecture"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(platforms, ["amd64", "arm64"]);
}

#[test]
fn the_license_file_has_a_text_for_every_foreign_crate() {
    let packages = licenses::packages(&[Arch::Amd64.target(), Arch::Arm64.target()]).unwrap();
    let text = licenses::text(&packages).unwrap();
    for package in packages.iter().filter(|package| package.is_foreign) {
        let name = format!("{} {}", package.name, package.version);
        assert!(text.matches(&name).count() >= 2, "{name}: list and text");
    }
    assert!(text.contains("Rich Felker") && text.contains("mimalloc"));
}
