//! Boosts: a command that waits gets a better priority as its deadline comes near.

use std::time::Duration;

use corelane::{LaneConfig, PriorityBoostConfig, QueueManager, SubmitOptions, Ticket, sleep, timeout};

use crate::support::{Barrier, HANG, Log, World, assert_idle, block_on, executor, finish, lane_of, manager};

const SECOND: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);

/// Whether a command that has waited in its lane of priority 20 for `waited` runs before one of priority `other`, which
/// becomes due together with it: before it if `first`, else after it. So a tie counts as neither.
fn runs_before(boost: PriorityBoostConfig, waited: Duration, other: u8, first: bool) -> bool {
    let mut world = World::new(1, 1);
    let boosted = LaneConfig::new(1, 1).with_priority_bounds(0, 20).with_priority_boost(boost);
    let plain = LaneConfig::new(1, 1).with_priority_bounds(0, 40);
    let manager = world.manager(&[("boosted", boosted, 20), ("other", plain, other)]);
    let order = Log::default();
    // Who holds a lane ends at the same time as the other, and before anything else is polled: the better one first.
    let (holds_boosted, holds_other) = if first { (1, 0) } else { (0, 1) };
    hold(&manager, "boosted", if other == 0 { 0 } else { holds_boosted }, waited);
    hold(&manager, "other", if other == 0 { 0 } else { holds_other }, waited);
    for lane in ["boosted", "other"] {
        let order = order.clone();
        manager.submit_fn(lane, "ordered", move || async move { Ok(order.push(lane)) }).unwrap().detach();
    }
    world.jump(waited);
    let order = order.entries();
    assert_eq!(order.len(), 2, "{order:?}");
    assert_idle(&manager);
    order[0] == "boosted"
}

fn hold(manager: &QueueManager, lane: &str, priority: u8, time: Duration) {
    let options = SubmitOptions::new().priority(priority);
    lane_of(manager, lane)
        .submit_fn_with("holds", options, move || async move { Ok(sleep(time).await) })
        .unwrap()
        .detach();
}

/// The command has exactly this priority after this time.
fn assert_priority(boost: &PriorityBoostConfig, waited: Duration, priority: u8) {
    let better_than = runs_before(boost.clone(), waited, priority + 1, true);
    let worse_than = !runs_before(boost.clone(), waited, priority - 1, false);
    assert!(better_than, "after {waited:?} it is not better than {}", priority + 1);
    assert!(worse_than, "after {waited:?} it is not worse than {}", priority - 1);
}

#[test]
fn a_command_in_line_gets_better_at_the_shares_of_its_deadline_that_were_promised() {
    let standard = PriorityBoostConfig::standard(DEADLINE);
    for (waited, priority) in
        [(2400, 20), (2600, 19), (4900, 19), (5100, 18), (7400, 18), (7600, 17), (8900, 17), (9100, 16), (9900, 16)]
    {
        assert_priority(&standard, Duration::from_millis(waited), priority);
    }
    let aggressive = PriorityBoostConfig::aggressive(DEADLINE);
    for (waited, priority) in
        [(1900, 20), (2100, 18), (3900, 18), (4100, 16), (5900, 16), (6100, 14), (7900, 14), (8100, 12)]
    {
        assert_priority(&aggressive, Duration::from_millis(waited), priority);
    }
    let own = PriorityBoostConfig::new(DEADLINE).with_boost(SECOND, 5);
    assert_priority(&own, Duration::from_millis(8900), 20);
    assert_priority(&own, Duration::from_millis(9100), 15);
}

#[test]
fn past_its_deadline_a_command_is_as_good_as_the_best_that_is_not_protected() {
    for boost in [PriorityBoostConfig::new(DEADLINE), PriorityBoostConfig::aggressive(DEADLINE)] {
        let late = DEADLINE + SECOND;
        assert!(runs_before(boost.clone(), late, 2, true), "it is not 1");
        assert!(!runs_before(boost.clone(), late, 0, false), "it shares class 0");
        let protected = boost.with_best_priority(5);
        assert!(runs_before(protected.clone(), late, 6, true));
        assert!(!runs_before(protected, late, 4, false), "it is better than it may be");
    }
}

