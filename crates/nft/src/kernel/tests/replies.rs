//! Real replies of the kernel, cut and changed, read without harm.

use super::*;

/// Every message of a dump of all objects, as type and payload.
fn record(kernel: &mut Kernel, family: Family, sets: &[Name]) -> Vec<(u16, Vec<u8>)> {
    let mut recorded = Vec::new();
    let kinds = [
        message::GET_TABLE,
        message::GET_SET,
        message::GET_CHAIN,
        message::GET_RULE,
    ];
    let whole = kinds.into_iter().map(|kind| (kind, None));
    let elements = sets.iter().map(|set| (message::GET_ELEMENTS, Some(set)));
    for (kind, set) in whole.chain(elements) {
        let fill = |out: &mut Writer| {
            if let Some(set) = set {
                out.put_str(abi::elements::TABLE, "portolan");
                out.put_str(abi::elements::SET, set);
            }
        };
        let reply = kernel.ask(kind, flag::DUMP, Some(family), fill, |message| {
            recorded.push((message.kind, message.payload.to_vec()));
            Ok(())
        });
        assert_eq!(reply, Ok(Reply::Done));
    }
    recorded
}

/// Reads the recorded messages with payload `at` replaced, and returns the number of elements read.
fn replay(family: Family, recorded: &[(u16, Vec<u8>)], at: usize, replaced: &[u8]) -> usize {
    let mut reading = Reading::new(family, "portolan".into());
    for (index, (kind, payload)) in recorded.iter().enumerate() {
        let payload = if index == at { replaced } else { payload };
        let message = Message {
            kind: *kind,
            flags: 0,
            sequence: 1,
            port: 0,
            payload,
        };
        let _ = reading.absorb(&message);
    }
    match reading.finish() {
        Ok(Some(contents)) => contents.elements.values().map(Vec::len).sum(),
        _ => 0,
    }
}

#[test]
fn replies_cut_at_any_offset_or_changed_in_any_byte_do_no_harm() {
    in_namespace(|| {
        run(2, samples::any_table(), |wanted| {
            let family = wanted.table.family;
            let mut kernel = kernel(false);
            kernel.commit(&diff(None, &wanted)).unwrap();
            let sets: Vec<_> = wanted.sets.keys().cloned().collect();
            let recorded = record(&mut kernel, family, &sets);
            let all = replay(family, &recorded, usize::MAX, &[]);
            prop_assert_eq!(all, wanted.elements.values().map(Vec::len).sum::<usize>());
            for (at, (_, payload)) in recorded.iter().enumerate() {
                for end in 0..payload.len().min(600) {
                    prop_assert!(replay(family, &recorded, at, &payload[..end]) <= all);
                    let mut changed = payload.clone();
                    changed[end] ^= 1 << (end % 8);
                    // At worst the end of a range reads as the beginning of another.
                    prop_assert!(replay(family, &recorded, at, &changed) <= 2 * all);
                }
            }
            nft(&["flush", "ruleset"], "").unwrap();
            Ok(())
        });
    });
}

#[test]
fn foreign_tables_with_names_of_any_bytes_are_ignored() {
    let mut reading = Reading::new(Family::Ip, "portolan".into());
    let mut attributes = Writer::default();
    attributes.put(abi::table::NAME, b"\xff\xfeodd\0");
    let nfgenmsg = [u8::try_from(nix::libc::NFPROTO_IPV4).unwrap(), 0, 0, 0];
    let payload = [&nfgenmsg[..], &attributes.bytes].concat();
    for kind in [
        message::NEW_TABLE,
        message::NEW_SET,
        message::NEW_CHAIN,
        message::NEW_RULE,
        message::NEW_ELEMENTS,
    ] {
        let message = Message {
            kind,
            flags: 0,
            sequence: 1,
            port: 0,
            payload: &payload,
        };
        assert_eq!(reading.absorb(&message), Ok(()), "message {kind:#x}");
    }
    assert_eq!(reading.finish().unwrap(), None);
}
