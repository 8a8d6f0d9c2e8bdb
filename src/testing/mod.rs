//! Tests for what you write against this crate: feature `testing`.

pub mod distributed;
pub mod storage;
