//! What a plugin is and what it is given. A door: it defines nothing itself.

mod body;
mod build;
mod exchange;
mod fault;
mod head;
mod hooks;
mod plugin;

pub use body::{BodyFilter, BodyFilters};
pub use build::{Build, Kept};
pub use exchange::{
    Client, Consumer, Directory, Exchange, Notes, ResponseSource, RouteInfo, Times,
};
pub use fault::{Fault, Flow, Reply, Side};
pub use head::{Field, Head, Known};
pub use hooks::{Access, Forward, Hooks, HooksOf, Log, ResponseBody, ResponseHead, Rewrite};
pub use plugin::{Entry, Plugin};
