//! HPACK, the compression of fields in HTTP/2 (RFC 7541).

mod decode;
mod encode;
mod huffman;
mod known;
mod table;

pub use decode::{Decoder, Malformed, Read, is_sendable};
pub use encode::Encoder;

/// Bytes of a dynamic table, as both sides begin with (RFC 9113 section 6.5.2); neither of ours ever grows beyond it.
pub const TABLE_BYTES: usize = 4096;

#[cfg(test)]
mod tests;
