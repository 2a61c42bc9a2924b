//! `proxy-buffering`: answers pass as they come.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::pipeline::{Build, Hooks, Invalid, Plugin};

/// Says that answers are to pass as they come. They always do here: a slow client holds its upstream back, and nothing is collected.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Whether answers must not be collected. Either way they are not.
    #[serde(default, rename = "disable_proxy_buffering")]
    _disable_proxy_buffering: bool,
}

pub(super) struct ProxyBuffering;

impl Plugin for ProxyBuffering {
    const NAME: &'static str = "proxy-buffering";
    const PRIORITY: i32 = 21991;
    const EXAMPLE: &'static str = r#"{"disable_proxy_buffering": true}"#;
    type Config = Config;

    fn compile(_: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        Ok(Hooks::none())
    }
}
