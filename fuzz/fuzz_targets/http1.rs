//! Our HTTP/1.1 codec beside hyper's, as server and as client: the same bytes mean the same to both, or we refuse them.
//!
//! The first byte chooses the side and the request's method, or a whole connection of requests, or requests in pieces; the rest is
//! the message.
#![no_main]

#[path = "../../tests/h1_oracle/mod.rs"]
mod h1_oracle;

use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            match choice % 6 {
                0 => h1_oracle::compare_response("GET", bytes).await,
                1 => h1_oracle::compare_response("HEAD", bytes).await,
                2 => h1_oracle::compare_response("POST", bytes).await,
                3 => h1_oracle::compare_connection(bytes).await,
                4 => h1_oracle::compare_pieces(bytes, usize::from(choice / 6)),
                _ => h1_oracle::compare_request(bytes).await,
            }
        });
    });
});
