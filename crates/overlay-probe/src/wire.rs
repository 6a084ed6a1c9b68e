//! The probes' packets: one small binary protocol over UDP, and the same bytes at the head of a TCP stream.
//!
//! | bytes | request | answer | arrival |
//! |---|---|---|---|
//! | 0-3 | `PTPB` | the same | the same |
//! | 4 | version, 1 | 1 | 1 |
//! | 5 | kind, 1 | 2 | 3 |
//! | 6-7 | flags ([`want`]) | flags ([`has`]) | 0 |
//! | 8-15 | nonce | the request's | the request's |
//! | 16-23 | nonce of an earlier probe through the tunnel | VXLAN packets counted | |
//! | 24-31 | 0 | packets with wrong checksums received by the node | |
//! | 32 on | filler | length of a text and the text, or filler | |
//!
//! Input is untrusted: a packet that does not decode is not answered. An answer is never longer than its request, nor
//! are an answer and an arrival together.

use net_types::Family;

/// Bytes before the filler.
pub(super) const HEADER: usize = 32;
/// Size of a request over the host path: answer and arrival together must not exceed it.
pub(super) const REQUEST: usize = 384;
/// Size of its answer.
pub(super) const ANSWER: usize = REQUEST - HEADER;
/// Bytes of a stream, each way: several segments, and more than one page.
pub(super) const STREAM: usize = 16 * 1024;

/// Bytes of the headers of IP and UDP around a packet.
pub(super) fn headers(family: Family) -> usize {
    match family {
        Family::Ip => 28,
        Family::Ip6 => 48,
    }
}

const MAGIC: [u8; 4] = *b"PTPB";
const VERSION: u8 = 1;

/// Flags of a request.
pub(super) mod want {
    /// An answer of the request's size, or of the largest that the peer can send, instead of a small one.
    pub(crate) const FULL_SIZE: u16 = 1;
    /// Besides the answer, an arrival through the tunnel.
    pub(crate) const ARRIVAL: u16 = 2;
    /// Counters.
    pub(crate) const COUNTERS: u16 = 4;
    /// Start a trace for the rule that drops our packets.
    pub(crate) const TRACE: u16 = 8;
    /// The rule that was found.
    pub(crate) const RULE: u16 = 16;
}

/// Flags of an answer: which values are valid.
pub(super) mod has {
    /// The earlier probe was received.
    pub(crate) const RECEIVED: u16 = 1;
    /// The counter of VXLAN packets is valid.
    pub(crate) const COUNTED: u16 = 2;
    /// The counter of wrong checksums is valid.
    pub(crate) const CORRUPT: u16 = 4;
}

/// A decoded packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    Request {
        want: u16,
        nonce: u64,
        earlier: u64,
    },
    Answer {
        has: u16,
        nonce: u64,
        counted: u64,
        corrupt: u64,
        /// Of the peer's choosing: at most [`ANSWER`] bytes, printable.
        text: String,
    },
    Arrival {
        nonce: u64,
    },
}

impl Packet {
    /// The bytes, filled up to `size`; the text is cut to fit.
    pub(super) fn encode(&self, size: usize) -> Vec<u8> {
        let (kind, flags, nonce, first, second, text) = match self {
            Packet::Request {
                want,
                nonce,
                earlier,
            } => (1, *want, *nonce, *earlier, 0, ""),
            Packet::Answer {
                has,
                nonce,
                counted,
                corrupt,
                text,
            } => (2, *has, *nonce, *counted, *corrupt, text.as_str()),
            Packet::Arrival { nonce } => (3, 0, *nonce, 0, 0, ""),
        };
        let mut bytes = Vec::with_capacity(size.max(HEADER));
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, kind]);
        bytes.extend_from_slice(&flags.to_be_bytes());
        for number in [nonce, first, second] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        let room = size.saturating_sub(HEADER + 1).min(usize::from(u8::MAX));
        if !text.is_empty() && room > 0 {
            let text = text
                .get(..text.floor_char_boundary(room))
                .unwrap_or_default();
            bytes.push(u8::try_from(text.len()).unwrap_or_default());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes.resize(size.max(HEADER), 0);
        bytes
    }

    /// Decodes a packet. Returns `None` if it is not one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Packet> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
        let (head, numbers) = header.split_first_chunk::<8>()?;
        let [m0, m1, m2, m3, version, kind, f0, f1] = *head;
        if [m0, m1, m2, m3] != MAGIC || version != VERSION {
            return None;
        }
        let flags = u16::from_be_bytes([f0, f1]);
        let mut numbers = numbers
            .chunks_exact(8)
            .filter_map(|chunk| chunk.try_into().ok().map(u64::from_be_bytes));
        let (nonce, first, second) = (numbers.next()?, numbers.next()?, numbers.next()?);
        Some(match kind {
            1 => Packet::Request {
                want: flags,
                nonce,
                earlier: first,
            },
            2 => Packet::Answer {
                has: flags,
                nonce,
                counted: first,
                corrupt: second,
                text: text(rest),
            },
            3 => Packet::Arrival { nonce },
            _ => return None,
        })
    }
}

