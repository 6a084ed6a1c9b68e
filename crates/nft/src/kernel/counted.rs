//! What an element of a counting set ([`crate::SetKind::Counters`]) stands at.

use nix::errno::Errno;

use super::Kernel;
use crate::link::{Asked, failed};
use crate::model::{Bytes, Family, Name};
use crate::transaction::CommitError;
use crate::wire::abi::{self, element, elements, flag, message};
use crate::wire::attribute::{Attributes, Writer};
use crate::wire::encode::write_bytes;
use crate::wire::{Malformed, Message};

impl Kernel {
    /// Packets that the element `key` of our table's set has counted; `None` when there is no such set or element.
    /// Costs one small message, however many elements the set has.
    pub fn packets_counted(
        &mut self,
        family: Family,
        set: &Name,
        key: &Bytes,
    ) -> Result<Option<u64>, CommitError> {
        let table = self.table.clone();
        let fill = |out: &mut Writer| {
            out.put_str(elements::TABLE, &table);
            out.put_str(elements::SET, set);
            out.nest(elements::LIST, |out| {
                out.nest(abi::LIST_ITEM, |out| write_bytes(element::KEY, key, out));
            });
        };
        let mut packets = None;
        let asked = self.link.ask(
            message::GET_ELEMENTS,
            flag::ACK,
            Some(family),
            fill,
            |message| {
                packets = read(message)?.or(packets);
                Ok(())
            },
        )?;
        match asked {
            Asked::Done | Asked::Interrupted => Ok(packets),
            Asked::Refused(Errno::ENOENT) => Ok(None),
            Asked::Refused(errno) => Err(failed("read a counter")(errno)),
        }
    }
}

/// The packets in a message about one element (`struct nft_counter`: be64 each).
fn read(message: &Message<'_>) -> Result<Option<u64>, Malformed> {
    let mut payload = message.attributes()?.find(elements::LIST)?;
    for kind in [
        abi::LIST_ITEM,
        element::EXPRESSION,
        abi::expr::DATA,
        abi::counter::PACKETS,
    ] {
        let Some(inner) = payload else {
            return Ok(None);
        };
        payload = Attributes::new(inner).find(kind)?;
    }
    payload
        .map(|bytes| {
            bytes
                .try_into()
                .map(u64::from_be_bytes)
                .map_err(|_| Malformed::Value("NFTA_COUNTER_PACKETS"))
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{in_namespace, kernel, load};

    #[test]
    fn what_an_element_has_counted_is_read_by_its_key() {
        in_namespace(|| {
            let mut kernel = kernel(false);
            let count = |kernel: &mut Kernel, last: u8| {
                let key = Bytes::from_slice(&[192, 0, 2, last]).unwrap();
                kernel
                    .packets_counted(Family::Ip, &"arrived".into(), &key)
                    .unwrap()
            };
            assert_eq!(count(&mut kernel, 1), None);
            load(
                "table ip portolan { set arrived { type ipv4_addr; counter
                   elements = { 192.0.2.1 counter packets 5 bytes 60, 192.0.2.2 }; }; }",
            );
            assert_eq!(
                [1, 2, 3].map(|last| count(&mut kernel, last)),
                [Some(5), Some(0), None]
            );
        });
    }
}
