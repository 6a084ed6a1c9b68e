//! Netlink messages in a datagram: `struct nlmsghdr`, acknowledgements and errors.

use crate::Malformed;
use crate::attribute::{Attributes, Writer, string};

/// Bytes of `struct nlmsghdr`.
pub const HEADER: usize = 16;

/// Flags of requests.
pub mod flag {
    /// Set on every request.
    pub const REQUEST: u16 = 0x1;
    /// Asks for an acknowledgement.
    pub const ACK: u16 = 0x4;
    /// Lists all objects.
    pub const DUMP: u16 = 0x300;
    /// Creates the object if it does not exist.
    pub const CREATE: u16 = 0x400;
    /// Fails if the object exists; in some protocols, if it does not.
    pub const EXCL: u16 = 0x200;
    /// Adds at the end of the list.
    pub const APPEND: u16 = 0x800;

    /// In replies: the dump was interrupted by a change.
    pub(crate) const DUMP_INTR: u16 = 0x10;
    /// In error messages: the request is not echoed in full.
    pub(crate) const CAPPED: u16 = 0x100;
    /// In error messages: attributes follow.
    pub(crate) const ACK_TLVS: u16 = 0x200;
}

/// Message types below `NLMSG_MIN_TYPE`.
pub(crate) mod control {
    pub(crate) const NOOP: u16 = 1;
    pub(crate) const ERROR: u16 = 2;
    pub(crate) const DONE: u16 = 3;
}

/// `enum nlmsgerr_attrs`
mod error_attribute {
    pub(super) const MESSAGE: u16 = 1;
    pub(super) const OFFSET: u16 = 2;
}

/// One netlink message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Type.
    pub kind: u16,
    /// Flags.
    pub flags: u16,
    /// Sequence number: the request's, in replies.
    pub sequence: u32,
    /// Port id of the socket whose request led to this message.
    pub port: u32,
    /// All after the header.
    pub payload: &'a [u8],
}

/// Reads the messages of a datagram one after the other; an error ends it.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = split(&mut rest);
        if message.is_none() {
            rest = &[];
        }
        Some(message.ok_or(Malformed::Length("a message")))
    })
}

fn split<'a>(rest: &mut &'a [u8]) -> Option<Message<'a>> {
    let ([length, kind_and_flags, sequence, port], _) =
        rest.as_chunks::<4>().0.split_first_chunk()?;
    let [k0, k1, f0, f1] = *kind_and_flags;
    let length = u32::from_ne_bytes(*length) as usize;
    let payload = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(Message {
        kind: u16::from_ne_bytes([k0, k1]),
        flags: u16::from_ne_bytes([f0, f1]),
        sequence: u32::from_ne_bytes(*sequence),
        port: u32::from_ne_bytes(*port),
        payload,
    })
}

impl<'a> Message<'a> {
    /// The attributes after the protocol's own header of `header` bytes.
    pub fn attributes(&self, header: usize) -> Result<Attributes<'a>, Malformed> {
        let attributes = self.payload.get(header..);
        Ok(Attributes::new(
            attributes.ok_or(Malformed::Length("a message"))?,
        ))
    }
}

/// The kernel's answer to one message: an error, or the acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Error number, 0 for the acknowledgement.
    pub errno: i32,
    /// Text of the extended acknowledgement.
    pub message: Option<String>,
    /// Where in the request the attribute at fault begins.
    pub offset: Option<u32>,
}

impl Answer {
    /// Reads an `NLMSG_ERROR`, or the error that an `NLMSG_DONE` of a dump carries.
    pub fn of(message: &Message<'_>) -> Result<Answer, Malformed> {
        let (code, rest) = message
            .payload
            .split_first_chunk::<4>()
            .ok_or(Malformed::Length("an acknowledgement"))?;
        let errno = i32::from_ne_bytes(*code).saturating_neg();
        let mut answer = Answer {
            errno,
            message: None,
            offset: None,
        };
        if message.flags & flag::ACK_TLVS == 0 || message.kind != control::ERROR {
            return Ok(answer);
        }
        // The request's header follows; its payload too, unless the answer is capped.
        let echoed = match message.flags & flag::CAPPED {
            0 => rest
                .first_chunk::<4>()
                .map(|len| (u32::from_ne_bytes(*len) as usize).next_multiple_of(4)),
            _ => Some(HEADER),
        };
        let attributes = echoed
            .and_then(|echoed| rest.get(echoed..))
            .unwrap_or_default();
        for attribute in Attributes::new(attributes) {
            let attribute = attribute?;
            match attribute.kind {
                error_attribute::MESSAGE => {
                    answer.message =
                        Some(string(attribute.payload, "NLMSGERR_ATTR_MSG")?.to_owned());
                }
                error_attribute::OFFSET => {
                    answer.offset = attribute.payload.try_into().map(u32::from_ne_bytes).ok();
                }
                _ => {}
            }
        }
        Ok(answer)
    }
}

