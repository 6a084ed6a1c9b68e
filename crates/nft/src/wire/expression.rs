//! Expressions on the wire.
//!
//! Written attribute for attribute as nft 1.0.6 does. Read strictly: an expression of a known name with
//! any attribute value outside the closed set is [`Expr::Unknown`], never mistaken for ours.

use netlink::{Attributes, Malformed, Writer, be32, string};

use super::abi;
use super::header::number;
use crate::expr::{Base, CtKey, Expr, LookupResult, Register};
use crate::model::{Bytes, Family, Name, Side, Verdict};

mod maxseg;

/// Appends a rule's expressions as items of a list.
pub(crate) fn write(exprs: &[Expr], family: Family, out: &mut Writer) {
    for expr in exprs {
        out.nest(abi::LIST_ITEM, |out| {
            out.put_str(abi::expr::NAME, expr.kernel_name());
            out.nest(abi::expr::DATA, |out| write_data(expr, family, out));
        });
    }
}

fn write_data(expr: &Expr, family: Family, out: &mut Writer) {
    match expr {
        Expr::Limit { per_second, burst } => {
            let eight = |number: u32| u64::from(number).to_be_bytes();
            out.put(abi::limit::RATE, &eight(*per_second));
            out.put(abi::limit::UNIT, &eight(1));
            out.put_u32(abi::limit::BURST, *burst);
            out.put_u32(abi::limit::TYPE, abi::limit::PACKETS);
            out.put_u32(abi::limit::FLAGS, 0);
        }
        Expr::Cmp { sreg, equal, data } => {
            let operator = if *equal { abi::cmp::EQ } else { abi::cmp::NEQ };
            out.put_u32(abi::cmp::SREG, sreg.number());
            out.put_u32(abi::cmp::OP, operator);
            write_value(abi::cmp::DATA, data, out);
        }
        Expr::Bitwise {
            sreg,
            dreg,
            mask,
            xor,
        } => {
            out.put_u32(abi::bitwise::SREG, sreg.number());
            out.put_u32(abi::bitwise::DREG, dreg.number());
            out.put_u32(abi::bitwise::LEN, mask.as_slice().len() as u32);
            write_value(abi::bitwise::MASK, mask, out);
            write_value(abi::bitwise::XOR, xor, out);
        }
        Expr::Lookup { set, sreg, result } => write_lookup(set, *sreg, *result, out),
        Expr::Immediate { verdict } => {
            out.put_u32(abi::immediate::DREG, abi::immediate::VERDICT_REGISTER);
            out.nest(abi::immediate::DATA, |out| write_verdict(verdict, out));
        }
        Expr::ImmediateValue { dreg, data } => {
            out.put_u32(abi::immediate::DREG, dreg.number());
            write_value(abi::immediate::DATA, data, out);
        }
        Expr::Update {
            map,
            key,
            data,
            seconds,
        } => {
            let milliseconds = u64::from(*seconds) * 1000;
            out.put_u32(abi::dynset::OP, abi::dynset::UPDATE);
            out.put_u32(abi::dynset::KEY, key.number());
            out.put_u32(abi::dynset::DATA, data.number());
            out.put(abi::dynset::TIMEOUT, &milliseconds.to_be_bytes());
            out.put_str(abi::dynset::SET, map);
        }
        Expr::DestinationNat { address, port } => {
            out.put_u32(abi::nat::TYPE, abi::nat::DESTINATION);
            out.put_u32(abi::nat::FAMILY, u32::from(number(family)));
            out.put_u32(abi::nat::ADDRESS, address.number());
            out.put_u32(abi::nat::PORT, port.number());
        }
        // No attributes: the kernel keeps the client's port where no other connection has it.
        Expr::Masquerade => {}
        Expr::Reject => {
            out.put_u32(abi::reject::TYPE, abi::reject::ICMP);
            out.put(abi::reject::CODE, &[port_unreachable(family)]);
        }
        Expr::RejectReset => out.put_u32(abi::reject::TYPE, abi::reject::TCP_RESET),
        other => write_load(other, family, out),
    }
}

