//! Places in an encapsulated packet, counted from its UDP header (RFC 768, RFC 7348, IEEE 802.3), and in an ICMP error about
//! one.

use nft::{Family, Operand};

use crate::plan::Tunnel;

/// The VNI.
pub(super) const VNI: Operand = Operand::Transport {
    offset: 12,
    len: 3,
    prefix: 24,
};
/// The VNI and the byte after it, which is zero: the kernel reads four bytes faster than three.
pub(super) const WHOLE_VNI: Operand = Operand::Transport {
    offset: 12,
    len: 4,
    prefix: 32,
};
/// Destination of the inner frame.
pub(super) const INNER_DESTINATION: Operand = Operand::Transport {
    offset: 16,
    len: 6,
    prefix: 48,
};
/// [`WHOLE_VNI`] and [`INNER_DESTINATION`], for the price of one.
pub(super) const WHOLE_VNI_AND_INNER_DESTINATION: Operand = Operand::Transport {
    offset: 12,
    len: 10,
    prefix: 80,
};
/// Type of the inner frame.
pub(super) const INNER_TYPE: Operand = Operand::Transport {
    offset: 28,
    len: 2,
    prefix: 16,
};

/// The inner packet's source, cut to a prefix.
pub(super) const fn inner_source(family: Family, prefix: u8) -> Operand {
    match family {
        Family::Ip => Operand::Transport {
            offset: 42,
            len: 4,
            prefix,
        },
        Family::Ip6 => Operand::Transport {
            offset: 38,
            len: 16,
            prefix,
        },
    }
}

/// The last byte of the inner packet's source.
pub(super) const fn end_of_inner_source(family: Family) -> Operand {
    let offset = match family {
        Family::Ip => 45,
        Family::Ip6 => 53,
    };
    Operand::Transport {
        offset,
        len: 1,
        prefix: 8,
    }
}

/// Type of an ICMP message.
pub(super) const ICMP_TYPE: Operand = Operand::Transport {
    offset: 0,
    len: 1,
    prefix: 8,
};

/// The protocol of a packet that an ICMP error quotes, behind its own eight bytes (RFC 792, RFC 4443).
pub(super) const fn quoted_protocol(family: Family) -> Operand {
    let offset = match family {
        Family::Ip => 8 + 9,
        Family::Ip6 => 8 + 6,
    };
    Operand::Transport {
        offset,
        len: 1,
        prefix: 8,
    }
}

/// The destination port of a packet without options that an ICMP error quotes.
pub(super) const fn quoted_port(family: Family) -> Operand {
    let offset = match family {
        Family::Ip => 8 + 20 + 2,
        Family::Ip6 => 8 + 40 + 2,
    };
    Operand::Transport {
        offset,
        len: 2,
        prefix: 16,
    }
}

/// Value of [`VNI`].
pub(super) fn vni(tunnel: &Tunnel) -> [u8; 3] {
    let [_, high, middle, low] = tunnel.device.vni.to_be_bytes();
    [high, middle, low]
}

/// Value of [`WHOLE_VNI`].
pub(super) fn whole_vni(tunnel: &Tunnel) -> [u8; 4] {
    (tunnel.device.vni << 8).to_be_bytes()
}

/// Length of an address in bits.
pub(super) const fn max_prefix(family: Family) -> u8 {
    match family {
        Family::Ip => 32,
        Family::Ip6 => 128,
    }
}
