//! A stable priority queue for typed work that its host runs itself.
//!
//! Owns the values that wait and their order; knows no lane, no executor and no clock. An ordered map rather than a heap:
//! hosts look at what waits before each decision, and here that order is there already. Never: two values of one priority
//! change places, or a value is lost because another has its place.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::vec;

use super::Priority;

/// Typed work by priority, first come, first served within each. It runs nothing: the host takes what is next when it can.
///
/// ```
/// use corelane::PriorityQueue;
///
/// let mut queue = PriorityQueue::new();
/// queue.push(5, "summary");
/// queue.push(1, "cancel");
///
/// let next = queue.pop().expect("something waits");
/// assert_eq!(*next.value(), "cancel");
/// queue.restore(next); // it could not be started: it keeps its place
/// assert_eq!(queue.iter().map(|item| *item.value()).collect::<Vec<_>>(), ["cancel", "summary"]);
/// ```
#[derive(Debug)]
pub struct PriorityQueue<T> {
    items: BTreeMap<Place, PriorityItem<T>>,
    last_sequence: u64,
}

/// A place in the queue, the first first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    priority: Priority,
    sequence: u64,
    /// 0, except for an item that was restored and found its place taken: by an item pushed after a `clear`, say.
    again: u32,
}

/// A value with its place.
///
/// Compares as its place does, the value aside: what is taken first is the greatest, as a max-heap wants it.
#[derive(Debug)]
pub struct PriorityItem<T> {
    priority: Priority,
    sequence: u64,
    value: T,
}

impl<T> PriorityItem<T> {
    /// Lower is taken first.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Its number in the order of insertion; lower is taken first within a priority.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The value, to change.
    #[must_use]
    pub fn value_mut(&mut self) -> &mut T {
        &mut self.value
    }

    /// The value, its place given up.
    #[must_use]
    pub fn into_value(self) -> T {
        self.value
    }
}

impl<T> PartialEq for PriorityItem<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for PriorityItem<T> {}

impl<T> PartialOrd for PriorityItem<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for PriorityItem<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.priority, other.sequence).cmp(&(self.priority, self.sequence))
    }
}

impl<T> PriorityQueue<T> {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        Self { items: BTreeMap::new(), last_sequence: 0 }
    }

    /// Values that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds a value behind all of its priority; returns its sequence number. Takes logarithmic time, as all of these that
    /// change the queue.
    pub fn push(&mut self, priority: Priority, value: T) -> u64 {
        if self.last_sequence == u64::MAX {
            self.renumber();
        }
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        self.place(PriorityItem { priority, sequence, value });
        sequence
    }

    /// The value that is next.
    #[must_use]
    pub fn peek(&self) -> Option<&PriorityItem<T>> {
        self.items.first_key_value().map(|(_, item)| item)
    }

    /// Takes the value that is next.
    pub fn pop(&mut self) -> Option<PriorityItem<T>> {
        self.items.pop_first().map(|(_, item)| item)
    }

    /// Puts back what was taken, at the place that it had: for work that could not be started after all.
    pub fn restore(&mut self, item: PriorityItem<T>) {
        self.last_sequence = self.last_sequence.max(item.sequence);
        self.place(item);
    }

    /// What waits, in the order in which it will be taken.
    #[must_use]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &PriorityItem<T>> + ExactSizeIterator {
        self.items.values()
    }

    /// [`PriorityQueue::iter`], collected.
    #[must_use]
    pub fn ordered(&self) -> Vec<&PriorityItem<T>> {
        self.iter().collect()
    }

    /// Drops what `keep` does not want to keep, and asks in the order in which it would be taken. The rest keeps its places.
    /// If `keep` panics, what it was not asked about stays.
    pub fn retain(&mut self, mut keep: impl FnMut(&PriorityItem<T>) -> bool) {
        self.items.retain(|_, item| keep(item));
    }

    /// Drops what waits, and counts from 1 again.
    pub fn clear(&mut self) {
        self.items.clear();
        self.last_sequence = 0;
    }

    fn place(&mut self, item: PriorityItem<T>) {
        let mut place = Place { priority: item.priority, sequence: item.sequence, again: 0 };
        while self.items.contains_key(&place) {
            place.again += 1;
        }
        self.items.insert(place, item);
    }

    /// Numbers what waits from 1 on; its order is as before.
    fn renumber(&mut self) {
        let mut items: Vec<_> = std::mem::take(&mut self.items).into_values().collect();
        items.sort_by_key(PriorityItem::sequence);
        self.last_sequence = 0;
        for mut item in items {
            self.last_sequence += 1;
            item.sequence = self.last_sequence;
            self.place(item);
        }
    }
}

impl<T> Default for PriorityQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Pushes each value with its priority.
impl<T> Extend<(Priority, T)> for PriorityQueue<T> {
    fn extend<I: IntoIterator<Item = (Priority, T)>>(&mut self, values: I) {
        for (priority, value) in values {
            self.push(priority, value);
        }
    }
}

/// Pushes each value with its priority.
impl<T> FromIterator<(Priority, T)> for PriorityQueue<T> {
    fn from_iter<I: IntoIterator<Item = (Priority, T)>>(values: I) -> Self {
        let mut queue = Self::new();
        queue.extend(values);
        queue
    }
}

/// In the order in which they would be taken.
impl<T> IntoIterator for PriorityQueue<T> {
    type Item = PriorityItem<T>;
    type IntoIter = vec::IntoIter<PriorityItem<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_values().collect::<Vec<_>>().into_iter()
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn order_outlives_the_last_sequence_number() {
        let mut queue = PriorityQueue { items: BTreeMap::new(), last_sequence: u64::MAX - 2 };
        assert_eq!(queue.push(1, "a"), u64::MAX - 1);
        assert_eq!(queue.push(0, "b"), u64::MAX);
        assert_eq!(queue.push(1, "c"), 3, "those that wait are numbered 1 and 2 again");
        let order: Vec<_> = queue.into_iter().map(|item| (item.sequence(), item.into_value())).collect();
        assert_eq!(order, [(2, "b"), (1, "a"), (3, "c")]);
    }
}
