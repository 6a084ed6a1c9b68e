use std::fmt::Write;

use super::*;
use crate::model::Verdict;

mod raising;

/// Prints expressions in the notation of `nft --debug=netlink`, the witness of these tests.
fn debug(exprs: &[Expr], family: Family) -> String {
    let mut out = String::new();
    for expr in exprs {
        let line = match expr {
            Expr::Payload {
                base,
                offset,
                len,
                dreg,
            } => {
                let base = match base {
                    Base::Network => "network",
                    Base::Transport => "transport",
                };
                format!(
                    "payload load {len}b @ {base} header + {offset} => reg {}",
                    dreg.number()
                )
            }
            Expr::MetaPriority { dreg } => format!("meta load priority => reg {}", dreg.number()),
            Expr::MetaInputName { dreg } => format!("meta load iifname => reg {}", dreg.number()),
            Expr::MetaOutputName { dreg } => format!("meta load oifname => reg {}", dreg.number()),
            Expr::RouteMaxseg { dreg } => format!("rt load tcpmss => reg {}", dreg.number()),
            Expr::ToNetworkOrder { register } => {
                let register = register.number();
                format!("byteorder reg {register} = hton(reg {register}, 2, 2)")
            }
            Expr::SetMaxseg { sreg } => {
                format!("exthdr write tcpopt reg {} => 2b @ 2 + 2", sreg.number())
            }
            Expr::SetPriority { sreg } => format!("meta set priority with reg {}", sreg.number()),
            Expr::FibType { of, dreg } => {
                let side = if *of == Side::Source {
                    "saddr"
                } else {
                    "daddr"
                };
                format!("fib {side} type => reg {}", dreg.number())
            }
            Expr::ImmediateValue { dreg, data } => {
                format!("immediate reg {} {}", dreg.number(), hex(data))
            }
            Expr::Update {
                map,
                key,
                data,
                seconds,
            } => format!(
                "dynset update reg_key {} set {map} sreg_data {} timeout {}ms",
                key.number(),
                data.number(),
                seconds * 1000
            ),
            Expr::MetaL4Proto { dreg } => format!("meta load l4proto => reg {}", dreg.number()),
            Expr::Ct { key, dreg } => {
                let key = match (key, family) {
                    (CtKey::Status, _) => "status",
                    (CtKey::OriginalDestinationAddress, Family::Ip) => "dst_ip",
                    (CtKey::OriginalDestinationAddress, Family::Ip6) => "dst_ip6",
                    (CtKey::OriginalDestinationPort, _) => "proto_dst",
                    (CtKey::ReplySourceAddress, Family::Ip) => "src_ip",
                    (CtKey::ReplySourceAddress, Family::Ip6) => "src_ip6",
                    (CtKey::ReplySourcePort, _) => "proto_src",
                };
                let direction = match key {
                    "status" => "",
                    _ if key.contains("src") => " , dir reply",
                    _ => " , dir original",
                };
                format!("ct load {key} => reg {}{direction}", dreg.number())
            }
            Expr::Cmp { sreg, equal, data } => {
                let op = if *equal { "eq" } else { "neq" };
                format!("cmp {op} reg {} {}", sreg.number(), hex(data))
            }
            Expr::Bitwise {
                sreg,
                dreg,
                mask,
                xor,
            } => format!(
                "bitwise reg {} = ( reg {} & {} ) ^ {}",
                dreg.number(),
                sreg.number(),
                hex(mask),
                hex(xor)
            ),
            Expr::Lookup { set, sreg, result } => {
                let result = match result {
                    LookupResult::Member => String::new(),
                    LookupResult::NotMember => " 0x1".to_owned(),
                    LookupResult::Data(dreg) => format!(" dreg {}", dreg.number()),
                    LookupResult::Verdict => " dreg 0".to_owned(),
                };
                format!("lookup reg {} set {set}{result}", sreg.number())
            }
            Expr::Immediate { verdict } => format!(
                "immediate reg 0 {}",
                match verdict {
                    Verdict::Jump(chain) => format!("jump -> {chain}"),
                    Verdict::Goto(chain) => format!("goto -> {chain}"),
                    Verdict::Accept => "accept".to_owned(),
                    Verdict::Drop => "drop".to_owned(),
                    Verdict::Return => "return".to_owned(),
                }
            ),
            Expr::SymHash { modulus, dreg } => {
                format!("hash reg {} = symhash() % mod {modulus}", dreg.number())
            }
            Expr::DestinationNat { address, port } => format!(
                "nat dnat {family} addr_min reg {} proto_min reg {}",
                address.number(),
                port.number()
            ),
            Expr::Counter => "counter pkts 0 bytes 0".to_owned(),
            Expr::NoTrack => "notrack".to_owned(),
            Expr::SetTrace { sreg } => format!("meta set nftrace with reg {}", sreg.number()),
            Expr::Limit { per_second, burst } => {
                format!("limit rate {per_second}/second burst {burst} type packets flags 0x0")
            }
            Expr::Masquerade => "masq".to_owned(),
            Expr::RejectReset => "reject type 1 code 0".to_owned(),
            Expr::Reject => {
                format!(
                    "reject type 0 code {}",
                    if family == Family::Ip { 3 } else { 4 }
                )
            }
            Expr::Unknown { name } => name.clone(),
        };
        writeln!(out, "[ {line} ]").unwrap();
    }
    out
}

