//! Configuration files: documents, unknown fields, YAML, and hostile text.

use super::{line, with_file, with_own};
use crate::*;

#[test]
fn unknown_and_repeated_fields_are_warnings_with_lines() {
    let fields = "metadata: {name: x}\nconntrack:\n  min: 1\n  mn: 2\n  min: 3\n";
    let resolved = with_file(&[], fields);
    assert_eq!(
        resolved.notes.warnings,
        [
            "unknown field metadata (line 3) is ignored",
            "conntrack.min (line 5) is given again on line 7: the last one counts",
            "unknown field conntrack.mn (line 6) is ignored; did you mean conntrack.min?"
        ]
    );
    assert_eq!(resolved.effective.conntrack.min, 3);
}

#[test]
fn a_field_in_the_wrong_document_is_a_warning() {
    let of_portolan = with_file(&[], "overlay: {type: vxlan}\n").notes.warnings;
    let of_kube_proxy = with_own(&[], "mode: ipvs\n").notes.warnings;
    for (warnings, field, kind) in [
        (of_portolan, "overlay", "PortolanConfiguration"),
        (of_kube_proxy, "mode", "KubeProxyConfiguration"),
    ] {
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}");
        };
        assert!(
            warning.contains(field) && warning.ends_with(kind),
            "{warning}"
        );
    }
}

#[test]
fn portolans_own_document_is_read_after_kube_proxys() {
    let fields = "nodePortRange: 1000-2000\nserviceProxy: off\ntableOwner: false\nallowedExternalIPs: []\n\
                  overlay: {type: vxlan, filter: off, probePort: 0, cache: '', iface: [eth1, 10.0.0.7]}\n";
    let effective = with_own(&["--overlay-device=vx"], fields).effective;
    assert_eq!(effective.api_server.node_port_range, (1000, 2000));
    assert!(!effective.service_proxy && !effective.table_owner && !effective.take_over_kube_proxy);
    assert_eq!(effective.services.allowed_external_ips, Some(Vec::new()));
    let overlay = effective.overlay.unwrap();
    assert_eq!(
        (overlay.device.as_str(), overlay.filter),
        ("vx", Filter::Off)
    );
    assert_eq!((overlay.probe_port, overlay.cache), (None, None));
    assert_eq!(overlay.iface, ["eth1", "10.0.0.7"]);
}

#[test]
fn other_documents_after_the_first_are_ignored() {
    let resolved = with_file(
        &[],
        "---\napiVersion: v1\nkind: ConfigMap\n---\n# nothing\n",
    );
    assert_eq!(
        resolved.notes.warnings,
        ["the document \"v1 ConfigMap\" (line 4) is ignored"]
    );
}

#[test]
fn aliases_and_merge_keys_are_resolved() {
    let fields = "ipvs: &times {minSyncPeriod: 2s}\nnftables: {<<: *times, syncPeriod: 9s}\nmode: nftables\n";
    let written = with_file(&[], fields).write_config().unwrap();
    assert!(
        written.contains("minSyncPeriod: 2s\n  syncPeriod: 9s"),
        "{written}"
    );
}

#[test]
fn a_file_that_grows_without_end_is_refused() {
    let mut bomb = String::from("a0: &a0 [x]\n");
    for level in 1..20 {
        let alias = format!("*a{}", level - 1);
        bomb.push_str(&format!(
            "a{level}: &a{level} [{alias}, {alias}, {alias}, {alias}]\n"
        ));
    }
    let deep = format!("a: {}", "[".repeat(2000));
    for (file, reason) in [(bomb, "too many values"), (deep, "not YAML")] {
        let problems = line(Dialect::KubeProxy, &[])
            .resolve(Some(&file))
            .unwrap_err();
        assert!(problems.to_string().contains(reason), "{problems}");
    }
}

#[test]
fn mutated_configuration_files_do_no_harm() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/files");
    fuzz::fuzz(&corpus, [], |bytes| {
        let file = String::from_utf8_lossy(bytes);
        let line = CommandLine::read(Dialect::KubeProxy, &["--config=/a/file"], |_| None);
        match line.resolve(Some(&file)) {
            Ok(resolved) => fuzz::outcome(format!("{:?}", resolved.effective.services)),
            Err(error) => fuzz::outcome(error.to_string().lines().count().min(16)),
        }
    });
}
