//! Dead letters: nothing disappears uncounted, nothing is given out twice, no filter can do harm.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use corelane::{DeadLetter, DeadLetterQueue, DeadLetterReason};
use serde_json::json;

use crate::support::block_on;

fn letter(command_type: impl ToString) -> DeadLetter {
    DeadLetter::new(command_type.to_string(), "lane", "error")
}

fn filled(letters: &DeadLetterQueue, count: usize) {
    for number in 0..count {
        block_on(letters.push(letter(number)));
    }
}

fn types(letters: &[DeadLetter]) -> Vec<&str> {
    letters.iter().map(|letter| letter.command_type.as_str()).collect()
}

fn is_even(letter: &DeadLetter) -> bool {
    letter.command_type.parse::<usize>().unwrap() % 2 == 0
}

#[test]
fn the_oldest_comes_out_first_and_a_clone_is_the_same_queue() {
    let letters = DeadLetterQueue::new(10);
    let same = letters.clone();
    assert!(block_on(letters.is_empty()));
    filled(&letters, 3);
    assert_eq!(block_on(same.len()), 3);
    assert_eq!(types(&block_on(same.list())), ["0", "1", "2"]);
    assert_eq!(block_on(same.pop()).unwrap().command_type, "0");
    block_on(letters.clear());
    assert!(block_on(same.is_empty()) && block_on(same.pop()).is_none());
    assert_eq!(same.evicted(), 0, "what was taken or cleared was not evicted");
}

#[test]
fn evictions_are_counted_and_the_newest_letters_stay() {
    let letters = DeadLetterQueue::new(3);
    filled(&letters, 10);
    assert_eq!(types(&letters.snapshot()), ["7", "8", "9"]);
    assert_eq!((letters.evicted(), letters.capacity()), (7, 3));
}

#[test]
fn with_room_for_none_every_letter_counts_as_evicted() {
    let letters = DeadLetterQueue::from(0);
    filled(&letters, 5);
    assert_eq!((block_on(letters.len()), letters.evicted()), (0, 5));
}

#[test]
fn letters_are_found_by_id_and_by_filter_and_taken_once() {
    let letters = DeadLetterQueue::new(100);
    filled(&letters, 6);
    let third = letters.snapshot()[2].clone();
    assert_eq!(letters.get(third.command_id).unwrap().command_type, "2");
    assert_eq!(types(&letters.filter(is_even)), ["0", "2", "4"]);
    assert_eq!(letters.remove(third.command_id).unwrap().command_type, "2");
    assert!(letters.remove(third.command_id).is_none() && letters.get(third.command_id).is_none());
    assert_eq!(types(&letters.take_where(is_even)), ["0", "4"]);
    assert_eq!(letters.purge(|letter| letter.command_type == "5"), 1);
    assert_eq!(types(&letters.snapshot()), ["1", "3"]);
}

#[test]
fn remove_takes_one_letter_of_a_command_that_has_several() {
    let letters = DeadLetterQueue::new(10);
    let (first, mut second) = (letter("first"), letter("second"));
    second.command_id = first.command_id;
    let id = first.command_id;
    block_on(letters.push(first));
    block_on(letters.push(second));
    assert_eq!(letters.remove(id).unwrap().command_type, "first");
    assert_eq!(types(&letters.snapshot()), ["second"]);
}

#[test]
fn what_is_put_back_is_where_it_was() {
    let letters = DeadLetterQueue::new(10);
    filled(&letters, 5);
    let taken = letters.take_where(is_even);
    block_on(letters.push(letter("new")));
    for mut letter in taken.into_iter().rev() {
        letter.replays += 1;
        letters.put_back(letter);
    }
    assert_eq!(types(&letters.snapshot()), ["0", "1", "2", "3", "4", "new"]);
    assert_eq!(letters.snapshot()[2].replays, 1, "changed meanwhile");
    let copy = letters.snapshot()[0].clone();
    letters.put_back(copy);
    assert_eq!(block_on(letters.len()), 6, "a copy of what is there replaces it");
    letters.put_back(letter("unknown"));
    assert_eq!(letters.snapshot()[6].command_type, "unknown");
}

