//! Sinks of alerts, against a scripted server, the vendors' schemas, and programs of others.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod alertmanager;
mod delivery;
mod limits;
#[path = "../programs/mod.rs"]
mod others;
mod pager_duty;
mod programs;
mod schema;
mod secrets;
mod settings;
mod slack;
mod stub;
mod support;
mod tls;
mod webhook;