/// Writes an expression that moves something between the packet and registers; others have no attributes.
fn write_load(expr: &Expr, family: Family, out: &mut Writer) {
    let mut meta = |key, kind, register: &Register| {
        out.put_u32(abi::meta::KEY, key);
        out.put_u32(kind, register.number());
    };
    match expr {
        Expr::MetaL4Proto { dreg } => meta(abi::meta::L4PROTO, abi::meta::DREG, dreg),
        Expr::MetaPriority { dreg } => meta(abi::meta::PRIORITY, abi::meta::DREG, dreg),
        Expr::MetaInputName { dreg } => meta(abi::meta::IIFNAME, abi::meta::DREG, dreg),
        Expr::MetaOutputName { dreg } => meta(abi::meta::OIFNAME, abi::meta::DREG, dreg),
        Expr::SetPriority { sreg } => meta(abi::meta::PRIORITY, abi::meta::SREG, sreg),
        Expr::SetTrace { sreg } => meta(abi::meta::NFTRACE, abi::meta::SREG, sreg),
        Expr::Payload {
            base,
            offset,
            len,
            dreg,
        } => {
            out.put_u32(abi::payload::DREG, dreg.number());
            out.put_u32(abi::payload::BASE, base_number(*base));
            out.put_u32(abi::payload::OFFSET, *offset);
            out.put_u32(abi::payload::LEN, *len);
        }
        Expr::RouteMaxseg { .. } | Expr::ToNetworkOrder { .. } | Expr::SetMaxseg { .. } => {
            maxseg::write(expr, out);
        }
        Expr::FibType { of, dreg } => {
            out.put_u32(abi::fib::FLAGS, fib_flag(*of));
            out.put_u32(abi::fib::RESULT, abi::fib::ADDRESS_TYPE);
            out.put_u32(abi::fib::DREG, dreg.number());
        }
        Expr::Ct { key, dreg } => {
            out.put_u32(abi::ct::KEY, ct_number(*key, family));
            out.put_u32(abi::ct::DREG, dreg.number());
            if let Some(direction) = ct_direction(*key) {
                out.put(abi::ct::DIRECTION, &[direction]);
            }
        }
        Expr::SymHash { modulus, dreg } => {
            out.put_u32(abi::hash::DREG, dreg.number());
            out.put_u32(abi::hash::MODULUS, *modulus);
            out.put_u32(abi::hash::OFFSET, 0);
            out.put_u32(abi::hash::TYPE, abi::hash::SYMMETRIC);
        }
        _ => {}
    }
}

fn write_lookup(set: &Name, sreg: Register, result: LookupResult, out: &mut Writer) {
    out.put_u32(abi::lookup::SREG, sreg.number());
    match result {
        LookupResult::Data(dreg) => out.put_u32(abi::lookup::DREG, dreg.number()),
        LookupResult::Verdict => {
            out.put_u32(abi::lookup::DREG, abi::immediate::VERDICT_REGISTER);
        }
        LookupResult::Member | LookupResult::NotMember => {}
    }
    out.put_str(abi::lookup::SET, set);
    if result == LookupResult::NotMember {
        out.put_u32(abi::lookup::FLAGS, abi::lookup::INVERT);
    }
}

fn write_value(kind: u16, value: &Bytes, out: &mut Writer) {
    out.nest(kind, |out| out.put(abi::data::VALUE, value.as_slice()));
}

/// Appends a verdict, also for elements of verdict maps.
pub(crate) fn write_verdict(verdict: &Verdict, out: &mut Writer) {
    let (code, chain) = match verdict {
        Verdict::Accept => (abi::data::ACCEPT, None),
        Verdict::Drop => (abi::data::DROP, None),
        Verdict::Return => (abi::data::RETURN, None),
        Verdict::Jump(chain) => (abi::data::JUMP, Some(chain)),
        Verdict::Goto(chain) => (abi::data::GOTO, Some(chain)),
    };
    out.nest(abi::data::VERDICT, |out| {
        out.put_u32(abi::data::CODE, code as u32);
        if let Some(chain) = chain {
            out.put_str(abi::data::CHAIN, chain);
        }
    });
}

