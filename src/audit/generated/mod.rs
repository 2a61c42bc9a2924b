//! Code generated from `proto/`; `tests/codegen.rs` holds the two together.

/// How data planes hand over their decision logs (`proto/records.proto`).
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    elided_lifetimes_in_paths,
    clippy::all,
    clippy::unwrap_used,
    clippy::missing_errors_doc,
    clippy::wildcard_imports,
    clippy::use_self,
    reason = "generated"
)]
pub(super) mod records {
    include!("records.rs");
}
