//! Public certificates from a real ACME server: Pebble, which Let's Encrypt made for tests. `tests/acme/build` builds it, and
//! without it each test says that it was skipped.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]
#![allow(clippy::large_futures, reason = "a test has the stack for it")]
#![allow(unreachable_pub, reason = "items are shared between the files of one binary")]
#![allow(clippy::print_stderr, reason = "a failing world says what its processes said")]

mod certificates;
#[path = "../support/etcd.rs"]
mod etcd_server;
mod pebble;
#[path = "../gateway/world.rs"]
mod world;
