//! Events as subscribers get them.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::kind::EventKey;
use super::transition::Transition;
use crate::clock::wall_now;

/// What an event says, as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EventPayload {
    /// Nothing but its key.
    Empty,
    /// A text.
    String(String),
    /// Fields by name.
    Map(HashMap<String, serde_json::Value>),
}

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaneEvent {
    /// What kind of thing; see [`events`](crate::events).
    pub key: EventKey,
    /// Its fields.
    pub payload: EventPayload,
    /// When, by the wall clock.
    pub timestamp: DateTime<Utc>,
    #[serde(skip)]
    transition: Option<Transition>,
    #[serde(skip)]
    duration: Option<Duration>,
}

impl LaneEvent {
    /// An event that happens now.
    pub fn new(key: impl Into<EventKey>, payload: EventPayload) -> Self {
        Self { key: key.into(), payload, timestamp: wall_now(), transition: None, duration: None }
    }

    /// An event without fields.
    pub fn empty(key: impl Into<EventKey>) -> Self {
        Self::new(key, EventPayload::Empty)
    }

    /// An event with a text.
    pub fn with_string(key: impl Into<EventKey>, message: impl Into<String>) -> Self {
        Self::new(key, EventPayload::String(message.into()))
    }

    /// An event with fields.
    pub fn with_map(key: impl Into<EventKey>, map: HashMap<String, serde_json::Value>) -> Self {
        Self::new(key, EventPayload::Map(map))
    }

    /// The typed form of an event that a queue emitted; none for one made by hand.
    #[must_use]
    pub fn transition(&self) -> Option<&Transition> {
        self.transition.as_ref()
    }

    /// The time that was measured: how long a command that started had waited, how long one that ended had run in its last
    /// attempt. None of other events, of those made by hand, and where it was not measured.
    #[must_use]
    pub const fn duration(&self) -> Option<Duration> {
        self.duration
    }

    pub(super) fn of(
        transition: Transition,
        duration: Option<Duration>,
        timestamp: DateTime<Utc>,
        payload: bool,
    ) -> Self {
        let payload = if payload { transition.payload(duration) } else { EventPayload::Empty };
        Self { key: transition.key().into(), payload, timestamp, transition: Some(transition), duration }
    }
}
