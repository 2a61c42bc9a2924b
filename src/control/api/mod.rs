//! The Admin API, `/apisix/admin/...`: one door for every request, one table of kinds, one set of handlers for all of them.

mod body;
mod configs;
mod convergence;
mod dispatch;
mod enter;
mod keys;
mod kinds;
mod resources;
mod schemas;