/// Text of a peer, without control characters.
fn text(rest: &[u8]) -> String {
    let Some((length, rest)) = rest.split_first() else {
        return String::new();
    };
    let bytes = rest.get(..usize::from(*length)).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes);
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutated_packets_of_probes_do_no_harm() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/probes");
        let request = Packet::Request {
            want: want::COUNTERS,
            nonce: 1,
            earlier: 2,
        };
        let answer = Packet::Answer {
            has: want::RULE,
            nonce: 1,
            counted: 2,
            corrupt: 3,
            text: "inet firewall input handle 7".to_owned(),
        };
        let seeds = [
            request.encode(100),
            answer.encode(ANSWER),
            Packet::Arrival { nonce: 9 }.encode(0),
        ];
        fuzz::fuzz(&corpus, seeds, |bytes| match Packet::decode(bytes) {
            None => 0,
            Some(Packet::Request { .. }) => 1,
            Some(Packet::Arrival { .. }) => 2,
            Some(Packet::Answer { text, .. }) => {
                assert!(
                    text.len() <= 3 * usize::from(u8::MAX),
                    "{} bytes",
                    text.len()
                );
                assert!(!text.chars().any(char::is_control), "{text:?}");
                fuzz::outcome(text.len().min(300))
            }
        });
    }

    #[test]
    fn packets_read_back_and_other_bytes_do_not_decode() {
        let text = "inet firewall input handle 7".to_owned();
        for packet in [
            Packet::Request {
                want: want::ARRIVAL | want::COUNTERS,
                nonce: u64::MAX,
                earlier: 7,
            },
            Packet::Answer {
                has: has::COUNTED,
                nonce: 1,
                counted: 2,
                corrupt: 3,
                text,
            },
            Packet::Arrival { nonce: 9 },
        ] {
            let bytes = packet.encode(REQUEST);
            assert_eq!(bytes.len(), REQUEST);
            assert_eq!(Packet::decode(&bytes), Some(packet));
            for cut in 0..HEADER {
                assert_eq!(Packet::decode(&bytes[..cut]), None);
            }
            for (at, other) in [(0, b'Q'), (4, 2), (5, 4)] {
                let mut bytes = bytes.clone();
                bytes[at] = other;
                assert_eq!(Packet::decode(&bytes), None);
            }
        }
    }

    #[test]
    fn text_is_cut_at_a_character_and_has_no_control_characters() {
        let answer = |text: &str, size| {
            let packet = Packet::Answer {
                has: 0,
                nonce: 0,
                counted: 0,
                corrupt: 0,
                text: text.into(),
            };
            match Packet::decode(&packet.encode(size)) {
                Some(Packet::Answer { text, .. }) => text,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(answer("ääää", HEADER + 1 + 5), "ää");
        assert_eq!(answer("a\x1b[31mb\n", ANSWER), "a[31mb");
        assert_eq!(answer(&"x".repeat(999), ANSWER).len(), 255);
        assert_eq!(answer("x", HEADER), "");
    }
}
