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
        "a_taken_port_is_an_event_and_ends_the_daemon_if_asked",
    ),
    (
        "cleanup",
        "remove what kube-proxy has left, then exit",
        "distributions_give_their_effective_configuration no_take_over_with_a_proxy_name_or_when_switched_off",
    ),
    (
        "clientConnection.kubeconfig",
        "used; none: the pod's service account",
        "distributions_give_their_effective_configuration files_and_arguments_of_distributions_start_and_serve",
    ),
    (
        "clusterCIDR",
        "at most one range of each family",
        "distributions_give_their_effective_configuration each_mistake_gives_one_error_that_names_it cluster_cidr_and_masquerade_all_change_without_restart",
    ),
    (
        "config",
        "read both documents of the file; flags beside it win, and one line says which",
        "flags_beside_a_file_are_listed_when_they_change_something portolans_own_document_is_read_after_kube_proxys",
    ),
    (
        "conntrack.maxPerCore",
        "`null` is the default, `0` leaves the limit alone",
        "null_is_the_default_and_zero_is_zero_where_go_has_pointers many_cores_ask_for_a_million_entries_at_most cpus_are_counted_from_the_kernels_list",
    ),
    (
        "conntrack.min",
        "`null` is the default",
        "null_is_the_default_and_zero_is_zero_where_go_has_pointers limits_are_raised_and_never_lowered",
    ),
    (
        "conntrack.tcpBeLiberal",
        "on by default; generated files have `false` here, which does not switch it off; the flag, or Portolan's own field, switches it off",
        "only_a_setting_decides_about_liberal_tcp init_only_makes_the_settings_and_ends_without_rules",
    ),
    (
        "conntrack.tcpCloseWaitTimeout",
        "`null` is the default, `0s` leaves the sysctl alone",
        "null_is_the_default_and_zero_is_zero_where_go_has_pointers init_only_makes_the_settings_and_ends_without_rules",
    ),
    (
        "conntrack.tcpEstablishedTimeout",
        "`null` is the default, `0s` leaves the sysctl alone",
        "null_is_the_default_and_zero_is_zero_where_go_has_pointers init_only_makes_the_settings_and_ends_without_rules",
    ),
    (
        "conntrack.udpStreamTimeout",
        "`0s` leaves the sysctl alone",
        "zero_and_false_leave_a_setting_alone init_only_makes_the_settings_and_ends_without_rules",
    ),
    (
        "conntrack.udpTimeout",
        "`0s` leaves the sysctl alone",
        "zero_and_false_leave_a_setting_alone init_only_makes_the_settings_and_ends_without_rules",
    ),
    (
        "detectLocal.bridgeInterface",
        "used; required by its mode",
        "each_mistake_gives_one_error_that_names_it every_case_holds_with_real_packets",
    ),
    (
        "detectLocal.interfaceNamePrefix",
        "used; required by its mode",
        "each_mistake_gives_one_error_that_names_it every_case_holds_with_real_packets",
    ),
    (
        "detectLocalMode",
        "all four modes",
        "each_mistake_gives_one_error_that_names_it every_case_holds_with_real_packets",
    ),
    (
        "enableProfiling",
        "`PUT /debug/flags/v` changes the log's verbosity, for clients of the node; there is no `/debug/pprof`",
        "only_a_verbosity_from_this_node_changes_the_log",
    ),
    (
        "featureGates",
        "any name is accepted",
        "distributions_give_their_effective_configuration",
    ),
    (
        "healthzBindAddress",
        "empty is the default here, and off as a flag; a missing port is appended",
        "empty_addresses_are_defaults_in_the_file_and_off_as_flags a_missing_port_is_appended a_wildcard_of_either_family_serves_both",
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
        "distributions_give_their_effective_configuration files_and_arguments_of_distributions_start_and_serve",
    ),
    (
        "initOnly",
        "write the conntrack sysctls, exit",
        "init_only_makes_the_settings_and_ends_without_rules",
    ),
    (
        "iptables.localhostNodePorts",
        "with mode iptables: node ports on 127.0.0.1 as well",
        "node_ports_are_where_the_mode_serves_them localhost_is_left_out_where_the_configuration_forbids_it node_ports_on_loopback_work_without_route_localnet",
    ),
    (
        "iptables.masqueradeAll",
        "used unless the mode is nftables",
        "masquerade_all_counts_in_the_section_of_the_mode cluster_cidr_and_masquerade_all_change_without_restart",
    ),
    (
        "ipvs.excludeCIDRs",
        "no effect: cleanup removes only virtual servers at addresses of `kube-ipvs0`",
        "cleanup_removes_leftovers_of_ipvs_mode_only",
    ),
    (
        "kubeSubnetManager",
        "must be on: Nodes are the only source of pod CIDRs",
        "flanneld_takes_its_variables_and_proxies_nothing",
    ),
    (
        "logging.format",
        "`text` or `json`",
        "each_mistake_gives_one_error_that_names_it json_log_lines_are_objects",
    ),
    (
        "logging.verbosity",
        "0-3 info, 4-5 debug, from 6 on trace of Portolan's own modules; never hides errors",
        "no_verbosity_hides_errors verbosity_is_read_in_all_of_pflags_forms log_level_changes_without_restart",
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
        "empty_addresses_are_defaults_in_the_file_and_off_as_flags a_missing_port_is_appended a_wildcard_of_either_family_serves_both",
    ),
    (
        "metricsPort",
        "port of `/metrics`; 0 is off",
        "empty_addresses_are_defaults_in_the_file_and_off_as_flags a_missing_port_is_appended",
    ),
    (
        "mode",
        "accepted, all but `kernelspace`: it decides the addresses of node ports, and which `masqueradeAll` is meant; rules are nftables' in every mode",
        "node_ports_are_where_the_mode_serves_them masquerade_all_counts_in_the_section_of_the_mode kubeadms_pod_serves_with_only_its_image_changed",
    ),
    (
        "nftables.masqueradeAll",
        "used with mode nftables",
        "masquerade_all_counts_in_the_section_of_the_mode every_case_holds_with_real_packets",
    ),
    (
        "nodePortAddresses",
        "`primary`, `all`, `localhost`, ranges; without any by mode: iptables `all,localhost`, ipvs `all`, nftables `primary`",
        "node_ports_are_where_the_mode_serves_them every_case_holds_with_real_packets",
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
        "a_written_configuration_means_the_same_again the_written_configuration_starts_the_same_daemon real_kube_proxy_makes_the_same_of_each_distributions_file",
    ),
];

