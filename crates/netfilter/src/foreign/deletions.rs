//! One batch of deletions in foreign tables.

use netlink::{Connection, Error, Writer};
use nft::wire::abi::batch;
use nft::wire::header::{BATCH_HEADER, header};
use nft::{Family, Generation};
use nix::errno::Errno;

pub(super) struct Deletions<'a> {
    connection: &'a mut Connection,
    out: Writer,
    /// Sequence number of the last message, and where it begins.
    last: (u32, usize),
}

impl<'a> Deletions<'a> {
    /// With a generation, the kernel refuses the batch if the ruleset has changed since.
    pub(super) fn begin(connection: &'a mut Connection, generation: Option<Generation>) -> Self {
        let (sequence, mut out) = (connection.next_sequence(), Writer::default());
        let start = out.start(batch::BEGIN, 0, sequence, &BATCH_HEADER);
        if let Some(generation) = generation {
            out.put_u32(batch::GENERATION, generation.0);
        }
        out.finish(start);
        Deletions {
            connection,
            out,
            last: (sequence, start),
        }
    }

    pub(super) fn push(&mut self, kind: u16, family: Family, fill: impl FnOnce(&mut Writer)) {
        let sequence = self.last.0.wrapping_add(1);
        let start = self.out.start(kind, 0, sequence, &header(Some(family)));
        fill(&mut self.out);
        self.out.finish(start);
        self.last = (sequence, start);
    }

    /// Sends the batch and returns the first refusal, after which nothing was done.
    pub(super) fn commit(mut self) -> Result<Option<Errno>, Error> {
        let (last, start) = self.last;
        self.out.acknowledge(start);
        let end = last.wrapping_add(1);
        let start = self.out.start(batch::END, 0, end, &BATCH_HEADER);
        self.out.finish(start);
        let mut first_refusal = None;
        let answered = self
            .connection
            .send_batch(&self.out.bytes, last, |position, answer| {
                first_refusal.get_or_insert(Errno::from_raw(answer.errno));
                // At position 0 the whole batch is refused.
                position > 0
            })?;
        match first_refusal {
            None if !answered => Err(netlink::failed("await the acknowledgement")(Errno::ENOBUFS)),
            refusal => Ok(refusal),
        }
    }
}