#[test]
fn a_lane_without_a_boost_or_with_an_endless_deadline_stays_as_it_is() {
    let never = [
        PriorityBoostConfig::disabled(),
        PriorityBoostConfig::standard(Duration::MAX),
        PriorityBoostConfig::aggressive(Duration::from_secs(u64::MAX)),
        PriorityBoostConfig::new(Duration::MAX).with_boost(SECOND, 9),
    ];
    for boost in never {
        assert_priority(&boost, Duration::from_secs(365 * 24 * 3600), 20);
    }
}

#[test]
fn who_waits_longer_is_better_within_one_lane_of_a_busy_queue() {
    World::each(|mut world| {
        let boosted = LaneConfig::new(1, 1).with_priority_boost(PriorityBoostConfig::standard(DEADLINE));
        let manager = world.manager(&[("a", boosted, 20), ("b", LaneConfig::new(1, 1), 5)]);
        let order = Log::default();
        let submit = |lane: &'static str, name: &'static str, takes: Duration| {
            let order = order.clone();
            let command = move || async move {
                order.push(name);
                Ok(sleep(takes).await)
            };
            manager.submit_fn(lane, name, command).unwrap()
        };
        let _holds = submit("a", "holds", DEADLINE + SECOND);
        let waits: Vec<_> = ["first", "second", "third"].map(|name| submit("a", name, Duration::ZERO)).into();
        world.jump(DEADLINE + 2 * SECOND);
        assert!(waits.iter().all(Ticket::is_finished));
        assert_eq!(order.entries(), ["holds", "first", "second", "third"]);
        assert_idle(&manager);
    });
}

/// On a run queue no virtual time passes, so this takes real time: until the deadline, and as long as it likes.
#[test]
fn a_command_on_the_run_queue_overtakes_others_once_its_deadline_is_near() {
    for boosts in [true, false] {
        let executor = executor(1);
        let deadline = if boosts { Duration::from_millis(20) } else { Duration::MAX };
        // Without a floor, which a slow machine would have kept.
        let boosted = LaneConfig::new(0, 100).with_priority_boost(PriorityBoostConfig::standard(deadline));
        let manager = manager(&executor, &[("boosted", boosted, 20), ("other", LaneConfig::new(0, 100), 10)]);
        let (running, go_on) = (Barrier::default(), Barrier::default());
        let (begun, blocked) = (running.clone(), go_on.clone());
        let blocker = executor.spawn(0, async move {
            begun.open();
            blocked.wait();
        });
        running.wait();
        let order = Log::default();
        let submit = |lane: &'static str| {
            let order = order.clone();
            manager.submit_fn(lane, "ordered", move || async move { Ok(order.push(lane)) }).unwrap()
        };
        let tickets: Vec<_> = (0..50).map(|_| submit("other")).chain((0..3).map(|_| submit("boosted"))).collect();
        let mut cancelled = submit("boosted");
        std::thread::sleep(Duration::from_millis(30));
        assert!(cancelled.cancel());
        go_on.open();
        finish("the blocker", blocker).unwrap();
        for ticket in tickets {
            finish("a command", ticket).unwrap().unwrap();
        }
        let order = order.entries();
        assert_eq!(order.len(), 53);
        let overtaking = if boosts { ["boosted", "boosted", "boosted", "other"] } else { ["other"; 4] };
        assert_eq!(order[..4], overtaking);
        block_on(timeout(HANG, manager.drain(HANG))).unwrap().unwrap();
        assert_idle(&manager);
    }
}

#[test]
fn boosted_commands_can_be_cancelled_wherever_they_are() {
    World::each(|mut world| {
        let boosted = LaneConfig::new(1, 2).with_priority_boost(PriorityBoostConfig::standard(DEADLINE));
        let manager = world.manager(&[("a", boosted, 20)]);
        let submit = || manager.submit_fn("a", "hour", || async { Ok(sleep(100 * DEADLINE).await) }).unwrap();
        let mut tickets: Vec<_> = (0..6).map(|_| submit()).collect();
        assert!(tickets[0].cancel(), "not polled yet");
        world.jump(DEADLINE / 2);
        assert!(tickets[1].cancel(), "running");
        assert!(tickets[4].cancel(), "in line, boosted");
        world.jump(DEADLINE);
        assert!(tickets[5].cancel(), "in line, late");
        world.jump(200 * DEADLINE);
        assert!(tickets.iter().all(Ticket::is_finished));
        assert_idle(&manager);
    });
}
