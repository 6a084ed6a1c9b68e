//! What one Service at a time can have: an address, a protocol and a port.

use std::cmp::Ordering;
use std::fmt;

use service_model::{Frontend, FrontendAddress, Protocol};

/// The key of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// The address or addresses.
    pub address: FrontendAddress,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Port at that address.
    pub port: u16,
}

impl From<&Frontend> for Claim {
    fn from(frontend: &Frontend) -> Self {
        Claim {
            address: frontend.address,
            protocol: frontend.protocol,
            port: frontend.port,
        }
    }
}

/// The frontends of two sorted lists side by side: those of one claim together.
pub fn side_by_side<'a>(
    old: &'a [Frontend],
    new: &'a [Frontend],
) -> impl Iterator<Item = (Option<&'a Frontend>, Option<&'a Frontend>)> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => Claim::from(*old).cmp(&Claim::from(*new)),
        };
        let old = order.is_le().then(|| old.next()).flatten();
        let new = order.is_ge().then(|| new.next()).flatten();
        Some((old, new))
    })
}

impl fmt::Display for Claim {
    /// `cluster IP 10.96.0.1, port 80/TCP`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Claim {
            address,
            protocol,
            port,
        } = self;
        match address {
            FrontendAddress::ClusterIp(ip) => write!(f, "cluster IP {ip}, port {port}/{protocol}"),
            FrontendAddress::External(ip) => write!(f, "external IP {ip}, port {port}/{protocol}"),
            FrontendAddress::NodePort(family) => {
                write!(f, "{} node port {port}/{protocol}", family.api_name())
            }
        }
    }
}
