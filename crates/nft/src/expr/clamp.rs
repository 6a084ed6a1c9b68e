//! `tcp flags syn tcp option maxseg size set rt mtu` as expressions, in both directions.

use super::{Base, Expr, FIRST, compare, load, protocol_byte};
use crate::model::{Bytes, Family, Operand, Protocol, Statement};

/// Offset of the flags in the TCP header (RFC 9293).
const FLAGS_OFFSET: u8 = 13;
const SYN: u8 = 0x02;

/// Appends the expressions as nft 1.0.6 sends them.
pub(super) fn lower(family: Family, out: &mut Vec<Expr>) {
    let byte = |value: u8| Bytes::from_slice(&[value]).unwrap_or_default();
    out.extend([
        load(Operand::Protocol, family, FIRST),
        compare(true, protocol_byte(Protocol::Tcp)),
        Expr::Payload {
            base: Base::Transport,
            offset: FLAGS_OFFSET.into(),
            len: 1,
            dreg: FIRST,
        },
        Expr::Bitwise {
            sreg: FIRST,
            dreg: FIRST,
            mask: byte(SYN),
            xor: byte(0),
        },
        compare(false, byte(0)),
        Expr::RouteMaxseg { dreg: FIRST },
        Expr::ToNetworkOrder { register: FIRST },
        Expr::SetMaxseg { sreg: FIRST },
    ]);
}

/// Replaces the statements that the expressions before [`Expr::RouteMaxseg`] were taken for.
pub(super) fn raise(statements: &mut Vec<Statement>) -> Option<()> {
    let flags = statements.pop()?;
    let protocol = statements.pop()?;
    let reads_flags = matches!(
        flags,
        Statement::Equals {
            operand: Operand::Transport {
                offset: FLAGS_OFFSET,
                ..
            },
            ..
        }
    );
    let clamps = reads_flags && protocol == Statement::ProtocolIs(Protocol::Tcp);
    clamps.then(|| statements.push(Statement::ClampMaxseg))
}
