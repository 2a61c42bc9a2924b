//! The gateway as its operators run it: real processes of the real binary, real sockets, real certificates, a real etcd.
//!
//! `world.rs` starts the processes; each other file holds one side of the program to what was promised.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]
#![allow(clippy::large_futures, reason = "a test has the stack for it")]
#![allow(clippy::cast_possible_truncation, reason = "bytes of made-up frames and bodies")]
#![allow(clippy::print_stderr, reason = "a failing world says what its processes said")]

mod admin_door;
mod apply;
mod audit;
mod auth_plugins;
mod authority;
mod bad_input;
mod canary;
mod canary_fleet;
mod cli;
mod client_certificates;
mod collection;
mod conformance;
mod control;
mod crypto;
mod discovery;
mod drain;
mod enrolment;
#[path = "../support/etcd.rs"]
mod etcd_server;
mod expiry;
mod federation;
mod grpc;
mod headers;
mod health;
mod http1;
mod http2;
mod identity_modes;
mod issuer;
mod jwt_svid;
mod keys;
mod layer4;
mod learn;
mod life;
mod limits;
mod load;
mod mesh;
mod moving;
mod origin;
mod output_ways;
mod outputs;
mod plugin_batch;
mod plugin_cache;
mod plugin_compression;
mod plugin_cors;
mod plugin_csrf;
mod plugin_limits;
mod plugin_made_up;
mod plugin_oas;
mod plugin_redis;
mod plugin_redis_limits;
mod plugin_restrictions;
mod plugin_traffic;
mod plugins;
mod policy;
mod policy_attacks;
mod proof;
mod questions;
mod record_paths;
mod recording;
#[path = "../support/redis.rs"]
mod redis_server;
mod registries;
mod repeats;
mod revocation;
mod rotation;
mod routing;
mod safety;
mod scoping;
mod secrets;
#[path = "../support/slapd.rs"]
mod slapd;
mod stapling;
mod storm;
mod tls_attacks;
mod tls_edge;
mod tunnels;
mod upgrade;
mod upstream;
mod upstream_balance;
mod upstream_names;
mod upstream_tls;
mod versions;
mod world;
