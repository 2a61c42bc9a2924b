//! The gateway as its operators run it: real processes of the real binary, real sockets, real certificates, a real etcd.
//!
//! `world.rs` starts the processes; each other file holds one side of the program to what was promised.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "../support/etcd.rs"]
mod etcd_server;
mod world;

mod drain;
mod grpc;
mod headers;
mod http1;
mod http2;
mod mesh;
mod tls_edge;
mod upstream;
