//! The released program as a process: memory, size, and the time from an edit to the kernel.

fn main() {}
