//! The checker, held to its rules: each with what it is to find, and what it is to let pass.

use super::check::Checker;
use super::event::{Act, Answer, Claim, Event, Moment};

/// A lease of the stories, in microseconds.
const LEASE: u64 = 100_000;

fn enqueuing(id: &str) -> Event {
    Event::Enqueuing { id: id.to_owned(), key: None, max_deliveries: 3 }
}

fn enqueued(id: &str) -> Vec<Event> {
    vec![enqueuing(id), Event::Enqueued { id: id.to_owned(), as_id: id.to_owned() }]
}

fn keyed(id: &str, as_id: &str) -> Vec<Event> {
    let (id, key) = (id.to_owned(), Some("key".to_owned()));
    vec![Event::Enqueuing { id: id.clone(), key, max_deliveries: 3 }, Event::Enqueued { id, as_id: as_id.to_owned() }]
}

fn refused(id: &str, certain: bool) -> Vec<Event> {
    vec![enqueuing(id), Event::NotEnqueued { id: id.to_owned(), certain }]
}

fn claimed(id: &str, fence: u64, begun: Moment) -> Vec<Event> {
    delivered(id, fence, begun, 1)
}

fn delivered(id: &str, fence: u64, begun: Moment, delivery: u32) -> Vec<Event> {
    let (id, ended) = (id.to_owned(), begun + 10);
    vec![Event::Claimed { claim: Claim { id, key: None, fence, delivery, lease: LEASE, begun, ended } }]
}

fn tried(id: &str, fence: u64, what: Act, begun: Moment, answer: Answer) -> Vec<Event> {
    let (id, ended) = (id.to_owned(), begun + 10);
    vec![Event::Trying { id: id.clone(), fence, what, begun }, Event::Tried { id, fence, what, begun, ended, answer }]
}

fn acked(id: &str, fence: u64, begun: Moment) -> Vec<Event> {
    tried(id, fence, Act::Ack, begun, Answer::Applied)
}

fn letter(id: &str, failed: bool, deliveries: u32) -> Vec<Event> {
    vec![Event::Letter { id: id.to_owned(), failed, deliveries }]
}

fn settled(dead: usize) -> Vec<Event> {
    vec![Event::Settled { ready: 0, delayed: 0, leased: 0, dead }]
}

/// What is found when these have happened, all in one process.
fn verdict(story: &[Vec<Event>]) -> Vec<String> {
    let mut checker = Checker::default();
    checker.process(1, story.concat());
    checker.violations().map(str::to_owned).collect()
}

#[track_caller]
fn passes(story: &[Vec<Event>]) {
    let found = verdict(story);
    assert!(found.is_empty(), "{found:?}");
}

#[track_caller]
fn is_found(story: &[Vec<Event>], text: &str) {
    let found = verdict(story);
    assert!(found.iter().any(|violation| violation.contains(text)), "{text:?} is not in {found:?}");
}

#[test]
fn a_command_that_was_acknowledged_is_not_lost() {
    passes(&[enqueued("a"), claimed("a", 1, 0), acked("a", 1, 50), settled(0)]);
    is_found(&[enqueued("a"), settled(0)], "was acknowledged, was never handed out, and is lost");
    is_found(&[enqueued("a"), claimed("a", 1, 0), settled(0)], "nothing was done with it, and is lost");
    let released = tried("a", 1, Act::Release, 50, Answer::Applied);
    is_found(&[enqueued("a"), claimed("a", 1, 0), released, settled(0)], "Release was done with it, and is lost");
    let failed = tried("a", 1, Act::Ack, 50, Answer::NotDone);
    is_found(&[enqueued("a"), claimed("a", 1, 0), failed, settled(0)], "Ack was done with it, and is lost");
}

#[test]
fn what_may_not_have_been_accepted_may_be_missing_but_not_vanish() {
    passes(&[refused("a", false), settled(0)]);
    passes(&[vec![enqueuing("a")], settled(0)]);
    passes(&[refused("a", false), claimed("a", 1, 0), acked("a", 1, 50), settled(0)]);
    is_found(&[refused("a", false), claimed("a", 1, 0), settled(0)], "was there");
}

#[test]
fn what_was_refused_for_certain_is_not_there() {
    passes(&[refused("a", true), settled(0)]);
    passes(&[refused("a", true), refused("a", false), claimed("a", 1, 0), acked("a", 1, 50), settled(0)]);
    is_found(&[refused("a", true), claimed("a", 1, 0), acked("a", 1, 50), settled(0)], "was refused for certain");
    is_found(&[refused("a", true), letter("a", false, 3), settled(1)], "was refused for certain, and has a dead");
}

