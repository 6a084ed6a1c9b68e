//! flannel's annotations on Node objects, byte for byte in both directions.
//!
//! Nodes with flannel and nodes with Portolan read each other's, so names, forms and even the order of keys are
//! flannel's: its own reader of `backend-data` cuts the text at `:"` instead of parsing JSON, and finds its MAC again
//! after a way back only in exactly this form. Values are foreign text: they are parsed, never repeated.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nft::Family;

use crate::mac::Mac;

/// flannel's `--kube-annotation-prefix`.
pub const DEFAULT_PREFIX: &str = "flannel.alpha.coreos.com";
/// The value of `backend-type`.
const VXLAN: &str = "vxlan";

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

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It takes no part: no `kube-subnet-manager`.
    Nothing,
    /// Its backend is another one, or its data do not decode: what was good before stays.
    Unusable(&'static str),
    /// The ends of its tunnels, for the families that it has.
    Vteps([Option<Vtep>; 2]),
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

    /// What these annotations say, for a VNI.
    pub fn read(&self, annotations: &Annotations, vni: u32) -> Said {
        if self.get(annotations, "kube-subnet-manager") != Some("true") {
            return Said::Nothing;
        }
        if self.get(annotations, "backend-type") != Some(VXLAN) {
            return Said::Unusable("its backend is not vxlan");
        }
        let mut vteps = [None, None];
        for (vtep, family) in vteps.iter_mut().zip(Family::ALL) {
            let data = self.get(annotations, data_name(family));
            let public_ip = self.get(annotations, public_ip_name(family));
            *vtep = match (data, public_ip) {
                // flannel leaves `null` behind for a family that it does not carry.
                (None | Some("" | "null"), _) | (_, None | Some("")) => None,
                (Some(data), Some(public_ip)) => {
                    let Some((its_vni, mac)) = backend_data(data) else {
                        return Said::Unusable("its backend data do not decode");
                    };
                    if its_vni.is_some_and(|its_vni| its_vni != vni) {
                        return Said::Unusable("its VNI is another one");
                    }
                    match public_ip.parse::<IpAddr>() {
                        Ok(public_ip) if Family::of(public_ip) == family => {
                            Some(Vtep { mac, public_ip })
                        }
                        _ => return Said::Unusable("its public address is none"),
                    }
                }
            };
        }
        Said::Vteps(vteps)
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
        (Family::of(address) == family).then_some(address)
    }

    /// The annotations of a node with these ends, as flannel writes them.
    pub fn write(&self, vni: u32, vteps: &[Option<Vtep>; 2]) -> Annotations {
        let mut annotations = Annotations::new();
        let mut put = |name: &str, value: String| {
            annotations.insert(format!("{}{name}", self.prefix).into(), value.into());
        };
        put("kube-subnet-manager", "true".to_owned());
        put("backend-type", VXLAN.to_owned());
        for (vtep, family) in vteps.iter().zip(Family::ALL) {
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
    fn what_is_written_is_flannels_byte_for_byte_and_reads_back() {
        let vteps = [
            Some(Vtep {
                mac: "12:c6:65:89:b4:e3".parse().unwrap(),
                public_ip: "192.0.2.7".parse().unwrap(),
            }),
            Some(Vtep {
                mac: "2a:00:00:00:00:01".parse().unwrap(),
                public_ip: "2001:db8::7".parse().unwrap(),
            }),
        ];
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
        assert_eq!(names.read(&written, 1), Said::Vteps(vteps));
        assert_eq!(
            names.own_mac(&written, Family::Ip),
            Some(vteps[0].unwrap().mac)
        );
    }

    #[test]
    fn a_node_without_flannels_mark_says_nothing_and_a_strange_one_is_unusable() {
        let names = Names::default();
        let good = [
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-data", r#"{"VtepMAC":"12:c6:65:89:b4:e3"}"#),
            ("public-ip", "192.0.2.7"),
        ];
        assert!(matches!(
            names.read(&annotations(&good), 1),
            Said::Vteps([Some(_), None])
        ));
        assert_eq!(names.read(&annotations(&good[1..]), 1), Said::Nothing);
        for (place, value) in [
            (1, "host-gw"),
            (2, "{"),
            (2, r#"{"VNI":2,"VtepMAC":"12:c6:65:89:b4:e3"}"#),
            (2, r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#),
            (3, "not an address"),
            (3, "2001:db8::7"),
        ] {
            let mut bad = good;
            bad[place].1 = value;
            assert!(
                matches!(names.read(&annotations(&bad), 1), Said::Unusable(_)),
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
                    .write(1, &[None, None])
                    .contains_key(joined),
                "{prefix}"
            );
        }
    }
}
