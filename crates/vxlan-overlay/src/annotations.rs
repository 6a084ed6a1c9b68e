//! flannel's annotations on Node objects, byte for byte in both directions, and one of Portolan's own beside them.
//!
//! Nodes with flannel and nodes with Portolan read each other's, so names, forms and even the order of keys are
//! flannel's: its own reader of `backend-data` cuts the text at `:"` instead of parsing JSON, and finds its MAC again
//! after a way back only in exactly this form. Values are foreign text: they are parsed, never repeated.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::net::IpAddr;

use net_types::{Family, PerFamily};

use crate::mac::Mac;
use crate::underlay::is_node_address;

/// flannel's `--kube-annotation-prefix`.
pub const DEFAULT_PREFIX: &str = "flannel.alpha.coreos.com";
/// The value of `backend-type`.
const VXLAN: &str = "vxlan";

/// Portolan's own: public keys of the node for encryption, with their ports.
const ENCRYPTION: &str = "portolan-encryption";
/// Longest value: a few keys.
const MAX_ENCRYPTION: usize = 256;

/// Portolan's own: that the node probes its peers.
const PROBES: &str = "portolan-probes";

/// Annotations of a Node object.
pub type Annotations = BTreeMap<Box<str>, Box<str>>;

/// One end of the tunnel of a family: its hardware address and the address of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// The tunnel device's.
    pub mac: Mac,
    /// Destination of the outer packets.
    pub public_ip: IpAddr,
}

/// What the annotations of a Node state about its VTEPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedAnnotations {
    /// The node takes no part: it has no `kube-subnet-manager`.
    Absent,
    /// They are of another backend or do not decode, for this reason. Earlier valid ones stay in force.
    Invalid(&'static str),
    /// The VTEPs, for the families that the node has.
    Vteps(PerFamily<Option<Vtep>>),
}

/// The names under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    prefix: String,
}

impl Default for Names {
    fn default() -> Self {
        Names::new(DEFAULT_PREFIX)
    }
}

impl Names {
    /// As flannel joins them: a prefix without slash gets one; one with a slash goes on with a dash, unless it ends
    /// in either.
    pub fn new(prefix: &str) -> Names {
        let join = match prefix.contains('/') {
            false => "/",
            true if prefix.ends_with(['/', '-']) => "",
            true => "-",
        };
        Names {
            prefix: format!("{prefix}{join}"),
        }
    }

