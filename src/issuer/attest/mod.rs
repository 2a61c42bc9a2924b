//! Attestors: how a caller shows who it is, and the selectors that come of it. A door: it defines nothing itself.

mod join_token;
mod kubernetes;
mod proof;
mod selector;
mod unix;

pub use join_token::{Grant, JoinTokens, TokenId, TokenOrder, TokenState};
pub use kubernetes::{KubernetesAttestor, KubernetesMode, KubernetesSettings};
pub use proof::ProofFlaw;
pub use selector::Selector;
pub use unix::{Attestor, Caller, UnixAttestor};
