//! What counts when several say something, and tables that agree with each other.

use std::collections::BTreeSet;

use crate::flag::Flag;
use crate::schema::Field;
use crate::tables::fields::{COMMAND, KUBE_PROXY};
use crate::tables::flags::FLAGS;
use crate::tables::{field_of, flannel, portolan};
use crate::*;

mod files;
mod meanings;
mod page;
mod random;

fn line(dialect: Dialect, arguments: &[&str]) -> CommandLine {
    CommandLine::read(dialect, arguments, |_| None)
}

fn kube_proxy(arguments: &[&str]) -> Resolved {
    line(Dialect::KubeProxy, arguments).resolve(None).unwrap()
}

/// With these fields in kube-proxy's document.
fn with_file(arguments: &[&str], fields: &str) -> Resolved {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let file = format!("{head}{fields}");
    let line = line(Dialect::KubeProxy, arguments);
    line.resolve(Some(&file))
        .unwrap_or_else(|problems| panic!("{problems}"))
}

/// With these fields in Portolan's document, after an empty one of kube-proxy's.
fn with_own(arguments: &[&str], fields: &str) -> Resolved {
    let own = "---\napiVersion: portolan.io/v1alpha1\nkind: PortolanConfiguration\n";
    with_file(arguments, &format!("{own}{fields}"))
}

fn listeners(resolved: &Resolved) -> [String; 2] {
    let listeners = &resolved.effective.listeners;
    [listeners.healthz, listeners.metrics]
        .map(|address| address.map_or("off".to_owned(), |address| address.to_string()))
}

