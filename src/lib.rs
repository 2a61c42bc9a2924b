//! Wardgate: an mTLS-centric zero-trust sidecar gateway.
//!
//! The rooms, from the ground up; a room imports only rooms on lower floors (`tests/house.rs` holds that):
//!
//! | floor | rooms |
//! |---|---|
//! | face | `cli` > `roles` |
//! | offices | `control`, `issuer`, `federation`, `acme`, `secrets` |
//! | traffic | `proxy` > `snapshot` > `pipeline` > `upstream`; `plugins` > `pipeline` |
//! | trust | `conformance`, `audit` > `mtls`, `policy` > `identity`; `observe` beside them |
//! | declared | `sync` > `store` > `model` |
//! | ground | `model`, `rt` |
//!
//! ARCHITECTURE.md tells how a request and a change of configuration walk through them.

pub mod acme;
pub mod audit;
pub mod cli;
pub mod conformance;
pub mod control;
pub mod federation;
pub mod identity;
pub mod issuer;
pub mod model;
pub mod mtls;
pub mod observe;
pub mod pipeline;
pub mod plugins;
pub mod policy;
pub mod proxy;
pub mod roles;
pub mod rt;
pub mod secrets;
pub mod snapshot;
pub mod store;
pub mod sync;
pub mod upstream;
