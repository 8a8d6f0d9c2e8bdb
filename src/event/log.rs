//! What one thread tells: a ring of records, and beside it what does not fit into one.
//!
//! A frequent event is a record of seven words:
//!
//! ```text
//! 0  stamp         3  lane: address of its name, which the hub keeps      6  kind, and the length of the type or how it is told
//! 1  command id    4  type: up to 16 bytes of text, or its number in `types`
//! 2  nanoseconds   5
//! ```
//!
//! Any other event is a record without an id, a lane and a type; what it says stands in a queue under a lock, with the number of
//! the record. So both kinds are in one order, and are overwritten and counted as one.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::emitter::Frequent;
use super::kind::EventKind;
use super::lane_event::LaneEvent;
use super::ring::Ring;
use super::transition::Transition;
use super::types;

pub(super) type Words = [u64; 7];

/// A time that was not measured.
pub(crate) const UNMEASURED: u64 = u64::MAX;

/// In place of the length of a type that is given as its number.
const NUMBERED: u64 = 0x80;
/// In place of the length: what the record says is beside the ring.
const BESIDE: u64 = 0xff;

/// Lanes that a thread knows to be known, by a part of the address.
const LANES: usize = 64;

/// The log of one thread for one emitter, until that thread ends; then of another one.
pub(super) struct Log {
    /// The emitter's number.
    pub(super) key: u64,
    /// How many records are kept: those before are overwritten, or count as that.
    pub(super) kept: u64,
    ring: Ring<7>,
    /// Addresses of names that the hub keeps. Written by the owner.
    lanes: [AtomicU64; LANES],
    beside: Mutex<VecDeque<(u64, Arc<Told>)>>,
    /// Of what is not kept any more, the newest of each lane and kind; filled while somebody conflates.
    newest: Mutex<HashMap<(u64, EventKind), Item>>,
    /// Whether a thread writes here.
    owned: AtomicBool,
    /// Set when the emitter is gone.
    pub(super) closed: AtomicBool,
    /// The threads that wrote here, with the first record of each.
    threads: Mutex<Vec<(u64, Arc<str>)>>,
}

/// What does not fit into a record.
pub(super) struct Told {
    pub(super) what: What,
    pub(super) nanos: u64,
}

pub(super) enum What {
    Transition(Transition),
    Custom(LaneEvent),
}

/// A record as it is read.
#[derive(Clone)]
pub(super) struct Item {
    /// Its number in the log.
    pub(super) number: u64,
    pub(super) words: Words,
    /// What stands beside the ring; none for a frequent event.
    pub(super) told: Option<Arc<Told>>,
}

impl Item {
    pub(super) const fn stamp(&self) -> u64 {
        self.words[0]
    }

    /// The address of the lane's name, of a frequent event.
    pub(super) const fn lane(&self) -> u64 {
        self.words[3]
    }

    pub(super) fn kind(&self) -> EventKind {
        kind(&self.words)
    }
}

fn kind(words: &Words) -> EventKind {
    EventKind::ALL.get(words[6] as usize & 0xff).copied().unwrap_or(EventKind::Custom)
}

impl Log {
    /// For a thread that will own it.
    pub(super) fn new(key: u64, kept: usize) -> Self {
        Self {
            key,
            kept: kept as u64,
            ring: Ring::new(kept),
            lanes: std::array::from_fn(|_| AtomicU64::new(0)),
            beside: Mutex::default(),
            newest: Mutex::default(),
            owned: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            threads: Mutex::default(),
        }
    }

    /// Makes this thread the writer, unless there is one.
    pub(super) fn claim(&self) -> bool {
        // ORDERING: acquire, to come after what the writer before has done, which `release` has released.
        let claimed = !self.owned.load(Ordering::Relaxed) && !self.owned.swap(true, Ordering::Acquire);
        if claimed {
            let name = std::thread::current().name().map_or_else(|| "thread".into(), Arc::from);
            let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
            let oldest = self.oldest();
            while threads.get(1).is_some_and(|(first, _)| *first <= oldest) {
                threads.remove(0);
            }
            threads.push((self.head(), name));
        }
        claimed
    }

    /// Lets another thread be the writer.
    pub(super) fn release(&self) {
        self.owned.store(false, Ordering::Release);
    }

    pub(super) fn head(&self) -> u64 {
        self.ring.head()
    }

    /// The first record that is kept.
    pub(super) fn oldest(&self) -> u64 {
        self.head().saturating_sub(self.kept)
    }

    /// The name of the thread that wrote a record.
    pub(super) fn thread(&self, number: u64) -> Arc<str> {
        let threads = self.threads.try_lock();
        let name = threads.ok().and_then(|threads| {
            threads.iter().rev().find(|(first, _)| *first <= number).map(|(_, name)| Arc::clone(name))
        });
        name.unwrap_or_else(|| "thread".into())
    }

    /// Tells a frequent event. False if the hub is to be asked first: the lane may be unknown to it, or the type.
    #[inline]
    pub(super) fn push_frequent(&self, frequent: &Frequent<'_>) -> bool {
        let lane = address(frequent.lane);
        if self.lanes[lane as usize >> 4 & (LANES - 1)].load(Ordering::Relaxed) != lane {
            return false;
        }
        let Some([a, b, how]) = type_words(frequent.command_type) else { return false };
        let meta = frequent.kind as u64 | how << 8;
        self.ring.push([frequent.stamp, frequent.id.as_u64(), frequent.nanos, lane, a, b, meta]);
        true
    }

