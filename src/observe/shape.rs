//! The shape of a path: its segments, with what looks like a name of one thing replaced by `{id}`.
//!
//! Used where no template is known, to tell which requests are the same: `/invoices/17` and `/invoices/18` are.

/// Longer paths are told apart by their start.
const LONGEST: usize = 256;
const ID: &[u8] = b"{id}";

/// Appends the shape of a path.
pub(super) fn write(path: &[u8], out: &mut Vec<u8>) {
    let path = &path[..path.len().min(LONGEST)];
    let mut segments = path.split(|byte| *byte == b'/');
    if let Some(first) = segments.next() {
        write_segment(first, out);
    }
    for segment in segments {
        out.push(b'/');
        write_segment(segment, out);
    }
}

fn write_segment(segment: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(if is_name_of_one(segment) { ID } else { segment });
}

/// Does it look like a number, a UUID, a hash or a key? Whatever has a digit in the middle of letters and is long does, and
/// what has nothing but digits.
fn is_name_of_one(segment: &[u8]) -> bool {
    let digits = segment.iter().filter(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return false;
    }
    digits == segment.len()
        || segment.len() >= 16
        || (digits * 2 >= segment.len() && segment.len() >= 4)
}

/// The shape as text.
pub(super) fn template(path: &[u8]) -> String {
    let mut out = Vec::with_capacity(path.len());
    write(path, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_thing_are_told_from_names_of_kinds() {
        for (path, shape) in [
            ("/", "/"),
            ("", ""),
            ("/invoices/17", "/invoices/{id}"),
            ("/invoices/17/lines/3", "/invoices/{id}/lines/{id}"),
            ("/v1/users", "/v1/users"),
            ("/api/v2beta1/x", "/api/v2beta1/x"),
            ("/o/3f2504e0-4f89-41d3-9a0c-0305e82c3301/", "/o/{id}/"),
            ("/img/a1b2c3d4.png", "/img/a1b2c3d4.png"),
            ("/orders/A-20931", "/orders/{id}"),
            ("/oauth2/token", "/oauth2/token"),
        ] {
            assert_eq!(template(path.as_bytes()), shape, "{path}");
        }
        assert!(template(&[b'a'; 5000]).len() <= LONGEST);
    }
}
