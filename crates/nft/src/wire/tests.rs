use netlink::{ATTRIBUTE_HEADER, Attributes, HEADER, Writer, flag, messages};

use super::abi::message;
use super::encode::{Batch, TableFlags};
use super::expression;
use super::header::attributes;
use super::*;
use crate::expr::lower;
use crate::model::{
    Bytes, Data, DataField, Element, Family, Field, Operand, Protocol, Rule, Set, SetKind,
    Statement, Verdict,
};
use crate::transaction::{Operation, Transaction};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The payload of attribute `kind` in the `index`th operation of a batch.
fn sent(steps: Vec<Operation>, index: usize, kind: u16) -> String {
    let operations = steps.into_iter().map(|step| (Family::Ip, step)).collect();
    let mut batch = Batch::default();
    batch
        .encode(
            &Transaction { operations },
            "portolan",
            TableFlags::default(),
            1,
        )
        .expect("encodes");
    let message = messages(batch.bytes())
        .nth(index + 1)
        .expect("a message")
        .expect("whole");
    hex(attributes(&message)
        .expect("attributes")
        .find(kind)
        .expect("whole")
        .expect("there"))
}

fn elements(elements: Vec<Element>) -> String {
    sent(
        vec![Operation::AddElements {
            set: "s".into(),
            elements,
        }],
        0,
        abi::elements::LIST,
    )
}

fn expressions(rule: Vec<Statement>) -> String {
    let mut out = Writer::default();
    expression::write(&lower(&Rule::from(rule), Family::Ip), Family::Ip, &mut out);
    hex(&out.bytes)
}

/// As `strace` shows nft 1.0.6 to send it, but for the set's id, which it needs no more than we do.
#[test]
fn a_dnat_rule_is_sent_as_nft_sends_it_but_for_the_set_id() {
    let key = vec![
        Operand::DestinationAddress,
        Operand::Protocol,
        Operand::DestinationPort,
        Operand::SymHash { modulus: 2 },
    ];
    assert_eq!(
        expressions(vec![Statement::DnatMap {
            key,
            map: "backends".into()
        }]),
        concat!(
            "340001800c0001007061796c6f616400240002800800010000000001080002000000000108000300000000",
            "10080004000000000424000180090001006d6574610000000014000280080002000000001008000100",
            "00000009340001800c0001007061796c6f61640024000280080001000000000a0800020000000002080003",
            "000000000208000400000000023400018009000100686173680000000024000280080002000000000b",
            "080004000000000208000600000000000800070000000001340001800b0001006c6f6f6b75700000240002",
            "80080002000000000108000300000000010d0001006261636b656e647300000000",
            "30000180080001006e6174002400028008000100000000010800020000000002080003000000000108",
            "00050000000009"
        )
    );
}

/// As nft 1.0.6 sends the rule of its postrouting chain.
#[test]
fn a_rule_on_the_connection_is_sent_as_nft_sends_it() {
    let jump = Statement::Verdict(Verdict::Jump("masquerading".into()));
    assert_eq!(
        expressions(vec![Statement::ConnectionIsDnat, jump]),
        concat!(
            "2000018007000100637400001400028008000200000000020800010000000001440001800c000100626974",
            "7769736500340002800800010000000001080002000000000108000300000000040c000480080001002000",
            "00000c00058008000100000000002c00018008000100636d70002000028008000100000000010800020000",
            "0000010c0003800800010000000000440001800e000100696d6d6564696174650000003000028008000100",
            "00000000240002802000028008000100fffffffd110002006d6173717565726164696e6700000000"
        )
    );
}

#[test]
fn a_rule_on_the_original_port_is_sent_as_nft_sends_it() {
    let key = vec![Operand::Protocol, Operand::OriginalDestinationPort];
    assert_eq!(
        expressions(vec![
            Statement::ProtocolIs(Protocol::Tcp),
            Statement::InSet {
                key,
                set: "m".into(),
                negate: true
            },
            Statement::Masquerade,
            Statement::Reject,
        ]),
        concat!(
            "24000180090001006d6574610000000014000280080002000000001008000100000000012c000180080001",
            "00636d700020000280080001000000000108000200000000000c0003800500010006000000",
            "24000180090001006d657461000000001400028008000200000000100800010000000001",
            "2800018007000100637400001c000280080002000000000c080001000000000905000300",
            "000000002c0001800b0001006c6f6f6b757000001c000280080002000000000106000100",
            "6d000000080005000000000114000180090001006d6173710000000004000280",
            "240001800b00010072656a656374000014000280080001000000000005000200",
            "03000000"
        )
    );
}

