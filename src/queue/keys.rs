//! Keys: at most so many commands of one key at a time, first in first out per key, and turn by turn between keys.
//!
//! Of the commands of a key that wait, the lane's line has one entry, for the next of them; the others wait here, apart.
//! When that entry comes to the head and its command is admitted, the key goes to the end of the line again if it may
//! run more. A key without commands is not in the table.
//!
//! The table is cut into shards, each behind a lock, which a command takes three times: when it is submitted, admitted
//! and settled; `benches/compare` compares keyed with plain commands.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use crossbeam_utils::CachePadded;
use serde_json::Value;

use crate::executor::Handle;

/// Names what commands belong together: a session, a tenant, a model. From numbers and strings.
#[derive(Clone, Debug)]
pub struct Key {
    /// Of the name, computed once: a command is looked up three times.
    hash: u64,
    name: Name,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Name {
    Number(u64),
    Text(Arc<str>),
}

impl Key {
    fn new(name: Name) -> Self {
        // Seeded once in the process: names come from users, who must not be able to choose them so that they collide.
        static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self { hash: SEED.hash_one(&name), name }
    }
}

impl Key {
    /// As text, for who spreads keys.
    pub(super) fn text(&self) -> Cow<'_, str> {
        match &self.name {
            Name::Number(number) => number.to_string().into(),
            Name::Text(text) => (&**text).into(),
        }
    }

    /// For a store.
    pub(super) fn to_json(&self) -> Value {
        match &self.name {
            Name::Number(number) => (*number).into(),
            Name::Text(text) => text.as_ref().into(),
        }
    }

    /// What [`Key::to_json`] gave.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        value.as_u64().map(Self::from).or_else(|| value.as_str().map(Self::from))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.name == other.name
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl From<u64> for Key {
    fn from(number: u64) -> Self {
        Self::new(Name::Number(number))
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self::new(Name::Text(text.into()))
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self::new(Name::Text(text.into()))
    }
}

impl From<Arc<str>> for Key {
    fn from(text: Arc<str>) -> Self {
        Self::new(Name::Text(text))
    }
}

/// Takes a key's own hash for its hash.
#[derive(Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn write(&mut self, _: &[u8]) {
        debug_assert!(false, "a key writes one number");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Shard = HashMap<Key, Commands<Queued>, BuildHasherDefault<Hashed>>;

const SHARDS: usize = 32;

/// The keys of a lane that have commands.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// Made for the first key: most lanes have none.
    table: OnceLock<Box<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    shards: [CachePadded<Mutex<Shard>>; SHARDS],
}

#[derive(Clone, Debug)]
pub(super) struct Queued {
    pub(super) handle: Handle,
    pub(super) cost: u32,
}

/// How many of a key may run. Read under the lock: who raises it takes each lock afterwards, to list the keys that wait.
pub(super) trait AtMost: Fn() -> usize {}

impl<F: Fn() -> usize> AtMost for F {}

/// The commands of one key; `T` is a way to a command. `loom-tests/keys.rs` tries to break it.
#[derive(Debug)]
pub(crate) struct Commands<T> {
    running: usize,
    /// The lane's line has an entry for the first of those that wait.
    listed: bool,
    /// The first is kept apart: a key with one command at a time allocates nothing.
    first: Option<T>,
    rest: VecDeque<T>,
}

impl<T> Default for Commands<T> {
    fn default() -> Self {
        Self { running: 0, listed: false, first: None, rest: VecDeque::new() }
    }
}

impl<T> Commands<T> {
    /// A command comes in: `decide` gives back what is to be queued; none if it has a permit already. True if the key is
    /// listed now.
    pub(crate) fn enter(&mut self, at_most: usize, order: Order, decide: impl FnOnce(Entrance) -> Option<T>) -> bool {
        let free = self.running < at_most && !self.listed && self.first.is_none();
        match (decide(if free { Entrance::Free } else { Entrance::Behind }), order) {
            (None, _) => self.running += 1,
            (Some(queued), Order::New) => self.push(queued),
            (Some(queued), Order::Back) => {
                if let Some(first) = self.first.replace(queued) {
                    self.rest.push_front(first);
                }
            }
        }
        free && self.list(at_most)
    }

    /// The key has come to the head of the line; see [`Keys::head`].
    pub(crate) fn head(&mut self, at_most: usize, mut admit: impl FnMut(&T) -> Admit) -> Head {
        let before = self.len();
        let mut head = Head::default();
        while let Some(queued) = &self.first {
            head.outcome = admit(queued);
            match head.outcome {
                Admit::Refused => {
                    head.fewer_apart = head.dead;
                    return head;
                }
                Admit::Dead => head.dead += 1,
                Admit::Taken => self.running += 1,
            }
            // Its handle may be the last way to a cell: that is only memory by now.
            drop(self.pop());
            if head.outcome == Admit::Taken {
                break;
            }
        }
        self.listed = false;
        head.relisted = self.list(at_most);
        head.fewer_apart = before - 1 - (self.len() - usize::from(head.relisted));
        head
    }

