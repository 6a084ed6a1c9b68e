//! Files for the CNI plugins of this node: flannel's `subnet.env`, and a CNI configuration with `--cni-conf`.
//!
//! A file is replaced atomically, and only when its text differs: no reader sees half of it.

use std::fmt::Write;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use net_types::Family;
use serde_json::{Value, json};
use vxlan_overlay::{Config, Plan, Tunnel};

use super::OverlayConfig;

/// How long a family may lack an interface before the files omit that family: an interface that is missing for a moment must
/// not change the families and the MTU of new pods. At the start of a node, pods wait for the files.
const LASTING: Duration = Duration::from_secs(30);
const AT_START: Duration = Duration::from_secs(5);

/// Writes the files that the configuration asks for.
pub(super) struct CniFiles {
    config: Arc<OverlayConfig>,
    /// Whether there are files, of this process or of an earlier one.
    written: bool,
    /// Since when a family lacks an interface.
    lacking_since: Option<Instant>,
    due: Option<Instant>,
}

impl CniFiles {
    pub(super) fn new(config: Arc<OverlayConfig>) -> Self {
        CniFiles {
            written: config.subnet_file.exists(),
            config,
            lacking_since: None,
            due: None,
        }
    }

    /// Writes the files for a plan that the kernel follows, without a family that has lacked an interface for long.
    pub(super) fn update(&mut self, plan: &Plan, complete: bool, now: Instant) {
        self.due = None;
        if !complete {
            return;
        }
        if !plan.lacks_external() {
            self.lacking_since = None;
        }
        let patience = if self.written { LASTING } else { AT_START };
        let since = plan
            .lacks_external()
            .then(|| *self.lacking_since.get_or_insert(now));
        self.due = since.map(|since| since + patience).filter(|due| *due > now);
        if self.due.is_none() {
            self.write(plan);
            self.written = true;
        }
    }

    /// When the files may be written although nothing else changes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes the files for a plan. A failure is logged; the next round tries again.
    fn write(&self, plan: &Plan) {
        let (config, masquerade) = (&self.config.config, self.config.rules.masquerade);
        if !self.config.subnet_file.as_os_str().is_empty() {
            write(
                &self.config.subnet_file,
                subnet_env(config, plan, masquerade),
            );
        }
        if let Some(path) = &self.config.cni_conf {
            write(path, cni_conf(config, plan, masquerade));
        }
    }
}

fn write(path: &Path, text: Option<String>) {
    let Some(text) = text else { return };
    match replace(path, &text) {
        Ok(true) => tracing::info!(?path, "wrote file"),
        Ok(false) => {}
        Err(error) => tracing::warn!(?path, %error, "cannot write file; retrying"),
    }
}

/// The largest packet of pods: what fits through the tunnels of both families.
fn pod_mtu(plan: &Plan) -> Option<u32> {
    plan.tunnels
        .values()
        .flatten()
        .map(|tunnel| tunnel.device.mtu)
        .min()
}

/// `subnet.env`, in flannel's order. `None` until there is a tunnel and the cluster's network is known.
fn subnet_env(config: &Config, plan: &Plan, masquerade: bool) -> Option<String> {
    let mut text = String::new();
    for (family, tunnel) in &plan.tunnels {
        let Some(tunnel) = tunnel else { continue };
        let network = config.network(family)?;
        let prefix = match family {
            Family::Ip => "FLANNEL_",
            Family::Ip6 => "FLANNEL_IPV6_",
        };
        writeln!(
            text,
            "{prefix}NETWORK={network}\n{prefix}SUBNET={}",
            gateway(tunnel)?
        )
        .ok()?;
    }
    writeln!(
        text,
        "FLANNEL_MTU={}\nFLANNEL_IPMASQ={masquerade}",
        pod_mtu(plan)?
    )
    .ok()?;
    Some(text)
}

/// A configuration list that needs no plugin of flannel's. It equals the one that flannel's plugin generates from flannel's
/// own file, byte for byte, so that addresses that were allocated before stay allocated. It has no default route, since the
/// `bridge` plugin adds one, and the kernel would refuse a second.
fn cni_conf(config: &Config, plan: &Plan, masquerade: bool) -> Option<String> {
    let tunnels = plan.tunnels.values().flatten();
    let ranges: Vec<Value> = tunnels
        .map(|tunnel| json!([{ "subnet": tunnel.pod_cidr }]))
        .collect();
    let networks = plan
        .tunnels
        .iter()
        .filter(|(_, tunnel)| tunnel.is_some())
        .filter_map(|(family, _)| config.network(family));
    let routes: Vec<Value> = networks.map(|network| json!({ "dst": network })).collect();
    let list = json!({
        "name": "cbr0",
        "cniVersion": "0.3.1",
        "plugins": [
            {
                "type": "bridge", "mtu": pod_mtu(plan)?, "isGateway": true, "isDefaultGateway": true,
                "hairpinMode": true, "ipMasq": !masquerade,
                "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    Some(format!("{list:#}\n"))
}

/// Replaces a file atomically if its text differs. Returns whether the file was written.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<bool> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    object_source::replace_file(path, 0o644, text.as_bytes())?;
    Ok(true)
}

/// The first address of the pod range that a host can have, with the range's length.
fn gateway(tunnel: &Tunnel) -> Option<IpNet> {
    let range = tunnel.pod_cidr;
    let first = match range {
        IpNet::V4(v4) => {
            std::net::Ipv4Addr::from_bits(v4.network().to_bits().checked_add(1)?).into()
        }
        IpNet::V6(v6) => {
            std::net::Ipv6Addr::from_bits(v6.network().to_bits().checked_add(1)?).into()
        }
    };
    IpNet::new(first, range.prefix_len()).ok()
}