    /// Remembers that the hub keeps this name. Called by the owner.
    pub(super) fn knows(&self, lane: &Arc<str>) {
        let lane = address(lane);
        self.lanes[lane as usize >> 4 & (LANES - 1)].store(lane, Ordering::Relaxed);
    }

    /// Tells anything. Called by the owner.
    pub(super) fn push_told(&self, kind: EventKind, stamp: u64, told: Told) {
        let number = self.ring.head();
        {
            let mut beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
            while beside.front().is_some_and(|(oldest, _)| oldest + self.kept <= number) {
                beside.pop_front();
            }
            beside.push_back((number, Arc::new(told)));
        }
        self.ring.push([stamp, 0, 0, 0, 0, 0, kind as u64 | BESIDE << 8]);
    }

    /// Keeps what the next record overwrites, if it is the newest of its lane and kind. Called by the owner.
    pub(super) fn keep_newest(&self) {
        let Some(leaves) = self.head().checked_sub(self.kept) else { return };
        if let Some(item) = self.read(leaves, |_| true) {
            let key = (item.lane_key(), item.kind());
            self.newest.lock().unwrap_or_else(PoisonError::into_inner).insert(key, item);
        }
    }

    /// What was kept of the records from `first` on, and the number up to which it was.
    pub(super) fn newest_since(&self, first: u64) -> Vec<Item> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut items: Vec<_> = newest.values().filter(|item| item.number >= first).cloned().collect();
        items.sort_unstable_by_key(|item| item.number);
        items
    }

    pub(super) fn forget_newest(&self) {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Record `number`, if it is still there; its words alone if its kind is not wanted.
    pub(super) fn read(&self, number: u64, wants: impl Fn(EventKind) -> bool) -> Option<Item> {
        let words = self.ring.read(number)?;
        let mut told = None;
        if words[6] >> 8 & 0xff == BESIDE && wants(kind(&words)) {
            let beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
            told = Some(find(&beside, number)?);
        }
        Some(Item { number, words, told })
    }

    /// As [`Log::read`], for a thread that may be in the middle of anything: never waits for a lock.
    pub(super) fn read_at_once(&self, number: u64) -> Option<Item> {
        let words = self.ring.read(number)?;
        let told = match words[6] >> 8 & 0xff == BESIDE {
            true => Some(find(&*self.beside.try_lock().ok()?, number)?),
            false => None,
        };
        Some(Item { number, words, told })
    }
}

fn find(beside: &VecDeque<(u64, Arc<Told>)>, number: u64) -> Option<Arc<Told>> {
    let place = beside.binary_search_by_key(&number, |(number, _)| *number).ok()?;
    Some(Arc::clone(&beside[place].1))
}

impl Item {
    /// Tells lanes apart, also for events that are told beside the ring. Names are compared by hash: of two that collide, one
    /// would conflate the other.
    fn lane_key(&self) -> u64 {
        match self.told.as_deref() {
            None => self.lane(),
            Some(told) => {
                let name = match &told.what {
                    What::Transition(transition) => transition.lane_id().map(|lane| &**lane),
                    What::Custom(event) => Some(&*event.key),
                };
                name.map_or(0, |name| twox_hash::XxHash3_64::oneshot(name.as_bytes()) | 1)
            }
        }
    }

    /// What conflates one event with another: the lane and the kind.
    pub(super) fn conflation(&self, lane: &str) -> (u64, EventKind) {
        let key =
            if self.told.is_some() { self.lane_key() } else { twox_hash::XxHash3_64::oneshot(lane.as_bytes()) | 1 };
        (key, self.kind())
    }
}

#[inline]
pub(super) fn address(lane: &Arc<str>) -> u64 {
    lane.as_ptr().addr() as u64
}

/// A type as words: two of them its text, or the first one its number, and which of both.
#[inline]
fn type_words(text: &str) -> Option<[u64; 3]> {
    let bytes = text.as_bytes();
    let length = bytes.len() as u64;
    if length > 16 {
        return types::number(text).map(|number| [u64::from(number), 0, NUMBERED]);
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        return Some([u64::from_le_bytes(*first), u64::from_le_bytes(*last), length]);
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(*last));
        return Some([u64::from(first) | u64::from(last) << 32, 0, length]);
    }
    let word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    Some([word, 0, length])
}

/// The type that a frequent event tells.
pub(super) fn type_of(words: &Words) -> Arc<str> {
    let (a, b, how) = (words[4].to_le_bytes(), words[5].to_le_bytes(), words[6] >> 8 & 0xff);
    if how == NUMBERED {
        return types::of(words[4]);
    }
    let length = (how as usize).min(16);
    let mut text = [0; 16];
    match length {
        8.. => {
            text[..8].copy_from_slice(&a);
            text[length - 8..length].copy_from_slice(&b);
        }
        4.. => {
            text[..4].copy_from_slice(&a[..4]);
            text[length - 4..length].copy_from_slice(&a[4..]);
        }
        _ => text[..length].copy_from_slice(&a[..length]),
    }
    String::from_utf8_lossy(&text[..length]).into()
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_type_of_any_length_comes_back() {
        let text = "ä0123456789abcdefghijklmnop";
        for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
            let [a, b, how] = type_words(&text[..end]).expect("there is room for types");
            assert_eq!(&*type_of(&[0, 0, 0, 0, a, b, how << 8]), &text[..end]);
        }
    }
}