/// Fields of `PortolanConfiguration`.
pub(super) const OWN_FIELDS: &[Meaning] = &[
    (
        "allowedExternalIPs",
        "ranges of external IPs that are served; none: any outside pod CIDRs, cluster IPs and other Nodes' addresses",
        "every_case_holds_with_real_packets",
    ),
    (
        "apiServerFrom",
        "kubeconfigs whose server and CA are used with the pod's own token; none: where kubeadm, k3s, RKE2 and EKS have the kubelet's",
        "rebooted_node_comes_up_by_itself_with_an_empty_table",
    ),
    (
        "conntrack.tcpBeLiberal",
        "accept TCP segments that conntrack finds out of window",
        "only_a_setting_decides_about_liberal_tcp",
    ),
    (
        "failover",
        "`on`: skip endpoints of nodes that answer no probe while others are eligible; `endpoints`: also single endpoints, of all Services (`docs/failover.md`)",
        "unplugged_node_gets_no_new_connections_within_seconds failover_that_is_off_leaves_endpoints_in_place a_hung_endpoint_is_skipped_where_that_is_asked_for",
    ),
    (
        "logFormat",
        "as `logging.format`, and wins",
        "json_log_lines_are_objects",
    ),
    (
        "logLevel",
        "a filter: a level, or a list by module such as `info,portolan::control=debug`",
        "each_mistake_gives_one_error_that_names_it log_level_changes_without_restart",
    ),
    (
        "manifests",
        "a folder of manifests instead of an API server",
        "run_serves_an_edit_and_leaves_its_rules_when_stopped",
    ),
    (
        "nodePortRange",
        "node ports that manifests may ask for",
        "render_names_an_ignored_object_and_prints_the_rest",
    ),
    (
        "overlay.cache",
        "where peers are kept over a restart; empty: nowhere",
        "restart_without_api_server_loses_nothing_and_repairs",
    ),
    (
        "overlay.cniBinDir",
        "where to look at the start for the plugins that `cniConf` needs; those that are missing are named in the log; empty: do not look",
        "missing_plugins_are_those_without_a_program",
    ),
    (
        "overlay.cniConf",
        "CNI configuration to write; the runtime takes the first file by name",
        "each_folder_runs_the_parts_that_it_promises cni_configuration_equals_what_the_flannel_plugin_generates",
    ),
    (
        "overlay.device",
        "first part of the names of the VXLAN devices",
        "three_nodes_form_a_dual_stack_mesh_from_node_objects_alone",
    ),
    (
        "overlay.encryption",
        "encrypt packets between nodes: `off`, `prefer`, `require` (`docs/encryption.md`)",
        "pods_reach_each_other_and_no_inner_byte_is_on_the_wire",
    ),
    (
        "overlay.encryptionKeyFile",
        "where the private keys of this node are kept",
        "keys_outlive_a_restart_and_are_readable_by_root_alone",
    ),
    (
        "overlay.encryptionKeyLifetime",
        "rotate the key of this node after this time; `0s`: on request only",
        "a_key_older_than_its_lifetime_is_due_for_rotation",
    ),
    (
        "overlay.encryptionPort",
        "UDP port of WireGuard; the next one is used as well while keys are rotated",
        "pods_reach_each_other_and_no_inner_byte_is_on_the_wire",
    ),
    (
        "overlay.filter",
        "what becomes of forged frames: `off`, `monitor`, `enforce`",
        "forged_frames_arrive_without_a_filter_and_none_does_with_one",
    ),
    (
        "overlay.iface",
        "interfaces to other nodes, by name or address, in order of preference",
        "flanneld_takes_its_variables_and_proxies_nothing",
    ),
    (
        "overlay.ifaceCanReach",
        "the interface that a packet to this address leaves by",
        "interface_is_chosen_by_pattern_or_reach_and_changed_in_place",
    ),
    (
        "overlay.ifaceRegex",
        "patterns of interfaces",
        "interface_is_chosen_by_pattern_or_reach_and_changed_in_place",
    ),
    (
        "overlay.ipBlackholeRoute",
        "drop traffic to unused pod IPs of this node",
        "packets_for_unused_pod_addresses_end_at_their_node",
    ),
    (
        "overlay.ipMasq",
        "masquerade traffic of pods to addresses outside of the cluster's pod CIDRs",
        "flanneld_takes_its_variables_and_proxies_nothing outer_packets_are_untracked_and_pods_masqueraded_outside",
    ),
    (
        "overlay.kubeAnnotationPrefix",
        "prefix of the node annotation keys",
        "prefixes_join_as_flannel_joins_them",
    ),
    (
        "overlay.netConfigPath",
        "flannel's net-conf.json; none: `/etc/kube-flannel/net-conf.json` if it exists",
        "nodes_on_one_link_reach_each_other_directly_when_asked_to",
    ),
    (
        "overlay.nexthopObjectsAbove",
        "nexthop objects when there are more IPv4 peers than this",
        "flushed_nexthop_objects_return_and_foreign_ones_stay",
    ),
    (
        "overlay.podMTU",
        "largest MTU of pods; 0: what fits the network below",
        "carriers_make_room_for_their_headers_and_take_their_peers",
    ),
    (
        "overlay.probeInterval",
        "time between two rounds of probes",
        "blocked_vxlan_port_is_reported_with_its_direction",
    ),
    (
        "overlay.probePort",
        "UDP and TCP port of the probes; 0 turns probing off",
        "foreign_answerer_on_the_probe_port_is_not_believed",
    ),
    (
        "overlay.publicIP",
        "address of this node that peers send to",
        "flags_are_tried_in_flannels_order_and_none_that_fits_is_none",
    ),
    (
        "overlay.publicIPv6",
        "the same for IPv6",
        "flags_are_tried_in_flannels_order_and_none_that_fits_is_none",
    ),
    (
        "overlay.setNodeNetworkUnavailable",
        "maintain the Node's condition `NetworkUnavailable`",
        "only_own_flannels_and_missing_conditions_are_written",
    ),
    (
        "overlay.subnetFile",
        "flannel's subnet.env; empty: nowhere",
        "cni_configuration_equals_what_the_flannel_plugin_generates",
    ),
    (
        "overlay.type",
        "`vxlan`: connect the pods of different nodes as flannel does",
        "portolans_own_document_is_read_after_kube_proxys three_nodes_form_a_dual_stack_mesh_from_node_objects_alone",
    ),
    (
        "page",
        "`on`: a page about this node at the metrics port, for clients of this node",
        "the_page_is_for_this_node_only",
    ),
    (
        "serviceProxy",
        "`off`: the overlay alone, beside kube-proxy or Cilium",
        "each_folder_runs_the_parts_that_it_promises flannels_pods_connect_nodes_with_only_their_image_changed",
    ),
    (
        "serviceProxyName",
        "serve Services with this value of the label `service.kubernetes.io/service-proxy-name`; none: those without the label",
        "no_take_over_with_a_proxy_name_or_when_switched_off every_case_holds_with_real_packets",
    ),
    (
        "serviceTraffic",
        "`on`: connections, packets and bytes of Services as metrics (`docs/metrics.md`); sets `net.netfilter.nf_conntrack_acct`",
        "traffic_metrics_are_within_a_hundredth_of_counted_bytes",
    ),
    (
        "tableOwner",
        "own the tables, so that a foreign flush does not remove them",
        "a_table_without_owner_is_repaired_whatever_is_done_to_it a_hundred_foreign_flushes_lose_no_connection",
    ),
    (
        "takeOverKubeProxy",
        "remove kube-proxy's rules after the initial sync; default: yes, unless serviceProxyName is set",
        "no_take_over_with_a_proxy_name_or_when_switched_off rules_of_iptables_in_its_nft_variant_are_taken_over",
    ),
    (
        "withoutFeatures",
        "kernel features to treat as absent",
        "missing_feature_is_named_and_existing_rules_keep_working",
    ),
];