#[test]
fn an_acknowledgement_that_was_not_heard_may_have_ended_it() {
    let unheard = || tried("a", 1, Act::Ack, 50, Answer::Unknown);
    passes(&[enqueued("a"), claimed("a", 1, 0), unheard(), settled(0)]);
    let pending = vec![Event::Trying { id: "a".to_owned(), fence: 1, what: Act::Ack, begun: 50 }];
    passes(&[enqueued("a"), claimed("a", 1, 0), pending, settled(0)]);
    // It comes again: it was not.
    let again = claimed("a", 2, 2 * LEASE);
    passes(&[enqueued("a"), claimed("a", 1, 0), unheard(), again.clone(), acked("a", 2, 2 * LEASE + 20), settled(0)]);
    is_found(&[enqueued("a"), claimed("a", 1, 0), unheard(), again, settled(0)], "and is lost");
    let late = tried("a", 1, Act::Ack, 2 * LEASE, Answer::Applied);
    passes(&[enqueued("a"), claimed("a", 1, 0), unheard(), late, settled(0)]);
    let is_over = tried("a", 1, Act::Ack, 70, Answer::AlreadyApplied);
    passes(&[enqueued("a"), claimed("a", 1, 0), unheard(), is_over, settled(0)]);
}

#[test]
fn what_has_ended_does_not_come_again() {
    let again = claimed("a", 2, 2 * LEASE);
    let story = [enqueued("a"), claimed("a", 1, 0), acked("a", 1, 50), again.clone(), settled(0)];
    is_found(&story, "was handed out after it had ended: fence 2 after 1");
    let story =
        [enqueued("a"), claimed("a", 1, 0), acked("a", 1, 50), again, acked("a", 2, 2 * LEASE + 50), settled(0)];
    is_found(&story, "has ended twice: under the fences 1 and 2");
    let unheard = tried("a", 1, Act::Ack, 50, Answer::Unknown);
    let heard = tried("a", 1, Act::Ack, 70, Answer::AlreadyApplied);
    let story = [enqueued("a"), claimed("a", 1, 0), unheard, heard, claimed("a", 2, 100), settled(0)];
    is_found(&story, "was handed out after it had ended");
}

#[test]
fn fences_grow() {
    let story = [enqueued("a"), claimed("a", 2, 0), claimed("a", 1, 3 * LEASE), acked("a", 2, 50), settled(0)];
    is_found(&story, "fences do not grow");
    let twice = [enqueued("a"), claimed("a", 1, 0), claimed("a", 1, 3 * LEASE), acked("a", 1, 50), settled(0)];
    is_found(&twice, "handed out 2 times under the same fence");
}

#[test]
fn no_two_leases_are_valid_at_a_time() {
    let end = |begun| acked("a", 2, begun);
    passes(&[enqueued("a"), claimed("a", 1, 0), claimed("a", 2, LEASE), end(LEASE + 50), settled(0)]);
    let early = LEASE / 2;
    is_found(
        &[enqueued("a"), claimed("a", 1, 0), claimed("a", 2, early), end(early + 50), settled(0)],
        "two valid leases",
    );
    // Given back, it is another's at once; extended, it is not.
    for given_back in [Act::Release, Act::Retry] {
        for answer in [Answer::Applied, Answer::Unknown, Answer::LeaseLost] {
            let given_back = tried("a", 1, given_back, 50, answer);
            passes(&[enqueued("a"), claimed("a", 1, 0), given_back, claimed("a", 2, 60), end(100), settled(0)]);
        }
    }
    let extended = |answer| tried("a", 1, Act::Extend, LEASE / 2, answer);
    let later = LEASE + LEASE / 4;
    let story =
        |extended| [enqueued("a"), claimed("a", 1, 0), extended, claimed("a", 2, later), end(later + 50), settled(0)];
    is_found(&story(extended(Answer::Applied)), "two valid leases");
    passes(&story(extended(Answer::Unknown)));
    let closing = vec![Event::Closing { begun: 50 }];
    passes(&[enqueued("a"), claimed("a", 1, 0), closing, claimed("a", 2, 60), end(100), settled(0)]);
}

#[test]
fn stale_tokens_change_nothing() {
    let late = 2 * LEASE;
    let begun = || [enqueued("a"), claimed("a", 1, 0)].concat();
    for what in [Act::Ack, Act::AckError, Act::DeadLetter, Act::Release, Act::Retry, Act::Extend] {
        let stale = |answer| tried("a", 1, what, late, answer);
        let again = || [claimed("a", 2, late + 500), acked("a", 2, late + 600)].concat();
        passes(&[begun(), stale(Answer::LeaseLost), again(), settled(0)]);
        is_found(&[begun(), stale(Answer::Applied), again(), settled(0)], "us after the lease had ended");
        let overtaken = || [claimed("a", 2, late - 500), acked("a", 2, late + 100)].concat();
        passes(&[begun(), overtaken(), stale(Answer::LeaseLost), settled(0)]);
        is_found(&[begun(), overtaken(), stale(Answer::Applied), settled(0)], "when fence 2 had been handed out");
    }
}

