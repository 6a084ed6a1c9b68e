//! Numbers of the kernel's user interface: `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and
//! `linux/netfilter/nf_tables.h`, only those in use.

/// Bytes of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Bytes of `struct nfgenmsg`.
pub(crate) const GENERIC: usize = 4;

/// Message types below `NLMSG_MIN_TYPE`.
pub(crate) mod control {
    pub(crate) const ERROR: u16 = 2;
    pub(crate) const DONE: u16 = 3;
    pub(crate) const BATCH_BEGIN: u16 = 0x10;
    pub(crate) const BATCH_END: u16 = 0x11;
}

/// Flags of requests.
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const DUMP_INTR: u16 = 0x10;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
    /// In error messages: the request is not echoed in full.
    pub(crate) const CAPPED: u16 = 0x100;
    /// In error messages: attributes follow.
    pub(crate) const ACK_TLVS: u16 = 0x200;
}

/// `enum nlmsgerr_attrs`
pub(crate) mod error_attribute {
    pub(crate) const MESSAGE: u16 = 1;
    pub(crate) const OFFSET: u16 = 2;
}

/// `NFNL_SUBSYS_NFTABLES`
pub(crate) const SUBSYSTEM: u16 = 10;

/// `enum nf_tables_msg_types`, with the subsystem.
pub(crate) mod message {
    use super::SUBSYSTEM;
    const fn of(number: u16) -> u16 {
        SUBSYSTEM << 8 | number
    }
    pub(crate) const NEW_TABLE: u16 = of(0);
    pub(crate) const GET_TABLE: u16 = of(1);
    pub(crate) const DEL_TABLE: u16 = of(2);
    pub(crate) const NEW_CHAIN: u16 = of(3);
    pub(crate) const GET_CHAIN: u16 = of(4);
    pub(crate) const DEL_CHAIN: u16 = of(5);
    pub(crate) const NEW_RULE: u16 = of(6);
    pub(crate) const GET_RULE: u16 = of(7);
    pub(crate) const DEL_RULE: u16 = of(8);
    pub(crate) const NEW_SET: u16 = of(9);
    pub(crate) const GET_SET: u16 = of(10);
    pub(crate) const DEL_SET: u16 = of(11);
    pub(crate) const NEW_ELEMENTS: u16 = of(12);
    pub(crate) const GET_ELEMENTS: u16 = of(13);
    pub(crate) const DEL_ELEMENTS: u16 = of(14);
    pub(crate) const NEW_GENERATION: u16 = of(15);
    pub(crate) const GET_GENERATION: u16 = of(16);
    pub(crate) const TRACE: u16 = of(17);
}

/// `NFTA_LIST_ELEM`
pub(crate) const LIST_ITEM: u16 = 1;

/// `enum nft_table_attributes` and `enum nft_table_flags`
pub(crate) mod table {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const FLAGS: u16 = 2;
    pub(crate) const USERDATA: u16 = 6;
    /// Port id of the socket that owns the table (Linux 5.12).
    pub(crate) const OWNER: u16 = 7;

    pub(crate) const DORMANT: u32 = 0x1;
    /// Linux 5.12.
    pub(crate) const OWNED: u32 = 0x2;
    /// Linux 6.9.
    pub(crate) const PERSIST: u32 = 0x4;
}

/// `enum nft_chain_attributes`, `enum nft_hook_attributes` and `enum nft_chain_flags`
pub(crate) mod chain {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const HOOK: u16 = 4;
    pub(crate) const POLICY: u16 = 5;
    pub(crate) const TYPE: u16 = 7;
    pub(crate) const FLAGS: u16 = 10;
    pub(crate) const USERDATA: u16 = 12;

    pub(crate) const HOOK_NUMBER: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;

    pub(crate) const BASE: u32 = 0x1;
    /// Anonymous chain that lives in a rule (Linux 5.9).
    pub(crate) const BINDING: u32 = 0x4;
}

/// `enum nft_rule_attributes`
pub(crate) mod rule {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
    pub(crate) const EXPRESSIONS: u16 = 4;
}

