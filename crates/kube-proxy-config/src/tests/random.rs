//! Random arguments, variables and files: none makes the crate panic.

use proptest::prelude::*;

use super::line;
use crate::tables::fields::KUBE_PROXY;
use crate::tables::flags::FLAGS;
use crate::tables::{flannel, portolan};
use crate::*;

/// A word that gets past the first checks often enough.
fn argument() -> impl Strategy<Value = String> {
    let names: Vec<&'static str> = FLAGS
        .iter()
        .chain(portolan::FLAGS)
        .chain(flannel::FLAGS)
        .map(|flag| flag.name)
        .collect();
    let value = prop_oneof![
        any::<String>(),
        "[-+.0-9:/,eEhmsun\u{b5}=\"\\[\\]]{0,12}",
        Just("true".to_owned())
    ];
    prop_oneof![
        any::<String>(),
        "-{0,3}[a-z_=-]{0,9}",
        (proptest::sample::select(names), value)
            .prop_map(|(name, value)| format!("--{name}={value}")),
    ]
}

proptest! {
    #[test]
    fn no_arguments_make_it_panic(arguments in prop::collection::vec(argument(), 0..6), variable in any::<String>()) {
        for dialect in [Dialect::KubeProxy, Dialect::Portolan, Dialect::Flanneld] {
            let line = CommandLine::read(dialect, &arguments, |_| Some(variable.clone()));
            line.action();
            match line.resolve(None) {
                Ok(resolved) => { resolved.write_config().unwrap(); }
                Err(problems) => prop_assert!(!problems.to_string().is_empty()),
            }
        }
    }

    #[test]
    fn no_file_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), value in "[-+.0-9:/,a-z&*!<>{}\"'\\[\\]\n ]{0,40}", at in 0..KUBE_PROXY.len()) {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let path = KUBE_PROXY[at].path;
        let nested = path.split('.').enumerate().map(|(depth, key)| format!("{}{key}:", "  ".repeat(depth)));
        let field = format!("{head}{} {value}", nested.collect::<Vec<_>>().join("\n"));
        for file in [String::from_utf8_lossy(&bytes).into_owned(), field] {
            let _ = line(Dialect::KubeProxy, &[]).resolve(Some(&file));
        }
    }

    #[test]
    fn durations_are_printed_as_they_are_read(nanoseconds in any::<i64>()) {
        prop_assert_eq!(go::parse_duration(&go::format_duration(nanoseconds)), Some(nanoseconds));
    }
}