/// What nft 1.0.6 stores with each kind of set.
#[test]
fn sets_carry_the_user_data_of_nft() {
    let udata = |key: &[Field], kind, comment: &'static str| {
        let set = Set {
            name: "s".into(),
            key: key.to_vec(),
            kind,
            interval: false,
            comment: comment.into(),
        };
        sent(vec![Operation::AddSet(set)], 0, abi::set::USERDATA)
    };
    let (address, protocol, port, slot) =
        (Field::Address, Field::Protocol, Field::Port, Field::Slot);
    let map = || SetKind::Map(vec![DataField::Address, DataField::Port]);
    assert_eq!(udata(&[address], SetKind::Set, ""), "000402000000");
    assert_eq!(udata(&[protocol], SetKind::Set, ""), "000400000000");
    assert_eq!(udata(&[port], SetKind::Set, "zz"), "00040200000007037a7a00");
    assert_eq!(
        udata(&[address, protocol, port], SetKind::Set, "x"),
        "000400000000030800040d000000010007027800"
    );
    assert_eq!(
        udata(&[address], SetKind::VerdictMap, ""),
        "000402000000010400000000060400000000"
    );
    assert_eq!(
        udata(&[address, slot], SetKind::VerdictMap, ""),
        "000400000000010400000000033a00040d00000001320014000407000000010c00040c00000001040c00000001\
         1a000417000000011200040100000001040000010002040000000004080004010000000100060400000000"
    );
    assert_eq!(
        udata(&[slot], SetKind::Set, ""),
        "000401000000031a0004170000000112000401000000010400000100020400000000"
    );
    assert_eq!(
        udata(&[address], map(), "q"),
        "0004020000000104000000000314000407000000010c00040c00000001040c000000043400040d000000012c00\
         14000407000000010c00040c00000001040c0000000114000407000000010c00040b0000000104020000000604\
         0000000007027100"
    );
    assert_eq!(
        udata(&[protocol], SetKind::Map(vec![DataField::Address]), ""),
        "000401000000010402000000030e00040900000001060004100000000414000407000000010c00040c00000001\
         040c000000060400000000"
    );
    assert_eq!(
        udata(&[address, protocol, port, slot], map(), ""),
        "000400000000010400000000036000040d00000001580014000407000000010c00040c00000001040c00000001\
         0e00040900000001060004100000000214000407000000010c00040b000000010402000000031a000417000000\
         0112000401000000010400000100020400000000043400040d000000012c0014000407000000010c00040c0000\
         0001040c0000000114000407000000010c00040b000000010402000000060400000000"
    );
}

#[test]
fn an_overlong_comment_is_left_out_rather_than_cut() {
    let long: String = "x".repeat(254);
    assert!(udata::comment(&long).is_empty());
    assert_eq!(
        udata::read_comment(&udata::comment(&long[..253])),
        Some(&long[..253])
    );
}

/// As nft 1.0.6 sends it, but that nft numbers the items of a list, and begins an empty set's first range
/// with the end of the nothing before it.
#[test]
fn elements_are_sent_as_nft_sends_them() {
    let bytes = |octets: &[u8]| Bytes::from_slice(octets).expect("short");
    assert_eq!(
        elements(vec![Element::value(
            bytes(&[10, 96, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0, 1, 0, 0, 0]),
            bytes(&[10, 244, 2, 9, 31, 144, 0, 0]),
        )]),
        "2c00018018000180140001000a600001060000000050000001000000100002800c0001000af402091f900000"
    );
    assert_eq!(
        elements(vec![Element::range(
            bytes(&[10, 244, 0, 0]),
            bytes(&[10, 244, 255, 255])
        )]),
        "100001800c000180080001000af400001800018008000300000000010c000180080001000af50000"
    );
    assert_eq!(
        elements(vec![Element::range(
            bytes(&[255, 0, 0, 0]),
            bytes(&[255; 4])
        )]),
        "1c0001800c00018008000100ff0000000a0006000104010000000000"
    );
    let verdict = Element {
        key: bytes(&[255, 0, 0, 0]),
        last: None,
        data: Data::Verdict(Verdict::Accept),
    };
    assert_eq!(
        elements(vec![verdict]),
        "200001800c00018008000100ff000000100002800c0002800800010000000001"
    );
}

#[test]
fn only_the_last_operation_requests_an_acknowledgement() {
    let delete = || (Family::Ip, Operation::DeleteTable);
    let transaction = Transaction {
        operations: vec![delete(), delete(), delete()],
    };
    let mut batch = Batch::default();
    batch
        .encode(&transaction, "t", TableFlags::default(), u32::MAX - 1)
        .expect("encodes");
    let all: Vec<_> = messages(batch.bytes())
        .map(|message| message.expect("whole"))
        .collect();
    let asks: Vec<_> = all
        .iter()
        .map(|message| message.flags & flag::ACK != 0)
        .collect();
    assert_eq!(asks, [false, false, false, true, false]);
    let numbers: Vec<_> = all.iter().map(|message| message.sequence).collect();
    assert_eq!(numbers, [u32::MAX - 1, u32::MAX, 0, 1, 2]);
    assert_eq!(all[1].kind, message::DEL_TABLE);
    assert_eq!((batch.operation(1), batch.operation(2)), (Some(2), None));
    assert_eq!(
        batch.operation(u32::MAX - 1),
        None,
        "the beginning is no operation"
    );
}

#[test]
fn an_element_is_found_by_its_offset_in_message_or_batch() {
    let range = |n: u8| {
        let bytes = |last| Bytes::from_slice(&[10, n, 0, last]).expect("short");
        Element::range(bytes(0), bytes(255))
    };
    let elements: Vec<_> = (0..250).map(range).collect();
    let add = Operation::AddElements {
        set: "s".into(),
        elements,
    };
    let operations = vec![(Family::Ip, Operation::DeleteTable), (Family::Ip, add)];
    let mut batch = Batch::default();
    batch
        .encode(&Transaction { operations }, "t", TableFlags::default(), 9)
        .expect("encodes");

    let message = messages(batch.bytes())
        .nth(2)
        .expect("there")
        .expect("whole");
    let list = attributes(&message)
        .expect("whole")
        .flatten()
        .nth(2)
        .expect("a list");
    let list_start = HEADER + abi::GENERIC + list.offset + ATTRIBUTE_HEADER;
    let operation_start = batch.bytes().len() - message.payload.len() - 2 * HEADER - 4;
    for (index, item) in Attributes::new(list.payload).flatten().enumerate() {
        let in_message = (list_start + item.offset) as u32;
        assert_eq!(batch.element(11, in_message), Some(index / 2));
        let in_batch = in_message + operation_start as u32 - 20;
        assert_eq!(
            batch.element(11, in_batch),
            Some(index / 2),
            "Linux before 5.19"
        );
    }
    assert_eq!(batch.element(11, 3), None);
    assert_eq!(batch.element(10, list_start as u32), None);
}
