//! Wardgate beside what it has to live with: sidecars on a real SPIRE, and real SPIFFE clients on our own issuer.
//!
//! `spire.rs` runs SPIRE's server and agent, `tests/gateway/world.rs` the processes of Wardgate; `tests/spire/build` makes the
//! programs, and without them each test says that it was skipped.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]
#![allow(clippy::large_futures, reason = "a test has the stack for it")]
#![allow(unreachable_pub, reason = "items are shared between the files of one binary")]
#![allow(clippy::print_stderr, reason = "a failing world says what its processes said")]

mod clients;
#[path = "../support/etcd.rs"]
mod etcd_server;
mod federation;
mod guide;
mod jwt;
mod programs;
mod sidecars;
mod spire;
#[path = "../gateway/world.rs"]
mod world;
