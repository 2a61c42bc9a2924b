//! The outputs of the decision log: started by the process that owns the log.

use std::time::Duration;

use super::error::Error;
use super::process::Running;
use super::settings;
use crate::audit::{Here, OutputPlace, Outputs};

/// How long outputs may take to hand over what is there; whoever starts them next goes on where they were.
pub(super) const OUTPUTS_WITHIN: Duration = Duration::from_secs(2);

impl Running {
    /// Hands the decision log on, as the settings say.
    ///
    /// # Errors
    /// An output cannot be; the error names it.
    pub(super) fn start_outputs(&mut self) -> Result<(), Error> {
        let place = OutputPlace {
            log: self.settings.audit_file(),
            cursors: self.settings.state_dir.join("outputs"),
            here: Here { node: Some(self.settings.node_name()) },
            identity: self.own.clone(),
        };
        let (wanted, board) = (&self.settings.audit.outputs, &self.shared.outputs);
        self.outputs = Outputs::start(wanted, &place, &self.shared.audit, board)
            .map_err(settings::Error::from)?;
        Ok(())
    }
}
