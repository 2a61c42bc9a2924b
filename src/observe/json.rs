//! JSON written straight into a buffer: no tree, no allocation, and no byte that a terminal or a line reader could trip over.

use std::fmt::Write;

/// The fields of one JSON object that is being written.
pub(super) struct Fields<'o> {
    out: &'o mut Vec<u8>,
    comma: bool,
}

impl<'o> Fields<'o> {
    /// Writes into an object that has been opened and has no field yet.
    pub(super) fn first(out: &'o mut Vec<u8>) -> Self {
        Self { out, comma: false }
    }

    /// Writes behind other fields.
    pub(super) fn more(out: &'o mut Vec<u8>) -> Self {
        Self { out, comma: true }
    }

    /// How much is written.
    pub(super) fn written(&self) -> usize {
        self.out.len()
    }

    /// What is written from there on.
    pub(super) fn text_from(&self, at: usize) -> &[u8] {
        &self.out[at..]
    }

    fn key(&mut self, key: &'static str) {
        self.out.extend_from_slice(if self.comma { b",\"" } else { b"\"" });
        self.comma = true;
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    pub(super) fn text(&mut self, key: &'static str, value: &str) {
        self.key(key);
        self.out.push(b'"');
        escape(value, self.out);
        self.out.push(b'"');
    }

    pub(super) fn texts(&mut self, key: &'static str, values: impl Iterator<Item = String>) {
        self.key(key);
        self.out.push(b'[');
        for (at, value) in values.enumerate() {
            self.out.extend_from_slice(if at > 0 { b",\"" } else { b"\"" });
            escape(&value, self.out);
            self.out.push(b'"');
        }
        self.out.push(b']');
    }

    pub(super) fn some_text(&mut self, key: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    /// Text as it came from a wire. What is not UTF-8 becomes U+FFFD, and its bytes stand beside it in base64.
    pub(super) fn bytes(&mut self, key: &'static str, base64_key: &'static str, value: &[u8]) {
        match std::str::from_utf8(value) {
            Ok(text) => self.text(key, text),
            Err(_) => {
                self.text(key, &String::from_utf8_lossy(value));
                use base64::Engine;
                self.text(base64_key, &base64::engine::general_purpose::STANDARD.encode(value));
            }
        }
    }

    pub(super) fn number(&mut self, key: &'static str, value: impl itoa::Integer) {
        self.key(key);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    pub(super) fn some_number(&mut self, key: &'static str, value: Option<impl itoa::Integer>) {
        if let Some(value) = value {
            self.number(key, value);
        }
    }

    /// Text that something prints as; nothing in it needs an escape that [`escape`] does not give.
    pub(super) fn shown(&mut self, key: &'static str, value: &impl std::fmt::Display) {
        self.key(key);
        self.out.push(b'"');
        let from = self.out.len();
        // A vector takes all.
        let _ = std::io::Write::write_fmt(self.out, format_args!("{value}"));
        debug_assert!(self.out[from..].iter().all(|byte| PLAIN[usize::from(*byte)]));
        self.out.push(b'"');
    }

    /// Bytes in lower-case hexadecimal.
    pub(super) fn hex(&mut self, key: &'static str, value: &[u8]) {
        self.key(key);
        self.out.push(b'"');
        self.push_hex(value);
        self.out.push(b'"');
    }

    fn push_hex(&mut self, value: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for byte in value {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            self.out.extend_from_slice(&[DIGITS[high], DIGITS[low]]);
        }
    }

    /// A field whose name is known at run time only.
    fn named_key(&mut self, key: &str) {
        self.out.extend_from_slice(if self.comma { b",\"" } else { b"\"" });
        self.comma = true;
        escape(key, self.out);
        self.out.extend_from_slice(b"\":\"");
    }

    /// Text as it came from a wire, under a name that is known at run time only.
    pub(super) fn named(&mut self, key: &str, value: &[u8]) {
        self.named_key(key);
        escape(&String::from_utf8_lossy(value), self.out);
        self.out.push(b'"');
    }

    /// Bytes in hexadecimal, under a name that is known at run time only.
    pub(super) fn named_hex(&mut self, key: &str, value: &[u8]) {
        self.named_key(key);
        self.push_hex(value);
        self.out.push(b'"');
    }

    pub(super) fn flag(&mut self, key: &'static str, value: bool) {
        self.key(key);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// A moment in milliseconds since 1970, as RFC 3339.
    pub(super) fn time(&mut self, key: &'static str, unix_millis: u64) {
        self.key(key);
        self.out.push(b'"');
        rfc3339(unix_millis, self.out);
        self.out.push(b'"');
    }

    /// The record's own id, a UUID of version 7 (RFC 9562 5.7): its time, and of start and number of the record as much as
    /// makes it the only one.
    pub(super) fn event_id(&mut self, unix_millis: u64, boot: u64, seq: u64) {
        let high = unix_millis << 16 | 0x7000 | boot >> 52;
        let low = 1 << 63 | (boot >> 30 & 0x3f_ffff) << 40 | seq & 0xff_ffff_ffff;
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        let text = uuid::Uuid::from_u64_pair(high, low).hyphenated().encode_lower(&mut text);
        self.text("event_id", text);
    }

    pub(super) fn object(&mut self, key: &'static str, write: impl FnOnce(&mut Fields<'_>)) {
        self.key(key);
        self.out.push(b'{');
        write(&mut Fields::first(self.out));
        self.out.push(b'}');
    }

    /// Fields that were written before, without braces.
    pub(super) fn raw(&mut self, fields: &[u8]) {
        if fields.is_empty() {
            return;
        }
        if self.comma {
            self.out.push(b',');
        }
        self.comma = true;
        self.out.extend_from_slice(fields);
    }
}

/// Bytes that are copied as they are.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0x20;
    while byte < 0x7f {
        plain[byte] = byte != b'"' as usize && byte != b'\\' as usize;
        byte += 1;
    }
    plain
};

/// Writes the inside of a JSON string.
///
/// Beside what JSON demands, control characters of all kinds and those that reorder or hide text are escaped.
pub(super) fn escape(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    if bytes.iter().all(|byte| PLAIN[usize::from(*byte)]) {
        out.extend_from_slice(bytes);
        return;
    }
    for char in text.chars() {
        match char {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{0}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' => {
                let mut hex = FixedText::<6>::default();
                let _ = write!(hex, "\\u{:04x}", u32::from(char));
                out.extend_from_slice(hex.as_bytes());
            }
            other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// A short text on the stack.
struct FixedText<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Default for FixedText<N> {
    fn default() -> Self {
        Self { bytes: [0; N], length: 0 }
    }
}

impl<const N: usize> FixedText<N> {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl<const N: usize> Write for FixedText<N> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        self.bytes
            .get_mut(self.length..end)
            .ok_or(std::fmt::Error)?
            .copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// `2026-11-21T12:00:00.000Z`.
pub(super) fn rfc3339(unix_millis: u64, out: &mut Vec<u8>) {
    let (seconds, millis) = (unix_millis / 1000, unix_millis % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a date: Howard Hinnant's civil_from_days, for days since 1970.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    for (number, width, mark) in [
        (year, 4, b'-'),
        (month, 2, b'-'),
        (day, 2, b'T'),
        (second / 3600, 2, b':'),
        (second / 60 % 60, 2, b':'),
        (second % 60, 2, b'.'),
        (millis, 3, b'Z'),
    ] {
        let mut text = itoa::Buffer::new();
        let text = text.format(number).as_bytes();
        out.extend(std::iter::repeat_n(b'0', usize::saturating_sub(width, text.len())));
        out.extend_from_slice(text);
        out.push(mark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(write: impl FnOnce(&mut Fields<'_>)) -> String {
        let mut out = b"{".to_vec();
        write(&mut Fields::first(&mut out));
        out.push(b'}');
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn any_text_survives_a_json_parser_and_no_control_character_survives_in_the_line() {
        for text in [
            "plain",
            "a\"b\\c",
            "line\nbreak\r\ttab",
            "\u{0}\u{1f}\u{7f}\u{9b}31m",
            "\u{1b}[2J",
            "ünï 会计 🦀",
            "\u{202e}gnp.exe\u{2028}\u{feff}",
            "",
        ] {
            let line = object(|fields| fields.text("k", text));
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(parsed["k"], text);
            assert!(!line.chars().any(|c| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}')));
        }
    }

    #[test]
    fn bytes_that_are_no_text_stay_readable_and_complete() {
        let line = object(|fields| fields.bytes("path", "path_b64", b"/\xff\"\n"));
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["path"], "/\u{fffd}\"\n");
        assert_eq!(parsed["path_b64"], "L/8iCg==");
        assert_eq!(object(|fields| fields.bytes("path", "b", b"/a")), r#"{"path":"/a"}"#);
    }

    #[test]
    fn fields_nest_and_commas_stand_between() {
        let line = object(|fields| {
            fields.number("n", 7_u64);
            fields.object("o", |inner| {
                inner.some_text("absent", None);
                inner.number("x", -1_i64);
                inner.text("y", "z");
            });
            fields.raw(b"\"r\":1");
            fields.raw(b"");
        });
        assert_eq!(line, r#"{"n":7,"o":{"x":-1,"y":"z"},"r":1}"#);
    }

    #[test]
    fn an_event_id_is_a_uuid_of_version_7_and_of_one_record_alone() {
        let id = |millis, boot, seq| {
            let line = object(|fields| fields.event_id(millis, boot, seq));
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            value["event_id"].as_str().unwrap().parse::<uuid::Uuid>().unwrap()
        };
        let one = id(1_795_262_400_001, u64::MAX, 7);
        assert_eq!((one.get_version_num(), one.get_variant()), (7, uuid::Variant::RFC4122));
        assert_eq!(one.as_u64_pair().0 >> 16, 1_795_262_400_001);
        assert_ne!(one, id(1_795_262_400_001, u64::MAX, 8));
        assert_ne!(one, id(1_795_262_400_001, 0, 7));
        assert!(one < id(1_795_262_400_001, u64::MAX, 8), "in their order");
    }

    #[test]
    fn time_is_written_as_the_calendar_has_it() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_795_262_400_001, "2026-11-21T12:00:00.001Z"),
            (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
            (253_402_300_799_000, "9999-12-31T23:59:59.000Z"),
        ] {
            let mut out = Vec::new();
            rfc3339(millis, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