#[test]
fn a_lease_that_was_given_back_is_over() {
    for what in [Act::Ack, Act::Extend] {
        let story = |answer| {
            let given_back = tried("a", 1, Act::Release, 20, Answer::Applied);
            let again = [claimed("a", 2, 2 * LEASE), acked("a", 2, 2 * LEASE + 50)].concat();
            [enqueued("a"), claimed("a", 1, 0), given_back, tried("a", 1, what, 40, answer), again, settled(0)]
        };
        passes(&story(Answer::AlreadyApplied));
        passes(&story(Answer::LeaseLost));
        is_found(&story(Answer::Applied), "was applied, after Release was");
    }
}

#[test]
fn a_valid_token_is_not_refused() {
    let lost = |begun| tried("a", 1, Act::Ack, begun, Answer::LeaseLost);
    let again = || [claimed("a", 2, 2 * LEASE), acked("a", 2, 2 * LEASE + 50)].concat();
    passes(&[enqueued("a"), claimed("a", 1, 0), lost(LEASE), again(), settled(0)]);
    is_found(&[enqueued("a"), claimed("a", 1, 0), lost(50), again(), settled(0)], "was refused");
    // It has given it back itself.
    let given_back = tried("a", 1, Act::Release, 20, Answer::Applied);
    passes(&[enqueued("a"), claimed("a", 1, 0), given_back, lost(50), again(), settled(0)]);
}

#[test]
fn a_key_has_one_command() {
    passes(&[keyed("a", "a"), keyed("b", "a"), claimed("a", 1, 0), acked("a", 1, 50), settled(0)]);
    let ends = |id| [claimed(id, 1, 0), acked(id, 1, 50)].concat();
    is_found(&[keyed("a", "a"), keyed("b", "b"), ends("a"), ends("b"), settled(0)], "more than one command");
    is_found(&[keyed("a", "a"), keyed("b", "a"), ends("a"), ends("b"), settled(0)], "b is a duplicate of a");
}

#[test]
fn dead_letters_have_a_reason_and_stay() {
    let given_up = |answer| tried("a", 1, Act::DeadLetter, 50, answer);
    let begun = || [enqueued("a"), claimed("a", 1, 0)].concat();
    passes(&[begun(), given_up(Answer::Applied), letter("a", true, 1), settled(1)]);
    passes(&[begun(), given_up(Answer::Unknown), letter("a", true, 1), settled(1), letter("a", true, 1), settled(1)]);
    passes(&[enqueued("a"), letter("a", false, 3), settled(1)]);
    is_found(&[begun(), given_up(Answer::Applied), settled(0)], "its dead letter is lost");
    is_found(&[begun(), given_up(Answer::Unknown), settled(0)], "and is lost");
    let once = [begun(), given_up(Answer::Applied), letter("a", true, 1), settled(1)].concat();
    is_found(&[once, settled(0)], "its dead letter is lost");
    is_found(&[begun(), letter("a", true, 1), settled(1)], "is given up as failed, and has not");
    is_found(&[begun(), letter("a", false, 2), settled(1)], "is given up after 2 deliveries, and has 3");
    is_found(
        &[begun(), acked("a", 1, 50), letter("a", false, 3), settled(1)],
        "ended twice: well, and as a dead letter",
    );
    is_found(&[letter("a", false, 3), settled(1)], "and was never enqueued");
    is_found(&[enqueued("a"), letter("a", false, 3), settled(2)], "the queue counts 2");
}

#[test]
fn deliveries_have_an_end() {
    passes(&[enqueued("a"), delivered("a", 7, 0, 3), acked("a", 7, 50), settled(0)]);
    is_found(&[enqueued("a"), delivered("a", 7, 0, 4), acked("a", 7, 50), settled(0)], "was delivered 4 times");
}

#[test]
fn nothing_is_left_and_nothing_is_from_nowhere() {
    is_found(
        &[vec![Event::Settled { ready: 0, delayed: 1, leased: 2, dead: 0 }]],
        "1 delayed and 2 leased commands are left",
    );
    is_found(&[claimed("a", 1, 0), acked("a", 1, 50), settled(0)], "was never enqueued");
    is_found(&[vec![Event::Note { text: "odd".to_owned() }]], "odd");
}
