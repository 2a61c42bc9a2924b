//! Policies of other meshes, as ours: text in, policies and a report out. A door: it defines nothing itself.
//!
//! What our language cannot say is left out in the safe direction: an allow rule never admits more than before, a deny rule never
//! refuses less. Each such place is in the report.

mod draft;
mod istio;
mod istio_modes;
mod istio_path;
mod istio_rule;
mod linkerd;
mod objects;
mod options;
mod report;
mod wildcard;

#[cfg(test)]
mod tests;

pub use istio::import_istio;
pub use linkerd::import_linkerd;
pub use options::ImportOptions;
pub use report::{Difference, Import, Weight};
