//! Feeds a decoder of foreign bytes with a corpus and mutations of it.
//!
//! The corpus of a decoder is a folder of the repository, one file for each input. Every run replays all files; then inputs
//! are mutated for as long as [`SECONDS`] says, or [`QUICK`] times. An input that makes the decoder panic, or keeps it busy
//! for longer than [`SLOW`], is made small and written to the folder as `crash-...`, where later runs replay it.
//!
//! Stable Rust has no instrumentation for coverage, so the decoder's own result guides: an input whose [`ResultHash`] is new is
//! mutated further. (`cargo fuzz` and AFL need nightly compilers or instrumented builds; bolero's engine for stable
//! compilers makes inputs from nothing, and random bytes pass no length field.)

// A finding and a corpus that cannot be written fail the test that runs the decoder.
#![allow(clippy::panic, clippy::expect_used)]

mod mutate;

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Environment variable: for how long each decoder is fed with mutations.
pub const SECONDS: &str = "PORTOLAN_FUZZ_SECONDS";
/// Environment variable: the seed of a run that is to be repeated.
const SEED: &str = "PORTOLAN_SEED";
/// Environment variable: with `write`, the seeds become files of the corpus.
const EXPECTED: &str = "PORTOLAN_EXPECTED";
/// Mutated inputs without [`SECONDS`].
const QUICK: usize = 2_000;
/// Longest input.
const LONGEST: usize = 1 << 16;
/// Inputs kept for their outcome.
const POOL: usize = 4_096;
/// Time that an input may take, twice in a row.
const SLOW: Duration = Duration::from_secs(2);
/// Attempts to make an input smaller.
const SHRINKS: usize = 2_000;

/// What a decoder made of an input, as far as it tells one input from another: the kind of its error, or how much it found.
pub type ResultHash = u64;

/// The outcome of a value.
pub fn outcome(value: impl Hash) -> ResultHash {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Why an input is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    Panic,
    Slow,
}

/// Feeds `decode` with the files of the folder `corpus`, the `seeds`, and mutations of both.
///
/// # Panics
/// If an input makes `decode` panic or keeps it busy: the message names the file to which the input was written.
pub fn fuzz(
    corpus: &Path,
    seeds: impl IntoIterator<Item = Vec<u8>>,
    decode: impl Fn(&[u8]) -> ResultHash,
) {
    let seeds: Vec<Vec<u8>> = seeds.into_iter().collect();
    if std::env::var(EXPECTED).is_ok_and(|value| value == "write") {
        write(corpus, &seeds);
    }
    let files = files(corpus);
    assert!(!files.is_empty(), "no corpus in {}", corpus.display());
    for (path, input) in &files {
        let fault = fault(&decode, input).err();
        assert!(fault.is_none(), "{}: {fault:?}", path.display());
    }
    let seed = variable(SEED).unwrap_or_else(|| rand::rng().random());
    println!("{SEED}={seed} {}", corpus.display());
    let mut pool: Vec<Vec<u8>> = files.into_iter().map(|(_, input)| input).collect();
    pool.extend(seeds);
    let outcomes = pool.iter().filter_map(|input| fault(&decode, input).ok());
    let mut run = Run {
        random: SmallRng::seed_from_u64(seed),
        outcomes: outcomes.collect(),
        pool,
    };
    let end = variable(SECONDS).map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut count: usize = 0;
    while end.map_or(count < QUICK, |end| Instant::now() < end) {
        count += 1;
        let input = run.next();
        match fault(&decode, &input) {
            Ok(outcome) => run.learn(input, outcome),
            Err(found) => {
                let small = shrink(&decode, input, &found);
                let path = keep(corpus, &small);
                panic!("{found:?}, {SEED}={seed}: {}", path.display());
            }
        }
    }
    let kinds = run.outcomes.len();
    println!("{count} inputs, {kinds} outcomes, {}", corpus.display());
}

/// The mutations of one run.
struct Run {
    random: SmallRng,
    outcomes: HashSet<ResultHash>,
    pool: Vec<Vec<u8>>,
}

impl Run {
    fn next(&mut self) -> Vec<u8> {
        let mut pick = || {
            let index = self.random.random_range(0..self.pool.len().max(1));
            self.pool.get(index).cloned().unwrap_or_default()
        };
        let (mut input, other) = (pick(), pick());
        for _ in 0..self.random.random_range(1..=5) {
            mutate::mutate(&mut input, &other, &mut self.random);
        }
        input.truncate(LONGEST);
        input
    }

