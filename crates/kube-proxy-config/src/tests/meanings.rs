//! What each setting that Portolan uses means, and tests beyond those over all settings: columns of
//! `docs/kube-proxy-flags.md`.

type Meaning = (&'static str, &'static str, &'static str);

/// Fields of `KubeProxyConfiguration`, and what the command line alone can say.
pub(super) const FIELDS: &[Meaning] = &[
    (
        "bindAddress",
        "a wildcard means every address; any other address is the node's own for node ports and source ranges, in place of the Node's primary one; decides the family of the listeners' defaults",
        "the_family_of_the_bind_address_decides_the_listeners",
    ),
    (
        "bindAddressHardFail",
        "exit when a listener's address cannot be bound",
        "",
    ),
    (
        "cleanup",
        "remove what kube-proxy has left, then exit",
        "distributions_give_their_effective_configuration",
    ),
    (
        "clientConnection.kubeconfig",
        "used; none: the pod's service account",
        "distributions_give_their_effective_configuration",
    ),
    (
        "clusterCIDR",
        "at most one range of each family",
        "distributions_give_their_effective_configuration each_mistake_gives_one_error_that_names_it",
    ),
    (
        "config",
        "read both documents of the file; flags beside it win, and one line says which",
        "flags_beside_a_file_are_listed_when_they_change_something portolans_own_document_is_read_after_kube_proxys",
    ),
    (
        "conntrack.maxPerCore",
        "`null` is the default, `0` leaves the limit alone",
        "null_is_the_default_and_zero_is_zero_where_go_has_pointers",
    ),
    (
        "conntrack.min",
        "`null` is the default",
        "null_is_the_default_and_zero_is_zero_where_go_has_pointers",
    ),
    (
        "conntrack.tcpBeLiberal",
        "on by default; generated files have `false` here, which does not switch it off; the flag, or Portolan's own field, switches it off",
        "only_a_wish_decides_about_liberal_tcp",
    ),
    (
        "conntrack.tcpCloseWaitTimeout",
        "`null` is the default, `0s` leaves the sysctl alone",
        "null_is_the_default_and_zero_is_zero_where_go_has_pointers",
    ),
    (
        "conntrack.tcpEstablishedTimeout",
        "`null` is the default, `0s` leaves the sysctl alone",
        "null_is_the_default_and_zero_is_zero_where_go_has_pointers",
    ),
    (
        "conntrack.udpStreamTimeout",
        "`0s` leaves the sysctl alone",
        "",
    ),
    ("conntrack.udpTimeout", "`0s` leaves the sysctl alone", ""),
    (
        "detectLocal.bridgeInterface",
        "used; required by its mode",
        "each_mistake_gives_one_error_that_names_it",
    ),
    (
        "detectLocal.interfaceNamePrefix",
        "used; required by its mode",
        "each_mistake_gives_one_error_that_names_it",
    ),
    (
        "detectLocalMode",
        "all four modes",
        "each_mistake_gives_one_error_that_names_it",
    ),
    ("enableProfiling", "accepted", ""),
    (
        "featureGates",
        "any name is accepted",
        "distributions_give_their_effective_configuration",
    ),
    (
        "healthzBindAddress",
        "empty is the default here, and off as a flag; a missing port is appended",
        "empty_addresses_are_defaults_in_the_file_and_off_as_flags a_missing_port_is_appended",
    ),
    (
        "healthzIp",
        "address of flanneld's `/healthz`",
        "flanneld_takes_its_variables_and_proxies_nothing",
    ),
    (
        "healthzPort",
        "port of `/healthz`; 0 is off",
        "empty_addresses_are_defaults_in_the_file_and_off_as_flags a_missing_port_is_appended",
    ),
    (
        "help",
        "print the help, exit 0",
        "help_and_version_count_before_anything_else",
    ),
    (
        "hostnameOverride",
        "name of the Node, trimmed, in lower case",
        "distributions_give_their_effective_configuration",
    ),
    (
        "initOnly",
        "write the conntrack sysctls, exit",
        "init_only_makes_the_settings_and_ends_without_rules",
    ),
    (
        "iptables.localhostNodePorts",
        "with mode iptables: node ports on 127.0.0.1 as well",
        "node_ports_are_where_the_mode_serves_them localhost_is_left_out_where_the_configuration_forbids_it",
    ),
    (
        "iptables.masqueradeAll",
        "used unless the mode is nftables",
        "masquerade_all_counts_in_the_section_of_the_mode",
    ),
    (
        "ipvs.excludeCIDRs",
        "no effect: cleanup removes only virtual servers at addresses of `kube-ipvs0`",
        "",
    ),
    (
        "kubeSubnetManager",
        "must be on: Nodes are the only source of pod CIDRs",
        "flanneld_takes_its_variables_and_proxies_nothing",
    ),
    (
        "logging.format",
        "`text` or `json`",
        "each_mistake_gives_one_error_that_names_it",
    ),
    (
        "logging.verbosity",
        "0-3 info, 4-5 debug, from 6 on trace of Portolan's own modules; never hides errors",
        "no_verbosity_hides_errors verbosity_is_read_in_all_of_pflags_forms",
    ),
    (
        "masqueradeAll",
        "of the section of the mode",
        "masquerade_all_counts_in_the_section_of_the_mode",
    ),
    (
        "master",
        "URL of the API server, in place of the kubeconfig's",
        "a_written_configuration_means_the_same_again",
    ),
    (
        "metricsBindAddress",
        "empty is the default here, and off as a flag; a missing port is appended",
        "empty_addresses_are_defaults_in_the_file_and_off_as_flags a_missing_port_is_appended",
    ),
    (
        "metricsPort",
        "port of `/metrics`; 0 is off",
        "empty_addresses_are_defaults_in_the_file_and_off_as_flags a_missing_port_is_appended",
    ),
    (
        "mode",
        "accepted, all but `kernelspace`: it decides the addresses of node ports, and which `masqueradeAll` is meant; rules are nftables' in every mode",
        "node_ports_are_where_the_mode_serves_them masquerade_all_counts_in_the_section_of_the_mode",
    ),
    (
        "nftables.masqueradeAll",
        "used with mode nftables",
        "masquerade_all_counts_in_the_section_of_the_mode",
    ),
    (
        "nodePortAddresses",
        "`primary`, `all`, `localhost`, ranges; without any by mode: iptables `all,localhost`, ipvs `all`, nftables `primary`",
        "node_ports_are_where_the_mode_serves_them",
    ),
    (
        "oomScoreAdj",
        "`null` is the default",
        "null_is_the_default_and_zero_is_zero_where_go_has_pointers oom_score_adj_is_set",
    ),
    (
        "version",
        "print the version, exit 0; `raw` as kube-proxy does",
        "help_and_version_count_before_anything_else",
    ),
    (
        "writeConfigTo",
        "write the effective configuration, exit; kube-proxy writes defaults only",
        "a_written_configuration_means_the_same_again",
    ),
];

/// Fields of `PortolanConfiguration`.
pub(super) const OWN_FIELDS: &[Meaning] = &[
    (
        "allowedExternalIPs",
        "ranges of external IPs that are served; none: any",
        "",
    ),
    (
        "apiServerFrom",
        "kubeconfigs whose server and CA are used with the pod's own token; none: where kubeadm, k3s, RKE2 and EKS have the kubelet's",
        "",
    ),
    (
        "conntrack.tcpBeLiberal",
        "accept TCP segments that conntrack finds out of window",
        "only_a_wish_decides_about_liberal_tcp",
    ),
    ("logFormat", "as `logging.format`, and wins", ""),
    (
        "logLevel",
        "a filter: a level, or a list by module such as `info,portolan::control=debug`",
        "each_mistake_gives_one_error_that_names_it",
    ),
    (
        "manifests",
        "a folder of manifests instead of an API server",
        "",
    ),
    ("nodePortRange", "node ports that manifests may ask for", ""),
    (
        "overlay.cache",
        "where peers are kept over a restart; empty: nowhere",
        "",
    ),
    (
        "overlay.cniConf",
        "CNI configuration to write; the runtime takes the first file by name",
        "each_folder_runs_the_parts_that_it_promises",
    ),
    (
        "overlay.device",
        "first part of the names of the VXLAN devices",
        "",
    ),
    (
        "overlay.filter",
        "what becomes of forged frames: `off`, `monitor`, `enforce`",
        "",
    ),
    (
        "overlay.iface",
        "interfaces to other nodes, by name or address, in order of preference",
        "flanneld_takes_its_variables_and_proxies_nothing",
    ),
    (
        "overlay.ifaceCanReach",
        "the interface that a packet to this address leaves by",
        "",
    ),
    ("overlay.ifaceRegex", "patterns of interfaces", ""),
    (
        "overlay.ipBlackholeRoute",
        "drop traffic to unused pod IPs of this node",
        "",
    ),
    (
        "overlay.ipMasq",
        "masquerade traffic of pods to addresses outside of the cluster's pod CIDRs",
        "flanneld_takes_its_variables_and_proxies_nothing",
    ),
    (
        "overlay.kubeAnnotationPrefix",
        "prefix of the node annotation keys",
        "",
    ),
    (
        "overlay.netConfigPath",
        "flannel's net-conf.json; none: `/etc/kube-flannel/net-conf.json` if it exists",
        "",
    ),
    (
        "overlay.nexthopObjectsAbove",
        "nexthop objects when there are more IPv4 peers than this",
        "",
    ),
    (
        "overlay.probeInterval",
        "time between two rounds of probes",
        "",
    ),
    (
        "overlay.probePort",
        "UDP and TCP port of the probes; 0 turns probing off",
        "",
    ),
    (
        "overlay.publicIP",
        "address of this node that peers send to",
        "",
    ),
    ("overlay.publicIPv6", "the same for IPv6", ""),
    (
        "overlay.setNodeNetworkUnavailable",
        "maintain the Node's condition `NetworkUnavailable`",
        "",
    ),
    (
        "overlay.subnetFile",
        "flannel's subnet.env; empty: nowhere",
        "",
    ),
    (
        "overlay.type",
        "`vxlan`: connect the pods of different nodes as flannel does",
        "portolans_own_document_is_read_after_kube_proxys",
    ),
    (
        "serviceProxy",
        "`off`: the overlay alone, beside kube-proxy or Cilium",
        "each_folder_runs_the_parts_that_it_promises",
    ),
    (
        "serviceProxyName",
        "serve Services with this value of the label `service.kubernetes.io/service-proxy-name`; none: those without the label",
        "",
    ),
    (
        "tableOwner",
        "claim the tables, so that a foreign flush passes over them",
        "",
    ),
    (
        "takeOverKubeProxy",
        "remove kube-proxy's rules after the initial sync; default: yes, unless serviceProxyName is set",
        "",
    ),
    ("withoutFeatures", "kernel features to treat as absent", ""),
];
