//! The network below: this node's interfaces, and which of them carries the outer packets.
//!
//! A function of what the kernel shows, asked again after every change: flannel chooses once and wants a restart when
//! an address changes. Its order of choice is kept for the operator's preferences; without any, an address
//! that another program published comes first, then the Node object's own, then flannel's default route.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use net_types::{Family, PerFamily};
use regex::Regex;

/// An interface as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Number, above 0.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Switched on.
    pub up: bool,
    /// VNI and UDP port, if it is a VXLAN device.
    pub tunnel: Option<(u32, u16)>,
    /// Index of the VRF that it belongs to: its own, if it is one.
    pub vrf: Option<u32>,
    /// Its addresses with the range on the link, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Address and prefix.
    pub net: IpNet,
    /// Given for good, not for a lease.
    pub permanent: bool,
    /// Neither temporary nor deprecated nor tentative.
    pub stable: bool,
}

impl InterfaceAddress {
    fn is_global(self) -> bool {
        match self.net.addr() {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        }
    }
}

/// Interfaces and routes of the underlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// All interfaces.
    pub interfaces: Vec<Interface>,
    /// The default route's interface, by family.
    pub default_route: PerFamily<Option<u32>>,
    /// Interfaces by which gateways of any route are reached that does not lead to pods: by these, packets of other nodes
    /// may arrive.
    pub uplinks: PerFamily<BTreeSet<u32>>,
    /// The interface on the way to [`Preferences::can_reach`], in the family of that address.
    pub reaching: PerFamily<Option<u32>>,
    /// How the kernel sends to addresses that were looked up: `None` for through a gateway, or not at all.
    pub ways: BTreeMap<IpAddr, Option<OnLink>>,
}

/// The kernel sends to an address without a gateway, through the interface of this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnLink(pub u32);

/// The operator's choice of the interface, by flannel's flags.
#[derive(Clone, Debug, Default)]
pub struct Preferences {
    /// `--iface`: names or addresses, the first that fits.
    pub names: Vec<String>,
    /// `--iface-regex`: matched against addresses, then names.
    pub patterns: Vec<Regex>,
    /// `--iface-can-reach`
    pub can_reach: Option<IpAddr>,
    /// `--public-ip` and `--public-ipv6`
    pub public_ip: PerFamily<Option<IpAddr>>,
}

impl Preferences {
    /// Whether they decide on an interface, whatever its addresses.
    pub(crate) fn name_interfaces(&self) -> bool {
        !self.names.is_empty() || !self.patterns.is_empty() || self.can_reach.is_some()
    }
}

/// The interface and the address of it that outer packets leave from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Number of the interface.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// MTU of the way of outer packets: the interface's, unless the interface is no link.
    pub mtu: u32,
    /// The address.
    pub address: IpAddr,
}

/// The interfaces that may carry outer packets.
struct Candidates<'a>(Vec<&'a Interface>);

/// Packets to its addresses may arrive by any interface.
pub(crate) const LOOPBACK: &str = "lo";
/// No packet is larger (RFC 791): an interface with a larger MTU, such as `lo` or a VRF, has an address but is no link.
const MAX_PACKET: u32 = 65_535;

/// Whether a node can be reached at an address: it is of one host, and not of every host for itself, and means something without
/// an interface.
pub(crate) fn is_node_address(address: IpAddr) -> bool {
    let means_nothing = match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || means_nothing)
}

impl Surroundings {
    /// The interface for a family. `known` are addresses this node goes by, best first: each counts if an interface
    /// has it. `is_inner` are interfaces that outer packets cannot leave by: tunnel devices, and those of pods. `None`
    /// when no interface will do: it may come yet.
    pub fn external(
        &self,
        family: Family,
        preferences: &Preferences,
        known: &[IpAddr],
        is_inner: impl Fn(&Interface) -> bool,
    ) -> Option<External> {
        let candidates = self.interfaces.iter().filter(|i| !is_inner(i));
        let candidates = Candidates(candidates.collect());
        let chosen = self.choose(family, preferences, known, &candidates)?;
        let mtu = match chosen.mtu > MAX_PACKET {
            true => {
                let own = candidates.0.iter().find(|i| i.index == chosen.index);
                let of_vrf = own.and_then(|own| own.vrf).and_then(|vrf| {
                    let members = candidates.0.iter().filter(|i| i.vrf == Some(vrf));
                    let members = Candidates(members.copied().collect());
                    self.link_mtu(family, &members, true)
                });
                of_vrf
                    .or_else(|| self.link_mtu(family, &candidates, false))
                    .unwrap_or(chosen.mtu)
            }
            false => chosen.mtu,
        };
        Some(External { mtu, ..chosen })
    }

