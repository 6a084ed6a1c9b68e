use clap::{CommandFactory, Parser};
use service_model::{DetectLocal, LocalInterface, NodePortAddress};

use super::{Cli, Command, RunArgs};

fn run(flags: &[&str]) -> Result<RunArgs, clap::Error> {
    let words = ["portolan", "run"].iter().chain(flags);
    match Cli::try_parse_from(words)?.command {
        Command::Run(args) => Ok(*args),
        other => panic!("parsed {other:?}"),
    }
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn defaults_are_those_of_kube_proxy() {
    let args = run(&[]).unwrap();
    assert_eq!(
        args.healthz_bind_address.0,
        Some("0.0.0.0:10256".parse().unwrap())
    );
    assert_eq!(
        args.metrics_bind_address.0,
        Some("127.0.0.1:10249".parse().unwrap())
    );
    assert_eq!(args.node.node_port_range.0, 30000..=32767);
    let args = run(&["--hostname-override", "n"]).unwrap();
    let config = args.node.config().unwrap();
    assert_eq!(config.detect_local, DetectLocal::ClusterCidr(vec![]));
    assert_eq!(config.nodeport_addresses, [NodePortAddress::Primary]);
    assert_eq!(config.allowed_external_ips, None);
    assert_eq!(args.node.service_proxy_name, None);
    assert!(!config.masquerade_all);
}

#[test]
fn flags_become_the_node_configuration() {
    let args = run(&[
        "--hostname-override= Node-A ",
        "--cluster-cidr=10.244.3.1/16,fd00:10:244::/56",
        "--nodeport-addresses=192.168.0.0/16,fd00::/8",
        "--masquerade-all",
    ])
    .unwrap();
    let config = args.node.config().unwrap();
    assert_eq!(&*config.node_name, "node-a");
    let cluster = ["10.244.0.0/16", "fd00:10:244::/56"]
        .map(|c| c.parse().unwrap())
        .to_vec();
    assert_eq!(config.detect_local, DetectLocal::ClusterCidr(cluster));
    let served = ["192.168.0.0/16", "fd00::/8"].map(|c| NodePortAddress::Cidr(c.parse().unwrap()));
    assert_eq!(config.nodeport_addresses, served);
    assert!(config.masquerade_all);
    let args = run(&[
        "--hostname-override=n",
        "--detect-local-mode=NodeCIDR",
        "--masquerade-all=false",
    ])
    .unwrap();
    let config = args.node.config().unwrap();
    assert_eq!(config.detect_local, DetectLocal::NodeCidr);
    assert!(!config.masquerade_all);
}

#[test]
fn a_broken_flag_names_flag_and_value_and_exits_with_two() {
    for (flag, value) in [
        ("--cluster-cidr", "10.0.0.0/33"),
        ("--cluster-cidr", "10.0.0.0/8,11.0.0.0/8"),
        ("--cluster-cidr", "10.0.0.0/8,"),
        ("--detect-local-mode", "Bridge"),
        ("--pod-bridge-interface", "sixteen-bytes-xx"),
        ("--pod-interface-name-prefix", "veth*"),
        ("--nodeport-addresses", "primary,10.0.0.0"),
        ("--nodeport-addresses", "everywhere"),
        ("--allowed-external-ips", "10.0.0.0/8,x"),
        ("--service-proxy-name", "a,b"),
        ("--healthz-bind-address", "localhost:1"),
        ("--metrics-bind-address", "::1:99999"),
        ("--node-port-range", "5-4"),
        ("--node-port-range", "0-100"),
        ("--node-port-range", "1-65536"),
        ("--hostname-override", "a_b"),
        ("--hostname-override", "a,metadata.name=b"),
        ("--log-format", "xml"),
        ("--log-level", "portolan=loud"),
        ("--masquerade-all", "maybe"),
        ("--conntrack-udp-timeout", "-1s"),
        ("--conntrack-udp-timeout", "1d"),
        ("--overlay-probe-interval", "0"),
    ] {
        let error = run(&[&format!("{flag}={value}")]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(flag) && text.contains(value),
            "{flag} {value}: {text}"
        );
        assert_eq!(error.exit_code(), 2, "{flag} {value}");
    }
}

#[test]
fn all_durations_have_gos_grammar() {
    for (text, nanoseconds) in [
        ("1h30m", 5_400_000_000_000),
        ("1.5s", 1_500_000_000),
        ("100us", 100_000),
    ] {
        let conntrack = format!("--conntrack-udp-timeout={text}");
        let interval = format!("--overlay-probe-interval={text}");
        let args = run(&[&conntrack, &interval]).unwrap();
        let duration = std::time::Duration::from_nanos(nanoseconds);
        assert_eq!(args.conntrack.conntrack_udp_timeout, duration);
        assert_eq!(args.overlay.overlay_probe_interval, duration);
    }
}

#[test]
fn detection_by_interface_needs_the_interface() {
    let config = |args: &[&str]| {
        let mut args = args.to_vec();
        args.push("--hostname-override=n");
        run(&args).unwrap().node.config()
    };
    let bridge = config(&[
        "--detect-local-mode=BridgeInterface",
        "--pod-bridge-interface=cni0",
    ]);
    let named = LocalInterface::Named("cni0".into());
    assert_eq!(bridge.unwrap().detect_local, DetectLocal::Interface(named));
    let prefix = config(&[
        "--detect-local-mode=InterfaceNamePrefix",
        "--pod-interface-name-prefix=veth",
    ]);
    let veth = LocalInterface::Prefix("veth".into());
    assert_eq!(prefix.unwrap().detect_local, DetectLocal::Interface(veth));
    let error = config(&["--detect-local-mode=BridgeInterface"]).unwrap_err();
    assert!(error.to_string().contains("--pod-bridge-interface"));
}

#[test]
fn key_words_of_node_port_addresses_mix_with_ranges() {
    use NodePortAddress::{All, Cidr, Localhost, Primary};
    let args = run(&["--nodeport-addresses=primary,localhost,127.0.0.0/8,all,10.0.0.1/8"]).unwrap();
    let expected = vec![
        Primary,
        Localhost,
        // A range says nothing of the other family, also one of loopback addresses.
        Cidr("127.0.0.0/8".parse().unwrap()),
        All,
        Cidr("10.0.0.0/8".parse().unwrap()),
    ];
    assert_eq!(args.node.nodeport_addresses.0, expected);
}

#[test]
fn allowed_external_ips_are_cidrs_or_addresses_or_none() {
    let allowed = |flag| {
        run(&["--hostname-override=n", flag])
            .unwrap()
            .node
            .config()
            .unwrap()
            .allowed_external_ips
    };
    let expected = ["192.0.2.0/24", "2001:db8::1/128"]
        .map(|c| c.parse().unwrap())
        .to_vec();
    assert_eq!(
        allowed("--allowed-external-ips=192.0.2.0/24,2001:db8::1"),
        Some(expected)
    );
    assert_eq!(allowed("--allowed-external-ips="), Some(Vec::new()));
}

#[test]
fn an_empty_address_disables_a_listener() {
    let args = run(&["--healthz-bind-address=", "--metrics-bind-address=::1"]).unwrap();
    assert_eq!(args.healthz_bind_address.0, None);
    assert_eq!(
        args.metrics_bind_address.0,
        Some("[::1]:10249".parse().unwrap())
    );
}

#[test]
fn a_folder_of_manifests_and_a_kubeconfig_exclude_each_other() {
    assert!(run(&["--manifests=a", "--kubeconfig=b"]).is_err());
}

#[test]
fn arguments_of_flannels_manifests_are_accepted() {
    let flannels = [
        "--ip-masq",
        "--kube-subnet-mgr",
        "--iptables-forward-rules=false",
        "--ip-blackhole-route",
        "--iptables-resync=60",
        "--kubeconfig-file=/etc/kubeconfig",
        "--iface=eth0",
        "--set-node-network-unavailable=false",
    ];
    let args = run(&flannels).unwrap();
    assert!(args.overlay.ip_masq && args.overlay.ip_blackhole_route);
    assert!(!args.overlay.set_node_network_unavailable);
    assert_eq!(args.kubeconfig, Some("/etc/kubeconfig".into()));
    let ignored = [
        "--kube-subnet-mgr",
        "--iptables-forward-rules",
        "--iptables-resync",
    ];
    assert_eq!(args.overlay.ignored_flannel_flags.given(), ignored);
    assert!(run(&["--etcd-endpoints=http://127.0.0.1:2379"]).is_err());
}