fn base_number(base: Base) -> u32 {
    match base {
        Base::Network => abi::payload::NETWORK_HEADER,
        Base::Transport => abi::payload::TRANSPORT_HEADER,
    }
}

fn ct_number(key: CtKey, family: Family) -> u32 {
    match (key, family) {
        (CtKey::Status, _) => abi::ct::STATUS,
        (CtKey::OriginalDestinationAddress, Family::Ip) => abi::ct::DST_IP,
        (CtKey::OriginalDestinationAddress, Family::Ip6) => abi::ct::DST_IP6,
        (CtKey::OriginalDestinationPort, _) => abi::ct::PROTO_DST,
        (CtKey::ReplySourceAddress, Family::Ip) => abi::ct::SRC_IP,
        (CtKey::ReplySourceAddress, Family::Ip6) => abi::ct::SRC_IP6,
        (CtKey::ReplySourcePort, _) => abi::ct::PROTO_SRC,
    }
}

fn ct_direction(key: CtKey) -> Option<u8> {
    match key {
        CtKey::Status => None,
        CtKey::OriginalDestinationAddress | CtKey::OriginalDestinationPort => {
            Some(abi::ct::ORIGINAL)
        }
        CtKey::ReplySourceAddress | CtKey::ReplySourcePort => Some(abi::ct::REPLY),
    }
}

fn fib_flag(of: Side) -> u32 {
    match of {
        Side::Source => abi::fib::SOURCE,
        Side::Destination => abi::fib::DESTINATION,
    }
}

fn port_unreachable(family: Family) -> u8 {
    match family {
        Family::Ip => abi::reject::PORT_UNREACHABLE,
        Family::Ip6 => abi::reject::PORT_UNREACHABLE6,
    }
}

/// Reads a rule's list of expressions, without those that do nothing.
pub(crate) fn read(list: &[u8], family: Family) -> Result<Vec<Expr>, Malformed> {
    Attributes::new(list)
        .map(|item| read_one(item?.payload, family))
        .filter(|expr| !matches!(expr, Ok(Expr::Unknown { name }) if name == NOTHING))
        .collect()
}

/// Stands for an expression without effect: no kernel name is empty.
const NOTHING: &str = "";

/// nft 1.0.6 swaps the bytes of a protocol before it looks a range up: one byte by units of two, of which the kernel
/// finds none (`nft_byteorder_eval`).
fn byteorder(fields: &Fields<'_>) -> Option<Expr> {
    use abi::byteorder::{DREG, LEN, SIZE, SREG};
    let in_place = fields.register(SREG)? == fields.register(DREG)?;
    if in_place && fields.u32(LEN)? == fields.u32(SIZE)? {
        return maxseg::order(fields);
    }
    (in_place && fields.u32(LEN)? < fields.u32(SIZE)?).then(|| Expr::Unknown {
        name: NOTHING.to_owned(),
    })
}

fn read_one(item: &[u8], family: Family) -> Result<Expr, Malformed> {
    let name = Attributes::new(item).find(abi::expr::NAME)?;
    let name = string(
        name.ok_or(Malformed::Missing("NFTA_EXPR_NAME"))?,
        "NFTA_EXPR_NAME",
    )?;
    let data = Attributes::new(item)
        .find(abi::expr::DATA)?
        .unwrap_or_default();
    let fields = Fields::read(data)?;
    let known = match name {
        "payload" => payload(&fields),
        "meta" => meta(&fields),
        "ct" => ct(&fields, family),
        "cmp" => cmp(&fields),
        "bitwise" => bitwise(&fields),
        "lookup" => lookup(&fields),
        "immediate" => immediate(&fields),
        "byteorder" => byteorder(&fields),
        "rt" => maxseg::route(&fields),
        "exthdr" => maxseg::option(&fields),
        "fib" => fib(&fields),
        "dynset" => update(&fields),
        "hash" => hash(&fields),
        "nat" => nat(&fields, family),
        "counter" => Some(Expr::Counter),
        "notrack" => Some(Expr::NoTrack),
        "limit" => limit(&fields),
        "masq" => masq(&fields),
        "reject" => reject(&fields, family),
        _ => None,
    };
    Ok(known.unwrap_or_else(|| Expr::Unknown {
        name: name.to_owned(),
    }))
}