    fn choose(
        &self,
        family: Family,
        preferences: &Preferences,
        known: &[IpAddr],
        candidates: &Candidates<'_>,
    ) -> Option<External> {
        let Preferences {
            names, patterns, ..
        } = preferences;
        if !(names.is_empty() && patterns.is_empty()) {
            let mut named = names.iter();
            let mut matching = patterns.iter();
            return named
                .find_map(|name| candidates.named(family, name))
                .or_else(|| matching.find_map(|pattern| candidates.matching(family, pattern)));
        }
        if preferences.can_reach.is_some() {
            // The address is of one family, and the interface serves both (as in flannel).
            let reaching = Family::ALL.map(|family| self.reaching[family]);
            return candidates.by_index(family, reaching.into_iter().flatten().next());
        }
        let known = || {
            let all = preferences.public_ip[family].iter().chain(known);
            all.filter(|address| Family::of(**address) == family)
        };
        known()
            .find_map(|address| candidates.owner(*address))
            .or_else(|| candidates.by_index(family, self.default_route[family]))
            // An address that has just been replaced by another of its link.
            .or_else(|| {
                known().find_map(|address| candidates.by_index(family, self.on_link(*address)))
            })
    }

    /// The MTU of what leads to the other nodes where the address is on no link: that of the default route, or the
    /// least of all links with an address of the family, or of `any` link.
    fn link_mtu(&self, family: Family, candidates: &Candidates<'_>, any: bool) -> Option<u32> {
        let links = || candidates.0.iter().filter(|i| i.up && i.mtu <= MAX_PACKET);
        let default = links().find(|i| Some(i.index) == self.default_route[family]);
        let has_address = |i: &&&Interface| {
            let mut addresses = i.addresses.iter();
            addresses.any(|a| Family::of(a.net.addr()) == family)
        };
        default
            .map(|i| i.mtu)
            .or_else(|| links().filter(has_address).map(|i| i.mtu).min())
            .or_else(|| links().filter(|_| any).map(|i| i.mtu).min())
    }

    /// Names of the interfaces by which packets of other nodes may arrive, where this node has its address on the one of
    /// this index; empty: any. `is_inner` as with [`Surroundings::external`].
    pub(crate) fn inputs(
        &self,
        family: Family,
        external: u32,
        is_inner: impl Fn(&Interface) -> bool,
    ) -> Vec<String> {
        let of_index = |index: u32| self.interfaces.iter().find(move |i| i.index == index);
        let Some(own) = of_index(external).filter(|own| own.name != LOOPBACK) else {
            return Vec::new();
        };
        // Packets pass the rules twice where their interface belongs to a VRF: by its name, and by the VRF's.
        let is_input = |interface: &&Interface| {
            interface.index == own.index
                || own.vrf.is_some() && interface.vrf == own.vrf
                || self.uplinks[family].contains(&interface.index)
        };
        let outer = self.interfaces.iter().filter(is_input);
        let outer = outer.filter(|i| i.index == own.index || i.tunnel.is_none() && !is_inner(i));
        let mut names: Vec<String> = outer.map(|interface| interface.name.clone()).collect();
        names.sort();
        names
    }

    /// The link whose range holds an address. A tunnel device is no link, even if a DHCP client gave it an address.
    fn on_link(&self, address: IpAddr) -> Option<u32> {
        let is_link = |interface: &&Interface| interface.up && interface.tunnel.is_none();
        let up = self.interfaces.iter().filter(is_link);
        up.flat_map(|interface| {
            interface
                .addresses
                .iter()
                .map(move |own| (interface.index, own.net))
        })
        .filter(|(_, net)| net.contains(&address) && net.prefix_len() < net.max_prefix_len())
        .max_by_key(|(_, net)| net.prefix_len())
        .map(|(index, _)| index)
    }
}

