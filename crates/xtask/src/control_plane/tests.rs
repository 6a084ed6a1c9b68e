use super::*;

#[test]
fn a_program_is_found_under_the_name_that_go_gives_it() {
    assert_eq!(go_name("go.etcd.io/etcd/server/v3"), "server");
    assert_eq!(go_name("k8s.io/kubernetes/cmd/kube-proxy"), "kube-proxy");
    assert_eq!(go_name("github.com/flannel-io/flannel"), "flannel");
    assert_eq!(go_name("example.org/vault"), "vault");
}

#[test]
fn kube_proxies_of_different_versions_have_different_names() {
    assert_eq!(file_name("kube-proxy", "v1.36.3"), "kube-proxy-1.36");
    assert_eq!(file_name("kubectl", "v1.36.3"), "kubectl");
}

#[test]
fn the_server_and_its_clients_are_stamped_with_one_version() {
    let stamps = stamps_of(KUBERNETES, "v1.37.1");
    for package in [
        "k8s.io/component-base/version",
        "k8s.io/client-go/pkg/version",
    ] {
        for value in [
            "gitVersion=v1.37.1",
            "gitMajor=1",
            "gitMinor=37",
            "gitCommit=",
        ] {
            assert!(
                stamps.contains(&format!("-X {package}.{value}")),
                "{stamps:?}"
            );
        }
    }
}

/// The pins as they are in the checkout: each program's package is one of the module's tools, so `go mod tidy` keeps
/// what it needs, and the folders are named after what is in them.
#[test]
fn every_program_is_pinned_by_its_module() -> Result<()> {
    let modules = root()?.join("tests/control-plane");
    for module in MODULES.iter().chain([&helm::MODULE, &node::MODULE]) {
        let text = fs::read_to_string(modules.join(module.folder).join("go.mod"))?;
        let pins: Vec<&str> = text.lines().map(str::trim).collect();
        for (of, package, name) in module.programs {
            let tool = [format!("tool {package}"), (*package).to_owned()];
            assert!(
                pins.iter().any(|pin| tool.iter().any(|tool| pin == tool)),
                "{package} is no tool of {:?}",
                module.folder
            );
            let version = pins
                .iter()
                .find_map(|pin| {
                    pin.trim_start_matches("require ")
                        .strip_prefix(&format!("{of} "))
                })
                .with_context(|| format!("{of} is not pinned by {:?}", module.folder))?;
            let version = version.split_whitespace().next().unwrap_or_default();
            assert!(
                matches!(module.folder, "" | "node") || module.folder == file_name(name, version),
                "{name} {version} in {:?}",
                module.folder
            );
        }
    }
    Ok(())
}
