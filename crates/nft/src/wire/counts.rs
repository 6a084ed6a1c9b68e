//! What the elements of a set of [`crate::SetKind::Counters`] have counted: state of the kernel's, no part of a table's
//! contents.

use super::abi::{data, element, elements, expr};
use super::attribute::Attributes;
use super::{Malformed, Message};
use crate::model::Bytes;

/// `enum nft_counter_attributes`
const PACKETS: u16 = 2;

/// The keys in one message of a dump of the set's elements, each with its packets.
pub fn read_counts(message: &Message<'_>) -> Result<Vec<(Bytes, u64)>, Malformed> {
    let list = message.attributes()?.find(elements::LIST)?;
    let mut counts = Vec::new();
    for item in Attributes::new(list.unwrap_or_default()) {
        let fields = Attributes::new(item?.payload);
        let Some(key) = fields.clone().find(element::KEY)? else {
            continue;
        };
        let key = Attributes::new(key).find(data::VALUE)?;
        let key = key.and_then(Bytes::from_slice);
        let key = key.ok_or(Malformed::Value("NFTA_SET_ELEM_KEY"))?;
        let Some(counter) = fields.find(element::EXPRESSION)? else {
            continue;
        };
        let state = Attributes::new(counter).find(expr::DATA)?;
        let packets = Attributes::new(state.unwrap_or_default()).find(PACKETS)?;
        let packets = packets.and_then(|bytes| bytes.try_into().ok());
        let packets = packets.ok_or(Malformed::Value("NFTA_COUNTER_PACKETS"))?;
        counts.push((key, u64::from_be_bytes(packets)));
    }
    Ok(counts)
}
