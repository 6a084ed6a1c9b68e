//! The conntrack table: how full it is, and what it has dropped.

use std::fs::read_to_string;

use super::Check;

const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// One line for each processor, in hexadecimal, below a line of names (net/netfilter/nf_conntrack_standalone.c).
const STATISTICS: &str = "/proc/thread-self/net/stat/nf_conntrack";

/// Parts of a hundred of the table from which on it is a note, and a fault.
const FULL: [u64; 2] = [75, 95];

/// Numbers of packets since the network namespace began, by the kernel's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Dropped {
    /// `drop`: no space for a new entry.
    no_space: u64,
    /// `early_drop`: entries that gave way to new ones.
    early: u64,
}

pub(super) fn check() -> Check {
    let number = |path| read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let dropped = read_to_string(STATISTICS).map(|text| dropped(&text));
    judge(number(COUNT).zip(number(MAX)), dropped.unwrap_or_default())
}

fn judge(entries: Option<(u64, u64)>, dropped: Dropped) -> Check {
    let mut check = Check::new("conntrack table");
    let advice = "raise net.netfilter.nf_conntrack_max (--conntrack-max-per-core, --conntrack-min)";
    if let Some((count, max)) = entries.filter(|(_, max)| *max > 0) {
        let part = count.saturating_mul(100) / max;
        let text = format!(
            "{count} of {max} entries are in use; new connections are dropped when it is full: {advice}"
        );
        match FULL {
            [_, fault] if part >= fault => check.faults.push(text),
            [note, _] if part >= note => check.notes.push(text),
            _ => {}
        }
    }
    let Dropped { no_space, early } = dropped;
    if no_space > 0 || early > 0 {
        check.notes.push(format!(
            "since the node started, {no_space} packets were dropped for want of space, and {early} entries gave way to new \
             ones: {advice}"
        ));
    }
    check
}

fn dropped(text: &str) -> Dropped {
    let mut lines = text.lines();
    let names: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let mut found = Dropped::default();
    for line in lines {
        for (name, value) in names.iter().zip(line.split_whitespace()) {
            let value = u64::from_str_radix(value, 16).unwrap_or_default();
            match *name {
                "drop" => found.no_space += value,
                "early_drop" => found.early += value,
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_is_a_fault_and_a_filling_one_a_note() {
        let of = |count| {
            let check = judge(Some((count, 1000)), Dropped::default());
            (check.faults.len(), check.notes.len())
        };
        assert_eq!([of(0), of(749)], [(0, 0), (0, 0)]);
        assert_eq!([of(750), of(949)], [(0, 1), (0, 1)]);
        assert_eq!([of(950), of(1000)], [(1, 0), (1, 0)]);
        assert_eq!(
            judge(None, Dropped::default()),
            Check::new("conntrack table")
        );
    }

    #[test]
    fn drops_of_all_processors_are_added() {
        let text = "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error\n\
                    00000010  00000000 00000000 0 0 0 0 0 0 00000003 0000000a 00000001 0\n\
                    00000010  00000000 00000000 0 0 0 0 0 0 00000000 00000010 00000000 0\n";
        let found = dropped(text);
        assert_eq!((found.no_space, found.early), (26, 1));
        let notes = judge(Some((1, 1000)), found).notes;
        assert!(notes.iter().all(|note| note.contains("26 packets")) && notes.len() == 1);
        assert_eq!(dropped(""), Dropped::default());
    }
}
