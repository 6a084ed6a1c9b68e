//! Numbers of the kernel's user interface that are in use, from `linux/netfilter/nfnetlink.h` and
//! `linux/netfilter/nf_tables.h`. Names are those of the headers, shortened.
#![allow(missing_docs)]

/// Bytes of `struct nfgenmsg`.
pub const GENERIC: usize = 4;

/// First and last message of a batch (`enum nfnl_batch_msgs`), and an attribute of the first.
pub mod batch {
    pub const BEGIN: u16 = 0x10;
    pub const END: u16 = 0x11;

    /// The generation that the batch is written for; the kernel refuses the batch in any other.
    pub const GENERATION: u16 = 1;
}

/// `NFNL_SUBSYS_NFTABLES`
pub const SUBSYSTEM: u16 = 10;

/// `enum nf_tables_msg_types`, with the subsystem.
pub mod message {
    use super::SUBSYSTEM;
    const fn of(number: u16) -> u16 {
        SUBSYSTEM << 8 | number
    }
    pub const NEW_TABLE: u16 = of(0);
    pub const GET_TABLE: u16 = of(1);
    pub const DEL_TABLE: u16 = of(2);
    pub const NEW_CHAIN: u16 = of(3);
    pub const GET_CHAIN: u16 = of(4);
    pub const DEL_CHAIN: u16 = of(5);
    pub const NEW_RULE: u16 = of(6);
    pub const GET_RULE: u16 = of(7);
    pub const DEL_RULE: u16 = of(8);
    pub const NEW_SET: u16 = of(9);
    pub const GET_SET: u16 = of(10);
    pub const DEL_SET: u16 = of(11);
    pub const NEW_ELEMENTS: u16 = of(12);
    pub const GET_ELEMENTS: u16 = of(13);
    pub const DEL_ELEMENTS: u16 = of(14);
    pub const NEW_GENERATION: u16 = of(15);
    pub const GET_GENERATION: u16 = of(16);
    pub const TRACE: u16 = of(17);
}

/// `NFTA_LIST_ELEM`
pub const LIST_ITEM: u16 = 1;

/// `enum nft_table_attributes` and `enum nft_table_flags`
pub mod table {
    pub const NAME: u16 = 1;
    pub const FLAGS: u16 = 2;
    pub const USERDATA: u16 = 6;
    /// Port id of the socket that owns the table (Linux 5.12).
    pub const OWNER: u16 = 7;

    pub const DORMANT: u32 = 0x1;
    /// Linux 5.12.
    pub const OWNED: u32 = 0x2;
    /// Linux 6.9.
    pub const PERSIST: u32 = 0x4;
}

/// `enum nft_chain_attributes`, `enum nft_hook_attributes` and `enum nft_chain_flags`
pub mod chain {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 3;
    pub const HOOK: u16 = 4;
    pub const POLICY: u16 = 5;
    pub const TYPE: u16 = 7;
    pub const FLAGS: u16 = 10;
    pub const USERDATA: u16 = 12;

    pub const HOOK_NUMBER: u16 = 1;
    pub const HOOK_PRIORITY: u16 = 2;

    pub const BASE: u32 = 0x1;
    /// Anonymous chain that lives in a rule (Linux 5.9).
    pub const BINDING: u32 = 0x4;
}

/// `enum nft_rule_attributes`
pub mod rule {
    pub const TABLE: u16 = 1;
    pub const CHAIN: u16 = 2;
    pub const HANDLE: u16 = 3;
    pub const EXPRESSIONS: u16 = 4;
}

/// `enum nft_set_attributes`, `enum nft_set_desc_attributes` and `enum nft_set_flags`
pub mod set {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const KEY_TYPE: u16 = 4;
    pub const KEY_LEN: u16 = 5;
    pub const DATA_TYPE: u16 = 6;
    pub const DATA_LEN: u16 = 7;
    pub const DESC: u16 = 9;
    pub const ID: u16 = 10;
    pub const USERDATA: u16 = 13;
    /// An expression that every element has (Linux 5.7).
    pub const EXPRESSION: u16 = 17;

    pub const DESC_SIZE: u16 = 1;
    /// Widths of the fields of a concatenation (Linux 5.6).
    pub const DESC_CONCATENATION: u16 = 2;
    /// `NFTA_SET_FIELD_LEN`
    pub const FIELD_LEN: u16 = 1;

    pub const ANONYMOUS: u32 = 0x1;
    pub const INTERVAL: u32 = 0x4;
    pub const MAP: u32 = 0x8;
    pub const TIMEOUT: u32 = 0x10;
    /// `NFT_SET_EVAL`: rules may add elements.
    pub const DYNAMIC: u32 = 0x20;
    /// Ranges in a concatenation (Linux 5.6).
    pub const CONCATENATION: u32 = 0x80;

    /// `NFT_DATA_VERDICT`: data type of verdict maps.
    pub const DATA_VERDICT: u32 = 0xffff_ff00;
}

/// `enum nft_set_elem_list_attributes`
pub mod elements {
    pub const TABLE: u16 = 1;
    pub const SET: u16 = 2;
    pub const LIST: u16 = 3;
}

