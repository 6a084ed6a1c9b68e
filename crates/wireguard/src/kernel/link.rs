//! Messages of rtnetlink: links, default routes of our tables, policy rules. Functions without effects.

use net_types::Family;
use netlink::{Attributes, Malformed, Message, Writer, flag, is_string, string};

use super::priority;
use crate::state::{ObservedDevice, RULE_PRIORITY, Rule, SEAL_PRIORITY, Seal, Step, UNREACHABLE};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
pub(super) const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
pub(super) const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
pub(super) const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
pub(super) const GET_RULE: u16 = 34;

/// Bytes of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
/// Bytes of `struct rtmsg` and of `struct fib_rule_hdr`.
const RTMSG: usize = 12;
/// Bytes of `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;
/// `IFA_ADDRESS` and `IFA_LOCAL`
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// An address of the link, the same on all nodes (RFC 3927): nothing is sent from it or to it.
const ADDRESS: [u8; 4] = [169, 254, 81, 82];
/// Any link.
pub(super) const NO_LINK: [u8; IFINFOMSG] = [0; IFINFOMSG];

/// `IFLA_IFNAME`
pub(super) const NAME: u16 = 3;
/// `enum` of `IFLA_...` in if_link.h
mod ifla {
    pub(super) const MTU: u16 = 4;
    pub(super) const LINK_INFO: u16 = 18;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const AF_SPEC: u16 = 26;
    pub(super) const INET_CONF: u16 = 1;
}
/// `IPV4_DEVCONF_RP_FILTER`
const RP_FILTER: u16 = 8;
/// `IFF_UP`
const UP: u32 = 1;
const KIND: &str = "wireguard";

/// `RTA_OIF`, `RTA_PRIORITY`, `RTA_TABLE`
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;
/// `RTN_UNICAST`, `RT_SCOPE_LINK`
const UNICAST: u8 = 1;
/// `RTN_UNREACHABLE`, and the metric of such a route: worse than any other.
const UNREACHABLE_KIND: u8 = 7;
const WORST: u32 = 4_000_000_000;
const SCOPE_LINK: u8 = 253;
/// `rtm_protocol` of everything that Portolan writes.
const PROTOCOL: u8 = 112;

/// `enum` of `FRA_...` in fib_rules.h
mod fra {
    pub(super) const IIFNAME: u16 = 3;
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const TABLE: u16 = 15;
    pub(super) const OIFNAME: u16 = 17;
    pub(super) const PROTOCOL: u16 = 21;
    pub(super) const IP_PROTO: u16 = 22;
    pub(super) const DPORT_RANGE: u16 = 24;

    /// `FR_ACT_TO_TBL`
    pub(super) const TO_TABLE: u8 = 1;
}
const UDP: u8 = 17;

/// A request without its sequence number.
pub(super) struct Request {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) header: Vec<u8>,
    pub(super) attributes: Vec<u8>,
}

/// The request of a step; `None` for a step of another protocol.
pub(super) fn request(step: &Step) -> Option<Request> {
    let mut out = Writer::default();
    let create = flag::CREATE | flag::EXCL;
    let (kind, flags, header) = match step {
        Step::CreateDevice(name, mtu) => {
            out.put_str(NAME, name);
            out.put(ifla::MTU, &mtu.to_ne_bytes());
            out.nest(ifla::LINK_INFO, |out| out.put_str(ifla::INFO_KIND, KIND));
            (NEW_LINK, create, link_header(0, 0, 0))
        }
        Step::DeleteDevice(index, _) => (DELETE_LINK, 0, link_header(*index, 0, 0)),
        Step::SetMtu(index, mtu) => {
            out.put(ifla::MTU, &mtu.to_ne_bytes());
            (NEW_LINK, 0, link_header(*index, 0, 0))
        }
        Step::SetLooseFilter(index) => {
            out.nest(ifla::AF_SPEC, |out| {
                out.nest(af(Family::Ip).into(), |out| {
                    out.nest(ifla::INET_CONF, |out| {
                        out.put(RP_FILTER, &2_u32.to_ne_bytes())
                    });
                });
            });
            (NEW_LINK, 0, link_header(*index, 0, 0))
        }
        Step::AddAddress(index) => {
            out.put(IFA_LOCAL, &ADDRESS);
            out.put(IFA_ADDRESS, &ADDRESS);
            (NEW_ADDRESS, create, address_header(*index, 32, SCOPE_LINK))
        }
        Step::SetUp(index) => (NEW_LINK, 0, link_header(*index, UP, UP)),
        Step::AddRoute(family, table, index) => {
            put_route(*table, *index, &mut out);
            (
                NEW_ROUTE,
                create,
                route_header(*family, PROTOCOL, kind_of(*index)),
            )
        }
        Step::DeleteRoute(family, table, index) => {
            put_route(*table, *index, &mut out);
            (DELETE_ROUTE, 0, route_header(*family, 0, kind_of(*index)))
        }
        Step::AddRule(family, rule) => (NEW_RULE, create, put_rule(*family, rule, &mut out)),
        Step::DeleteRule(family, rule) => (DELETE_RULE, 0, put_rule(*family, rule, &mut out)),
        Step::SetKey(..) | Step::ChangePeers(..) => return None,
    };
    Some(Request {
        kind,
        flags,
        header,
        attributes: out.bytes,
    })
}