    fn get<'a>(&self, annotations: &'a Annotations, name: &str) -> Option<&'a str> {
        let key = format!("{}{name}", self.prefix);
        annotations.get(key.as_str()).map(|value| &**value)
    }

    /// Parses the annotations, for a VNI.
    pub fn read(&self, annotations: &Annotations, vni: u32) -> ParsedAnnotations {
        if self.get(annotations, "kube-subnet-manager") != Some("true") {
            return ParsedAnnotations::Absent;
        }
        if self.get(annotations, "backend-type") != Some(VXLAN) {
            return ParsedAnnotations::Invalid("backend-type is not vxlan");
        }
        let mut vteps = PerFamily::default();
        for (family, vtep) in vteps.iter_mut() {
            let data = self.get(annotations, data_name(family));
            let public_ip = self.get(annotations, public_ip_name(family));
            *vtep = match (data, public_ip) {
                // flannel leaves `null` behind for a family that it does not carry.
                (None | Some("" | "null"), _) | (_, None | Some("")) => None,
                (Some(data), Some(public_ip)) => {
                    let Some((its_vni, mac)) = backend_data(data) else {
                        return ParsedAnnotations::Invalid("backend-data is not valid");
                    };
                    if its_vni.is_some_and(|its_vni| its_vni != vni) {
                        return ParsedAnnotations::Invalid("its VNI differs from this node's");
                    }
                    match public_ip.parse::<IpAddr>() {
                        Ok(public_ip) if Family::of(public_ip) != family => {
                            return ParsedAnnotations::Invalid(
                                "public-ip is not an address of its family",
                            );
                        }
                        Ok(public_ip) if is_node_address(public_ip) => {
                            Some(Vtep { mac, public_ip })
                        }
                        _ => {
                            return ParsedAnnotations::Invalid(
                                "public-ip is not an address that a node can have",
                            );
                        }
                    }
                }
            };
        }
        ParsedAnnotations::Vteps(vteps)
    }

    /// The hardware address that peers hold for this node, to be kept when the device is made anew.
    pub fn own_mac(&self, annotations: &Annotations, family: Family) -> Option<Mac> {
        let (_, mac) = backend_data(self.get(annotations, data_name(family))?)?;
        Some(mac)
    }

    /// The address that was published for this node.
    pub fn own_public_ip(&self, annotations: &Annotations, family: Family) -> Option<IpAddr> {
        self.address(annotations, public_ip_name(family), family)
    }

    /// The published address that was this node's own choice: by its flags, its Node or its routes, and not by what was
    /// published before. What the choice followed from may be gone.
    pub fn chosen_public_ip(&self, annotations: &Annotations, family: Family) -> Option<IpAddr> {
        self.address(annotations, chosen_name(family), family)
    }

    /// Adds that the published address is this node's own choice.
    pub fn write_chosen(&self, annotations: &mut Annotations, family: Family, address: IpAddr) {
        let key = format!("{}{}", self.prefix, chosen_name(family));
        annotations.insert(key.into(), address.to_string().into());
    }

    /// The keys of a node for encryption; `None` where it has none, or text that is too long to be any.
    pub fn encryption<'a>(&self, annotations: &'a Annotations) -> Option<&'a str> {
        let text = self.get(annotations, ENCRYPTION)?;
        (!text.is_empty() && text.len() <= MAX_ENCRYPTION).then_some(text)
    }

    /// Adds the keys of this node. Empty text withdraws keys that were published before.
    pub fn write_encryption(&self, annotations: &mut Annotations, text: &str) {
        let key = format!("{}{ENCRYPTION}", self.prefix);
        annotations.insert(key.into(), text.into());
    }

    /// Whether a node probes its peers. A node with flannel does not, so whoever asks in its name there is something else.
    pub fn probes(&self, annotations: &Annotations) -> bool {
        self.get(annotations, PROBES) == Some("true")
    }

    /// Adds that this node probes its peers, or that it does so no longer.
    pub fn write_probes(&self, annotations: &mut Annotations, probes: bool) {
        let key = format!("{}{PROBES}", self.prefix);
        annotations.insert(key.into(), probes.to_string().into());
    }

    /// The address an operator wants to be published instead of the one that was found.
    pub fn public_ip_overwrite(&self, annotations: &Annotations, family: Family) -> Option<IpAddr> {
        let name = match family {
            Family::Ip => "public-ip-overwrite",
            Family::Ip6 => "public-ipv6-overwrite",
        };
        self.address(annotations, name, family)
    }

    /// The address of an interface that an operator wants to be used, as by `--public-ip` (flannel 0.25.3).
    pub fn node_public_ip(&self, annotations: &Annotations, family: Family) -> Option<IpAddr> {
        let name = match family {
            Family::Ip => "node-public-ip",
            Family::Ip6 => "node-public-ipv6",
        };
        self.address(annotations, name, family)
    }

    fn address(&self, annotations: &Annotations, name: &str, family: Family) -> Option<IpAddr> {
        let address = self.get(annotations, name)?.parse().ok()?;
        (Family::of(address) == family && is_node_address(address)).then_some(address)
    }

    /// The annotations of a node with these ends, as flannel writes them.
    pub fn write(&self, vni: u32, vteps: &PerFamily<Option<Vtep>>) -> Annotations {
        let mut annotations = Annotations::new();
        let mut put = |name: &str, value: String| {
            annotations.insert(format!("{}{name}", self.prefix).into(), value.into());
        };
        put("kube-subnet-manager", "true".to_owned());
        put("backend-type", VXLAN.to_owned());
        for (family, vtep) in vteps {
            if let Some(vtep) = vtep {
                put(
                    data_name(family),
                    format!(r#"{{"VNI":{vni},"VtepMAC":"{}"}}"#, vtep.mac),
                );
                put(public_ip_name(family), vtep.public_ip.to_string());
            }
        }
        annotations
    }
}

const fn data_name(family: Family) -> &'static str {
    match family {
        Family::Ip => "backend-data",
        Family::Ip6 => "backend-v6-data",
    }
}

const fn public_ip_name(family: Family) -> &'static str {
    match family {
        Family::Ip => "public-ip",
        Family::Ip6 => "public-ipv6",
    }
}

/// Portolan's own, and of no concern to flannel.
const fn chosen_name(family: Family) -> &'static str {
    match family {
        Family::Ip => "portolan-public-ip",
        Family::Ip6 => "portolan-public-ipv6",
    }
}

