//! No bytes make the reader of TLS clients' first messages panic; what it waits for stays within its bound, and what it has read
//! whole it does not read otherwise when more follows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate::rt::client_hello::{MAX_HELLO, folded, read};

fuzz_target!(|bytes: &[u8]| match read(bytes) {
    Ok(Some(hello)) => {
        if let Some(name) = &hello.server_name {
            assert_eq!(folded(name).as_ref(), Some(name));
        }
        let more = [bytes, b"\x17\x03\x03\0\x01x"].concat();
        assert_eq!(read(&more), Ok(Some(hello)));
    }
    Ok(None) => assert!(bytes.len() < MAX_HELLO),
    Err(_) => {}
});