impl Candidates<'_> {
    fn named(&self, family: Family, name: &str) -> Option<External> {
        if let Ok(address) = name.parse::<IpAddr>() {
            return self.holder(address)?.external(family, Some(address));
        }
        let mut all = self.0.iter();
        all.find(|i| i.name == name)?.external(family, None)
    }

    fn matching(&self, family: Family, pattern: &Regex) -> Option<External> {
        let by_address = self.0.iter().find_map(|interface| {
            let fits = |a: &&InterfaceAddress| pattern.is_match(&a.net.addr().to_string());
            let address = interface.addresses.iter().find(fits)?.net.addr();
            interface.external(family, Some(address))
        });
        let by_name = || {
            let mut named = self.0.iter().filter(|i| pattern.is_match(&i.name));
            named.find_map(|i| i.external(family, None))
        };
        by_address.or_else(by_name)
    }

    fn by_index(&self, family: Family, index: Option<u32>) -> Option<External> {
        let mut all = self.0.iter();
        all.find(|i| Some(i.index) == index)?.external(family, None)
    }

    fn owner(&self, address: IpAddr) -> Option<External> {
        self.holder(address)?
            .external(Family::of(address), Some(address))
    }

    fn holder(&self, address: IpAddr) -> Option<&Interface> {
        let holds = |i: &Interface| i.addresses.iter().any(|own| own.net.addr() == address);
        self.0.iter().copied().find(|i| holds(i))
    }
}

