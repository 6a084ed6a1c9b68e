//! What one Service at a time can have: an address, a protocol and a port.

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
