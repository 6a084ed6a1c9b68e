//! Netlink attributes: a writer that appends to a byte vector, a reader over a byte slice.
//!
//! An attribute is a length, a type and a payload, padded to 4 bytes; lengths are 16 bits wide. The writer
//! notes an attribute that grows past that instead of writing a wrong length; the reader yields an error
//! and ends where a length is wrong.

use crate::Malformed;

/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`
const TYPE_MASK: u16 = 0x3fff;
/// Bytes of `struct nlattr`.
pub const ATTRIBUTE_HEADER: usize = 4;

/// Appends messages and attributes to bytes.
#[derive(Debug, Default)]
pub struct Writer {
    /// What was written.
    pub bytes: Vec<u8>,
    /// An attribute was longer than 64 kB.
    pub overflow: bool,
}

impl Writer {
    /// An attribute with any payload.
    pub fn put(&mut self, kind: u16, payload: &[u8]) {
        let len = ATTRIBUTE_HEADER + payload.len();
        let Ok(len16) = u16::try_from(len) else {
            self.overflow = true;
            return;
        };
        self.bytes.extend_from_slice(&len16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.pad();
    }

    /// A number in network order, as in all netfilter protocols.
    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A string, with its NUL.
    pub fn put_str(&mut self, kind: u16, value: &str) {
        let Ok(len) = u16::try_from(ATTRIBUTE_HEADER + value.len() + 1) else {
            self.overflow = true;
            return;
        };
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    /// An attribute made of attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Writer)) {
        let start = self.open(kind);
        fill(self);
        self.close(start);
    }

    /// Begins an attribute that [`Writer::close`] ends.
    pub fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        start
    }

    /// Ends the attribute that began at `start`.
    pub fn close(&mut self, start: usize) {
        let len = u16::try_from(self.bytes.len() - start);
        match (len, self.bytes.get_mut(start..start + 2)) {
            (Ok(len), Some(place)) => place.copy_from_slice(&len.to_ne_bytes()),
            _ => self.overflow = true,
        }
    }

    pub(crate) fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// One attribute that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Type without its flags.
    pub kind: u16,
    /// Payload.
    pub payload: &'a [u8],
    /// Where its header begins in the slice that is read.
    pub offset: usize,
}

/// Reads the attributes of a slice one after the other.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Attributes<'a> {
    /// Over a message's or a nested attribute's payload.
    pub fn new(bytes: &'a [u8]) -> Self {
        Attributes { bytes, offset: 0 }
    }

    /// The payload of the first attribute of this type.
    pub fn find(self, kind: u16) -> Result<Option<&'a [u8]>, Malformed> {
        for attribute in self {
            let attribute = attribute?;
            if attribute.kind == kind {
                return Ok(Some(attribute.payload));
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        let rest = self.bytes.get(offset..).filter(|rest| !rest.is_empty())?;
        let attribute = (|| {
            let (header, _) = rest.split_first_chunk::<ATTRIBUTE_HEADER>()?;
            let [l0, l1, k0, k1] = *header;
            let len = usize::from(u16::from_ne_bytes([l0, l1]));
            let payload = rest.get(ATTRIBUTE_HEADER..len)?;
            let kind = u16::from_ne_bytes([k0, k1]) & TYPE_MASK;
            self.offset = offset + len.next_multiple_of(4);
            Some(Attribute {
                kind,
                payload,
                offset,
            })
        })();
        if attribute.is_none() {
            self.offset = self.bytes.len();
        }
        Some(attribute.ok_or(Malformed::Length("an attribute")))
    }
}

/// A number in network order.
pub fn be32(payload: &[u8], what: &'static str) -> Result<u32, Malformed> {
    payload
        .try_into()
        .map(u32::from_be_bytes)
        .map_err(|_| Malformed::Value(what))
}

/// Whether the payload is this string. Names of other programs' objects may hold any bytes: compare them, never decode
/// them.
pub fn is_string(payload: &[u8], expected: &str) -> bool {
    payload.split(|byte| *byte == 0).next() == Some(expected.as_bytes())
}

/// A string up to its NUL.
pub fn string<'a>(payload: &'a [u8], what: &'static str) -> Result<&'a str, Malformed> {
    let end = payload
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(payload.len());
    payload
        .get(..end)
        .and_then(|text| std::str::from_utf8(text).ok())
        .ok_or(Malformed::Value(what))
}