/// `enum nft_set_attributes`, `enum nft_set_desc_attributes` and `enum nft_set_flags`
pub(crate) mod set {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const KEY_TYPE: u16 = 4;
    pub(crate) const KEY_LEN: u16 = 5;
    pub(crate) const DATA_TYPE: u16 = 6;
    pub(crate) const DATA_LEN: u16 = 7;
    pub(crate) const DESC: u16 = 9;
    pub(crate) const ID: u16 = 10;
    pub(crate) const USERDATA: u16 = 13;
    /// An expression that every element has (Linux 5.7).
    pub(crate) const EXPRESSION: u16 = 17;

    pub(crate) const DESC_SIZE: u16 = 1;
    /// Widths of the fields of a concatenation (Linux 5.6).
    pub(crate) const DESC_CONCATENATION: u16 = 2;
    /// `NFTA_SET_FIELD_LEN`
    pub(crate) const FIELD_LEN: u16 = 1;

    pub(crate) const ANONYMOUS: u32 = 0x1;
    pub(crate) const INTERVAL: u32 = 0x4;
    pub(crate) const MAP: u32 = 0x8;
    pub(crate) const TIMEOUT: u32 = 0x10;
    /// `NFT_SET_EVAL`: rules may add elements.
    pub(crate) const DYNAMIC: u32 = 0x20;
    /// Ranges in a concatenation (Linux 5.6).
    pub(crate) const CONCATENATION: u32 = 0x80;

    /// `NFT_DATA_VERDICT`: data type of verdict maps.
    pub(crate) const DATA_VERDICT: u32 = 0xffff_ff00;
}

/// `enum nft_set_elem_list_attributes`
pub(crate) mod elements {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const SET: u16 = 2;
    pub(crate) const LIST: u16 = 3;
}

/// `enum nft_set_elem_attributes` and `enum nft_set_elem_flags`
pub(crate) mod element {
    pub(crate) const KEY: u16 = 1;
    pub(crate) const DATA: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const USERDATA: u16 = 6;
    /// The element's own expression, with its state.
    pub(crate) const EXPRESSION: u16 = 7;
    /// Last value of a range of several fields (Linux 5.6).
    pub(crate) const KEY_END: u16 = 10;

    pub(crate) const INTERVAL_END: u32 = 0x1;
    /// Matches what no other element does (Linux 5.13).
    pub(crate) const CATCH_ALL: u32 = 0x2;
}

/// `enum nft_data_attributes`, `enum nft_verdict_attributes` and verdict codes
pub(crate) mod data {
    pub(crate) const VALUE: u16 = 1;
    pub(crate) const VERDICT: u16 = 2;

    pub(crate) const CODE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;

    pub(crate) const DROP: i32 = 0;
    pub(crate) const ACCEPT: i32 = 1;
    pub(crate) const JUMP: i32 = -3;
    pub(crate) const GOTO: i32 = -4;
    pub(crate) const RETURN: i32 = -5;
}

/// `enum nft_expr_attributes`
pub(crate) mod expr {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DATA: u16 = 2;
}

/// `enum nft_counter_attributes`
pub(crate) mod counter {
    pub(crate) const PACKETS: u16 = 2;
}

/// `enum nft_payload_attributes` and `enum nft_payload_bases`
pub(crate) mod payload {
    pub(crate) const DREG: u16 = 1;
    pub(crate) const BASE: u16 = 2;
    pub(crate) const OFFSET: u16 = 3;
    pub(crate) const LEN: u16 = 4;

    pub(crate) const NETWORK_HEADER: u32 = 1;
    pub(crate) const TRANSPORT_HEADER: u32 = 2;
}

/// `enum nft_meta_attributes` and `enum nft_meta_keys`
pub(crate) mod meta {
    pub(crate) const DREG: u16 = 1;
    pub(crate) const KEY: u16 = 2;
    pub(crate) const SREG: u16 = 3;

    pub(crate) const PRIORITY: u32 = 2;
    pub(crate) const IIFNAME: u32 = 6;
    pub(crate) const NFTRACE: u32 = 12;
    pub(crate) const L4PROTO: u32 = 16;
}

