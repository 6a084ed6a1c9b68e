//! Steps and routes in words, for log lines and reports.

use std::fmt;

use super::{ObservedRoute, Operation};
use crate::plan::Way;

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::DeleteDevice(_) => write!(f, "deleting the tunnel device"),
            Operation::CreateDevice(device) => write!(
                f,
                "creating device {} (VNI {}, port {})",
                device.name, device.vni, device.port
            ),
            Operation::SetMtu(_, mtu) => write!(f, "setting the tunnel's MTU to {mtu}"),
            Operation::SetMac(_, mac) => {
                write!(f, "setting the tunnel's hardware address to {mac}")
            }
            Operation::SetOuter(_, _, local) => write!(f, "setting the tunnel's source to {local}"),
            Operation::SetUp(_) => write!(f, "setting the tunnel device up"),
            Operation::AddAddress(_, net) => write!(f, "adding address {net} to the tunnel device"),
            Operation::DeleteAddress(_, net) => {
                write!(f, "deleting address {net} of the tunnel device")
            }
            Operation::PutNeighbor(_, ip, mac) => write!(f, "writing neighbor {ip} at {mac}"),
            Operation::DeleteNeighbor(_, ip) => write!(f, "deleting neighbor {ip}"),
            Operation::PutForwarding(_, mac, outer) => {
                write!(f, "writing FDB entry {mac} to {}", outer.node)?;
                match outer.via {
                    Some(index) => write!(f, " by interface {index}"),
                    None => Ok(()),
                }
            }
            Operation::DeleteForwarding(_, mac) => write!(f, "deleting FDB entries of {mac}"),
            Operation::MakeNexthop(_, id) => write!(f, "creating nexthop object {id}"),
            Operation::MoveNexthop(_, id) => write!(f, "moving nexthop object {id}"),
            Operation::DeleteNexthop(_, id) => write!(f, "deleting nexthop object {id}"),
            Operation::PutRoute(_, to, way) => write!(f, "writing route {to} {way}"),
            Operation::DeleteRoute(_, route) => write!(f, "deleting route {route}"),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Tunnel(gateway) => write!(f, "through the tunnel by {gateway}"),
            Way::Direct(gateway, index) => write!(f, "via {gateway} on interface {index}"),
            Way::Nexthop(id) => write!(f, "by nexthop object {id}"),
            Way::Blackhole => write!(f, "to nowhere (blackhole)"),
        }
    }
}

impl fmt::Display for ObservedRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(way) = self.way {
            write!(f, " {way}")?;
        }
        write!(
            f,
            " (protocol {}, metric {})",
            self.protocol,
            self.priority()
        )
    }
}
