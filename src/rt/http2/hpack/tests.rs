//! HPACK against the examples of RFC 7541 appendix C, and against itself.

#![expect(clippy::cast_possible_truncation, reason = "short texts")]

use super::*;
use proptest::prelude::*;

fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
    let mut fields = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    decoder.read(block, &mut |field| fields.push((text(field.name), text(field.value))))?;
    Ok(fields)
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn the_requests_of_appendix_c_are_read_packed_and_not() {
    let first = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
    ];
    let second = [&first[..], &[("cache-control", "no-cache")]].concat();
    let third = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ];
    let plain = [
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ];
    let packed = [
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ];
    for blocks in [plain, packed] {
        let mut decoder = Decoder::default();
        for (block, expected) in blocks.iter().zip([&first[..], &second, &third]) {
            let block = hex::decode(block).unwrap();
            assert_eq!(read(&mut decoder, &block).unwrap(), pairs(expected));
        }
    }
}

#[test]
fn what_is_no_hpack_is_refused() {
    for (what, block) in [
        ("an index of nothing", "80"),
        ("an index beyond the table", "be"),
        ("a text that is cut off", "000a6162"),
        ("an integer without end", "7fffffffffffffff00"),
        ("an integer that is cut off", "7f"),
        ("a table larger than allowed", "3fe21f"),
        ("a new size behind a field", "823fe11f"),
        ("padding of a whole byte", "000161820fff"),
        ("padding of zeros", "0001618100"),
        ("the end in a text", "00016184ffffffff"),
    ] {
        let block = hex::decode(block).unwrap();
        assert_eq!(read(&mut Decoder::default(), &block), Err(Malformed), "{what}");
    }
}

#[test]
fn what_no_field_may_have_is_told() {
    let mut decoder = Decoder::default();
    for (name, value, is_lawful) in [
        ("x-a", "a b\tc", true),
        ("x-a", "", true),
        (":path", "/", true),
        ("x-ü", "", false),
        ("X-a", "1", false),
        ("", "1", false),
        (":", "1", false),
        ("x a", "1", false),
        ("x:a", "1", false),
        ("x-a", " 1", false),
        ("x-a", "1\t", false),
        ("x-a", "1\r", false),
        ("x-a", "1\n2", false),
        ("x-a", "1\0", false),
        ("x-a", "1\x7f", false),
        ("x-a", "\u{e4}", true),
    ] {
        // Kept, and then asked for again by its index.
        let mut block = vec![0x40, name.len() as u8];
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
        block.push(0xbe);
        let mut found = Vec::new();
        decoder.read(&block, &mut |field| found.push(field.is_lawful)).unwrap();
        assert_eq!(found, [is_lawful, is_lawful], "{name:?} {value:?}");
    }
}

#[test]
fn what_comes_again_is_an_index_and_secrets_never_are() {
    let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let mut block = Vec::new();
        encoder.begin(&mut block);
        encoder.field(&mut block, b":method", b"GET", false);
        encoder.field(&mut block, b"X-Tenant", b"blue", false);
        sizes.push(block.len());
        let at = block.len();
        encoder.field(&mut block, b"authorization", b"secret", true);
        assert_eq!(block[at] & 0xf0, 0x10);
        let fields =
            pairs(&[(":method", "GET"), ("x-tenant", "blue"), ("authorization", "secret")]);
        assert_eq!(read(&mut decoder, &block).unwrap(), fields);
    }
    assert_eq!(sizes[2..], [2, 2]);
}

fn field() -> impl Strategy<Value = (String, Vec<u8>)> {
    let names = ["a", "x-b", ":path", "accept", "cookie", "X-C"];
    let name = prop_oneof![3 => proptest::sample::select(names.to_vec()).prop_map(str::to_owned), 1 => "[a-z-]{1,40}"];
    let value = prop_oneof![
        3 => proptest::sample::select(vec![b"1".to_vec(), b"two".to_vec(), vec![b'c'; 300]]),
        2 => proptest::collection::vec(any::<u8>(), 0..80),
    ];
    (name, value)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_one_end_writes_the_other_reads(
        blocks in proptest::collection::vec((proptest::collection::vec(field(), 0..12), proptest::option::weighted(0.2, 0_usize..6000)), 1..20),
    ) {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        for (fields, limit) in blocks {
            if let Some(limit) = limit {
                encoder.set_limit(limit / 2);
                encoder.set_limit(limit);
            }
            let mut block = Vec::new();
            encoder.begin(&mut block);
            for (name, value) in &fields {
                encoder.field(&mut block, name.as_bytes(), value, false);
            }
            let mut found = Vec::new();
            decoder.read(&block, &mut |field| found.push((field.name.to_vec(), field.value.to_vec()))).unwrap();
            let expected: Vec<_> = fields.iter().map(|(name, value)| (name.to_ascii_lowercase().into_bytes(), value.clone())).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn no_bytes_do_harm(block in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&mut Decoder::default(), &block);
    }

    #[test]
    fn the_code_unpacks_what_it_packs(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (mut packed, mut back) = (Vec::new(), Vec::new());
        huffman::encode(&text, &mut packed);
        prop_assert_eq!(packed.len(), huffman::length(&text));
        huffman::decode(&packed, &mut back).unwrap();
        prop_assert_eq!(back, text);
    }
}
