//! The first packet of a TCP connection in an Ethernet frame, and its answer (RFC 791, RFC 8200, RFC 9293).

use std::net::IpAddr;

use net_types::internet_checksum;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syn {
    pub(super) source_mac: [u8; 6],
    pub(super) destination_mac: [u8; 6],
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    /// Distinguishes the packet and its answer from all others.
    pub(super) sequence: u32,
}

impl Syn {
    /// The frame that a pod would send.
    pub(super) fn frame(&self) -> Vec<u8> {
        self.with(self.sequence, SYN)
    }

    /// The frame that ends the connection.
    pub(super) fn reset(&self) -> Vec<u8> {
        self.with(self.sequence.wrapping_add(1), RST)
    }

    fn with(&self, sequence: u32, flags: u8) -> Vec<u8> {
        let tcp = self.tcp(sequence, flags);
        let kind: [u8; 2] = match self.source {
            IpAddr::V4(_) => [0x08, 0x00],
            IpAddr::V6(_) => [0x86, 0xdd],
        };
        [
            &self.destination_mac[..],
            &self.source_mac,
            &kind,
            &self.ip_header(tcp.len() as u16),
            &tcp,
        ]
        .concat()
    }

    fn ip_header(&self, length: u16) -> Vec<u8> {
        let (source, destination) = self.addresses();
        let mut header = match self.source {
            IpAddr::V4(_) => {
                let [high, low] = (20 + length).to_be_bytes();
                vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, TCP, 0, 0]
            }
            IpAddr::V6(_) => {
                let [high, low] = length.to_be_bytes();
                vec![0x60, 0, 0, 0, high, low, TCP, 64]
            }
        };
        header.extend(source.iter().chain(&destination));
        if self.source.is_ipv4() {
            let sum = internet_checksum(&header);
            put(&mut header, 10, sum);
        }
        header
    }

    fn tcp(&self, sequence: u32, flags: u8) -> Vec<u8> {
        let (source, destination) = self.addresses();
        let mut tcp = [
            &self.source_port.to_be_bytes()[..],
            &self.destination_port.to_be_bytes(),
            &sequence.to_be_bytes(),
            &[0; 4],
            &[0x50, flags, 0xff, 0xff, 0, 0, 0, 0],
        ]
        .concat();
        let length = (tcp.len() as u32).to_be_bytes();
        let pseudo = [
            &source[..],
            &destination,
            &length,
            &u32::from(TCP).to_be_bytes(),
            &tcp,
        ];
        let sum = internet_checksum(&pseudo.concat());
        put(&mut tcp, 16, sum);
        tcp
    }

    fn addresses(&self) -> (Vec<u8>, Vec<u8>) {
        let bytes = |address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        (bytes(self.source), bytes(self.destination))
    }

    /// Whether an IP packet is this one, whatever its source is by now: a pod may be masqueraded.
    pub(super) fn is_in(&self, packet: &[u8]) -> bool {
        let Some(tcp) = tcp_of(packet) else {
            return false;
        };
        tcp.get(2..4) == Some(&self.destination_port.to_be_bytes())
            && tcp.get(4..8) == Some(&self.sequence.to_be_bytes())
    }

    /// Whether a frame holds the answer: of a listener, or of a kernel without one unless a listener `must_accept`.
    pub(super) fn is_answered_by(&self, frame: &[u8], must_accept: bool) -> bool {
        let Some(tcp) = frame.get(ETHERNET..).and_then(tcp_of) else {
            return false;
        };
        let acknowledged = self.sequence.wrapping_add(1).to_be_bytes();
        tcp.get(2..4) == Some(&self.source_port.to_be_bytes())
            && tcp.get(8..12) == Some(&acknowledged)
            && tcp
                .get(13)
                .is_some_and(|flags| flags & ACK != 0 && (flags & SYN != 0 || !must_accept))
    }
}

/// The TCP header of an IP packet.
fn tcp_of(packet: &[u8]) -> Option<&[u8]> {
    let first = packet.first()?;
    let (protocol, header) = match first >> 4 {
        4 => (packet.get(9)?, usize::from(first & 0x0f) * 4),
        6 => (packet.get(6)?, 40),
        _ => return None,
    };
    (*protocol == TCP).then_some(packet.get(header..)?)
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn(source: &str, destination: &str) -> Syn {
        Syn {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port: 40_000,
            destination_port: 8473,
            sequence: 0x0102_0304,
        }
    }

    #[test]
    fn frame_holds_the_packet_with_valid_checksums() {
        for (source, destination, header) in [
            ("10.244.0.9", "10.244.1.0", 20),
            ("fd00:244::9", "fd00:244:1::", 40),
        ] {
            let syn = syn(source, destination);
            let frame = syn.frame();
            let packet = &frame[ETHERNET..];
            assert_eq!(packet.len(), header + 20);
            if header == 20 {
                assert_eq!(internet_checksum(&packet[..header]), 0);
            }
            let (from, to) = syn.addresses();
            let pseudo = [&from[..], &to, &[0, 0, 0, 20, 0, 0, 0, 6]].concat();
            let sum = internet_checksum(&[&pseudo[..], &packet[header..]].concat());
            assert_eq!(sum, 0);
            assert!(syn.is_in(packet));
            assert!(!syn.is_answered_by(&frame, false));
        }
    }

    #[test]
    fn refusal_by_the_peers_kernel_is_an_answer() {
        let there = syn("10.244.0.9", "10.244.1.0");
        let back = Syn {
            source: there.destination,
            destination: there.source,
            source_port: there.destination_port,
            destination_port: there.source_port,
            ..there
        };
        let mut frame = back.with(0, RST | ACK);
        frame[ETHERNET + 20 + 8..ETHERNET + 20 + 12]
            .copy_from_slice(&0x0102_0305_u32.to_be_bytes());
        assert!(there.is_answered_by(&frame, false));
        assert!(!there.is_answered_by(&frame, true));
        assert!(!there.is_answered_by(&frame[..30], false));
    }
}