/// The attributes of one expression by type; the highest type in use is 7 (of a dynset 9).
struct Fields<'a> {
    by_kind: [Option<&'a [u8]>; 10],
    /// An attribute of a higher type was met.
    more: bool,
}

impl<'a> Fields<'a> {
    fn read(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields {
            by_kind: [None; 10],
            more: false,
        };
        for attribute in Attributes::new(data) {
            let attribute = attribute?;
            match fields.by_kind.get_mut(usize::from(attribute.kind)) {
                Some(place) => *place = Some(attribute.payload),
                None => fields.more = true,
            }
        }
        Ok(fields)
    }

    /// Only these attributes are there, if any.
    fn only(&self, kinds: &[u16]) -> Option<()> {
        let stranger = (0u16..)
            .zip(&self.by_kind)
            .any(|(kind, payload)| payload.is_some() && !kinds.contains(&kind));
        (!stranger && !self.more).then_some(())
    }

    fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.by_kind.get(usize::from(kind)).copied().flatten()
    }

    fn u32(&self, kind: u16) -> Option<u32> {
        be32(self.get(kind)?, "").ok()
    }

    fn u64(&self, kind: u16) -> Option<u64> {
        self.get(kind)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// The number, or `default` where the attribute is left out.
    fn u32_or(&self, kind: u16, default: u32) -> Option<u32> {
        if self.get(kind).is_none() {
            Some(default)
        } else {
            self.u32(kind)
        }
    }

    fn register(&self, kind: u16) -> Option<Register> {
        Register::from_number(self.u32(kind)?)
    }

    fn value(&self, kind: u16) -> Option<Bytes> {
        Bytes::from_slice(
            Attributes::new(self.get(kind)?)
                .find(abi::data::VALUE)
                .ok()??,
        )
    }
}

fn payload(fields: &Fields<'_>) -> Option<Expr> {
    use abi::payload::{BASE, DREG, LEN, NETWORK_HEADER, OFFSET, TRANSPORT_HEADER};
    fields.only(&[DREG, BASE, OFFSET, LEN])?;
    let base = match fields.u32(BASE)? {
        NETWORK_HEADER => Base::Network,
        TRANSPORT_HEADER => Base::Transport,
        _ => return None,
    };
    let (offset, len) = (fields.u32(OFFSET)?, fields.u32(LEN)?);
    Some(Expr::Payload {
        base,
        offset,
        len,
        dreg: fields.register(DREG)?,
    })
}

fn meta(fields: &Fields<'_>) -> Option<Expr> {
    use abi::meta::{DREG, IIFNAME, KEY, L4PROTO, NFTRACE, OIFNAME, PRIORITY, SREG};
    if fields.get(SREG).is_some() {
        fields.only(&[SREG, KEY])?;
        let sreg = fields.register(SREG)?;
        return match fields.u32(KEY)? {
            PRIORITY => Some(Expr::SetPriority { sreg }),
            NFTRACE => Some(Expr::SetTrace { sreg }),
            _ => None,
        };
    }
    fields.only(&[DREG, KEY])?;
    let dreg = fields.register(DREG)?;
    match fields.u32(KEY)? {
        L4PROTO => Some(Expr::MetaL4Proto { dreg }),
        PRIORITY => Some(Expr::MetaPriority { dreg }),
        IIFNAME => Some(Expr::MetaInputName { dreg }),
        OIFNAME => Some(Expr::MetaOutputName { dreg }),
        _ => None,
    }
}

fn fib(fields: &Fields<'_>) -> Option<Expr> {
    use abi::fib::{ADDRESS_TYPE, DREG, FLAGS, RESULT};
    fields.only(&[DREG, RESULT, FLAGS])?;
    (fields.u32(RESULT)? == ADDRESS_TYPE).then_some(())?;
    let flags = fields.u32(FLAGS)?;
    let of = [Side::Source, Side::Destination]
        .into_iter()
        .find(|side| fib_flag(*side) == flags)?;
    Some(Expr::FibType {
        of,
        dreg: fields.register(DREG)?,
    })
}

