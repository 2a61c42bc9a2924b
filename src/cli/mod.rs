//! What people type: commands that read logs and ask running processes. A door: it defines nothing itself.

pub mod audit;
pub mod explain;
mod text;
