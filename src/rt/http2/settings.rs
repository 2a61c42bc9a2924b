//! `Settings`: what one end is told once.

/// What we tell the peer, and keep to.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of a body that may be on their way on one stream.
    pub stream_window: u32,
    /// The same on all of them together; at least 65,535.
    pub connection_window: u32,
    /// Streams that the peer may have open at once.
    pub streams: u32,
    /// Bytes of a head's fields, with 32 more for each.
    pub list_size: usize,
    /// Bytes that wait for a peer that does not take them.
    pub send_buffer: usize,
    /// We know extended CONNECT (RFC 8441).
    pub extended_connect: bool,
}
