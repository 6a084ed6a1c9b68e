//! How long the kernel takes over our transactions: a bulk load, one change, a reading.
//!
//! Needs root; works in a network namespace of its own. `cargo run --release -p nft --example measure`

use std::error::Error;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nft::{
    Backend, Bytes, DataField, Element, Family, Field, Kernel, KernelConfig, Monitor, Operation,
    Protocol, Set, SetKind, Table, Transaction,
};
use nix::sched::{CloneFlags, unshare};

const ELEMENTS: u32 = 100_000;
const CHANGES: u32 = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let table = "measured";
    let mut kernel = Kernel::open(KernelConfig {
        table: table.into(),
        owner: true,
    })?;
    kernel.commit(&one(Operation::AddTable(Table {
        family: Family::Ip,
        name: table.into(),
        comment: "measured".into(),
    })))?;
    kernel.commit(&one(Operation::AddSet(Set {
        name: "backends".into(),
        key: vec![Field::Address, Field::Protocol, Field::Port, Field::Slot],
        kind: SetKind::Map(vec![DataField::Address, DataField::Port]),
        interval: false,
        comment: "".into(),
    })))?;

    let all = (0..ELEMENTS).map(element).collect();
    let bulk = one(Operation::AddElements {
        set: "backends".into(),
        elements: all,
    });
    println!("{ELEMENTS} elements: {:?}", timed(|| kernel.commit(&bulk))?);
    println!(
        "  {} bytes in {} messages",
        kernel.sent().last_bytes,
        kernel.sent().messages - 2
    );

    let change = |elements| {
        one(Operation::AddElements {
            set: "backends".into(),
            elements,
        })
    };
    let undo = |elements| {
        one(Operation::DeleteElements {
            set: "backends".into(),
            elements,
        })
    };
    let (add, delete) = (
        change(vec![element(ELEMENTS)]),
        undo(vec![element(ELEMENTS)]),
    );
    let pairs = timed(|| {
        (0..CHANGES).try_for_each(|_| kernel.commit(&add).and_then(|()| kernel.commit(&delete)))
    })?;
    println!("one element added and deleted: {:?}", pairs / CHANGES);
    println!(
        "read back: {:?}",
        timed(|| kernel.list(Family::Ip).map(drop))?
    );

    let mut monitor = Monitor::open(table.into(), kernel.port())?;
    let again = timed(|| kernel.commit(&bulk))?;
    println!("the same elements again: {again:?}");
    kernel.commit(&one(Operation::DeleteTable))?;
    println!("heard of it: {:?}", monitor.try_next()?);
    Ok(())
}

fn one(operation: Operation) -> Transaction {
    Transaction {
        operations: vec![(Family::Ip, operation)],
    }
}

fn element(number: u32) -> Element {
    let frontend = Ipv4Addr::from_bits(0x0a60_0000 + number / 10);
    let backend = Ipv4Addr::from_bits(0x0af4_0000 + number % 60_000);
    let key = Bytes::new()
        .address(frontend.into())
        .protocol(Protocol::Tcp)
        .port(80)
        .slot(number % 10);
    Element::value(key, Bytes::new().address(backend.into()).port(8080))
}

fn timed<E>(work: impl FnOnce() -> Result<(), E>) -> Result<Duration, E> {
    let start = Instant::now();
    work().map(|()| start.elapsed())
}
