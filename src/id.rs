//! Identifiers.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Identifies a command: within this process, or, if it is stored, within its store.
///
/// Ids are unique and cheap: a thread takes a block of numbers at a time, so two commands submitted one after the other
/// by different threads may have ids in either order. Those of stored commands are the same in every attempt and after every
/// restart: a name under which what a command does elsewhere can be done once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(u64);

impl CommandId {
    /// The mark of an id that a store gave.
    const STORED: u64 = 1 << 63;

    /// Numbers that a thread takes from the shared counter at a time: one shared write per this many commands.
    const BLOCK: u64 = 1024;

    #[inline]
    pub(crate) fn next() -> Self {
        static NEXT_BLOCK: AtomicU64 = AtomicU64::new(1);
        thread_local! {
            static BLOCK: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
        }
        BLOCK.with(|block| {
            let (mut next, mut end) = block.get();
            if next == end {
                next = NEXT_BLOCK.fetch_add(Self::BLOCK, Ordering::Relaxed);
                end = next + Self::BLOCK;
            }
            block.set((next + 1, end));
            Self(next)
        })
    }

    /// The id of the stored command of this sequence.
    pub(crate) const fn stored(sequence: u64) -> Self {
        Self(sequence | Self::STORED)
    }

    /// Whether the command is stored, or was: its id is of its store.
    #[must_use]
    pub const fn is_stored(self) -> bool {
        self.0 & Self::STORED != 0
    }

    /// The number that its store gave it.
    pub(crate) const fn sequence(self) -> u64 {
        self.0 & !Self::STORED
    }

    /// The id with this number.
    pub(crate) const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// The number behind the id.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The id of this text, as it is displayed.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // What is parsed comes back as the same text: no sign, no leading zeros.
        let id = match text.as_bytes().first()? {
            b'c' => text[1..].parse().ok().map(Self).filter(|id| !id.is_stored()),
            b'd' => text[1..].parse().ok().filter(|number| number & Self::STORED == 0).map(Self::stored),
            _ => None,
        };
        id.filter(|id| id.to_string() == text)
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_stored() { 'd' } else { 'c' };
        write!(f, "{kind}{}", self.0 & !Self::STORED)
    }
}

impl fmt::Debug for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommandId({self})")
    }
}

/// As text, in the form that is displayed: `"c17"`, or `"d17"` if it is stored.
impl Serialize for CommandId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// From the form that is displayed. An id of another process may be that of a command of this one, too.
impl<'de> Deserialize<'de> for CommandId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::invalid_value(de::Unexpected::Str(&text), &"a command id: `c` or `d` and a number, as in `c17`")
        })
    }
}
