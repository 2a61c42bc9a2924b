//! Our HTTP/1.1 codec beside hyper's: the same bytes mean the same, or we refuse them.
mod h1_oracle;

use h1_oracle::{
    Reading, compare_connection, compare_pieces, compare_request, compare_response, our_request,
};
use proptest::prelude::*;

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work);
}

/// Lines that have fooled parsers: lawful, unlawful and ambiguous ones.
const LINES: &[&str] = &[
    "Host: a",
    "Host: a:80",
    "Host: b",
    "host:a",
    "Host: [::1]",
    "Host: u@a",
    "Content-Length: 0",
    "Content-Length: 3",
    "Content-Length: 5",
    "Content-Length: +3",
    "Content-Length: 3, 3",
    "Content-Length : 3",
    "Content-Length:\t3\t",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding:chunked",
    "transfer-encoding: Chunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding\t: chunked",
    "Connection: close",
    "Connection: keep-alive",
    "Connection: upgrade",
    "Upgrade: h2c",
    "X-A: 1",
    "X-A: \u{e4}",
    "X-A: a\tb",
    "X-A:",
    " folded",
    "X A: 1",
    "Expect: 100-continue",
];
const FIRST: &[&str] = &[
    "GET / HTTP/1.1",
    "POST /a?b HTTP/1.1",
    "HEAD /a HTTP/1.1",
    "GET / HTTP/1.0",
    "POST / HTTP/1.0",
    "GET http://a/x HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "GET  / HTTP/1.1",
    "GET / HTTP/1.2",
    "GET /\t HTTP/1.1",
    "FOO /%41 HTTP/1.1",
    "\r\nGET / HTTP/1.1",
];
const STATUS: &[&str] = &[
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200",
    "HTTP/1.0 200 OK",
    "HTTP/1.1 204 No Content",
    "HTTP/1.1 304 Not Modified",
    "HTTP/1.1 404 \u{e4}",
    "HTTP/1.1 99 Odd",
];
const BODIES: &[&str] = &[
    "",
    "abc",
    "abcde",
    "3\r\nabc\r\n0\r\n\r\n",
    "3;x=y\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
    "3\nabc\r\n0\r\n\r\n",
    "03\r\nabc\r\n00\r\n\r\n",
    "3 \r\nabc\r\n0\r\n\r\n",
    "-3\r\nabc\r\n0\r\n\r\n",
    "3\r\nabcd\r\n0\r\n\r\n",
    "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
];
const ENDS: &[&str] = &["\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r"];

fn message(first: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let line = (prop::sample::select(LINES), prop::sample::select(ENDS));
    (
        prop::sample::select(first),
        prop::collection::vec(line, 0..5),
        prop::sample::select(BODIES),
        prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    )
        .prop_map(|(first, lines, body, mutation)| {
            let lines: String = lines.iter().map(|(line, end)| format!("{line}{end}")).collect();
            let mut bytes = format!("{first}\r\n{lines}\r\n{body}").into_bytes();
            if let Some((at, byte)) = mutation {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_request_means_to_us_what_it_means_to_hyper(bytes in message(FIRST)) {
        run(compare_request(&bytes));
    }

    #[test]
    fn a_response_means_to_us_what_it_means_to_hyper(
        bytes in message(STATUS),
        method in prop::sample::select(&["GET", "HEAD", "POST"][..]),
    ) {
        run(compare_response(method, &bytes));
    }

    #[test]
    fn a_connection_carries_the_same_requests_to_us_as_to_hyper(
        messages in prop::collection::vec(message(FIRST), 1..4),
    ) {
        run(compare_connection(&messages.concat()));
    }

    #[test]
    fn a_request_in_pieces_is_the_one_that_it_is_at_once(bytes in message(FIRST), size in 1_usize..40) {
        compare_pieces(&bytes, size);
    }

    #[test]
    fn a_chunked_body_in_pieces_is_the_one_that_it_is_at_once(
        parts in prop::collection::vec(prop::sample::select(BODIES), 1..4),
        size in 1_usize..9,
    ) {
        compare_pieces(parts.concat().as_bytes(), size);
    }

    #[test]
    fn no_bytes_at_all_can_make_us_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = our_request(&bytes);
        let _ = h1_oracle::our_response("GET", &bytes);
    }
}

#[test]
fn the_oracle_itself_reads_a_plain_request() {
    run(async {
        let bytes = b"POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(our_request(bytes), h1_oracle::hyper_request(bytes).await);
        assert!(matches!(our_request(bytes), Reading::Whole(message) if message.body == b"abc"));
        let bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        assert_eq!(
            h1_oracle::our_response("GET", bytes),
            h1_oracle::hyper_response("GET", bytes).await
        );
    });
}