impl Writer {
    /// Begins a request that [`Writer::finish`] ends, with the protocol's own header.
    pub fn start(&mut self, kind: u16, flags: u16, sequence: u32, header: &[u8]) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flag::REQUEST | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        self.pad();
        start
    }

    /// Ends the message that began at `start`.
    pub fn finish(&mut self, start: usize) {
        let len = u32::try_from(self.bytes.len() - start);
        match (len, self.bytes.get_mut(start..start + 4)) {
            (Ok(len), Some(place)) => place.copy_from_slice(&len.to_ne_bytes()),
            _ => self.overflow = true,
        }
    }

    /// Asks for an acknowledgement of the message that began at `start`.
    pub fn acknowledge(&mut self, start: usize) {
        if let Some([low, high]) = self.bytes.get_mut(start + 6..start + 8) {
            let flags = u16::from_ne_bytes([*low, *high]) | flag::ACK;
            [*low, *high] = flags.to_ne_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_messages() -> Vec<u8> {
        let mut out = Writer::default();
        for sequence in [7, 8] {
            let start = out.start(0x12, flag::DUMP, sequence, &[2, 0, 0, 0]);
            out.put_str(1, "eth0");
            out.nest(2, |out| out.put_u32(3, 0xa0b0));
            out.finish(start);
        }
        out.bytes
    }

    #[test]
    fn written_messages_read_back() {
        let bytes = two_messages();
        let read: Vec<_> = messages(&bytes).map(Result::unwrap).collect();
        assert_eq!([read[0].sequence, read[1].sequence], [7, 8]);
        assert_eq!(read[0].flags, flag::REQUEST | flag::DUMP);
        let fields = read[1].attributes(4).unwrap();
        let name = fields.clone().find(1).unwrap().unwrap();
        assert_eq!(string(name, "a name"), Ok("eth0"));
        let nested = Attributes::new(fields.find(2).unwrap().unwrap());
        let number = nested.find(3).unwrap().unwrap();
        assert_eq!(crate::be32(number, "a number"), Ok(0xa0b0));
    }

    #[test]
    fn cut_or_changed_messages_end_the_reading() {
        let bytes = two_messages();
        for end in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[end] ^= 0xff;
            for datagram in [&bytes[..end], &changed] {
                let read: Vec<_> = messages(datagram).collect();
                assert!(read.len() <= bytes.len() / HEADER);
                for message in read.into_iter().flatten() {
                    let _ = Answer::of(&message);
                    let fields = message.attributes(4).into_iter().flatten();
                    assert!(fields.count() <= bytes.len() / crate::ATTRIBUTE_HEADER);
                }
            }
        }
    }

    #[test]
    fn an_acknowledgement_can_be_asked_for_later() {
        let mut bytes = Writer {
            bytes: two_messages(),
            overflow: false,
        };
        bytes.acknowledge(0);
        let flags = messages(&bytes.bytes).map(|message| message.unwrap().flags);
        let asked = flags.map(|flags| flags & flag::ACK != 0);
        assert_eq!(asked.collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn an_answer_has_errno_text_and_offset_also_when_capped() {
        let mut out = Writer::default();
        for flags in [flag::ACK_TLVS | flag::CAPPED, flag::ACK_TLVS] {
            let start = out.start(control::ERROR, flags, 5, &[]);
            out.bytes.truncate(start + HEADER);
            out.bytes.extend_from_slice(&(-17i32).to_ne_bytes());
            let echoed = out.start(0x12, 0, 5, &[2, 0, 0, 0]);
            if flags & flag::CAPPED == 0 {
                out.put_str(1, "portolan");
                out.finish(echoed);
            } else {
                out.bytes.truncate(echoed + HEADER);
                out.bytes[echoed..echoed + 4].copy_from_slice(&1000u32.to_ne_bytes());
            }
            out.put(error_attribute::OFFSET, &44u32.to_ne_bytes());
            out.put_str(error_attribute::MESSAGE, "no");
            out.finish(start);
        }
        let all: Vec<_> = messages(&out.bytes)
            .map(|message| message.expect("whole"))
            .collect();
        assert_eq!(all.len(), 2);
        for message in all {
            let answer = Answer::of(&message).expect("whole");
            assert_eq!(
                answer,
                Answer {
                    errno: 17,
                    message: Some("no".into()),
                    offset: Some(44)
                }
            );
        }
    }
}
