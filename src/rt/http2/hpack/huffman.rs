//! The code of RFC 7541 appendix B. It is canonical: the lengths of its codes say all of it.

#![expect(
    clippy::cast_possible_truncation,
    reason = "symbols, lengths and codes are bounded by the code itself"
)]

use super::Malformed;

/// Bits of each byte's code, and of the end's.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const END: u16 = 256;
const LONGEST: usize = 30;
/// Codes up to so many bits are found in one look.
const QUICK: u32 = 9;

struct Canon {
    /// Each symbol's code.
    codes: [u32; 257],
    /// The symbols in the order of their codes.
    symbols: [u16; 257],
    /// For each length, the first code and the place of its symbol.
    first: [(u32, u16); LONGEST + 2],
}

const CANON: Canon = canon();

const fn canon() -> Canon {
    let mut canon = Canon { codes: [0; 257], symbols: [0; 257], first: [(0, 0); LONGEST + 2] };
    let (mut code, mut place, mut length) = (0_u32, 0_u16, 1);
    while length <= LONGEST {
        code <<= 1;
        canon.first[length] = (code, place);
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                canon.codes[symbol] = code;
                canon.symbols[place as usize] = symbol as u16;
                code += 1;
                place += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    canon.first[LONGEST + 1] = (0, place);
    canon
}

/// What begins with these bits: a symbol and its code's length, which is 0 when it is longer.
static SHORT: [(u8, u8); 1 << QUICK] = short();

const fn short() -> [(u8, u8); 1 << QUICK] {
    let mut found = [(0, 0); 1 << QUICK];
    let mut symbol = 0;
    while symbol < 256 {
        let length = LENGTHS[symbol] as u32;
        if length <= QUICK {
            let from = (CANON.codes[symbol] << (QUICK - length)) as usize;
            let mut at = from;
            while at < from + (1 << (QUICK - length)) {
                found[at] = (symbol as u8, length as u8);
                at += 1;
            }
        }
        symbol += 1;
    }
    found
}

/// The symbol whose code these bits begin with, the highest first.
fn lookup(bits: u64) -> (u16, u32) {
    let (symbol, length) = SHORT[(bits >> (64 - QUICK)) as usize];
    if length > 0 {
        return (u16::from(symbol), u32::from(length));
    }
    let mut length = QUICK as usize + 1;
    while length < LONGEST {
        let code = (bits >> (64 - length)) as u32;
        let ((first, place), (_, next)) = (CANON.first[length], CANON.first[length + 1]);
        if code < first + u32::from(next - place) {
            break;
        }
        length += 1;
    }
    let (first, place) = CANON.first[length];
    let code = (bits >> (64 - length)) as u32;
    let at = usize::from(place) + (code - first) as usize;
    (CANON.symbols.get(at).copied().unwrap_or(END), length as u32)
}

/// Adds the decoded bytes to `into`.
///
/// # Errors
/// The end's code stands in it, or what is left over is no padding (RFC 7541 section 5.2).
pub(super) fn decode(source: &[u8], into: &mut Vec<u8>) -> Result<(), Malformed> {
    let (mut bits, mut count, mut at) = (0_u64, 0_u32, 0);
    loop {
        while count <= 56 && at < source.len() {
            bits |= u64::from(source[at]) << (56 - count);
            count += 8;
            at += 1;
        }
        if count == 0 {
            return Ok(());
        }
        let (symbol, length) = lookup(bits);
        if length > count {
            let is_padding = count < 8 && bits >> (64 - count) == (1 << count) - 1;
            return if is_padding { Ok(()) } else { Err(Malformed) };
        }
        let Ok(byte) = u8::try_from(symbol) else { return Err(Malformed) };
        into.push(byte);
        bits <<= length;
        count -= length;
    }
}

/// Bytes that the text has in this code.
pub(super) fn length(text: &[u8]) -> usize {
    let bits: usize = text.iter().map(|byte| usize::from(LENGTHS[usize::from(*byte)])).sum();
    bits.div_ceil(8)
}

pub(super) fn encode(text: &[u8], into: &mut Vec<u8>) {
    let (mut bits, mut count) = (0_u64, 0_u32);
    for byte in text {
        let length = u32::from(LENGTHS[usize::from(*byte)]);
        bits = bits << length | u64::from(CANON.codes[usize::from(*byte)]);
        count += length;
        while count >= 8 {
            count -= 8;
            into.push((bits >> count) as u8);
        }
    }
    if count > 0 {
        into.push((bits << (8 - count)) as u8 | (0xff >> count));
    }
}
