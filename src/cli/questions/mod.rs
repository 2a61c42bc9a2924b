//! Questions about policies: `who-can`, `what-can`, `can-i`, `explain request`. A door: it defines nothing itself.

mod commands;
mod print;
mod request;
mod subject;

pub(super) use commands::{
    CanIArgs, RequestArgs, WhatCanArgs, WhoCanArgs, can_i, request, what_can, who_can,
};
pub(super) use subject::{SubjectArgs, declared_scene};
