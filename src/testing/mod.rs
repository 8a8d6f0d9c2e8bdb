//! Tests for what you write against this crate: feature `testing`.

pub mod storage;
