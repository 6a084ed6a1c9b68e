//! The base of every test of the whole program: a reference model written from the Kubernetes
//! documentation ([`oracle`]), random clusters ([`cluster`]), the packets worth trying on them
//! ([`packets`]), an interpreter of the rendered table ([`evaluator`]), and their comparison ([`judge`]).
//!
//! The reference model shares no code and no types with the product, which is reached through [`product`]
//! alone. Where the two differ, one of them is wrong, and the [`judge::Difference`] says on which cluster
//! and packet.

// These items are not a library's API.
#![allow(missing_docs)]
// Indices here come from tests, and a test that panics has failed as it should.
#![allow(clippy::panic, clippy::indexing_slicing)]

pub mod bad_input;
pub mod case;
pub mod clock;
pub mod cluster;
pub mod commands;
pub mod differential;
pub mod doctor;
pub mod encrypted;
pub mod evaluator;
pub mod exceptions;
pub mod field;
pub mod flannel;
pub mod frame;
pub mod judge;
pub mod live;
pub mod oracle;
pub mod overlay;
pub mod packets;
pub mod pod;
pub mod product;
pub mod stage;
pub mod terminal;
pub mod traffic;
pub mod wire;
pub mod written;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number from the environment.
pub fn number_from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text}: not a number")),
        Err(_) => default,
    }
}

/// How many times slower than an ordinary machine this one is (`PORTOLAN_SLOWNESS`; `cargo xtask kernels` says 10 or 20 to
/// emulated ones): traffic is thinner by it, and what has an end waits longer.
pub fn slowness() -> u32 {
    u32::try_from(number_from_env("PORTOLAN_SLOWNESS", 1).max(1)).unwrap_or(u32::MAX)
}

/// Calls `work` with every seed on all processors; a panic of one stops the others and is passed on.
pub fn in_parallel<T: Send>(seeds: Range<u64>, work: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let worker = || {
        let mut done = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return done;
            }
            let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(seed)));
            match attempt {
                Ok(result) => done.push(result),
                Err(panic) => {
                    next.store(seeds.end, Ordering::Relaxed);
                    std::panic::resume_unwind(panic);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let results = workers.into_iter().map(|w| w.join());
        let results: Vec<_> = results.collect();
        results
            .into_iter()
            .flat_map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