/// `enum nft_set_elem_attributes` and `enum nft_set_elem_flags`
pub mod element {
    pub const KEY: u16 = 1;
    pub const DATA: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const USERDATA: u16 = 6;
    /// The element's own expression, with its state.
    pub const EXPRESSION: u16 = 7;
    /// Last value of a range of several fields (Linux 5.6).
    pub const KEY_END: u16 = 10;

    pub const INTERVAL_END: u32 = 0x1;
    /// Matches what no other element does (Linux 5.13).
    pub const CATCH_ALL: u32 = 0x2;
}

/// `enum nft_data_attributes`, `enum nft_verdict_attributes` and verdict codes
pub mod data {
    pub const VALUE: u16 = 1;
    pub const VERDICT: u16 = 2;

    pub const CODE: u16 = 1;
    pub const CHAIN: u16 = 2;

    pub const DROP: i32 = 0;
    pub const ACCEPT: i32 = 1;
    pub const JUMP: i32 = -3;
    pub const GOTO: i32 = -4;
    pub const RETURN: i32 = -5;
}

/// `enum nft_expr_attributes`
pub mod expr {
    pub const NAME: u16 = 1;
    pub const DATA: u16 = 2;
}

/// `enum nft_counter_attributes`
pub mod counter {
    pub const PACKETS: u16 = 2;
}

/// `enum nft_payload_attributes` and `enum nft_payload_bases`
pub mod payload {
    pub const DREG: u16 = 1;
    pub const BASE: u16 = 2;
    pub const OFFSET: u16 = 3;
    pub const LEN: u16 = 4;

    pub const NETWORK_HEADER: u32 = 1;
    pub const TRANSPORT_HEADER: u32 = 2;
}

/// `enum nft_meta_attributes` and `enum nft_meta_keys`
pub mod meta {
    pub const DREG: u16 = 1;
    pub const KEY: u16 = 2;
    pub const SREG: u16 = 3;

    pub const PRIORITY: u32 = 2;
    pub const IIFNAME: u32 = 6;
    pub const OIFNAME: u32 = 7;
    pub const NFTRACE: u32 = 12;
    pub const L4PROTO: u32 = 16;
}

/// `enum nft_ct_attributes`, `enum nft_ct_keys` and `enum ip_conntrack_dir`
pub mod ct {
    pub const DREG: u16 = 1;
    pub const KEY: u16 = 2;
    pub const DIRECTION: u16 = 3;

    pub const STATUS: u32 = 2;
    pub const PROTO_SRC: u32 = 11;
    pub const PROTO_DST: u32 = 12;
    pub const SRC_IP: u32 = 19;
    pub const DST_IP: u32 = 20;
    pub const SRC_IP6: u32 = 21;
    pub const DST_IP6: u32 = 22;

    pub const ORIGINAL: u8 = 0;
    pub const REPLY: u8 = 1;
}

/// `enum nft_fib_attributes`, `enum nft_fib_result` and `enum nft_fib_flags`
pub mod fib {
    pub const DREG: u16 = 1;
    pub const RESULT: u16 = 2;
    pub const FLAGS: u16 = 3;

    pub const ADDRESS_TYPE: u32 = 3;
    pub const SOURCE: u32 = 0x1;
    pub const DESTINATION: u32 = 0x2;
}

/// `enum nft_rt_attributes` and `enum nft_rt_keys`
pub mod rt {
    pub const DREG: u16 = 1;
    pub const KEY: u16 = 2;

    pub const TCP_MAXSEG: u32 = 3;
}

/// `enum nft_exthdr_attributes`, `enum nft_exthdr_op` and TCP's option of the largest segment (RFC 9293)
pub mod exthdr {
    /// 1 byte.
    pub const TYPE: u16 = 2;
    pub const OFFSET: u16 = 3;
    pub const LEN: u16 = 4;
    pub const FLAGS: u16 = 5;
    pub const OP: u16 = 6;
    pub const SREG: u16 = 7;

    pub const TCP_OPTION: u32 = 1;

    pub const MAXSEG: u8 = 2;
    pub const MAXSEG_OFFSET: u32 = 2;
    pub const MAXSEG_LEN: u32 = 2;
}

/// `enum nft_byteorder_attributes` and `enum nft_byteorder_ops`
pub mod byteorder {
    pub const SREG: u16 = 1;
    pub const DREG: u16 = 2;
    pub const OP: u16 = 3;
    pub const LEN: u16 = 4;
    pub const SIZE: u16 = 5;

    pub const HOST_TO_NETWORK: u32 = 1;
}

/// `enum nft_dynset_attributes` and `enum nft_dynset_ops`
pub mod dynset {
    pub const SET: u16 = 1;
    pub const OP: u16 = 3;
    pub const KEY: u16 = 4;
    pub const DATA: u16 = 5;
    /// Milliseconds, 8 bytes.
    pub const TIMEOUT: u16 = 6;
    pub const FLAGS: u16 = 9;

    pub const UPDATE: u32 = 1;
}

