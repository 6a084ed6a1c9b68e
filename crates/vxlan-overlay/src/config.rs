//! The operator's configuration of the overlay, most of it from flannel's `net-conf.json`.

use ipnet::IpNet;
use net_types::Family;
use serde_json::Value;

/// The kernel's and flannel's default port on Linux; RFC 7348 assigns 4789.
pub const DEFAULT_PORT: u16 = 8472;
/// More IPv4 peers than these are routed to by nexthop objects. Below, plain routes cost little (14 ms for 1,000 on
/// Linux 6.18) and look as flannel's do.
pub const NEXTHOPS_ABOVE: usize = 1_000;
/// VNIs have 24 bits (RFC 7348).
const MAX_VNI: u32 = (1 << 24) - 1;
/// Longest name of a link (`IFNAMSIZ`, without its end).
const MAX_LINK_NAME: usize = 15;

/// The overlay as decided for a cluster. All nodes must have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// First part of the devices' names: `NAME.VNI` and `NAME-v6.VNI`.
    pub device: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, the same on all nodes.
    pub port: u16,
    /// MTU of the network below, if it is not the external interface's.
    pub outer_mtu: Option<u32>,
    /// Largest packet of pods, if it is to be less than what fits.
    pub pod_mtu: Option<u32>,
    /// Nodes on the same link are reached by a plain route.
    pub direct_routing: bool,
    /// Network of all IPv4 pods. Peers with a pod CIDR outside it are ignored.
    pub network: Option<IpNet>,
    /// Network of all IPv6 pods.
    pub ipv6_network: Option<IpNet>,
    /// Carry IPv4 pods.
    pub ipv4: bool,
    /// Carry IPv6 pods.
    pub ipv6: bool,
    /// Install a blackhole route for unused addresses of this node's pod CIDRs.
    pub blackhole: bool,
    /// Use nexthop objects when there are more IPv4 peers than this.
    pub nexthops_above: usize,
}