/// `enum nft_ct_attributes`, `enum nft_ct_keys` and `enum ip_conntrack_dir`
pub(crate) mod ct {
    pub(crate) const DREG: u16 = 1;
    pub(crate) const KEY: u16 = 2;
    pub(crate) const DIRECTION: u16 = 3;

    pub(crate) const STATUS: u32 = 2;
    pub(crate) const PROTO_SRC: u32 = 11;
    pub(crate) const PROTO_DST: u32 = 12;
    pub(crate) const SRC_IP: u32 = 19;
    pub(crate) const DST_IP: u32 = 20;
    pub(crate) const SRC_IP6: u32 = 21;
    pub(crate) const DST_IP6: u32 = 22;

    pub(crate) const ORIGINAL: u8 = 0;
    pub(crate) const REPLY: u8 = 1;
}

/// `enum nft_fib_attributes`, `enum nft_fib_result` and `enum nft_fib_flags`
pub(crate) mod fib {
    pub(crate) const DREG: u16 = 1;
    pub(crate) const RESULT: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;

    pub(crate) const ADDRESS_TYPE: u32 = 3;
    pub(crate) const SOURCE: u32 = 0x1;
    pub(crate) const DESTINATION: u32 = 0x2;
}

/// `enum nft_byteorder_attributes`
pub(crate) mod byteorder {
    pub(crate) const SREG: u16 = 1;
    pub(crate) const DREG: u16 = 2;
    pub(crate) const LEN: u16 = 4;
    pub(crate) const SIZE: u16 = 5;
}

/// `enum nft_dynset_attributes` and `enum nft_dynset_ops`
pub(crate) mod dynset {
    pub(crate) const SET: u16 = 1;
    pub(crate) const OP: u16 = 3;
    pub(crate) const KEY: u16 = 4;
    pub(crate) const DATA: u16 = 5;
    /// Milliseconds, 8 bytes.
    pub(crate) const TIMEOUT: u16 = 6;
    pub(crate) const FLAGS: u16 = 9;

    pub(crate) const UPDATE: u32 = 1;
}

/// `enum nft_cmp_attributes` and `enum nft_cmp_ops`
pub(crate) mod cmp {
    pub(crate) const SREG: u16 = 1;
    pub(crate) const OP: u16 = 2;
    pub(crate) const DATA: u16 = 3;

    pub(crate) const EQ: u32 = 0;
    pub(crate) const NEQ: u32 = 1;
}

/// `enum nft_bitwise_attributes` and `enum nft_bitwise_ops`
pub(crate) mod bitwise {
    pub(crate) const SREG: u16 = 1;
    pub(crate) const DREG: u16 = 2;
    pub(crate) const LEN: u16 = 3;
    pub(crate) const MASK: u16 = 4;
    pub(crate) const XOR: u16 = 5;
    pub(crate) const OP: u16 = 6;

    pub(crate) const MASK_XOR: u32 = 0;
}

/// `enum nft_lookup_attributes` and `enum nft_lookup_flags`
pub(crate) mod lookup {
    pub(crate) const SET: u16 = 1;
    pub(crate) const SREG: u16 = 2;
    pub(crate) const DREG: u16 = 3;
    pub(crate) const FLAGS: u16 = 5;

    pub(crate) const INVERT: u32 = 0x1;
}

/// `enum nft_immediate_attributes` and `NFT_REG_VERDICT`
pub(crate) mod immediate {
    pub(crate) const DREG: u16 = 1;
    pub(crate) const DATA: u16 = 2;

    pub(crate) const VERDICT_REGISTER: u32 = 0;
}

/// `enum nft_limit_attributes` and `enum nft_limit_type`
pub(crate) mod limit {
    /// 8 bytes.
    pub(crate) const RATE: u16 = 1;
    /// Seconds, 8 bytes.
    pub(crate) const UNIT: u16 = 2;
    pub(crate) const BURST: u16 = 3;
    pub(crate) const TYPE: u16 = 4;
    pub(crate) const FLAGS: u16 = 5;

    pub(crate) const PACKETS: u32 = 0;
}