impl Interface {
    /// This interface by the address that was asked for, if it is of the family, or else by its best.
    fn external(&self, family: Family, address: Option<IpAddr>) -> Option<External> {
        let asked =
            address.filter(|address| Family::of(*address) == family && is_node_address(*address));
        // flannel's order (0.28): global before link-local, permanent before leased, never a temporary one. A link-local
        // address of IPv6 means nothing to other nodes without an interface of theirs.
        let rank = |a: &&InterfaceAddress| (!a.is_global(), !a.permanent);
        let usable = self
            .addresses
            .iter()
            .filter(|a| Family::of(a.net.addr()) == family && a.stable)
            .filter(|a| is_node_address(a.net.addr()))
            .filter(|a| family == Family::Ip || a.is_global());
        let address = asked.or_else(|| usable.min_by_key(rank).map(|a| a.net.addr()))?;
        let (index, name, mtu) = (self.index, self.name.clone(), self.mtu);
        Some(External {
            index,
            name,
            mtu,
            address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|net| InterfaceAddress {
            net: net.parse().unwrap(),
            permanent: true,
            stable: true,
        });
        Interface {
            index,
            name: name.to_owned(),
            mtu: 1500,
            up: true,
            tunnel: None,
            vrf: None,
            addresses: addresses.collect(),
        }
    }

    fn surroundings() -> Surroundings {
        Surroundings {
            interfaces: vec![
                interface(1, "lo", &["127.0.0.1/8"]),
                interface(2, "mgmt0", &["10.0.2.15/24", "fe80::2/64"]),
                interface(
                    3,
                    "eth0",
                    &[
                        "169.254.7.7/16",
                        "192.0.2.7/24",
                        "192.0.2.8/24",
                        "2001:db8::7/64",
                    ],
                ),
            ],
            default_route: PerFamily::new(Some(2), Some(3)),
            uplinks: PerFamily::default(),
            reaching: PerFamily::new(Some(3), None),
            ways: BTreeMap::new(),
        }
    }

    fn chosen(preferences: &Preferences, known: &[&str]) -> Option<(String, String)> {
        let known: Vec<IpAddr> = known.iter().map(|a| a.parse().unwrap()).collect();
        let external = surroundings().external(Family::Ip, preferences, &known, |_| false)?;
        Some((external.name, external.address.to_string()))
    }

    fn some(name: &str, address: &str) -> Option<(String, String)> {
        Some((name.to_owned(), address.to_owned()))
    }

    #[test]
    fn known_node_address_comes_before_the_default_route() {
        let nothing = Preferences::default();
        assert_eq!(chosen(&nothing, &[]), some("mgmt0", "10.0.2.15"));
        assert_eq!(
            chosen(&nothing, &["198.51.100.1", "192.0.2.8"]),
            some("eth0", "192.0.2.8")
        );
    }

    #[test]
    fn flags_are_tried_in_flannels_order_and_none_that_fits_is_none() {
        let names = |names: &[&str]| Preferences {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            ..Preferences::default()
        };
        assert_eq!(
            chosen(&names(&["eth9", "eth0"]), &[]),
            some("eth0", "192.0.2.7")
        );
        assert_eq!(
            chosen(&names(&["192.0.2.8"]), &[]),
            some("eth0", "192.0.2.8")
        );
        assert_eq!(chosen(&names(&["eth9"]), &["192.0.2.8"]), None);
        let pattern = Preferences {
            patterns: vec![Regex::new("^192\\.0").unwrap()],
            ..Preferences::default()
        };
        assert_eq!(chosen(&pattern, &[]), some("eth0", "192.0.2.7"));
        let any = Preferences {
            patterns: vec![Regex::new("").unwrap()],
            ..Preferences::default()
        };
        assert_eq!(chosen(&any, &[]), some("mgmt0", "10.0.2.15"), "never lo");
        let reach = Preferences {
            can_reach: Some("203.0.113.1".parse().unwrap()),
            ..Preferences::default()
        };
        assert_eq!(chosen(&reach, &[]), some("eth0", "192.0.2.7"));
        let public = Preferences {
            public_ip: PerFamily::new(Some("192.0.2.8".parse().unwrap()), None),
            ..Preferences::default()
        };
        assert_eq!(chosen(&public, &["10.0.2.15"]), some("eth0", "192.0.2.8"));
        let public = Preferences {
            public_ip: PerFamily::new(None, Some("2001:db8::7".parse().unwrap())),
            ..Preferences::default()
        };
        let elsewhere = Surroundings {
            default_route: PerFamily::new(Some(2), Some(2)),
            ..surroundings()
        };
        let found = elsewhere
            .external(Family::Ip6, &public, &[], |_| false)
            .unwrap();
        assert_eq!(
            (&*found.name, found.address),
            ("eth0", "2001:db8::7".parse().unwrap())
        );
    }

    #[test]
    fn the_interface_that_reaches_an_address_serves_both_families() {
        let reach = Preferences {
            can_reach: Some("203.0.113.1".parse().unwrap()),
            ..Preferences::default()
        };
        let found = surroundings().external(Family::Ip6, &reach, &[], |_| false);
        assert_eq!(&*found.unwrap().name, "eth0");
    }

    #[test]
    fn inner_interfaces_carry_no_outer_packets() {
        let known: Vec<IpAddr> = vec!["192.0.2.8".parse().unwrap()];
        let nothing = Preferences::default();
        let is_inner = |interface: &Interface| interface.name == "eth0";
        let found = surroundings().external(Family::Ip, &nothing, &known, is_inner);
        assert_eq!(&*found.unwrap().name, "mgmt0");
    }

    #[test]
    fn an_address_on_no_link_has_the_mtu_of_the_way() {
        let mut here = surroundings();
        here.interfaces[0].mtu = 65_536;
        here.interfaces[0].addresses.push(InterfaceAddress {
            net: "198.51.100.7/32".parse().unwrap(),
            permanent: true,
            stable: true,
        });
        here.interfaces[2].mtu = 1400;
        let known: Vec<IpAddr> = vec!["198.51.100.7".parse().unwrap()];
        let nothing = Preferences::default();
        let mtu = |here: &Surroundings| {
            let found = here.external(Family::Ip, &nothing, &known, |_| false);
            found.map(|found| (found.name, found.mtu))
        };
        assert_eq!(mtu(&here), Some(("lo".to_owned(), 1500)));
        here.default_route = PerFamily::default();
        assert_eq!(mtu(&here), Some(("lo".to_owned(), 1400)));
    }

    #[test]
    fn an_address_of_a_vrf_has_the_mtu_of_its_members() {
        let mut here = surroundings();
        let mut blue = interface(9, "blue", &["198.51.100.7/32"]);
        (blue.mtu, blue.vrf) = (65_575, Some(100));
        here.interfaces.push(blue);
        let known: Vec<IpAddr> = vec!["198.51.100.7".parse().unwrap()];
        let nothing = Preferences::default();
        let mtu = |here: &Surroundings| {
            let found = here.external(Family::Ip, &nothing, &known, |_| false);
            found.map(|found| (found.name, found.mtu))
        };
        // A VRF without members: as without a VRF.
        assert_eq!(mtu(&here), Some(("blue".to_owned(), 1500)));
        // Its member has no address: the VRF has them all. The default route leads elsewhere.
        let mut member = interface(10, "eth9", &[]);
        (member.mtu, member.vrf) = (1300, Some(100));
        here.interfaces.push(member);
        assert_eq!(mtu(&here), Some(("blue".to_owned(), 1300)));
        here.default_route = PerFamily::default();
        assert_eq!(mtu(&here), Some(("blue".to_owned(), 1300)));
    }
}
