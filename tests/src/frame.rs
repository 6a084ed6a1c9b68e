//! VXLAN packets written by hand: what anybody who can send UDP can send.

use std::net::IpAddr;

/// An encapsulated UDP datagram.
#[derive(Clone, Debug)]
pub struct Frame {
    pub vni: u32,
    /// Inner destination hardware address.
    pub mac: [u8; 6],
    pub source: IpAddr,
    /// Inner destination, of the same family.
    pub destination: IpAddr,
    pub port: u16,
    /// What the datagram says.
    pub payload: String,
}

impl Frame {
    /// What follows the outer UDP header (RFC 7348).
    pub fn bytes(&self) -> Vec<u8> {
        let [_, high, middle, low] = self.vni.to_be_bytes();
        let mut out = vec![0x08, 0, 0, 0, high, middle, low, 0];
        out.extend(self.mac);
        out.extend([0x02, 0, 0, 0, 0, 0x77]);
        let udp = self.udp();
        let length = u16::try_from(udp.len()).unwrap_or(u16::MAX);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                out.extend([0x08, 0x00]);
                let mut header = vec![0x45, 0];
                header.extend((20 + length).to_be_bytes());
                header.extend([0, 1, 0, 0, 64, 17, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                out.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                out.extend(length.to_be_bytes());
                out.extend([17, 64]);
                out.extend(source.octets());
                out.extend(destination.octets());
            }
            _ => panic!("source and destination of different families"),
        }
        out.extend(udp);
        out
    }

    fn udp(&self) -> Vec<u8> {
        let length = u16::try_from(8 + self.payload.len()).unwrap_or(u16::MAX);
        let mut udp = Vec::new();
        udp.extend(40_000_u16.to_be_bytes());
        udp.extend(self.port.to_be_bytes());
        udp.extend(length.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(self.payload.as_bytes());
        let mut pseudo = Vec::new();
        for address in [self.source, self.destination] {
            match address {
                IpAddr::V4(v4) => pseudo.extend(v4.octets()),
                IpAddr::V6(v6) => pseudo.extend(v6.octets()),
            }
        }
        pseudo.extend([0, 17]);
        pseudo.extend(length.to_be_bytes());
        pseudo.extend(&udp);
        let sum = checksum(&pseudo);
        // Zero means "none" (RFC 768).
        udp[6..8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
        udp
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = bytes.chunks(2).fold(0_u32, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]))
    });
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
