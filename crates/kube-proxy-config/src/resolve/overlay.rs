//! The overlay's part of the effective configuration.

use super::Resolver;
use crate::effective::{Encryption, Filter, Overlay};
use crate::go;

impl Resolver<'_> {
    pub(super) fn overlay(&self) -> Option<Overlay> {
        let own = &self.own;
        if own.text("overlay.type") != "vxlan" {
            return None;
        }
        let names = |path| {
            own.texts(path)
                .into_iter()
                .filter(|name: &String| !name.is_empty())
        };
        let prefix = own.some_text("overlay.kubeAnnotationPrefix");
        let port: u16 = own.number("overlay.probePort");
        Some(Overlay {
            device: own.text("overlay.device"),
            filter: match own.text("overlay.filter").as_str() {
                "off" => Filter::Off,
                "monitor" => Filter::Monitor,
                _ => Filter::Enforce,
            },
            encryption: self.encryption(),
            encryption_key_file: own.text("overlay.encryptionKeyFile").into(),
            pod_mtu: Some(own.number("overlay.podMTU")).filter(|mtu| *mtu > 0),
            cache: own.some_text("overlay.cache").map(Into::into),
            probe_port: Some(port).filter(|port| *port > 0),
            probe_interval: own.duration("overlay.probeInterval"),
            cni_bin_dir: own.some_text("overlay.cniBinDir").map(Into::into),
            cni_conf: own.some_text("overlay.cniConf").map(Into::into),
            nexthop_objects_above: own.number("overlay.nexthopObjectsAbove"),
            net_config_path: own.some_text("overlay.netConfigPath").map(Into::into),
            iface: names("overlay.iface").collect(),
            iface_regex: names("overlay.ifaceRegex").collect(),
            iface_can_reach: go::parse_ip(&own.text("overlay.ifaceCanReach")),
            public_ip: own.text("overlay.publicIP").parse().ok(),
            public_ipv6: own.text("overlay.publicIPv6").parse().ok(),
            ip_masq: own.bool("overlay.ipMasq"),
            ip_blackhole_route: own.bool("overlay.ipBlackholeRoute"),
            kube_annotation_prefix: prefix.unwrap_or_else(|| "flannel.alpha.coreos.com".to_owned()),
            set_node_network_unavailable: own.bool("overlay.setNodeNetworkUnavailable"),
            subnet_file: own.some_text("overlay.subnetFile").map(Into::into),
        })
    }

    fn encryption(&self) -> Option<Encryption> {
        let own = &self.own;
        match own.text("overlay.encryption").as_str() {
            "off" => None,
            mode => Some(Encryption {
                required: mode == "require",
                port: own.number("overlay.encryptionPort"),
                key_lifetime: own.duration("overlay.encryptionKeyLifetime"),
            }),
        }
    }
}
