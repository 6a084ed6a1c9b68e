//! The Internet checksum (RFC 1071), of ICMP, TCP and UDP.

/// The checksum of these bytes; an odd last byte counts as the high byte of a word.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let (words, last) = bytes.as_chunks::<2>();
    let words = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)));
    let mut sum = words.sum::<u32>() + last.first().map_or(0, |high| u32::from(*high) << 8);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_with_their_checksum_sum_to_zero() {
        // The example of RFC 1071, section 3: the sum is ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet_checksum(&bytes), !0xddf2);
        let with_checksum = [&bytes[..], &(!0xddf2_u16).to_be_bytes()].concat();
        assert_eq!(internet_checksum(&with_checksum), 0);
        assert_eq!(internet_checksum(&[0x12]), !0x1200);
    }
}
