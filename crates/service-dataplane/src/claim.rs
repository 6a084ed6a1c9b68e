//! What one Service at a time can have: an address, a protocol and a port.

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