fn hex(data: &Bytes) -> String {
    let words = data.as_slice().chunks(4).map(|word| {
        let mut padded = [0; 4];
        padded[..word.len()].copy_from_slice(word);
        format!("0x{:08x}", u32::from_ne_bytes(padded))
    });
    words.collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn lowers(family: Family, statements: Vec<Statement>, nft: &str) {
    let nft: String = nft.lines().map(|l| format!("{}\n", l.trim())).collect();
    assert_eq!(debug(&lower(&statements.into(), family), family), nft);
}

fn frontend() -> Vec<Operand> {
    vec![
        Operand::DestinationAddress,
        Operand::Protocol,
        Operand::DestinationPort,
    ]
}

fn slot(modulus: u32) -> Vec<Operand> {
    let mut key = frontend();
    key.push(Operand::SymHash { modulus });
    key
}

#[test]
fn dnat_by_map_uses_the_registers_of_nft() {
    let rule = vec![Statement::DnatMap {
        key: slot(2),
        map: "backends".into(),
    }];
    lowers(
        Family::Ip,
        rule.clone(),
        "[ payload load 4b @ network header + 16 => reg 1 ]
         [ meta load l4proto => reg 9 ]
         [ payload load 2b @ transport header + 2 => reg 10 ]
         [ hash reg 11 = symhash() % mod 2 ]
         [ lookup reg 1 set backends dreg 1 ]
         [ nat dnat ip addr_min reg 1 proto_min reg 9 ]",
    );
    lowers(
        Family::Ip6,
        rule,
        "[ payload load 16b @ network header + 24 => reg 1 ]
         [ meta load l4proto => reg 2 ]
         [ payload load 2b @ transport header + 2 => reg 13 ]
         [ hash reg 14 = symhash() % mod 2 ]
         [ lookup reg 1 set backends dreg 1 ]
         [ nat dnat ip6 addr_min reg 1 proto_min reg 2 ]",
    );
}

#[test]
fn set_and_verdict_map_lookups_use_the_registers_of_nft() {
    lowers(
        Family::Ip,
        vec![
            Statement::InSet {
                key: frontend(),
                set: "no_endpoints".into(),
                negate: false,
            },
            Statement::Reject,
        ],
        "[ payload load 4b @ network header + 16 => reg 1 ]
         [ meta load l4proto => reg 9 ]
         [ payload load 2b @ transport header + 2 => reg 10 ]
         [ lookup reg 1 set no_endpoints ]
         [ reject type 0 code 3 ]",
    );
    lowers(
        Family::Ip6,
        vec![Statement::VerdictMap {
            key: frontend(),
            map: "frontends_large".into(),
        }],
        "[ payload load 16b @ network header + 24 => reg 1 ]
         [ meta load l4proto => reg 2 ]
         [ payload load 2b @ transport header + 2 => reg 13 ]
         [ lookup reg 1 set frontends_large dreg 0 ]",
    );
    lowers(
        Family::Ip6,
        vec![
            Statement::InSet {
                key: vec![Operand::SourceAddress, Operand::DestinationAddress],
                set: "hairpin".into(),
                negate: false,
            },
            Statement::Masquerade,
        ],
        "[ payload load 16b @ network header + 8 => reg 1 ]
         [ payload load 16b @ network header + 24 => reg 2 ]
         [ lookup reg 1 set hairpin ]
         [ masq ]",
    );
}

#[test]
fn rules_on_the_original_destination_use_the_registers_of_nft() {
    let original = || vec![Operand::OriginalDestinationAddress];
    lowers(
        Family::Ip6,
        vec![
            Statement::InSet {
                key: original(),
                set: "cluster_ips".into(),
                negate: false,
            },
            Statement::InSet {
                key: vec![Operand::SourceAddress],
                set: "pod_cidrs".into(),
                negate: true,
            },
            Statement::Masquerade,
        ],
        "[ ct load dst_ip6 => reg 1 , dir original ]
         [ lookup reg 1 set cluster_ips ]
         [ payload load 16b @ network header + 8 => reg 1 ]
         [ lookup reg 1 set pod_cidrs 0x1 ]
         [ masq ]",
    );
    lowers(
        Family::Ip,
        vec![
            Statement::ProtocolIs(Protocol::Sctp),
            Statement::InSet {
                key: original(),
                set: "node_addresses".into(),
                negate: false,
            },
            Statement::InSet {
                key: vec![Operand::Protocol, Operand::OriginalDestinationPort],
                set: "masquerade_nodeports".into(),
                negate: false,
            },
            Statement::Masquerade,
        ],
        "[ meta load l4proto => reg 1 ]
         [ cmp eq reg 1 0x00000084 ]
         [ ct load dst_ip => reg 1 , dir original ]
         [ lookup reg 1 set node_addresses ]
         [ meta load l4proto => reg 1 ]
         [ ct load proto_dst => reg 9 , dir original ]
         [ lookup reg 1 set masquerade_nodeports ]
         [ masq ]",
    );
    lowers(
        Family::Ip,
        vec![
            Statement::ConnectionIsDnat,
            Statement::Verdict(Verdict::Jump("masquerading".into())),
        ],
        "[ ct load status => reg 1 ]
         [ bitwise reg 1 = ( reg 1 & 0x00000020 ) ^ 0x00000000 ]
         [ cmp neq reg 1 0x00000000 ]
         [ immediate reg 0 jump -> masquerading ]",
    );
}

#[test]
fn rules_on_where_a_packet_comes_from_use_the_registers_of_nft() {
    let local = |of, negate| Statement::LocalAddress { of, negate };
    lowers(
        Family::Ip,
        vec![local(Side::Source, false), local(Side::Destination, true)],
        "[ fib saddr type => reg 1 ]
         [ cmp eq reg 1 0x00000002 ]
         [ fib daddr type => reg 1 ]
         [ cmp neq reg 1 0x00000002 ]",
    );
    let interface = |name: &'static str, prefix, negate| Statement::InputInterface {
        name: name.into(),
        prefix,
        negate,
    };
    lowers(
        Family::Ip,
        vec![
            interface("cni0", false, false),
            interface("veth", true, true),
        ],
        "[ meta load iifname => reg 1 ]
         [ cmp eq reg 1 0x30696e63 0x00000000 0x00000000 0x00000000 ]
         [ meta load iifname => reg 1 ]
         [ cmp neq reg 1 0x68746576 ]",
    );
}