#[test]
fn a_copy_that_is_pushed_is_a_letter_of_its_own_and_the_newest() {
    let letters = DeadLetterQueue::new(10);
    filled(&letters, 2);
    block_on(letters.push(letters.snapshot()[0].clone()));
    assert_eq!(types(&letters.snapshot()), ["0", "1", "0"]);
}

#[test]
fn putting_back_into_a_full_queue_evicts_the_oldest() {
    let letters = DeadLetterQueue::new(2);
    filled(&letters, 2);
    let first = block_on(letters.pop()).unwrap();
    block_on(letters.push(letter("2")));
    letters.put_back(first);
    assert_eq!((types(&letters.snapshot()), letters.evicted()), (vec!["1", "2"], 1));
}

#[test]
fn two_who_take_at_the_same_time_never_get_the_same_letter() {
    for _ in 0..20 {
        let letters = DeadLetterQueue::new(2000);
        filled(&letters, 500);
        let taken: Vec<usize> = thread::scope(|scope| {
            let take = || letters.take_where(|_| true).len();
            let pop = || std::iter::from_fn(|| block_on(letters.pop())).count();
            let threads = [scope.spawn(take), scope.spawn(take), scope.spawn(pop)];
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(taken.iter().sum::<usize>() + block_on(letters.len()), 500, "{taken:?}");
    }
}

#[test]
fn a_letter_that_was_replaced_while_a_filter_ran_is_not_taken() {
    let letters = DeadLetterQueue::new(10);
    filled(&letters, 1);
    let taken = letters.take_where(|seen| {
        let mut edited = seen.clone();
        edited.error = "edited".into();
        letters.put_back(edited);
        true
    });
    assert!(taken.is_empty(), "nobody said yes to the letter as it is now");
    assert_eq!(letters.snapshot()[0].error, "edited");
}

#[test]
fn a_panicking_filter_changes_nothing() {
    let letters = DeadLetterQueue::new(10);
    filled(&letters, 5);
    let panicking = |letter: &DeadLetter| is_even(letter) && (letter.command_type != "4" || panic!("of the filter"));
    let calls: [&dyn Fn() -> usize; 3] =
        [&|| letters.take_where(panicking).len(), &|| letters.purge(panicking), &|| letters.filter(panicking).len()];
    for call in calls {
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
        assert_eq!(types(&letters.snapshot()), ["0", "1", "2", "3", "4"]);
    }
    block_on(letters.push(letter(5)));
    assert_eq!(letters.take_where(|_| true).len(), 6);
}

#[test]
fn a_filter_may_use_the_queue_that_asks_it() {
    let letters = DeadLetterQueue::new(10);
    filled(&letters, 3);
    let taken = letters.take_where(|seen| {
        block_on(letters.push(letter("while asked")));
        letters.remove(seen.command_id).is_none()
    });
    assert!(taken.is_empty(), "each was removed before its turn");
    assert_eq!(block_on(letters.len()), 3);
}

#[test]
fn a_letter_made_by_hand_is_whole_and_can_not_be_replayed() {
    let mut mine = DeadLetter::new("import", "batch", "no such file");
    assert_eq!((mine.attempts, mine.replays, mine.errors_dropped), (1, 0, 0));
    assert_eq!(mine.errors[0].error, "no such file");
    assert_eq!(mine.reason, DeadLetterReason::Failed);
    assert!(!mine.is_replayable());
    mine.payload = Some(json!({"file": 1}));
    mine.reason = DeadLetterReason::TimedOut;

    let stored = serde_json::to_value(&mine).unwrap();
    assert_eq!(stored["command_id"], mine.command_id.to_string());
    assert_eq!(stored["reason"], "timed_out");
    let read: DeadLetter = serde_json::from_value(stored).unwrap();
    assert_eq!((read.command_id, read.payload, read.errors), (mine.command_id, mine.payload, mine.errors));
    assert!(serde_json::from_value::<corelane::CommandId>(json!("17")).unwrap_err().to_string().contains("c17"));
}
