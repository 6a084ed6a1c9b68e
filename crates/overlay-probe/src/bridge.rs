//! Which interfaces are bridges. Asks rtnetlink: `/sys` may be that of another network namespace.

use netlink::{Attributes, Connection, NetlinkFamily, is_string};
use nix::libc;

/// Bytes of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
// Of `if_link.h`.
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_STP_STATE: u16 = 5;

/// A bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bridge {
    /// Whether a new port waits before it forwards packets.
    pub(super) has_spanning_tree: bool,
}

/// The interface of this name, if it is a bridge. What cannot be read is none.
pub(super) fn bridge(name: &str) -> Option<Bridge> {
    let mut connection = Connection::open(NetlinkFamily::Route).ok()?;
    let mut found = None;
    let header = [0; IFINFOMSG];
    let question = |message: &mut netlink::Writer| message.put_str(IFLA_IFNAME, name);
    let answer = connection.ask(libc::RTM_GETLINK, 0, &header, question, |message| {
        let info = message.attributes(IFINFOMSG)?.find(IFLA_LINKINFO)?;
        let info = Attributes::new(info.unwrap_or_default());
        let kind = info.clone().find(IFLA_INFO_KIND)?.unwrap_or_default();
        if is_string(kind, "bridge") {
            let data = Attributes::new(info.find(IFLA_INFO_DATA)?.unwrap_or_default());
            let state = data.find(IFLA_BR_STP_STATE)?.unwrap_or_default();
            let has_spanning_tree = state.iter().any(|byte| *byte != 0);
            found = Some(Bridge { has_spanning_tree });
        }
        Ok(())
    });
    answer.ok().and(found)
}
