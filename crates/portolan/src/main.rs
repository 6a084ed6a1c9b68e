//! The `portolan` program; everything is in the library.

fn main() {}
