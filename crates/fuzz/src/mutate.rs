//! The mutations: those that change lengths, numbers and order, since decoders trust these.

use std::ops::Range;

use rand::Rng;
use rand::rngs::SmallRng;

/// Bytes that decoders treat in a special way.
const BYTES: [u8; 20] = [
    0, 1, 2, 4, 8, 0x7f, 0x80, 0xfe, 0xff, b'"', b'\'', b'{', b'[', b':', b'-', b'\n', b' ', b'0',
    b'&', b'*',
];
/// Numbers at which counters and lengths overflow.
const NUMBERS: [u32; 10] = [
    0,
    1,
    3,
    4,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
];
/// Longest piece that is inserted, repeated or taken out.
const PIECE: usize = 256;

/// Changes the input once. `other` is another input, from which pieces are taken.
pub(super) fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut SmallRng) {
    let here = piece(input.len(), random);
    match random.random_range(0..10) {
        0 => {
            if let Some(byte) = input.get_mut(here.start) {
                *byte ^= 1 << random.random_range(0..8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(here.start) {
                *byte = BYTES[random.random_range(0..BYTES.len())];
            }
        }
        2 => {
            if let Some(byte) = input.get_mut(here.start) {
                *byte = byte.wrapping_add(random.random_range(0..9)).wrapping_sub(4);
            }
        }
        3 => overwrite(input, here.start, random),
        4 => drop(input.drain(here)),
        5 => {
            let repeated = input[here.clone()].to_vec();
            insert(input, here.end, &repeated);
        }
        6 => {
            let inserted: Vec<u8> = (0..random.random_range(1..9))
                .map(|_| random.random())
                .collect();
            insert(input, here.start, &inserted);
        }
        7 => insert(input, here.start, &other[piece(other.len(), random)]),
        8 => {
            // The beginning of one and the end of the other.
            input.truncate(here.start);
            let end = piece(other.len(), random).start;
            input.extend_from_slice(&other[end..]);
        }
        _ => {
            let swapped = piece(input.len(), random).start;
            if here.start < input.len() && swapped < input.len() {
                input.swap(here.start, swapped);
            }
        }
    }
}

/// A number of two or four bytes, in either order.
fn overwrite(input: &mut [u8], at: usize, random: &mut SmallRng) {
    let number = NUMBERS[random.random_range(0..NUMBERS.len())];
    let bytes = match random.random() {
        true => number.to_be_bytes(),
        false => number.to_le_bytes(),
    };
    let width = if random.random() { 4 } else { 2 };
    let places = input.iter_mut().skip(at).take(width);
    places.zip(bytes).for_each(|(place, byte)| *place = byte);
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    input.splice(at..at, piece.iter().copied());
}

/// A range within so many bytes.
fn piece(length: usize, random: &mut SmallRng) -> Range<usize> {
    let start = random.random_range(0..=length);
    let longest = (length - start).min(PIECE);
    start..start + random.random_range(0..=longest)
}
