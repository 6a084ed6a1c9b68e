//! The three expressions that set TCP's largest segment, on the wire in both directions.

use netlink::Writer;

use super::{Fields, abi};
use crate::expr::Expr;

pub(super) fn write(expr: &Expr, out: &mut Writer) {
    match expr {
        Expr::RouteMaxseg { dreg } => {
            out.put_u32(abi::rt::KEY, abi::rt::TCP_MAXSEG);
            out.put_u32(abi::rt::DREG, dreg.number());
        }
        Expr::ToNetworkOrder { register } => {
            out.put_u32(abi::byteorder::SREG, register.number());
            out.put_u32(abi::byteorder::DREG, register.number());
            out.put_u32(abi::byteorder::OP, abi::byteorder::HOST_TO_NETWORK);
            out.put_u32(abi::byteorder::LEN, abi::exthdr::MAXSEG_LEN);
            out.put_u32(abi::byteorder::SIZE, abi::exthdr::MAXSEG_LEN);
        }
        Expr::SetMaxseg { sreg } => {
            out.put_u32(abi::exthdr::SREG, sreg.number());
            out.put(abi::exthdr::TYPE, &[abi::exthdr::MAXSEG]);
            out.put_u32(abi::exthdr::OFFSET, abi::exthdr::MAXSEG_OFFSET);
            out.put_u32(abi::exthdr::LEN, abi::exthdr::MAXSEG_LEN);
            out.put_u32(abi::exthdr::OP, abi::exthdr::TCP_OPTION);
        }
        _ => {}
    }
}

pub(super) fn route(fields: &Fields<'_>) -> Option<Expr> {
    use abi::rt::{DREG, KEY, TCP_MAXSEG};
    fields.only(&[DREG, KEY])?;
    let dreg = fields.register(DREG)?;
    (fields.u32(KEY)? == TCP_MAXSEG).then_some(Expr::RouteMaxseg { dreg })
}

/// Swaps the two bytes of a register, which is read and written.
pub(super) fn order(fields: &Fields<'_>) -> Option<Expr> {
    use abi::byteorder::{DREG, HOST_TO_NETWORK, LEN, OP, SIZE, SREG};
    fields.only(&[SREG, DREG, OP, LEN, SIZE])?;
    let register = fields.register(SREG)?;
    let ours = fields.u32(OP)? == HOST_TO_NETWORK && fields.u32(LEN)? == abi::exthdr::MAXSEG_LEN;
    ours.then_some(Expr::ToNetworkOrder { register })
}

pub(super) fn option(fields: &Fields<'_>) -> Option<Expr> {
    use abi::exthdr::{
        FLAGS, LEN, MAXSEG, MAXSEG_LEN, MAXSEG_OFFSET, OFFSET, OP, SREG, TCP_OPTION, TYPE,
    };
    fields.only(&[SREG, TYPE, OFFSET, LEN, FLAGS, OP])?;
    let ours = fields.get(TYPE)? == [MAXSEG]
        && fields.u32(OFFSET)? == MAXSEG_OFFSET
        && fields.u32(LEN)? == MAXSEG_LEN
        && fields.u32_or(FLAGS, 0)? == 0
        && fields.u32(OP)? == TCP_OPTION;
    let sreg = fields.register(SREG)?;
    ours.then_some(Expr::SetMaxseg { sreg })
}