#[test]
fn rules_that_clamp_segments_use_the_registers_of_nft() {
    let name = "flannel.1".into();
    lowers(
        Family::Ip6,
        vec![Statement::OutputInterface { name }, Statement::ClampMaxseg],
        "[ meta load oifname => reg 1 ]
         [ cmp eq reg 1 0x6e616c66 0x2e6c656e 0x00000031 0x00000000 ]
         [ meta load l4proto => reg 1 ]
         [ cmp eq reg 1 0x00000006 ]
         [ payload load 1b @ transport header + 13 => reg 1 ]
         [ bitwise reg 1 = ( reg 1 & 0x00000002 ) ^ 0x00000000 ]
         [ cmp neq reg 1 0x00000000 ]
         [ rt load tcpmss => reg 1 ]
         [ byteorder reg 1 = hton(reg 1, 2, 2) ]
         [ exthdr write tcpopt reg 1 => 2b @ 2 + 2 ]",
    );
}

#[test]
fn rules_that_mark_packets_for_tracing_use_the_registers_of_nft() {
    let equals = |operand, value: &[u8]| Statement::Equals {
        operand,
        value: Bytes::from_slice(value).unwrap(),
        negate: false,
    };
    lowers(
        Family::Ip,
        vec![
            equals(Operand::SourceAddress, &[1, 2, 3, 4]),
            Statement::ProtocolIs(Protocol::Udp),
            equals(Operand::DestinationPort, &[0x21, 0x18]),
            Statement::Limit {
                per_second: 100,
                burst: 50,
            },
            Statement::Trace,
        ],
        "[ payload load 4b @ network header + 12 => reg 1 ]
         [ cmp eq reg 1 0x04030201 ]
         [ meta load l4proto => reg 1 ]
         [ cmp eq reg 1 0x00000011 ]
         [ payload load 2b @ transport header + 2 => reg 1 ]
         [ cmp eq reg 1 0x00001821 ]
         [ limit rate 100/second burst 50 type packets flags 0x0 ]
         [ immediate reg 1 0x00000001 ]
         [ meta set nftrace with reg 1 ]",
    );
    lowers(
        Family::Ip6,
        vec![equals(Operand::DestinationAddress, &[0; 16])],
        "[ payload load 16b @ network header + 24 => reg 1 ]
         [ cmp eq reg 1 0x00000000 0x00000000 0x00000000 0x00000000 ]",
    );
}

