//! What a queue does over time with work that failed or waits: pure functions of what happened, of the time that passed
//! and of a random number. No clock is read for a decision, no timer armed, no queue known.

pub(crate) mod boost;
pub(crate) mod retry;
