//! What people type: commands that start roles, read logs, and ask running processes. A door: it defines nothing itself.

mod admin;
mod admin_key;
mod archive;
mod audit;
mod audit_export;
mod audit_match;
mod canary;
mod central;
mod check;
mod client;
mod command;
mod config;
mod conformance;
mod demo;
mod dev;
mod explain;
mod identity;
mod paint;
mod policy;
mod questions;
mod run;
mod schema;
mod status;
mod store;
mod tap;
mod text;
mod who_did;

pub use command::main;