impl Default for Config {
    /// flannel's defaults, with both families: each is carried where the nodes have pod ranges of it.
    fn default() -> Self {
        Config {
            device: "flannel".to_owned(),
            vni: 1,
            port: DEFAULT_PORT,
            outer_mtu: None,
            pod_mtu: None,
            direct_routing: false,
            network: None,
            ipv6_network: None,
            ipv4: true,
            ipv6: true,
            blackhole: false,
            nexthops_above: NEXTHOPS_ABOVE,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not an object.
    #[error("net-conf.json is not a JSON object: {0}")]
    NotAnObject(String),
    /// A key has a value that it cannot have.
    #[error("{key}: {value}: {reason}")]
    Value {
        /// The key, as flannel documents it.
        key: &'static str,
        /// The value as it was given, in JSON.
        value: String,
        /// What would be right.
        reason: &'static str,
    },
}

impl Config {
    /// Whether this family is carried.
    pub fn carries(&self, family: Family) -> bool {
        match family {
            Family::Ip => self.ipv4,
            Family::Ip6 => self.ipv6,
        }
    }

    /// The range of all pods of this family, if it is known.
    pub fn network(&self, family: Family) -> Option<IpNet> {
        match family {
            Family::Ip => self.network,
            Family::Ip6 => self.ipv6_network,
        }
    }

    /// The name of this family's device, flannel's scheme.
    pub fn device_name(&self, family: Family) -> String {
        match family {
            Family::Ip => format!("{}.{}", self.device, self.vni),
            Family::Ip6 => format!("{}-v6.{}", self.device, self.vni),
        }
    }

    /// Refuses what cannot be, with the key at fault.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, value: String, reason| Err(ConfigError::Value { key, value, reason });
        if self.vni > MAX_VNI {
            return refuse(
                "Backend.VNI",
                self.vni.to_string(),
                "must be at most 16777215",
            );
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let fits = |family: &Family| self.device_name(*family).len() <= MAX_LINK_NAME;
        let mut carried = Family::ALL
            .into_iter()
            .filter(|family| self.carries(*family));
        if self.device.is_empty()
            || !self.device.bytes().all(plain)
            || !carried.all(|family| fits(&family))
        {
            return refuse(
                "device name",
                self.device.clone(),
                "must have letters, digits, '-', '_' and '.'; NAME.VNI, and NAME-v6.VNI for IPv6, have at most 15 characters",
            );
        }
        if self.port == 0 {
            return refuse("Backend.Port", self.port.to_string(), "must be 1 to 65535");
        }
        if let Some(mtu) = self.outer_mtu.filter(|mtu| !(576..=65535).contains(mtu)) {
            let reason = "must be 576 to 65535, the MTU of the network below";
            return refuse("Backend.MTU", mtu.to_string(), reason);
        }
        if let Some(range @ IpNet::V6(_)) = self.network {
            return refuse("Network", range.to_string(), "must be an IPv4 CIDR");
        }
        if let Some(range @ IpNet::V4(_)) = self.ipv6_network {
            return refuse("IPv6Network", range.to_string(), "must be an IPv6 CIDR");
        }
        if !self.ipv4 && !self.ipv6 {
            let reason = "at least one family must be enabled";
            return refuse("EnableIPv4", "false".to_owned(), reason);
        }
        Ok(())
    }

    /// Reads flannel's `net-conf.json`. Keys match whatever their case, as Go's decoder has it; keys of other
    /// backends and of the etcd manager are passed over.
    pub fn from_net_conf(text: &str) -> Result<Config, ConfigError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| ConfigError::NotAnObject(error.to_string()))?;
        if !value.is_object() {
            return Err(ConfigError::NotAnObject("not an object".to_owned()));
        }
        let backend = get(&value, "Backend").cloned().unwrap_or(Value::Null);
        match get(&backend, "Type") {
            None => {}
            Some(Value::String(kind)) if kind.eq_ignore_ascii_case("vxlan") => {}
            Some(other) => {
                return Err(ConfigError::Value {
                    key: "Backend.Type",
                    value: other.to_string(),
                    reason: "must be vxlan",
                });
            }
        }
        if flag(&backend, "Learning", "Backend.Learning")?.unwrap_or(false) {
            return Err(ConfigError::Value {
                key: "Backend.Learning",
                value: "true".to_owned(),
                reason: "learning lets forged packets change where traffic goes: leave it off",
            });
        }
        let defaults = Config::default();
        let port = number(&backend, "Port", "Backend.Port")?.filter(|port| *port != 0);
        let config = Config {
            vni: number(&backend, "VNI", "Backend.VNI")?.unwrap_or(defaults.vni),
            port: match port {
                None => defaults.port,
                Some(port) => u16::try_from(port).map_err(|_| ConfigError::Value {
                    key: "Backend.Port",
                    value: port.to_string(),
                    reason: "must be 1 to 65535",
                })?,
            },
            outer_mtu: number(&backend, "MTU", "Backend.MTU")?.filter(|mtu| *mtu != 0),
            direct_routing: flag(&backend, "DirectRouting", "Backend.DirectRouting")?
                .unwrap_or(false),
            network: range(&value, "Network", "Network")?,
            ipv6_network: range(&value, "IPv6Network", "IPv6Network")?,
            ipv4: flag(&value, "EnableIPv4", "EnableIPv4")?.unwrap_or(true),
            ipv6: flag(&value, "EnableIPv6", "EnableIPv6")?.unwrap_or(false),
            ..defaults
        };
        config.check()?;
        Ok(config)
    }
}

fn get<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    let (_, value) = object
        .as_object()?
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(key))?;
    (!value.is_null()).then_some(value)
}

