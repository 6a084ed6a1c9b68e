//! Keys and their text form, base64 (RFC 4648), as `wg` prints them.

use std::fmt;
use std::str::FromStr;

/// Bytes of a Curve25519 key.
const LEN: usize = 32;
/// Characters of a key in base64, with its padding.
const TEXT: usize = 44;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The text is not 32 bytes in base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key is 32 bytes in base64: 43 characters and a =")]
pub struct InvalidKey;

/// A key that everyone may read: it names a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; LEN]);

/// A key that stays on its node. It is never printed by [`fmt::Debug`].
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(pub(crate) [u8; LEN]);

impl PrivateKey {
    /// From 32 random bytes. Clears and sets the bits that every such key has (RFC 7748, section 5), as the kernel does.
    pub fn from_random(mut bytes: [u8; LEN]) -> PrivateKey {
        let [first, .., last] = &mut bytes;
        *first &= 248;
        *last = (*last & 127) | 64;
        PrivateKey(bytes)
    }

    /// The text for the key file.
    pub fn to_base64(&self) -> String {
        encode(&self.0)
    }
}

impl FromStr for PrivateKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(PrivateKey::from_random)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(PublicKey)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

fn encode(bytes: &[u8; LEN]) -> String {
    let mut text = String::with_capacity(TEXT);
    for chunk in bytes.chunks(3) {
        let byte = |n: usize| u32::from(chunk.get(n).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place) & 63) as usize;
            let letter = ALPHABET.get(index).copied().unwrap_or_default();
            text.push(match place > chunk.len() {
                true => '=',
                false => char::from(letter),
            });
        }
    }
    text
}

fn decode(text: &str) -> Result<[u8; LEN], InvalidKey> {
    let digits = text.strip_suffix('=').ok_or(InvalidKey)?;
    if text.len() != TEXT {
        return Err(InvalidKey);
    }
    let (mut bytes, mut bits, mut held) = (Vec::with_capacity(LEN), 0_u32, 0);
    for letter in digits.bytes() {
        let value = ALPHABET.iter().position(|other| *other == letter);
        let value = u32::try_from(value.ok_or(InvalidKey)?).map_err(|_| InvalidKey)?;
        bits = bits << 6 | value;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
            bits &= (1 << held) - 1;
        }
    }
    // The two bits that are left belong to no byte.
    match bits {
        0 => bytes.try_into().map_err(|_| InvalidKey),
        _ => Err(InvalidKey),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pair that `wg genkey | wg pubkey` made.
    const TEXT_KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

    #[test]
    fn a_key_reads_back_from_its_text() {
        let key: PublicKey = TEXT_KEY.parse().unwrap();
        assert_eq!(key.0[..3], [0xc8, 0x09, 0xf3]);
        assert_eq!(key.to_string(), TEXT_KEY);
        for n in 0..=255 {
            let key = PublicKey([n; 32]);
            assert_eq!(key.to_string().parse(), Ok(key));
        }
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        for text in [
            "",
            "=",
            &TEXT_KEY[..43],
            &TEXT_KEY.replace('+', "-"),
            &TEXT_KEY.replace("mk=", "ml="),
            &TEXT_KEY.replace("k=", "=="),
            &format!("{TEXT_KEY}="),
            &format!("{}é=", &TEXT_KEY[..41]),
        ] {
            assert_eq!(text.parse::<PublicKey>(), Err(InvalidKey), "{text}");
        }
    }

    #[test]
    fn a_private_key_is_clamped_and_not_printed() {
        let key = PrivateKey::from_random([0xff; 32]);
        assert_eq!((key.0[0], key.0[31]), (0xf8, 0x7f));
        assert_eq!(key.to_base64().parse(), Ok(key.clone()));
        assert!(!format!("{key:?}").contains(&key.to_base64()));
    }
}
