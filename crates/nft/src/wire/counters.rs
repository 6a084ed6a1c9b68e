//! What the elements of a set of [`crate::SetKind::Counters`] have counted: state of the kernel, no part of a table's
//! contents.

use netlink::{Attributes, Malformed, Message};

use super::abi::{counter, data, element, elements, expr};
use super::header::attributes;
use crate::model::Bytes;

/// The elements in one message about a set, each with its packets (`struct nft_counter`).
pub fn read_counters(message: &Message<'_>) -> Result<Vec<(Bytes, u64)>, Malformed> {
    let list = attributes(message)?.find(elements::LIST)?;
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
        let packets = Attributes::new(state.unwrap_or_default()).find(counter::PACKETS)?;
        let packets = packets.and_then(|bytes| bytes.try_into().ok());
        let packets = packets.ok_or(Malformed::Value("NFTA_COUNTER_PACKETS"))?;
        counts.push((key, u64::from_be_bytes(packets)));
    }
    Ok(counts)
}
