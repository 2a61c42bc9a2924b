//! Policies in the language of other engines: policies in, text out. A door: it defines nothing itself.

mod cedar;
mod cedar_text;

#[cfg(test)]
mod grammar;
#[cfg(test)]
mod tests;

pub use cedar::{Cedar, export_cedar};
