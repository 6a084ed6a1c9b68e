//! Hashes that are the same in every version: what they decide outlives the process that computed them.

/// FNV-1a of 64 bits.
pub fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    fnv_after(0xcbf2_9ce4_8422_2325, bytes)
}

/// The same of bytes that follow those of a hash.
pub fn fnv_after(hash: u64, bytes: impl Iterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.fold(hash, step)
}

/// Spreads a hash over all bits, so that it can be compared with others: FNV-1a hardly moves the high bits for the last bytes.
/// The last steps of SplitMix64.
pub fn mixed(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
