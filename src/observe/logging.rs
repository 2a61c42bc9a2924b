//! Logs for people, on standard error.

use std::io::IsTerminal;
use std::sync::OnceLock;

use schemars::JsonSchema;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use super::error::Error;

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For eyes.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("a log format is text or json"),
        }
    }
}

/// What is logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// What to log, as `info` or `warn,wardgate=debug`; `warn,wardgate=info` when not given. The environment's `WARDGATE_LOG`
    /// wins.
    pub filter: Option<String>,
}

impl LogSettings {
    /// Can the filter be read?
    ///
    /// # Errors
    /// It cannot; the sentence says why.
    pub fn check(&self) -> Result<(), String> {
        let text = self.filter.as_deref().unwrap_or(DEFAULT);
        EnvFilter::builder().parse(text).map(drop).map_err(|error| format!("{text:?}: {error}"))
    }

    /// Logs by this filter from now on; `false` when the environment sets another one, which wins.
    ///
    /// # Errors
    /// The filter cannot be read; the one before stays.
    pub fn put_into_force(&self) -> Result<bool, String> {
        self.check()?;
        if from_environment().is_some() {
            return Ok(false);
        }
        let text = self.filter.as_deref().unwrap_or(DEFAULT);
        let filter = EnvFilter::builder().parse(text).map_err(|error| error.to_string())?;
        match CHANGE.get() {
            Some(change) => change(filter),
            // Nobody logs: a command that was started without.
            None => Ok(()),
        }?;
        Ok(true)
    }
}

/// Exchanges the filter of the process' one log.
static CHANGE: OnceLock<Change> = OnceLock::new();
type Change = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

fn from_environment() -> Option<String> {
    std::env::var(VARIABLE).ok().filter(|text| !text.is_empty())
}

/// What sets the filter.
const VARIABLE: &str = "WARDGATE_LOG";
const DEFAULT: &str = "warn,wardgate=info";

/// Starts logging for the process. `WARDGATE_LOG` overrides `filter`, which overrides `warn,wardgate=info`.
///
/// # Errors
/// The filter cannot be read, or logging was started before.
pub fn start(format: LogFormat, filter: Option<&str>) -> Result<(), Error> {
    let set = from_environment();
    let text = set.as_deref().or(filter).unwrap_or(DEFAULT);
    let filter = parse(text)?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let change: Change = match format {
        LogFormat::Text => {
            let builder = builder.with_ansi(colours).with_target(false).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init().map_err(|_| Error::Started)?;
            Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(false);
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init().map_err(|_| Error::Started)?;
            Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()))
        }
    };
    CHANGE.set(change).map_err(|_| Error::Started)
}

fn parse(text: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|error| Error::Filter { variable: VARIABLE, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_is_refused_by_name() {
        assert!(parse(DEFAULT).is_ok());
        let sentence = parse("wardgate=loud").unwrap_err().to_string();
        assert!(sentence.starts_with("WARDGATE_LOG is no log filter"), "{sentence}");
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