/// The value of a key, if it has one, as `read` understands it.
fn read<T>(
    object: &Value,
    (key, name): (&str, &'static str),
    read: impl FnOnce(&Value) -> Option<T>,
    reason: &'static str,
) -> Result<Option<T>, ConfigError> {
    let Some(value) = get(object, key) else {
        return Ok(None);
    };
    let wrong = || ConfigError::Value {
        key: name,
        value: value.to_string(),
        reason,
    };
    read(value).map(Some).ok_or_else(wrong)
}

fn flag(object: &Value, key: &str, name: &'static str) -> Result<Option<bool>, ConfigError> {
    read(
        object,
        (key, name),
        Value::as_bool,
        "must be true or false, without quotes",
    )
}

fn number(object: &Value, key: &str, name: &'static str) -> Result<Option<u32>, ConfigError> {
    let whole = |value: &Value| u32::try_from(value.as_u64()?).ok();
    read(
        object,
        (key, name),
        whole,
        "must be a whole number, without quotes",
    )
}

fn range(object: &Value, key: &str, name: &'static str) -> Result<Option<IpNet>, ConfigError> {
    let range = |value: &Value| Some(value.as_str()?.parse::<IpNet>().ok()?.trunc());
    read(
        object,
        (key, name),
        range,
        "must be a CIDR such as 10.244.0.0/16",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutated_net_conf_does_no_harm() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/net-conf");
        fuzz::fuzz(&corpus, [], |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else {
                return 0;
            };
            match Config::from_net_conf(text) {
                Ok(config) => fuzz::outcome((config.check().is_ok(), config.ipv6, config.vni > 9)),
                Err(error) => fuzz::outcome(std::mem::discriminant(&error)),
            }
        });
    }

    #[test]
    fn flannels_own_example_reads_as_flannel_reads_it() {
        let text = r#"{"Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {"Type": "vxlan"}}"#;
        let config = Config::from_net_conf(text).unwrap();
        let expected = Config {
            network: Some("10.244.0.0/16".parse().unwrap()),
            ipv6: false,
            ..Config::default()
        };
        assert_eq!(config, expected);
        assert_eq!(config.device_name(Family::Ip), "flannel.1");
        assert_eq!(config.device_name(Family::Ip6), "flannel-v6.1");
    }

    #[test]
    fn keys_match_whatever_their_case() {
        let text = r#"{"network": "10.244.0.0/16", "ipv6network": "fd00:244::/32", "enableipv6": true,
                       "backend": {"type": "VXLAN", "Vni": 4096, "port": 4789, "mtu": 9000, "directrouting": true}}"#;
        let config = Config::from_net_conf(text).unwrap();
        assert_eq!(
            (config.vni, config.port, config.outer_mtu),
            (4096, 4789, Some(9000))
        );
        assert!(config.direct_routing && config.ipv6 && config.ipv6_network.is_some());
    }

    #[test]
    fn what_cannot_be_honored_is_refused_by_its_key() {
        for (text, wrong) in [
            (
                r#"{"Backend": {"Type": "udp"}}"#,
                ("Backend.Type", "\"udp\""),
            ),
            (
                r#"{"Backend": {"VNI": 16777216}}"#,
                ("Backend.VNI", "16777216"),
            ),
            (r#"{"Backend": {"VNI": "1"}}"#, ("Backend.VNI", "\"1\"")),
            (r#"{"Backend": {"Port": 70000}}"#, ("Backend.Port", "70000")),
            (
                r#"{"Backend": {"Learning": true}}"#,
                ("Backend.Learning", "true"),
            ),
            (r#"{"Network": "fd00::/48"}"#, ("Network", "fd00::/48")),
            (r#"{"Network": "10.0.0"}"#, ("Network", "\"10.0.0\"")),
            (r#"{"EnableIPv4": false}"#, ("EnableIPv4", "false")),
        ] {
            match Config::from_net_conf(text) {
                Err(ConfigError::Value { key, value, .. }) => assert_eq!((key, &*value), wrong),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!(Config::from_net_conf("[]").is_err() && Config::from_net_conf("{").is_err());
    }
}