/// `AF_INET` or `AF_INET6`
const fn af(family: Family) -> u8 {
    match family {
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

fn link_header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    for word in [index, flags, change] {
        header.extend(word.to_ne_bytes());
    }
    header
}

/// `struct ifaddrmsg` of IPv4.
fn address_header(index: u32, length: u8, scope: u8) -> Vec<u8> {
    let mut header = vec![af(Family::Ip), length, 0, scope];
    header.extend(index.to_ne_bytes());
    header
}

/// Header that lists the IPv4 addresses of a link.
pub(super) fn addresses_request(index: u32) -> Vec<u8> {
    address_header(index, 0, 0)
}

/// The link of an IPv4 address.
pub(super) fn link_of_address(message: &Message<'_>) -> Result<u32, Malformed> {
    let header = message.payload.first_chunk::<IFADDRMSG>();
    let [_, _, _, _, i0, i1, i2, i3] = *header.ok_or(Malformed::Length("an address"))?;
    Ok(u32::from_ne_bytes([i0, i1, i2, i3]))
}

/// The kind of the route to a device, or of the last one.
const fn kind_of(index: u32) -> u8 {
    match index {
        UNREACHABLE => UNREACHABLE_KIND,
        _ => UNICAST,
    }
}

/// `struct rtmsg` of a default route.
fn route_header(family: Family, protocol: u8, kind: u8) -> Vec<u8> {
    let scope = match (family, kind) {
        (Family::Ip, UNICAST) => SCOPE_LINK,
        _ => 0,
    };
    vec![af(family), 0, 0, 0, 0, protocol, scope, kind, 0, 0, 0, 0]
}

fn put_route(table: u32, index: u32, out: &mut Writer) {
    out.put(RTA_TABLE, &table.to_ne_bytes());
    match index {
        UNREACHABLE => out.put(RTA_PRIORITY, &WORST.to_ne_bytes()),
        _ => out.put(RTA_OIF, &index.to_ne_bytes()),
    }
}

/// Header and attributes that list the routes of a table.
pub(super) fn routes_request(family: Family, table: u32) -> (Vec<u8>, Vec<u8>) {
    let mut out = Writer::default();
    out.put(RTA_TABLE, &table.to_ne_bytes());
    (rule_header(family), out.bytes)
}

/// The device of a default route of this table, or [`UNREACHABLE`].
pub(super) fn default_route(message: &Message<'_>, table: u32) -> Result<Option<u32>, Malformed> {
    let header = message.payload.first_chunk::<RTMSG>();
    let [_, length, _, _, short, _, _, kind, ..] = *header.ok_or(Malformed::Length("a route"))?;
    let (mut found, mut out, mut metric) = (u32::from(short), None, 0);
    for attribute in message.attributes(RTMSG)? {
        let attribute = attribute?;
        match attribute.kind {
            RTA_TABLE => found = u32_of(attribute.payload)?,
            RTA_OIF => out = Some(u32_of(attribute.payload)?),
            RTA_PRIORITY => metric = u32_of(attribute.payload)?,
            _ => {}
        }
    }
    let to = match kind {
        UNICAST => out,
        // Of IPv6, it names the loopback device.
        UNREACHABLE_KIND if metric == WORST => Some(UNREACHABLE),
        _ => None,
    };
    Ok(to.filter(|_| found == table && length == 0))
}

/// Header that lists the rules of a family.
pub(super) fn rule_header(family: Family) -> Vec<u8> {
    vec![af(family), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// Writes the attributes of a rule, and returns its header (`struct fib_rule_hdr`).
fn put_rule(family: Family, rule: &Rule, out: &mut Writer) -> Vec<u8> {
    out.put(fra::PRIORITY, &priority(rule).to_ne_bytes());
    out.put(fra::PROTOCOL, &[PROTOCOL]);
    let action = match rule {
        Rule::Device(name, table) => {
            out.put_str(fra::OIFNAME, name);
            out.put(fra::TABLE, &table.to_ne_bytes());
            fra::TO_TABLE
        }
        Rule::Seal(seal) => {
            // Forwarded packets have another input interface than `lo`.
            out.put_str(fra::IIFNAME, "lo");
            out.put(fra::IP_PROTO, &[UDP]);
            let range = [seal.port.to_ne_bytes(), seal.port.to_ne_bytes()].concat();
            out.put(fra::DPORT_RANGE, &range);
            out.put(fra::TABLE, &seal.table.to_ne_bytes());
            fra::TO_TABLE
        }
    };
    vec![af(family), 0, 0, 0, 0, 0, 0, action, 0, 0, 0, 0]
}

/// A rule of ours; `None` for one that has another priority, or another form.
pub(super) fn rule(message: &Message<'_>) -> Result<Option<Rule>, Malformed> {
    let header = message.payload.first_chunk::<RTMSG>();
    let [_, to, from, _, _, _, _, action, ..] = *header.ok_or(Malformed::Length("a rule"))?;
    let (mut preference, mut table, mut name, mut ports) = (0, 0, None, None);
    let (mut is_local, mut is_udp) = (false, false);
    for attribute in message.attributes(RTMSG)? {
        let attribute = attribute?;
        let payload = attribute.payload;
        match attribute.kind {
            fra::PRIORITY => preference = u32_of(payload)?,
            fra::TABLE => table = u32_of(payload)?,
            fra::OIFNAME => name = string(payload, "FRA_OIFNAME").ok(),
            fra::IIFNAME => is_local = is_string(payload, "lo"),
            fra::IP_PROTO => is_udp = payload == [UDP],
            fra::DPORT_RANGE => ports = payload.split_first_chunk::<2>(),
            _ => {}
        }
    }
    let is_plain = to == 0 && from == 0;
    Ok(match (preference, action, name) {
        (RULE_PRIORITY, fra::TO_TABLE, Some(name)) if is_plain => {
            Some(Rule::Device(name.to_owned(), table))
        }
        (SEAL_PRIORITY, fra::TO_TABLE, None) if is_plain && is_local && is_udp => {
            let single = ports.filter(|(first, last)| first[..] == **last);
            let port = single.map(|(first, _)| u16::from_ne_bytes(*first));
            port.map(|port| Rule::Seal(Seal { port, table }))
        }
        _ => None,
    })
}

/// A link as a device, without what generic netlink says of it.
pub(super) fn device(message: &Message<'_>) -> Result<ObservedDevice, Malformed> {
    let header = message.payload.first_chunk::<IFINFOMSG>();
    let [_, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] =
        *header.ok_or(Malformed::Length("a link"))?;
    let mut device = ObservedDevice {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        up: u32::from_ne_bytes([f0, f1, f2, f3]) & UP != 0,
        ..ObservedDevice::default()
    };
    for attribute in message.attributes(IFINFOMSG)? {
        let attribute = attribute?;
        let payload = attribute.payload;
        match attribute.kind {
            ifla::MTU => device.mtu = u32_of(payload)?,
            ifla::LINK_INFO => {
                let kind = Attributes::new(payload).find(ifla::INFO_KIND)?;
                device.is_wireguard = kind.is_some_and(|kind| is_string(kind, KIND));
            }
            ifla::AF_SPEC => device.rp_filter = rp_filter(payload)?,
            _ => {}
        }
    }
    Ok(device)
}

/// Answers hold all settings of IPv4 as an array, from number 1 on.
fn rp_filter(af_spec: &[u8]) -> Result<Option<u32>, Malformed> {
    let Some(inet) = Attributes::new(af_spec).find(af(Family::Ip).into())? else {
        return Ok(None);
    };
    let settings = Attributes::new(inet).find(ifla::INET_CONF)?;
    let words = settings.unwrap_or_default().as_chunks::<4>().0;
    let word = words.get(usize::from(RP_FILTER - 1));
    Ok(word.map(|word| u32::from_ne_bytes(*word)))
}

fn u32_of(payload: &[u8]) -> Result<u32, Malformed> {
    let bytes = payload.try_into().map(u32::from_ne_bytes);
    bytes.map_err(|_| Malformed::Value("a number of 32 bits"))
}

#[cfg(test)]
mod tests {
    use netlink::messages;

    use super::*;

    #[test]
    fn rules_and_routes_read_back_as_they_were_written() {
        let rules = [
            Rule::Device("portolan-wg".to_owned(), 5182),
            Rule::Seal(Seal {
                port: 8472,
                table: 5182,
            }),
        ];
        for rule in rules {
            for family in Family::ALL {
                let request = request(&Step::AddRule(family, rule.clone())).unwrap();
                let bytes = bytes(&request);
                let message = messages(&bytes).next().unwrap().unwrap();
                assert_eq!(super::rule(&message), Ok(Some(rule.clone())));
            }
        }
        let request = request(&Step::AddRoute(Family::Ip6, 5182, 7)).unwrap();
        let bytes = bytes(&request);
        let message = messages(&bytes).next().unwrap().unwrap();
        assert_eq!(default_route(&message, 5182), Ok(Some(7)));
        assert_eq!(default_route(&message, 5183), Ok(None));
    }

    fn bytes(request: &Request) -> Vec<u8> {
        let mut out = Writer::default();
        let start = out.start(request.kind, request.flags, 1, &request.header);
        out.bytes.extend_from_slice(&request.attributes);
        out.finish(start);
        out.bytes
    }
}
