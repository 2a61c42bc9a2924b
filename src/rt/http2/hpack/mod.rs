//! HPACK, the compression of fields in HTTP/2 (RFC 7541).

mod decode;
mod encode;
mod huffman;
mod known;
mod table;

pub use decode::{Decoder, Malformed, Read, is_sendable};
pub use encode::Encoder;
pub use table::TABLE_BYTES;

#[cfg(test)]
mod tests;