#[test]
fn tables_are_sorted_and_without_repeats() {
    for table in [KUBE_PROXY, portolan::PORTOLAN, COMMAND] {
        let paths: Vec<&str> = table.iter().map(|field: &Field| field.path).collect();
        let sorted: BTreeSet<&str> = paths.iter().copied().collect();
        assert_eq!(paths, sorted.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn every_flag_has_a_field_and_a_name_of_its_own() {
    for tables in [[FLAGS, portolan::FLAGS], [flannel::FLAGS, portolan::FLAGS]] {
        let flags = || tables.into_iter().flatten();
        let names: BTreeSet<&str> = flags().map(|flag: &Flag| flag.name).collect();
        assert_eq!(names.len(), flags().count());
        let missing: Vec<&str> = flags()
            .filter(|flag| field_of(flag).is_none())
            .map(|flag| flag.name)
            .collect();
        assert_eq!(missing, [""; 0]);
    }
    for name in flannel::ALSO_IN_RUN {
        assert!(
            flannel::FLAGS.iter().any(|flag| flag.name == *name),
            "{name}"
        );
    }
}

#[test]
fn every_flag_takes_the_default_of_its_field() {
    for (dialect, table) in [
        (Dialect::KubeProxy, FLAGS),
        (Dialect::Flanneld, flannel::FLAGS),
    ] {
        for flag in table.iter().chain(portolan::FLAGS) {
            let value = match field_of(flag).map(|field| field.default()) {
                Some(Value::Null | Value::List(_)) | None => continue,
                Some(_) if flag.name == "version" => "false".to_owned(),
                Some(value) => value.describe(),
            };
            let arguments = [
                format!("--{}={value}", flag.name),
                "--kube-subnet-mgr".to_owned(),
            ];
            let count = if dialect == Dialect::Flanneld { 2 } else { 1 };
            let line = CommandLine::read(dialect, &arguments[..count], |_| None);
            let known = line.resolve(None).map(|_| ());
            // These switch off what flanneld's name switches on.
            let off =
                ["kube-subnet-mgr", "overlay"].contains(&flag.name) && dialect == Dialect::Flanneld;
            assert!(known.is_ok() || off, "{arguments:?}: {known:?}");
        }
    }
}

#[test]
fn defaults_pass_their_own_checks() {
    for field in KUBE_PROXY.iter().chain(portolan::PORTOLAN) {
        assert_eq!(
            field.shape.check(&field.default()),
            Ok(()),
            "{}",
            field.path
        );
    }
}

#[test]
fn verbosity_is_read_in_all_of_pflags_forms() {
    for arguments in [
        &["-v", "4"][..],
        &["-v=4"],
        &["-v4"],
        &["--v=4"],
        &["--v", "4"],
        &["-v2", "-v=4"],
    ] {
        let filter = kube_proxy(arguments).effective.logging.filter;
        assert!(
            filter.starts_with("info,") && filter.contains("portolan=debug"),
            "{arguments:?}: {filter}"
        );
    }
}

#[test]
fn no_verbosity_hides_errors() {
    for verbosity in (0..12).chain([u32::MAX]) {
        let filter = filter_of(verbosity);
        assert_eq!(filter.split(',').next(), Some("info"));
        let own_level = match verbosity {
            0..=3 => None,
            4..=5 => Some("debug"),
            _ => Some("trace"),
        };
        let found = filter
            .split(',')
            .find_map(|part| part.strip_prefix("portolan="));
        assert_eq!(found, own_level, "{verbosity}");
    }
}

#[test]
fn the_last_of_repeated_flags_wins_and_lists_append() {
    let resolved = kube_proxy(&[
        "--cluster_cidr=10.0.0.0/8",
        "--cluster-cidr",
        "fd00::/48",
        "--masquerade-all=True",
        "--masquerade-all=f",
        "--nodeport-addresses=primary,192.0.2.7/24",
        "--nodeport_addresses=localhost",
    ]);
    let services = &resolved.effective.services;
    assert_eq!(services.cluster_cidrs, ["fd00::/48".parse().unwrap()]);
    assert!(!services.masquerade_all);
    assert_eq!(
        services.node_port_addresses,
        [
            NodePortAddress::Primary,
            NodePortAddress::Cidr("192.0.2.0/24".parse().unwrap()),
            NodePortAddress::Localhost
        ]
    );
}

#[test]
fn empty_addresses_are_defaults_in_the_file_and_off_as_flags() {
    let empty = "healthzBindAddress: ''\nmetricsBindAddress: ''\n";
    assert_eq!(
        listeners(&with_file(&[], empty)),
        ["0.0.0.0:10256", "127.0.0.1:10249"]
    );
    let flags = ["--healthz-bind-address=", "--metrics-bind-address="];
    assert_eq!(listeners(&with_file(&flags, empty)), ["off", "off"]);
    assert_eq!(
        listeners(&kube_proxy(&["--healthz-port=0", "--metrics-port=0"])),
        ["off", "off"]
    );
}

#[test]
fn the_family_of_the_bind_address_decides_the_listeners() {
    let resolved = with_file(&[], "bindAddress: '::'\n");
    assert_eq!(listeners(&resolved), ["[::]:10256", "[::1]:10249"]);
    assert_eq!(resolved.effective.node_ip, None);
    let resolved = kube_proxy(&["--bind-address=2001:db8::7"]);
    assert_eq!(listeners(&resolved), ["[::]:10256", "[::1]:10249"]);
    assert_eq!(
        resolved.effective.node_ip,
        Some("2001:db8::7".parse().unwrap())
    );
}

#[test]
fn metrics_give_way_to_health_on_the_same_port() {
    for (fields, expected) in [
        (
            "metricsBindAddress: 0.0.0.0:10256\n",
            ["0.0.0.0:10256", "off"],
        ),
        (
            "metricsBindAddress: '[::1]:10256'\n",
            ["0.0.0.0:10256", "off"],
        ),
        (
            "healthzBindAddress: 127.0.0.1:10249\n",
            ["127.0.0.1:10249", "off"],
        ),
        (
            "healthzBindAddress: 127.0.0.2:10249\n",
            ["127.0.0.2:10249", "127.0.0.1:10249"],
        ),
    ] {
        let resolved = with_file(&[], fields);
        assert_eq!(listeners(&resolved), expected, "{fields}");
        let warnings = resolved.notes.warnings;
        assert_eq!(
            warnings.len(),
            usize::from(expected[1] == "off"),
            "{warnings:?}"
        );
    }
}

#[test]
fn a_missing_port_is_appended() {
    let flags = [
        "--healthz-bind-address=::1",
        "--metrics-bind-address=010.0.0.1",
    ];
    assert_eq!(
        listeners(&kube_proxy(&flags)),
        ["[::1]:10256", "10.0.0.1:10249"]
    );
    let flags = [
        "--healthz-bind-address=10.0.0.1",
        "--healthz-port=7000",
        "--metrics-port=7001",
    ];
    let resolved = kube_proxy(&flags);
    assert_eq!(listeners(&resolved), ["10.0.0.1:7000", "127.0.0.1:10249"]);
    let effectless = resolved
        .notes
        .warnings
        .iter()
        .filter(|line| line.contains("has no effect"));
    assert_eq!(effectless.count(), 1, "{:?}", resolved.notes.warnings);
}

#[test]
fn null_is_the_default_and_zero_is_zero_where_go_has_pointers() {
    let nulls = "conntrack: {maxPerCore: null, min: null, tcpEstablishedTimeout: null}\noomScoreAdj: null\n";
    let conntrack = with_file(&[], nulls).effective.conntrack;
    assert_eq!((conntrack.max_per_core, conntrack.min), (32_768, 131_072));
    assert_eq!(conntrack.tcp_established_timeout.as_secs(), 86_400);
    let zeros =
        "conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, udpTimeout: 0s}\noomScoreAdj: 0\n";
    let effective = with_file(&[], zeros).effective;
    assert_eq!(effective.conntrack.max_per_core, 0);
    assert_eq!(effective.conntrack.tcp_established_timeout.as_secs(), 0);
    assert_eq!(effective.oom_score_adj, 0);
}

#[test]
fn only_a_setting_decides_about_liberal_tcp() {
    let liberal = |resolved: Resolved| resolved.effective.conntrack.tcp_be_liberal;
    assert!(liberal(with_file(
        &[],
        "conntrack: {tcpBeLiberal: false}\n"
    )));
    assert!(liberal(kube_proxy(&["--conntrack-tcp-be-liberal"])));
    assert!(!liberal(kube_proxy(&["--conntrack-tcp-be-liberal=false"])));
    assert!(!liberal(with_own(
        &[],
        "conntrack: {tcpBeLiberal: false}\n"
    )));
    assert!(liberal(with_own(
        &["--conntrack-tcp-be-liberal"],
        "conntrack: {tcpBeLiberal: false}\n"
    )));
}

#[test]
fn masquerade_all_counts_in_the_section_of_the_mode() {
    let all = |mode: &str, section: &str| {
        let fields = format!("mode: {mode}\n{section}: {{masqueradeAll: true}}\n");
        with_file(&[], &fields).effective.services.masquerade_all
    };
    assert!(all("''", "iptables") && all("iptables", "iptables") && all("ipvs", "iptables"));
    assert!(all("nftables", "nftables"));
    assert!(!all("nftables", "iptables") && !all("iptables", "nftables"));
    let flag = with_file(&["--masquerade-all"], "mode: nftables\n");
    assert!(flag.effective.services.masquerade_all);
}

#[test]
fn node_ports_are_where_the_mode_serves_them() {
    let line = |arguments: &[&str], fields: &str| with_file(arguments, fields).notes.node_ports;
    for (arguments, fields, expected) in [
        (
            &[][..],
            "mode: ''\n",
            "all,localhost-ipv4 (no mode is given: kube-proxy's default is iptables)",
        ),
        (
            &[],
            "mode: iptables\n",
            "all,localhost-ipv4 (mode iptables in the configuration)",
        ),
        (&[], "mode: ipvs\n", "all (mode ipvs in the configuration)"),
        (
            &[],
            "mode: nftables\n",
            "primary (mode nftables in the configuration)",
        ),
        (
            &["--proxy-mode=nftables"],
            "mode: ipvs\n",
            "primary (--proxy-mode=nftables)",
        ),
        (
            &["--iptables-localhost-nodeports=false"],
            "mode: iptables\n",
            "all (mode iptables in the configuration)",
        ),
        (
            &[],
            "nodePortAddresses: [0.0.0.0/0]\n",
            "0.0.0.0/0,localhost-ipv4 (nodePortAddresses: 0.0.0.0/0 (line 3))",
        ),
        (
            &[],
            "nodePortAddresses: [10.0.0.0/8]\n",
            "10.0.0.0/8 (nodePortAddresses: 10.0.0.0/8 (line 3))",
        ),
        (
            &["--nodeport-addresses="],
            "nodePortAddresses: [10.0.0.0/8]\nmode: ipvs\n",
            "all (mode ipvs in the configuration)",
        ),
    ] {
        assert_eq!(line(arguments, fields), format!("node ports: {expected}"));
    }
    let run = super::tests::line(Dialect::Portolan, &[])
        .resolve(None)
        .unwrap();
    assert_eq!(run.notes.node_ports, "node ports: primary (the default)");
}

#[test]
fn localhost_is_left_out_where_the_configuration_forbids_it() {
    let fields = "iptables: {localhostNodePorts: false}\nnodePortAddresses: [primary, localhost]\n";
    let resolved = with_file(&[], fields);
    assert_eq!(
        resolved.effective.services.node_port_addresses,
        [NodePortAddress::Primary]
    );
    assert_eq!(resolved.notes.warnings.len(), 1);
}

#[test]
fn flags_beside_a_file_are_listed_when_they_change_something() {
    let arguments = [
        "--conntrack-min=7",
        "--oom-score-adj=-998",
        "--masquerade-all",
        "--hostname-override=node-1",
        "-v=2",
        "--log-level=debug",
    ];
    let resolved = with_file(
        &arguments,
        "hostnameOverride: ''\nconntrack: {min: 9}\noomScoreAdj: -998\n",
    );
    let lines: Vec<String> = resolved
        .notes
        .overridden
        .iter()
        .map(Override::to_string)
        .collect();
    assert_eq!(
        lines,
        [
            "--conntrack-min=7 overrides conntrack.min: 9",
            "--masquerade-all=true sets iptables.masqueradeAll"
        ]
    );
    assert_eq!(resolved.effective.conntrack.min, 7);
    assert_eq!(resolved.effective.logging.filter, "debug");
    let off = with_file(&["--healthz-port=0", "--proxy-mode="], "mode: ipvs\n");
    let line = "flags win over the configuration file: --healthz-port=0 sets healthzBindAddress";
    assert_eq!(off.notes.overridden_line().as_deref(), Some(line));
    assert_eq!(off.effective.mode, Mode::Ipvs);
}

#[test]
fn unused_flags_and_fields_are_named_once() {
    let arguments = [
        "--ipvs-scheduler=rr",
        "--ipvs-scheduler=lc",
        "--log_file=/x",
        "--feature-gates=A=true",
    ];
    let fields = "ipvs: {syncPeriod: 7s}\nclientConnection: {qps: 5, burst: 0}\n";
    let unused = with_file(&arguments, fields).notes.unused;
    assert_eq!(
        unused,
        [
            "--log-file",
            "--ipvs-scheduler",
            "ipvs.syncPeriod",
            "feature gate A"
        ]
    );
}

#[test]
fn flanneld_takes_its_variables_and_proxies_nothing() {
    let environment = |name: &str| {
        let value = match name {
            "FLANNELD_IP_MASQ" => "T",
            "FLANNELD_IFACE" => "",
            "FLANNELD_PUBLIC_IP" => "192.0.2.1",
            "FLANNELD_HEALTHZ_PORT" => "8082",
            "FLANNELD_IP_BLACKHOLE_ROUTE" => "yes",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let arguments = [
        "-kube-subnet-mgr",
        "--public-ip",
        "192.0.2.2",
        "-iface=eth1",
        "-iface=eth2",
    ];
    let line = CommandLine::read(Dialect::Flanneld, &arguments, environment);
    let resolved = line.resolve(None).unwrap();
    assert!(!resolved.effective.service_proxy && !resolved.effective.take_over_kube_proxy);
    assert_eq!(listeners(&resolved), ["0.0.0.0:8082", "off"]);
    let overlay = resolved.effective.overlay.unwrap();
    assert!(overlay.ip_masq && !overlay.ip_blackhole_route);
    assert_eq!(overlay.iface, ["eth1", "eth2"]);
    assert_eq!(overlay.public_ip, Some("192.0.2.2".parse().unwrap()));
    assert_eq!(
        resolved.notes.warnings,
        [
            "FLANNELD_IP_BLACKHOLE_ROUTE=yes: must be a boolean: true or false; the variable is ignored"
        ]
    );
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    let environment = |name: &str| (name == "NODE_NAME").then(|| "From-Env".to_owned());
    let name = |arguments: &[&str]| {
        let file = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                    hostnameOverride: from-file\n";
        let line = CommandLine::read(Dialect::KubeProxy, arguments, environment);
        line.resolve(Some(file)).unwrap().effective.node_name
    };
    assert_eq!(name(&[]).as_deref(), Some("from-env"));
    assert_eq!(
        name(&["--hostname-override= FROM-flag "]).as_deref(),
        Some("from-flag")
    );
    assert_eq!(name(&["--hostname-override="]).as_deref(), Some("from-env"));
}

#[test]
fn help_and_version_count_before_anything_else() {
    let action = |arguments: &[&str]| line(Dialect::KubeProxy, arguments).action();
    assert_eq!(action(&["--no-such-flag", "-h"]), Action::PrintHelp);
    assert_eq!(
        action(&["--version", "--cleanup"]),
        Action::PrintVersion { raw: false }
    );
    assert_eq!(
        action(&["--version=raw"]),
        Action::PrintVersion { raw: true }
    );
    assert_eq!(
        action(&["--version=false", "--cleanup=true"]),
        Action::Cleanup
    );
    assert_eq!(action(&["--init-only"]), Action::InitOnly);
    assert_eq!(
        action(&["--write-config-to=/x"]),
        Action::WriteConfig("/x".into())
    );
    assert_eq!(action(&["--cleanup=0"]), Action::Run);
}

#[test]
fn configz_has_the_configuration_under_its_group() {
    let configz = kube_proxy(&["--proxy-mode=ipvs", "--kube-api-qps=7.5"])
        .documents()
        .configz();
    let json = serde_json::to_value(&configz).unwrap();
    let proxy = &json["kubeproxy.config.k8s.io"];
    assert_eq!(proxy["mode"], "ipvs");
    assert_eq!(proxy["clientConnection"]["qps"], 7.5);
    assert_eq!(proxy["conntrack"]["tcpEstablishedTimeout"], "24h0m0s");
    assert_eq!(proxy["nodePortAddresses"], serde_json::Value::Null);
    assert_eq!(json["portolan.io"]["kind"], "PortolanConfiguration");
}
