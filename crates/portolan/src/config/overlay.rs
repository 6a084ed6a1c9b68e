//! The overlay's configuration, from the effective configuration and flannel's net-conf.json.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kube_proxy_config as given;
use kube_proxy_config::Effective;
use net_types::PerFamily;
use vxlan_overlay::{Config, Filter, Names, Preferences, RuleOptions};

use crate::overlay::OverlayConfig;
use crate::overlay::encryption::{EncryptionConfig, Mode};

/// Where flannel's manifests mount its configuration.
const NET_CONF: &str = "/etc/kube-flannel/net-conf.json";

/// The configuration of the overlay on the node of this name, or `None` without an overlay.
///
/// # Errors
/// If net-conf.json cannot be used, or a pattern of an interface is not a regular expression.
pub fn overlay(effective: &Effective, own: Arc<str>) -> Result<Option<OverlayConfig>> {
    let Some(overlay) = &effective.overlay else {
        return Ok(None);
    };
    let infer = effective.api_server.manifests.is_some();
    let cache = overlay.cache.clone().filter(|_| !infer);
    Ok(Some(OverlayConfig {
        config: config(overlay, &effective.services.cluster_cidrs)?,
        preferences: preferences(overlay)?,
        names: Names::new(&overlay.kube_annotation_prefix),
        own,
        infer,
        rules: RuleOptions {
            masquerade: overlay.ip_masq,
            filter: match overlay.filter {
                given::Filter::Off => Filter::Off,
                given::Filter::Monitor => Filter::Monitor,
                given::Filter::Enforce => Filter::Enforce,
            },
            probe_port: overlay.probe_port,
        },
        own_tables: effective.table_owner,
        set_condition: overlay.set_node_network_unavailable,
        subnet_file: overlay.subnet_file.clone().unwrap_or_default(),
        cni_conf: overlay.cni_conf.clone(),
        cni_bin_dir: overlay.cni_bin_dir.clone(),
        cache: cache.unwrap_or_else(PathBuf::new),
        encryption: encryption(overlay)?,
    }))
}

/// `cluster` are the pod CIDRs of the cluster, the default for those of net-conf.json.
fn config(overlay: &given::Overlay, cluster: &[ipnet::IpNet]) -> Result<Config> {
    let usual = Some(Path::new(NET_CONF)).filter(|path| path.exists());
    let mut config = match overlay.net_config_path.as_deref().or(usual) {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read --net-config-path {path:?}"))?;
            Config::from_net_conf(&text).with_context(|| format!("--net-config-path {path:?}"))?
        }
        None => Config::default(),
    };
    config.device.clone_from(&overlay.device);
    config.blackhole = overlay.ip_blackhole_route;
    config.pod_mtu = overlay.pod_mtu;
    config.nexthops_above = usize::try_from(overlay.nexthop_objects_above)?;
    let of = |v6: bool| {
        let mut all = cluster.iter();
        all.find(|range| range.addr().is_ipv6() == v6).copied()
    };
    config.network = config.network.or(of(false));
    config.ipv6_network = config.ipv6_network.or(of(true));
    config.check().context("overlay")?;
    Ok(config)
}

/// Encryption between nodes.
fn encryption(overlay: &given::Overlay) -> Result<EncryptionConfig> {
    let key_file = overlay.encryption_key_file.clone();
    let Some(wanted) = &overlay.encryption else {
        return Ok(EncryptionConfig {
            key_file,
            ..EncryptionConfig::default()
        });
    };
    // In clear text, packets of others could come in by any interface.
    ensure!(
        !wanted.required || overlay.filter == given::Filter::Enforce,
        "--overlay-encryption=require needs --overlay-filter=enforce"
    );
    Ok(EncryptionConfig {
        mode: match wanted.required {
            true => Mode::Require,
            false => Mode::Prefer,
        },
        port: wanted.port,
        key_file,
        key_lifetime: wanted.key_lifetime,
    })
}

/// The operator's choice of the interface.
fn preferences(overlay: &given::Overlay) -> Result<Preferences> {
    let pattern = |text: &String| {
        vxlan_overlay::Regex::new(text).with_context(|| format!("--iface-regex={text}"))
    };
    Ok(Preferences {
        names: overlay.iface.clone(),
        patterns: overlay
            .iface_regex
            .iter()
            .map(pattern)
            .collect::<Result<_>>()?,
        can_reach: overlay.iface_can_reach,
        public_ip: PerFamily::new(
            overlay.public_ip.map(IpAddr::V4),
            overlay.public_ipv6.map(IpAddr::V6),
        ),
    })
}