#[test]
fn update_rules_use_the_registers_of_nft() {
    let learn = Statement::UpdateMap {
        key: vec![Operand::SourceAddress, Operand::Protocol, Operand::Group],
        data: vec![Operand::ReplySourceAddress, Operand::ReplySourcePort],
        map: "affinity".into(),
        seconds: 10800,
    };
    let group = Statement::SetPriority {
        key: frontend(),
        map: "sticky".into(),
    };
    lowers(
        Family::Ip,
        vec![group, learn.clone(), Statement::ClearPriority],
        "[ payload load 4b @ network header + 16 => reg 1 ]
         [ meta load l4proto => reg 9 ]
         [ payload load 2b @ transport header + 2 => reg 10 ]
         [ lookup reg 1 set sticky dreg 1 ]
         [ meta set priority with reg 1 ]
         [ payload load 4b @ network header + 12 => reg 1 ]
         [ meta load l4proto => reg 9 ]
         [ meta load priority => reg 10 ]
         [ ct load src_ip => reg 2 , dir reply ]
         [ ct load proto_src => reg 13 , dir reply ]
         [ dynset update reg_key 1 set affinity sreg_data 2 timeout 10800000ms ]
         [ immediate reg 1 0x00000000 ]
         [ meta set priority with reg 1 ]",
    );
    // nft 1.0.6 has no words for this one in IPv6: the registers go on in its way.
    lowers(
        Family::Ip6,
        vec![learn],
        "[ payload load 16b @ network header + 8 => reg 1 ]
         [ meta load l4proto => reg 2 ]
         [ meta load priority => reg 13 ]
         [ ct load src_ip6 => reg 3 , dir reply ]
         [ ct load proto_src => reg 4 , dir reply ]
         [ dynset update reg_key 1 set affinity sreg_data 3 timeout 10800000ms ]",
    );
}

#[test]
fn every_register_keeps_its_place_through_the_kernel_numbers() {
    for slot in 0..Register::COUNT {
        assert_eq!(
            Register::from_number(Register(slot).number()),
            Some(Register(slot))
        );
    }
    assert_eq!(
        Register::from_number(8 + 4),
        Some(Register(4)),
        "second name of register 2"
    );
    for number in [0, 5, 6, 7, 24, u32::MAX] {
        assert_eq!(Register::from_number(number), None);
    }
}
