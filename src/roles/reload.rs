//! `SIGHUP`: the settings file is read again. What can change while the process runs does; what cannot is named.

use super::facts::Reload;
use super::outputs::OUTPUTS_WITHIN;
use super::process::Running;
use super::settings::Settings;
use super::settings_file::SettingsFile;
use crate::rt::{causes, unix_seconds};
use crate::sync::file::process_environment;

/// What a setting's change comes to.
enum Change {
    /// It is in force.
    Done,
    /// Only a new process has it.
    NeedsUpgrade,
}

impl Running {
    /// Reads the settings again. A file that cannot be used changes nothing; of one that can, that part is put into force that
    /// a running process can change. What was done stands in the log and in the status.
    pub async fn reload(&mut self) -> Reload {
        let mut reload = Reload { at: unix_seconds(), ..Reload::default() };
        match self.read_again(&mut reload).await {
            Err(error) => {
                tracing::error!("the settings stay as they are: {error}");
                reload.error = Some(error);
            }
            Ok(()) => {
                let (applied, waiting) = (reload.applied.join(" "), reload.needs_upgrade.join(" "));
                tracing::info!(applied, "settings read again");
                if !waiting.is_empty() {
                    tracing::warn!(
                        settings = waiting,
                        "these settings come into force with `wardgate upgrade` or a restart"
                    );
                }
            }
        }
        self.shared.facts.reloaded(reload.clone());
        reload
    }

    async fn read_again(&mut self, reload: &mut Reload) -> Result<(), String> {
        let Some(mut in_force) = self.file.take() else {
            return Err("they came from no file".to_owned());
        };
        let read = SettingsFile::read(&in_force.path, &process_environment())
            .and_then(|fresh| fresh.settings.check(self.asked).map(|()| fresh));
        let fresh = match read {
            Ok(fresh) => fresh,
            Err(error) => {
                self.file = Some(in_force);
                return Err(causes(&error));
            }
        };
        let mut problem = None;
        for name in fresh.differing(&in_force) {
            match self.change(&name, &fresh.settings).await {
                Ok(Change::Done) => {
                    in_force.adopt(&name, &fresh);
                    reload.applied.push(name);
                }
                Ok(Change::NeedsUpgrade) => reload.needs_upgrade.push(name),
                Err(why) => problem = Some(format!("setting {name}: {why}")),
            }
        }
        self.file = Some(in_force);
        problem.map_or(Ok(()), Err)
    }

    /// Puts one setting into force, if that can be done here.
    async fn change(&mut self, name: &str, fresh: &Settings) -> Result<Change, String> {
        match name.split('.').next().unwrap_or(name) {
            "log" => {
                if !fresh.log.put_into_force()? {
                    tracing::warn!("WARDGATE_LOG is set and wins over the setting log.filter");
                }
                self.settings.log = fresh.log.clone();
            }
            "audit" if name == "audit.stdout" => {
                let (audit, stdout) = (self.shared.audit.clone(), fresh.audit.stdout);
                let done = tokio::task::spawn_blocking(move || audit.set_stdout(stdout)).await;
                done.map_err(|error| error.to_string())?.map_err(|error| causes(&error))?;
                self.settings.audit.stdout = stdout;
            }
            "audit" if name == "audit.outputs" => {
                let outputs = fresh.audit.outputs.clone();
                let before = std::mem::replace(&mut self.settings.audit.outputs, outputs);
                let kept = std::mem::take(&mut self.outputs).finish(OUTPUTS_WITHIN).await;
                before.iter().for_each(|one| self.shared.outputs.forget(&one.name));
                let started = self.start_outputs();
                if started.is_err() {
                    self.settings.audit.outputs = before;
                    self.start_outputs().map_err(|error| causes(&error))?;
                }
                kept.release();
                started.map_err(|error| causes(&error))?;
            }
            "warnings" => {
                self.settings.warnings = fresh.warnings.clone();
                self.warnings.set(fresh.warnings.clone());
            }
            "drain_seconds" => self.settings.drain_seconds = fresh.drain_seconds,
            "drain_grace_seconds" => self.settings.drain_grace_seconds = fresh.drain_grace_seconds,
            "upgrade_seconds" => self.settings.upgrade_seconds = fresh.upgrade_seconds,
            _ => return Ok(Change::NeedsUpgrade),
        }
        Ok(Change::Done)
    }
}
