//! No bytes make the reader of PROXY headers panic, none are read in two ways, and nothing is taken that was not there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate::rt::proxy_protocol::{Header, MAX_HEADER, Version, read, write};

fuzz_target!(|bytes: &[u8]| {
    match read(bytes) {
        Ok(Some((header, length))) => {
            assert!(length <= bytes.len() && length <= MAX_HEADER);
            assert_eq!(read(&bytes[..length]), Ok(Some((header, length))));
            assert_eq!(read(&bytes[..length - 1]), Ok(None));
            if let Header::For(ends) = header {
                let again = write(Version::V2, Some(ends));
                assert!(matches!(read(&again), Ok(Some((Header::For(_), _)))));
            }
        }
        Ok(None) => assert!(bytes.len() < MAX_HEADER),
        Err(_) => {}
    }
});