    /// A command has given its place up. True if the key is listed now.
    pub(crate) fn leave(&mut self, at_most: usize) -> bool {
        self.running -= 1;
        self.list(at_most)
    }

    fn push(&mut self, queued: T) {
        if self.first.is_none() { self.first = Some(queued) } else { self.rest.push_back(queued) }
    }

    fn pop(&mut self) -> Option<T> {
        let first = self.first.take();
        self.first = self.rest.pop_front();
        first
    }

    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    /// Lists the key if it may run more; says whether it does so now.
    pub(crate) fn list(&mut self, at_most: usize) -> bool {
        let lists = !self.listed && self.first.is_some() && self.running < at_most;
        self.listed |= lists;
        lists
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running == 0 && self.first.is_none()
    }
}

/// Where a command of a key is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// It may have a permit at once; if there is none, its key is listed.
    Free,
    /// It waits for others of its key.
    Behind,
}

/// Where a command stands among those of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Behind the others.
    New,
    /// Before them: it was first before, and comes back.
    Back,
}

/// What came of a key whose turn it was.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) outcome: Admit,
    /// Commands taken out that were dead.
    pub(crate) dead: usize,
    /// How many fewer wait apart; the next one, if it is listed now, among them.
    pub(crate) fewer_apart: usize,
    /// The key is listed again: it is to join the end of the line.
    pub(crate) relisted: bool,
}

/// Whether a command takes the permit that is there for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Admit {
    Taken,
    /// Somebody else has it, or it has ended.
    #[default]
    Dead,
    /// The rate limit does not let it: its key stays at the head.
    Refused,
}

impl Keys {
    /// A command of `key` comes in: `decide` gives back what is to be queued; none if it has a permit already. True if the key
    /// is listed now: it is to join the end of the line.
    pub(super) fn enter(
        &self,
        key: &Key,
        at_most: impl AtMost,
        order: Order,
        decide: impl FnOnce(Entrance) -> Option<Queued>,
    ) -> bool {
        let mut shard = self.shard(key);
        shard.entry(key.clone()).or_default().enter(at_most(), order, decide)
    }

    /// The key has come to the head of the line: `admit` says of each command, the first one first, whether it takes the
    /// permit, until one does.
    pub(super) fn head(&self, key: &Key, at_most: impl AtMost, admit: impl FnMut(&Queued) -> Admit) -> Head {
        let mut shard = self.shard(key);
        let Some(commands) = shard.get_mut(key) else { return Head::default() };
        let head = commands.head(at_most(), admit);
        if commands.is_idle() {
            shard.remove(key);
        }
        head
    }

    /// A command of the key has given its place up. True if the key is listed now: it is to join the end of the line.
    pub(super) fn leave(&self, key: &Key, at_most: impl AtMost) -> bool {
        let mut shard = self.shard(key);
        let Some(commands) = shard.get_mut(key) else { return false };
        let listed = commands.leave(at_most());
        if commands.is_idle() {
            shard.remove(key);
        }
        listed
    }

    /// More of a key may run from now on: the keys that are listed now are to join the end of the line.
    pub(super) fn list_all(&self, at_most: impl AtMost) -> Vec<Key> {
        let Some(table) = self.table.get() else { return Vec::new() };
        let mut listed = Vec::new();
        for shard in &table.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let at_most = at_most();
            listed.extend(shard.iter_mut().filter_map(|(key, commands)| commands.list(at_most).then(|| key.clone())));
        }
        listed
    }

    /// Forgets commands that wait and are dead, but those that come first; returns how many.
    pub(super) fn sweep(&self) -> usize {
        let Some(table) = self.table.get() else { return 0 };
        let mut swept = 0;
        for shard in &table.shards {
            for commands in shard.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
                let before = commands.rest.len();
                commands.rest.retain(|queued| queued.handle.meta().life.is_queued());
                swept += before - commands.rest.len();
            }
        }
        swept
    }

    /// Every command that waits, to be ended. Keys that are listed stay so.
    pub(super) fn waiting(&self) -> Vec<Handle> {
        let Some(table) = self.table.get() else { return Vec::new() };
        let mut found = Vec::new();
        for shard in &table.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for commands in shard.values() {
                found.extend(commands.first.iter().chain(&commands.rest).map(|queued| queued.handle.clone()));
            }
        }
        found
    }

    /// The first command of a key that waits.
    pub(super) fn first(&self, key: &Key) -> Option<Handle> {
        let shard = self.shard(key);
        let commands = shard.get(key)?;
        let mut waiting = commands.first.iter().chain(&commands.rest);
        waiting.find(|queued| queued.handle.meta().life.is_queued()).map(|queued| queued.handle.clone())
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let table = self.table.get_or_init(Box::default);
        // Bits that the map itself makes little use of.
        let shard = (key.hash >> 32) as usize % SHARDS;
        // Nothing under this lock can panic half-way.
        table.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
