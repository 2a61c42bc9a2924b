//! The Admin API, `/apisix/admin/...`: one door for every request, one table of kinds, one set of handlers for all of them.

pub(super) mod body;
mod configs;
mod dispatch;
mod enter;
mod keys;
mod kinds;
mod resources;
mod schemas;
