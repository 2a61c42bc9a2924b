//! The whole configuration from the command line: files applied, compared, dumped, judged, and the past. A door.

mod adc;
mod apply;
mod dump;
mod files;
mod history;
mod sync;
mod validate;

pub(super) use apply::{ApplyArgs, DiffArgs, apply, diff};
pub(super) use dump::{DumpArgs, dump};
pub(super) use history::{
    HistoryArgs, Past, RollbackArgs, history, rollback, show_history, show_rollback,
};
pub(super) use sync::{SyncArgs, sync};
pub(super) use validate::{ValidateArgs, validate};
