//! Flags and files that cannot be used, each with the one error that says why.

use std::path::Path;

use kube_proxy_config::{CommandLine, Dialect};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    #[serde(default)]
    program: String,
    #[serde(default)]
    arguments: Vec<String>,
    /// What follows kube-proxy's `apiVersion` and `kind`.
    fields: Option<String>,
    /// What follows Portolan's `apiVersion` and `kind`.
    own: Option<String>,
    /// A whole file.
    file: Option<String>,
    error: String,
}

impl Case {
    fn text(&self) -> Option<String> {
        let fields = |fields: &String| {
            format!(
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}"
            )
        };
        let own = |own: &String| {
            format!("apiVersion: portolan.io/v1alpha1\nkind: PortolanConfiguration\n{own}")
        };
        let file = self.file.clone();
        file.or(self.fields.as_ref().map(fields))
            .or(self.own.as_ref().map(own))
    }
}

#[test]
fn each_mistake_gives_one_error_that_names_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let cases: Vec<Case> = serde_saphyr::from_str(&text).unwrap();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let dialect = match case.program.as_str() {
            "flanneld" => Dialect::Flanneld,
            "portolan" => Dialect::Portolan,
            _ => Dialect::KubeProxy,
        };
        let line = CommandLine::read(dialect, &case.arguments, |_| None);
        let found = match line.resolve(case.text().as_deref()) {
            Ok(_) => "no error".to_owned(),
            Err(problems) => problems.to_string(),
        };
        if found != case.error.trim_end() {
            wrong.push(format!(
                "expected: {}\n   found: {found}",
                case.error.trim_end()
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

#[test]
fn all_mistakes_are_told_at_once() {
    let arguments = [
        "--conntrack-min=x",
        "--no-such-flag",
        "--proxy-mode=userspace",
    ];
    let line = CommandLine::read(Dialect::KubeProxy, &arguments, |_| None);
    let file = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                oomScoreAdj: -2000\nconfigSyncPeriod: 5\nclusterCIDR: x\n";
    let problems = line.resolve(Some(file)).unwrap_err();
    assert_eq!(problems.0.len(), 6, "{problems}");
}