/// `enum nft_cmp_attributes` and `enum nft_cmp_ops`
pub mod cmp {
    pub const SREG: u16 = 1;
    pub const OP: u16 = 2;
    pub const DATA: u16 = 3;

    pub const EQ: u32 = 0;
    pub const NEQ: u32 = 1;
}

/// `enum nft_bitwise_attributes` and `enum nft_bitwise_ops`
pub mod bitwise {
    pub const SREG: u16 = 1;
    pub const DREG: u16 = 2;
    pub const LEN: u16 = 3;
    pub const MASK: u16 = 4;
    pub const XOR: u16 = 5;
    pub const OP: u16 = 6;

    pub const MASK_XOR: u32 = 0;
}

/// `enum nft_lookup_attributes` and `enum nft_lookup_flags`
pub mod lookup {
    pub const SET: u16 = 1;
    pub const SREG: u16 = 2;
    pub const DREG: u16 = 3;
    pub const FLAGS: u16 = 5;

    pub const INVERT: u32 = 0x1;
}

/// `enum nft_immediate_attributes` and `NFT_REG_VERDICT`
pub mod immediate {
    pub const DREG: u16 = 1;
    pub const DATA: u16 = 2;

    pub const VERDICT_REGISTER: u32 = 0;
}

/// `enum nft_limit_attributes` and `enum nft_limit_type`
pub mod limit {
    /// 8 bytes.
    pub const RATE: u16 = 1;
    /// Seconds, 8 bytes.
    pub const UNIT: u16 = 2;
    pub const BURST: u16 = 3;
    pub const TYPE: u16 = 4;
    pub const FLAGS: u16 = 5;

    pub const PACKETS: u32 = 0;
}

/// `enum nft_trace_attributes` and `enum nft_trace_types`
pub mod trace {
    pub const TABLE: u16 = 1;
    pub const CHAIN: u16 = 2;
    /// 8 bytes.
    pub const RULE: u16 = 3;
    pub const TYPE: u16 = 4;
    pub const VERDICT: u16 = 5;
    pub const ID: u16 = 6;
    pub const POLICY: u16 = 16;

    pub const OF_POLICY: u32 = 1;
    pub const OF_RETURN: u32 = 2;
    pub const OF_RULE: u32 = 3;
}

/// `enum nft_hash_attributes` and `enum nft_hash_types`
pub mod hash {
    pub const DREG: u16 = 2;
    pub const MODULUS: u16 = 4;
    pub const OFFSET: u16 = 6;
    pub const TYPE: u16 = 7;

    pub const SYMMETRIC: u32 = 1;
}

/// `enum nft_nat_attributes`, `enum nft_nat_types` and `nf_nat.h`
pub mod nat {
    pub const TYPE: u16 = 1;
    pub const FAMILY: u16 = 2;
    pub const ADDRESS: u16 = 3;
    pub const ADDRESS_MAX: u16 = 4;
    pub const PORT: u16 = 5;
    pub const PORT_MAX: u16 = 6;
    pub const FLAGS: u16 = 7;

    pub const DESTINATION: u32 = 1;
    /// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`, which the kernel sets by itself.
    pub const IMPLIED: u32 = 0x3;
}

/// `enum nft_masq_attributes` and `nf_nat.h`
pub mod masq {
    pub const FLAGS: u16 = 1;
    pub const PORT: u16 = 2;
}

/// `enum nft_reject_attributes` and `enum nft_reject_types`
pub mod reject {
    pub const TYPE: u16 = 1;
    pub const CODE: u16 = 2;

    pub const ICMP: u32 = 0;
    pub const TCP_RESET: u32 = 1;
    /// RFC 792: port unreachable.
    pub const PORT_UNREACHABLE: u8 = 3;
    /// RFC 4443: port unreachable.
    pub const PORT_UNREACHABLE6: u8 = 4;
}

/// `enum nft_gen_attributes`
pub mod generation {
    pub const ID: u16 = 1;
}

/// `linux/netfilter/nfnetlink_conntrack.h`
pub mod conntrack {
    /// `IPCTNL_MSG_CT_DELETE` of `NFNL_SUBSYS_CTNETLINK`.
    pub const DELETE: u16 = 1 << 8 | 2;

    pub const TUPLE_ORIGINAL: u16 = 1;
    /// Linux 5.8.
    pub const FILTER: u16 = 25;

    /// `enum ctattr_tuple` and `enum ctattr_ip`
    pub mod tuple {
        pub const ADDRESSES: u16 = 1;
        pub const PROTOCOL: u16 = 2;

        pub const SOURCE4: u16 = 1;
        pub const DESTINATION4: u16 = 2;
    }

    /// `enum ctattr_l4proto`
    pub mod protocol {
        pub const NUMBER: u16 = 1;
        pub const SOURCE_PORT: u16 = 2;
        pub const DESTINATION_PORT: u16 = 3;
    }

    /// `enum ctattr_filter` and the flags of `nf_internals.h`
    pub mod filter {
        pub const ORIGINAL_FLAGS: u16 = 1;
        pub const REPLY_FLAGS: u16 = 2;

        pub const BY_SOURCE: u32 = 0x1;
        pub const BY_DESTINATION: u32 = 0x2;
    }
}