/// VNI, where it is said (flannel before 0.13 did not), and hardware address.
fn backend_data(text: &str) -> Option<(Option<u32>, Mac)> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let mac: Mac = value.get("VtepMAC")?.as_str()?.parse().ok()?;
    let vni = match value.get("VNI") {
        None | Some(serde_json::Value::Null) => None,
        Some(vni) => Some(u32::try_from(vni.as_u64()?).ok()?),
    };
    mac.is_unicast().then_some((vni, mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs
            .iter()
            .map(|(name, value)| (format!("{DEFAULT_PREFIX}/{name}").into(), (*value).into()))
            .collect()
    }

    #[test]
    fn mutated_annotations_do_no_harm() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/annotations");
        fuzz::fuzz(&corpus, [], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            let pairs: Vec<(&str, &str)> = pairs.collect();
            let (annotations, names) = (annotations(&pairs), Names::default());
            for family in Family::ALL {
                names.own_mac(&annotations, family);
                names.own_public_ip(&annotations, family);
                names.public_ip_overwrite(&annotations, family);
                names.node_public_ip(&annotations, family);
            }
            match names.read(&annotations, 1) {
                ParsedAnnotations::Absent => 0,
                ParsedAnnotations::Invalid(reason) => fuzz::outcome(reason),
                ParsedAnnotations::Vteps(vteps) => {
                    // What is read can be written and read again.
                    let written = names.write(1, &vteps);
                    assert_eq!(names.read(&written, 1), ParsedAnnotations::Vteps(vteps));
                    let has = Family::ALL.map(|family| vteps[family].is_some());
                    fuzz::outcome(has)
                }
            }
        });
    }

    #[test]
    fn written_annotations_equal_flannels_and_read_back() {
        let vteps = PerFamily::new(
            Some(Vtep {
                mac: "12:c6:65:89:b4:e3".parse().unwrap(),
                public_ip: "192.0.2.7".parse().unwrap(),
            }),
            Some(Vtep {
                mac: "2a:00:00:00:00:01".parse().unwrap(),
                public_ip: "2001:db8::7".parse().unwrap(),
            }),
        );
        let names = Names::default();
        let written = names.write(1, &vteps);
        assert_eq!(
            written,
            annotations(&[
                ("backend-data", r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#),
                (
                    "backend-v6-data",
                    r#"{"VNI":1,"VtepMAC":"2a:00:00:00:00:01"}"#
                ),
                ("backend-type", "vxlan"),
                ("kube-subnet-manager", "true"),
                ("public-ip", "192.0.2.7"),
                ("public-ipv6", "2001:db8::7"),
            ])
        );
        assert_eq!(names.read(&written, 1), ParsedAnnotations::Vteps(vteps));
        assert_eq!(
            names.own_mac(&written, Family::Ip),
            Some(vteps[Family::Ip].unwrap().mac)
        );
    }

    #[test]
    fn missing_annotations_are_absent_and_malformed_ones_invalid() {
        let names = Names::default();
        let good = [
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-data", r#"{"VtepMAC":"12:c6:65:89:b4:e3"}"#),
            ("public-ip", "192.0.2.7"),
        ];
        let ParsedAnnotations::Vteps(vteps) = names.read(&annotations(&good), 1) else {
            panic!("no VTEPs");
        };
        assert!(vteps[Family::Ip].is_some() && vteps[Family::Ip6].is_none());
        assert_eq!(
            names.read(&annotations(&good[1..]), 1),
            ParsedAnnotations::Absent
        );
        for (place, value) in [
            (1, "host-gw"),
            (2, "{"),
            (2, r#"{"VNI":2,"VtepMAC":"12:c6:65:89:b4:e3"}"#),
            (2, r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#),
            (3, "not an address"),
            (3, "2001:db8::7"),
            (3, "0.0.0.0"),
            (3, "127.0.0.1"),
            (3, "224.0.0.1"),
            (3, "255.255.255.255"),
        ] {
            let mut bad = good;
            bad[place].1 = value;
            assert!(
                matches!(
                    names.read(&annotations(&bad), 1),
                    ParsedAnnotations::Invalid(_)
                ),
                "{value}"
            );
        }
    }

    #[test]
    fn prefixes_join_as_flannel_joins_them() {
        for (prefix, joined) in [
            (
                "flannel.alpha.coreos.com",
                "flannel.alpha.coreos.com/backend-type",
            ),
            ("example.com/net", "example.com/net-backend-type"),
            ("example.com/net-", "example.com/net-backend-type"),
            ("example.com/", "example.com/backend-type"),
        ] {
            assert!(
                Names::new(prefix)
                    .write(1, &PerFamily::default())
                    .contains_key(joined),
                "{prefix}"
            );
        }
    }
}
