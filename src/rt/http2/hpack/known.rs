//! The fields that both sides know from the start (RFC 7541 appendix A).

#[rustfmt::skip]
pub(super) static FIELDS: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

/// The index of the whole field, if it is one that says something.
pub(super) fn whole(name: &[u8], value: &[u8]) -> Option<usize> {
    let range = match name {
        b":method" => 2..=3,
        b":path" => 4..=5,
        b":scheme" => 6..=7,
        b":status" => 8..=14,
        b"accept-encoding" => 16..=16,
        _ => return None,
    };
    range.into_iter().find(|index| FIELDS[index - 1].1.as_bytes() == value)
}

/// The index of the first field with that name.
pub(super) fn named(name: &[u8]) -> Option<usize> {
    FIELDS.iter().position(|(known, _)| known.as_bytes() == name).map(|at| at + 1)
}