fn limit(fields: &Fields<'_>) -> Option<Expr> {
    use abi::limit::{BURST, FLAGS, PACKETS, RATE, TYPE, UNIT};
    fields.only(&[RATE, UNIT, BURST, TYPE, FLAGS])?;
    let ours =
        fields.u64(UNIT)? == 1 && fields.u32(TYPE)? == PACKETS && fields.u32_or(FLAGS, 0)? == 0;
    ours.then_some(Expr::Limit {
        per_second: u32::try_from(fields.u64(RATE)?).ok()?,
        burst: fields.u32(BURST)?,
    })
}

fn update(fields: &Fields<'_>) -> Option<Expr> {
    use abi::dynset::{DATA, FLAGS, KEY, OP, SET, TIMEOUT, UPDATE};
    fields.only(&[SET, OP, KEY, DATA, TIMEOUT, FLAGS])?;
    (fields.u32(OP)? == UPDATE && fields.u32_or(FLAGS, 0)? == 0).then_some(())?;
    let milliseconds = fields.u64(TIMEOUT)?;
    (milliseconds % 1000 == 0).then_some(())?;
    Some(Expr::Update {
        map: Name::from(string(fields.get(SET)?, "").ok()?.to_owned()),
        key: fields.register(KEY)?,
        data: fields.register(DATA)?,
        seconds: u32::try_from(milliseconds / 1000).ok()?,
    })
}

fn ct(fields: &Fields<'_>, family: Family) -> Option<Expr> {
    use abi::ct::{DIRECTION, DREG, KEY};
    fields.only(&[DREG, KEY, DIRECTION])?;
    let number = fields.u32(KEY)?;
    let key = [
        CtKey::Status,
        CtKey::OriginalDestinationAddress,
        CtKey::OriginalDestinationPort,
        CtKey::ReplySourceAddress,
        CtKey::ReplySourcePort,
    ]
    .into_iter()
    .find(|key| ct_number(*key, family) == number)?;
    let direction = fields.get(DIRECTION);
    let expected = ct_direction(key).map(|direction| [direction]);
    (direction == expected.as_ref().map(<[u8; 1]>::as_slice)).then_some(())?;
    Some(Expr::Ct {
        key,
        dreg: fields.register(DREG)?,
    })
}

fn cmp(fields: &Fields<'_>) -> Option<Expr> {
    use abi::cmp::{DATA, EQ, NEQ, OP, SREG};
    fields.only(&[SREG, OP, DATA])?;
    let equal = match fields.u32(OP)? {
        EQ => true,
        NEQ => false,
        _ => return None,
    };
    Some(Expr::Cmp {
        sreg: fields.register(SREG)?,
        equal,
        data: fields.value(DATA)?,
    })
}

fn bitwise(fields: &Fields<'_>) -> Option<Expr> {
    use abi::bitwise::{DREG, LEN, MASK, MASK_XOR, OP, SREG, XOR};
    fields.only(&[SREG, DREG, LEN, MASK, XOR, OP])?;
    (fields.u32_or(OP, MASK_XOR)? == MASK_XOR).then_some(())?;
    let (mask, xor) = (fields.value(MASK)?, fields.value(XOR)?);
    let len = fields.u32(LEN)? as usize;
    (mask.as_slice().len() == len && xor.as_slice().len() == len).then_some(())?;
    Some(Expr::Bitwise {
        sreg: fields.register(SREG)?,
        dreg: fields.register(DREG)?,
        mask,
        xor,
    })
}

fn lookup(fields: &Fields<'_>) -> Option<Expr> {
    use abi::lookup::{DREG, FLAGS, INVERT, SET, SREG};
    fields.only(&[SET, SREG, DREG, FLAGS])?;
    let set = Name::from(string(fields.get(SET)?, "").ok()?.to_owned());
    let inverted = match fields.u32_or(FLAGS, 0)? {
        0 => false,
        INVERT => true,
        _ => return None,
    };
    let result = match (fields.get(DREG), inverted) {
        (None, false) => LookupResult::Member,
        (None, true) => LookupResult::NotMember,
        (Some(_), true) => return None,
        (Some(_), false) => match fields.u32(DREG)? {
            abi::immediate::VERDICT_REGISTER => LookupResult::Verdict,
            number => LookupResult::Data(Register::from_number(number)?),
        },
    };
    Some(Expr::Lookup {
        set,
        sreg: fields.register(SREG)?,
        result,
    })
}

