//! Netlink messages in a datagram: header, nfnetlink's generic header, attributes.

use super::Malformed;
use super::abi::{self, GENERIC, HEADER, control, error_attribute, flag};
use super::attribute::{Attributes, Writer, be32, string};
use crate::model::Family;
use crate::transaction::Generation;

/// One netlink message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Type.
    pub kind: u16,
    /// Flags.
    pub flags: u16,
    /// Sequence number: the request's, in replies.
    pub sequence: u32,
    /// Port id of the socket whose request led to this.
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
    let (header, _) = rest.split_first_chunk::<HEADER>()?;
    let [
        l0,
        l1,
        l2,
        l3,
        k0,
        k1,
        f0,
        f1,
        s0,
        s1,
        s2,
        s3,
        p0,
        p1,
        p2,
        p3,
    ] = *header;
    let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    let payload = rest.get(HEADER..len)?;
    *rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some(Message {
        kind: u16::from_ne_bytes([k0, k1]),
        flags: u16::from_ne_bytes([f0, f1]),
        sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        port: u32::from_ne_bytes([p0, p1, p2, p3]),
        payload,
    })
}

impl<'a> Message<'a> {
    /// Attributes of an nfnetlink message, after its generic header.
    pub(crate) fn attributes(&self) -> Result<Attributes<'a>, Malformed> {
        let payload = self
            .payload
            .get(GENERIC..)
            .ok_or(Malformed::Length("a message"))?;
        Ok(Attributes::new(payload))
    }

    /// Family of an nfnetlink message, if it is one of ours.
    pub(crate) fn family(&self) -> Option<Family> {
        Family::ALL
            .into_iter()
            .find(|family| self.payload.first() == Some(&number(*family)))
    }
}

/// The kernel's answer to one message: an error, or the acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Error number, 0 for the acknowledgement.
    pub(crate) errno: i32,
    /// Text of the extended acknowledgement.
    pub(crate) message: Option<String>,
    /// Where in the request the attribute at fault begins.
    pub(crate) offset: Option<u32>,
}

impl Answer {
    /// Reads an `NLMSG_ERROR`, or the error that an `NLMSG_DONE` of a dump carries.
    pub(crate) fn of(message: &Message<'_>) -> Result<Answer, Malformed> {
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

/// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
pub(crate) const fn number(family: Family) -> u8 {
    match family {
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

/// The generation in an answer to `NFT_MSG_GETGEN`, or at the end of a transaction that is told.
pub(crate) fn generation(message: &Message<'_>) -> Result<Generation, Malformed> {
    let id = message.attributes()?.find(abi::generation::ID)?;
    let id = be32(id.ok_or(Malformed::Missing("NFTA_GEN_ID"))?, "NFTA_GEN_ID")?;
    Ok(Generation(id))
}

impl Writer {
    /// Begins a message that [`Writer::finish`] ends. `resource` is the subsystem for batch messages,
    /// else 0.
    pub(crate) fn start(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: u8,
        resource: u16,
    ) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        start
    }

    /// Ends the message that began at `start`.
    pub(crate) fn finish(&mut self, start: usize) {
        let len = u32::try_from(self.bytes.len() - start);
        match (len, self.bytes.get_mut(start..start + 4)) {
            (Ok(len), Some(place)) => place.copy_from_slice(&len.to_ne_bytes()),
            _ => self.overflow = true,
        }
    }

    /// A request outside a batch, with what `fill` adds.
    pub(crate) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: Option<Family>,
        fill: impl FnOnce(&mut Writer),
    ) {
        let start = self.start(
            kind,
            flag::REQUEST | flags,
            sequence,
            family.map_or(0, number),
            0,
        );
        fill(self);
        self.finish(start);
    }
}