    fn learn(&mut self, input: Vec<u8>, outcome: ResultHash) {
        if self.pool.len() < POOL && self.outcomes.insert(outcome) {
            self.pool.push(input);
        }
    }
}

/// The input's outcome, if nothing is wrong with it.
fn fault(decode: &impl Fn(&[u8]) -> ResultHash, input: &[u8]) -> Result<ResultHash, Fault> {
    let attempt = || {
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| decode(input)));
        match outcome {
            Err(_) => Err(Fault::Panic),
            Ok(_) if start.elapsed() > SLOW => Err(Fault::Slow),
            Ok(outcome) => Ok(outcome),
        }
    };
    match attempt() {
        // The machine may have been busy.
        Err(Fault::Slow) => attempt(),
        other => other,
    }
}

/// A smaller input with the same fault.
fn shrink(decode: &impl Fn(&[u8]) -> ResultHash, input: Vec<u8>, found: &Fault) -> Vec<u8> {
    let mut small = input;
    let (mut piece, mut attempts) = (small.len() / 2, 0);
    while piece > 0 && *found == Fault::Panic {
        let (mut at, before) = (0, small.len());
        while at < small.len() && attempts < SHRINKS {
            attempts += 1;
            let mut fewer = small.clone();
            fewer.drain(at..(at + piece).min(small.len()));
            match fault(decode, &fewer) {
                Err(fault) if fault == *found => small = fewer,
                _ => at += piece,
            }
        }
        // Until no single byte can go.
        if piece > 1 || small.len() == before {
            piece /= 2;
        }
    }
    small
}

fn write(corpus: &Path, seeds: &[Vec<u8>]) {
    for (number, seed) in seeds.iter().enumerate() {
        let path = corpus.join(format!("seed-{number}"));
        let written = std::fs::create_dir_all(corpus).and_then(|()| std::fs::write(path, seed));
        written.expect("the corpus can be written");
    }
}

fn keep(corpus: &Path, input: &[u8]) -> PathBuf {
    let path = corpus.join(format!("crash-{:016x}", outcome(input)));
    if let Err(error) = std::fs::write(&path, input) {
        println!(
            "cannot write {}: {error}; the input: {input:?}",
            path.display()
        );
    }
    path
}

/// The files of the folder, sorted by name.
fn files(corpus: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(corpus).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let read = |path: PathBuf| Some((path.clone(), std::fs::read(path).ok()?));
    paths.into_iter().filter_map(read).collect()
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame: a length, then that many bytes. Trusts a length that is too large by a few.
    fn flawed(input: &[u8]) -> ResultHash {
        let Some((length, rest)) = input.split_first() else {
            return 0;
        };
        let length = usize::from(*length);
        match length <= rest.len() + 4 {
            true => outcome(rest[..length].len()),
            false => 1,
        }
    }

    #[test]
    fn a_panicking_input_is_found_made_small_and_kept() {
        let corpus = tempfile::tempdir().unwrap();
        std::fs::write(corpus.path().join("frame"), [5, 1, 2, 3, 4, 5]).unwrap();
        let seeds = || [vec![3, b'a', b'b', b'c']];
        let result = catch_unwind(|| fuzz(corpus.path(), seeds(), flawed));
        let message = *result.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("crash-"), "{message}");
        let crashes = files(corpus.path()).into_iter();
        let crashes: Vec<_> = crashes
            .filter(|(path, _)| path.to_string_lossy().contains("crash-"))
            .collect();
        assert_eq!(crashes.len(), 1);
        // Made small: without any one of its bytes it is harmless.
        let (_, kept) = &crashes[0];
        for left_out in 0..kept.len() {
            let mut shorter = kept.clone();
            shorter.remove(left_out);
            assert!(catch_unwind(|| flawed(&shorter)).is_ok(), "{crashes:?}");
        }
        // From now on each run begins with it.
        let result = catch_unwind(|| fuzz(corpus.path(), seeds(), flawed));
        let message = *result.unwrap_err().downcast::<String>().unwrap();
        assert!(
            message.contains("crash-") && message.contains("Panic"),
            "{message}"
        );
        fuzz(corpus.path(), seeds(), |input| outcome(input.len()));
    }

    #[test]
    #[should_panic(expected = "no corpus in")]
    fn a_missing_corpus_is_an_error() {
        fuzz(Path::new("/nonexistent"), [], |_| 0);
    }
}
