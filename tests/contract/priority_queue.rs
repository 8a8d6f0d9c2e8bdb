//! The queue for host-owned work: by priority, first come, first served, and nothing loses its place.

use std::collections::VecDeque;

use corelane::{PriorityItem, PriorityQueue};
use proptest::prelude::*;

fn values<T>(queue: PriorityQueue<T>) -> Vec<T> {
    queue.into_iter().map(PriorityItem::into_value).collect()
}

#[test]
fn better_priority_first_and_first_come_first_served_within_it() {
    let mut queue = PriorityQueue::new();
    for (priority, value) in [(5, "background"), (1, "first"), (1, "second"), (3, "continuation")] {
        queue.push(priority, value);
    }
    assert_eq!(queue.peek().map(|item| (item.priority(), *item.value())), Some((1, "first")));
    assert_eq!(queue.ordered().len(), 4);
    let mut taken = Vec::new();
    while let Some(item) = queue.pop() {
        taken.push(item.into_value());
    }
    assert_eq!(taken, ["first", "second", "continuation", "background"]);
    assert!(queue.is_empty() && queue.peek().is_none());
}

#[test]
fn what_is_restored_has_its_place_again() {
    let mut queue = PriorityQueue::default();
    queue.push(1, "first".to_owned());
    queue.push(1, "second".to_owned());
    let mut first = queue.pop().unwrap();
    queue.push(1, "third".to_owned());
    first.value_mut().push_str(" again");
    assert_eq!(first.sequence(), 1);
    queue.restore(first);
    assert_eq!(values(queue), ["first again", "second", "third"]);
}

#[test]
fn clear_counts_anew_and_nothing_is_lost_over_a_place_that_is_taken() {
    let mut queue = PriorityQueue::new();
    assert_eq!(queue.push(1, "claimed"), 1);
    let claimed = queue.pop().unwrap();
    queue.push(2, "dropped");
    queue.clear();
    assert!(queue.is_empty());
    assert_eq!(queue.push(1, "new"), 1);
    queue.restore(claimed);
    assert_eq!(queue.len(), 2);
    assert_eq!(values(queue), ["new", "claimed"]);
}

#[test]
fn retain_keeps_the_places_of_what_it_keeps() {
    let mut queue: PriorityQueue<i32> = [(2, 1), (1, 2), (2, 3), (1, 4), (2, 5)].into_iter().collect();
    let mut asked = Vec::new();
    queue.retain(|item| {
        asked.push(*item.value());
        *item.value() != 3
    });
    assert_eq!(asked, [2, 4, 1, 3, 5]);
    queue.extend([(1, 6)]);
    assert_eq!(queue.iter().rev().map(|item| *item.value()).collect::<Vec<_>>(), [5, 1, 6, 4, 2]);
    assert_eq!(queue.iter().len(), 5);
}

#[test]
fn items_compare_as_a_heap_wants_them() {
    let mut queue: PriorityQueue<u8> = [(3, 0), (1, 1), (1, 2)].into_iter().collect();
    let mut heap = std::collections::BinaryHeap::new();
    while let Some(item) = queue.pop() {
        heap.push(item);
    }
    assert_eq!(std::iter::from_fn(|| heap.pop()).map(PriorityItem::into_value).collect::<Vec<_>>(), [1, 2, 0]);
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8),
    Pop,
    Restore,
}

proptest! {
    /// Against a model: one list per priority, sorted by sequence.
    #[test]
    fn any_use_keeps_the_order(steps in prop::collection::vec(
        prop_oneof![(0..4_u8).prop_map(Step::Push), Just(Step::Pop), Just(Step::Restore)], 0..200,
    )) {
        let mut queue = PriorityQueue::new();
        let mut model: Vec<(u8, u64)> = Vec::new();
        let mut claimed = VecDeque::new();
        for step in steps {
            match step {
                Step::Push(priority) => {
                    let sequence = queue.push(priority, ());
                    model.push((priority, sequence));
                    model.sort_unstable();
                }
                Step::Pop => {
                    let item = queue.pop();
                    prop_assert_eq!(
                        item.as_ref().map(|item| (item.priority(), item.sequence())),
                        model.first().copied()
                    );
                    if let Some(item) = item {
                        model.remove(0);
                        claimed.push_back(item);
                    }
                }
                Step::Restore => if let Some(item) = claimed.pop_front() {
                    model.push((item.priority(), item.sequence()));
                    model.sort_unstable();
                    queue.restore(item);
                }
            }
            let order: Vec<_> = queue.iter().map(|item| (item.priority(), item.sequence())).collect();
            prop_assert_eq!(&order, &model);
        }
    }
}