fn immediate(fields: &Fields<'_>) -> Option<Expr> {
    use abi::immediate::{DATA, DREG, VERDICT_REGISTER};
    fields.only(&[DREG, DATA])?;
    if fields.u32(DREG)? != VERDICT_REGISTER {
        return Some(Expr::ImmediateValue {
            dreg: fields.register(DREG)?,
            data: fields.value(DATA)?,
        });
    }
    let verdict = read_verdict(fields.get(DATA)?).ok()??;
    Some(Expr::Immediate { verdict })
}

/// The verdict in a data attribute, also of elements; `None` when Portolan writes no such verdict.
pub(crate) fn read_verdict(data: &[u8]) -> Result<Option<Verdict>, Malformed> {
    let Some(verdict) = Attributes::new(data).find(abi::data::VERDICT)? else {
        return Ok(None);
    };
    let code = Attributes::new(verdict).find(abi::data::CODE)?;
    let code = be32(
        code.ok_or(Malformed::Missing("NFTA_VERDICT_CODE"))?,
        "NFTA_VERDICT_CODE",
    )?;
    let chain = match Attributes::new(verdict).find(abi::data::CHAIN)? {
        Some(chain) => Some(Name::from(string(chain, "NFTA_VERDICT_CHAIN")?.to_owned())),
        None => None,
    };
    Ok(match (code as i32, chain) {
        (abi::data::ACCEPT, None) => Some(Verdict::Accept),
        (abi::data::DROP, None) => Some(Verdict::Drop),
        (abi::data::RETURN, None) => Some(Verdict::Return),
        (abi::data::JUMP, Some(chain)) => Some(Verdict::Jump(chain)),
        (abi::data::GOTO, Some(chain)) => Some(Verdict::Goto(chain)),
        _ => None,
    })
}

fn hash(fields: &Fields<'_>) -> Option<Expr> {
    use abi::hash::{DREG, MODULUS, OFFSET, SYMMETRIC, TYPE};
    fields.only(&[DREG, MODULUS, OFFSET, TYPE])?;
    (fields.u32(TYPE)? == SYMMETRIC && fields.u32_or(OFFSET, 0)? == 0).then_some(())?;
    Some(Expr::SymHash {
        modulus: fields.u32(MODULUS)?,
        dreg: fields.register(DREG)?,
    })
}

fn nat(fields: &Fields<'_>, family: Family) -> Option<Expr> {
    use abi::nat::{
        ADDRESS, ADDRESS_MAX, DESTINATION, FAMILY, FLAGS, IMPLIED, PORT, PORT_MAX, TYPE,
    };
    let ours = fields.u32(TYPE)? == DESTINATION
        && fields.u32(FAMILY)? == u32::from(number(family))
        && fields.u32_or(FLAGS, 0)? & !IMPLIED == 0;
    ours.then_some(())?;
    let (address, port) = (fields.register(ADDRESS)?, fields.register(PORT)?);
    // The kernel answers with the upper ends too, equal to the lower ones when none were given.
    let single = fields.u32_or(ADDRESS_MAX, address.number())? == address.number()
        && fields.u32_or(PORT_MAX, port.number())? == port.number();
    single.then_some(Expr::DestinationNat { address, port })
}

fn masq(fields: &Fields<'_>) -> Option<Expr> {
    use abi::masq::{FLAGS, PORT};
    (fields.u32_or(FLAGS, 0)? == 0 && fields.get(PORT).is_none()).then_some(Expr::Masquerade)
}

fn reject(fields: &Fields<'_>, family: Family) -> Option<Expr> {
    use abi::reject::{CODE, ICMP, TCP_RESET, TYPE};
    match fields.u32(TYPE)? {
        ICMP if fields.get(CODE)? == [port_unreachable(family)] => Some(Expr::Reject),
        TCP_RESET => Some(Expr::RejectReset),
        _ => None,
    }
}