/// `enum nft_trace_attributes` and `enum nft_trace_types`
pub(crate) mod trace {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
    /// 8 bytes.
    pub(crate) const RULE: u16 = 3;
    pub(crate) const TYPE: u16 = 4;
    pub(crate) const VERDICT: u16 = 5;
    pub(crate) const ID: u16 = 6;
    pub(crate) const POLICY: u16 = 16;

    pub(crate) const OF_POLICY: u32 = 1;
    pub(crate) const OF_RETURN: u32 = 2;
    pub(crate) const OF_RULE: u32 = 3;
}

/// `enum nft_hash_attributes` and `enum nft_hash_types`
pub(crate) mod hash {
    pub(crate) const DREG: u16 = 2;
    pub(crate) const MODULUS: u16 = 4;
    pub(crate) const OFFSET: u16 = 6;
    pub(crate) const TYPE: u16 = 7;

    pub(crate) const SYMMETRIC: u32 = 1;
}

/// `enum nft_nat_attributes`, `enum nft_nat_types` and `nf_nat.h`
pub(crate) mod nat {
    pub(crate) const TYPE: u16 = 1;
    pub(crate) const FAMILY: u16 = 2;
    pub(crate) const ADDRESS: u16 = 3;
    pub(crate) const ADDRESS_MAX: u16 = 4;
    pub(crate) const PORT: u16 = 5;
    pub(crate) const PORT_MAX: u16 = 6;
    pub(crate) const FLAGS: u16 = 7;

    pub(crate) const DESTINATION: u32 = 1;
    /// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`, which the kernel sets by itself.
    pub(crate) const IMPLIED: u32 = 0x3;
}

/// `enum nft_masq_attributes` and `nf_nat.h`
pub(crate) mod masq {
    pub(crate) const FLAGS: u16 = 1;
    pub(crate) const PORT: u16 = 2;

    /// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
    pub(crate) const FULLY_RANDOM: u32 = 0x10;
}

/// `enum nft_reject_attributes` and `enum nft_reject_types`
pub(crate) mod reject {
    pub(crate) const TYPE: u16 = 1;
    pub(crate) const CODE: u16 = 2;

    pub(crate) const ICMP: u32 = 0;
    pub(crate) const TCP_RESET: u32 = 1;
    /// RFC 792: port unreachable.
    pub(crate) const PORT_UNREACHABLE: u8 = 3;
    /// RFC 4443: port unreachable.
    pub(crate) const PORT_UNREACHABLE6: u8 = 4;
}

/// `enum nft_gen_attributes`
pub(crate) mod generation {
    pub(crate) const ID: u16 = 1;
}

/// `linux/netfilter/nfnetlink_conntrack.h`
pub(crate) mod conntrack {
    /// `IPCTNL_MSG_CT_DELETE` of `NFNL_SUBSYS_CTNETLINK`.
    pub(crate) const DELETE: u16 = 1 << 8 | 2;

    pub(crate) const TUPLE_ORIGINAL: u16 = 1;
    /// Linux 5.8.
    pub(crate) const FILTER: u16 = 25;

    /// `enum ctattr_tuple` and `enum ctattr_ip`
    pub(crate) mod tuple {
        pub(crate) const ADDRESSES: u16 = 1;
        pub(crate) const PROTOCOL: u16 = 2;

        pub(crate) const SOURCE4: u16 = 1;
        pub(crate) const DESTINATION4: u16 = 2;
    }

    /// `enum ctattr_l4proto`
    pub(crate) mod protocol {
        pub(crate) const NUMBER: u16 = 1;
        pub(crate) const SOURCE_PORT: u16 = 2;
        pub(crate) const DESTINATION_PORT: u16 = 3;
    }

    /// `enum ctattr_filter` and the flags of `nf_internals.h`
    pub(crate) mod filter {
        pub(crate) const ORIGINAL_FLAGS: u16 = 1;
        pub(crate) const REPLY_FLAGS: u16 = 2;

        pub(crate) const BY_SOURCE: u32 = 0x1;
        pub(crate) const BY_DESTINATION: u32 = 0x2;
    }
}
