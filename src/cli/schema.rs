//! `wardgate schema`: JSON Schemas of what people write, for editors.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::model::{Kind, schema_of};
use crate::policy::PolicyTest;
use crate::roles::Settings;

#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  wardgate schema policy > policy.schema.json
  and in a policy's first line: # yaml-language-server: $schema=policy.schema.json")]
pub(super) struct SchemaArgs {
    /// Of what.
    #[arg(value_enum, default_value_t)]
    of: SchemaOf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum SchemaOf {
    /// A process' settings file.
    #[default]
    Settings,
    /// An identity policy, as the Admin API takes it and policy files hold it.
    Policy,
    /// An identity mode.
    IdentityMode,
    /// Cases of policies, for `wardgate policy test`.
    PolicyTest,
}

/// Runs `wardgate schema`.
pub(super) fn run(args: &SchemaArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let schema = match args.of {
        SchemaOf::Settings => schemars::schema_for!(Settings).to_value(),
        SchemaOf::Policy => Kind::IdentityPolicies.schema(),
        SchemaOf::IdentityMode => Kind::IdentityModes.schema(),
        SchemaOf::PolicyTest => schema_of::<PolicyTest>(),
    };
    writeln!(out, "{}", serde_json::to_string_pretty::<Value>(&schema)?)?;
    Ok(ExitCode::SUCCESS)
}
