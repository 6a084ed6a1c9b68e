//! The decoders against bytes that no kernel would send: random ones, and real replies that were cut or
//! changed. They must return, never panic, and keep no more than their input.

use netlink::{Answer, Writer, messages};
use proptest::prelude::*;

use super::abi;
use super::counters::read_counters;
use super::decode::Reading;
use super::encode::{Batch, TableFlags};
use super::header::generation;
use crate::diff::diff;
use crate::model::Family;
use crate::samples;
use crate::transaction::TableContents;

/// Everything there is to decode. The number of elements kept.
fn decode_all(datagram: &[u8]) -> usize {
    let mut kept = 0;
    for family in Family::ALL {
        let mut reading = Reading::new(family, "portolan".into());
        for message in messages(datagram).flatten() {
            let _ = Answer::of(&message);
            let _ = generation(&message);
            let _ = read_counters(&message);
            let _ = reading.absorb(&message);
        }
        let _ = (reading.state(), reading.readable_sets());
        if let Ok(Some(contents)) = reading.finish() {
            kept += contents.elements.values().map(Vec::len).sum::<usize>();
            kept += contents
                .chains
                .values()
                .map(|chain| chain.rules.len())
                .sum::<usize>();
        }
    }
    kept
}

/// A table as a dump lists it: for Portolan's objects, the messages of a dump equal those that create them.
fn dump(contents: &TableContents) -> Vec<u8> {
    let mut batch = Batch::default();
    let flags = TableFlags {
        owner: true,
        persist: true,
    };
    batch
        .encode(&diff(None, contents), "portolan", flags, 1)
        .expect("encodes");
    batch.bytes().to_vec()
}

/// An attribute is at least 4 bytes long, so that is the most things that can be in a datagram, each read
/// for two families.
fn most(datagram: &[u8]) -> usize {
    datagram.len() / 4 * 2
}

#[test]
fn a_dump_cut_anywhere_decodes_to_less() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for family in Family::ALL {
        let tree = samples::tables(family)
            .new_tree(&mut runner)
            .expect("a sample");
        let whole = dump(&proptest::strategy::ValueTree::current(&tree));
        let all = decode_all(&whole);
        for end in 0..whole.len() {
            assert!(decode_all(&whole[..end]) <= all);
        }
    }
}

#[test]
fn a_dump_decodes_to_the_table_it_lists() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for family in Family::ALL {
        let tree = samples::tables(family)
            .new_tree(&mut runner)
            .expect("a sample");
        let wanted = proptest::strategy::ValueTree::current(&tree);
        let datagram = dump(&wanted);
        let mut reading = Reading::new(family, "portolan".into());
        for message in messages(&datagram) {
            let message = message.expect("whole");
            if message.kind >> 8 == abi::SUBSYSTEM {
                reading.absorb(&message).expect("decodes");
            }
        }
        assert_eq!(reading.finish(), Ok(Some(wanted)));
    }
}

/// A datagram of one message of any nf_tables type, whose lengths are right but nothing else need be.
fn framed() -> impl Strategy<Value = Vec<u8>> {
    let attributes = prop::collection::vec(
        (
            0u16..16,
            prop::collection::vec(any::<u8>(), 0..40),
            any::<bool>(),
        ),
        0..12,
    );
    (0u16..32, attributes).prop_map(|(kind, attributes)| {
        let mut out = Writer::default();
        let start = out.start(abi::SUBSYSTEM << 8 | kind, 0, 1, &[2, 0, 0, 0]);
        out.put_str(abi::table::NAME, "portolan");
        for (kind, payload, nested) in attributes {
            match nested {
                true => out.nest(kind, |out| out.put(1, &payload)),
                false => out.put(kind, &payload),
            }
        }
        out.finish(start);
        out.bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_no_harm(datagram in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(decode_all(&datagram) <= most(&datagram));
    }

    #[test]
    fn random_attributes_do_no_harm(datagram in framed()) {
        prop_assert!(decode_all(&datagram) <= most(&datagram));
    }

    #[test]
    fn a_dump_with_changed_bytes_does_no_harm(
        contents in samples::any_table(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut datagram = dump(&contents);
        for (at, byte) in changes {
            let at = at.index(datagram.len());
            datagram[at] = byte;
        }
        prop_assert!(decode_all(&datagram) <= most(&datagram));
    }
}

/// What dumps, notifications and packet traces are decoded to.
fn outcome_of(datagram: &[u8]) -> ::fuzz::ResultHash {
    let mut errors = std::collections::BTreeSet::new();
    for family in Family::ALL {
        let mut reading = Reading::new(family, "portolan".into());
        for message in messages(datagram) {
            let absorbed = message.and_then(|message| reading.absorb(&message));
            errors.extend(absorbed.err().map(|error| error.to_string()));
        }
    }
    let kept = decode_all(datagram);
    assert!(
        kept <= most(datagram),
        "{kept} things of {} bytes",
        datagram.len()
    );
    let notices = crate::monitor::notices_in(datagram);
    let steps = crate::trace::steps(datagram).count();
    ::fuzz::outcome((errors, kept.min(64), notices, steps.min(8)))
}

#[test]
fn mutated_replies_of_nftables_do_no_harm() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/nftables");
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let seeds = Family::ALL.map(|family| {
        let tree = samples::tables(family).new_tree(&mut runner);
        dump(&proptest::strategy::ValueTree::current(
            &tree.expect("a sample"),
        ))
    });
    ::fuzz::fuzz(&corpus, seeds, outcome_of);
}
