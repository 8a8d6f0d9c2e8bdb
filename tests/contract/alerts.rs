//! Alerts: who is told what, and when.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use corelane::{
    Alert, AlertCondition, AlertLevel, AlertManager, AlertMatcher, AlertRule, AlertSink, AlertStatus, EventEmitter,
    LaneConfig, LaneReading, LatencyAlertConfig, Notification, QueueDepthAlertConfig, QueueManagerBuilder,
    QueueMetrics, Reading, Simulation, SinkError, sleep,
};

use futures::FutureExt;

use crate::support::{HANG, block_on, eventually, executor};

const SECOND: Duration = Duration::from_secs(1);
const NEVER: Duration = Duration::MAX;

/// What callbacks are given.
fn alerts_of(manager: &AlertManager) -> Arc<Mutex<Vec<Alert>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hear = Arc::clone(&heard);
    block_on(manager.add_callback(move |alert| hear.lock().unwrap().push(alert)));
    heard
}

fn levels(heard: &Mutex<Vec<Alert>>) -> Vec<AlertLevel> {
    heard.lock().unwrap().iter().map(|alert| alert.level).collect()
}

/// [`levels`], once everything is delivered.
fn levels_in_the_end(manager: &AlertManager, heard: &Mutex<Vec<Alert>>) -> Vec<AlertLevel> {
    assert!(block_on(manager.flush(HANG)));
    levels(heard)
}

/// Statuses and levels of what was told.
fn told(manager: &AlertManager) -> Vec<(AlertStatus, AlertLevel)> {
    manager.history().iter().map(|notification| (notification.status, notification.alert.level)).collect()
}

fn reading(second: u64, lanes: Vec<LaneReading>) -> Arc<Reading> {
    let mut reading = (*QueueMetrics::local().reading()).clone();
    (reading.elapsed, reading.lanes) = (Duration::from_secs(second), lanes);
    Arc::new(reading)
}

fn lane(name: &str, pending: u64) -> LaneReading {
    let mut lane = LaneReading::default();
    (lane.lane, lane.pending) = (name.into(), pending);
    lane
}

/// A reading per second, told before the next one comes.
fn depths(manager: &AlertManager, depths: impl IntoIterator<Item = u64>) {
    for (second, depth) in (0..).zip(depths) {
        manager.observe(&reading(second, vec![lane("api", depth)]));
        assert!(block_on(manager.flush(HANG)));
    }
}

const FIRING: AlertStatus = AlertStatus::Firing;
const RESOLVED: AlertStatus = AlertStatus::Resolved;
const WARNING: AlertLevel = AlertLevel::Warning;
const CRITICAL: AlertLevel = AlertLevel::Critical;

#[test]
fn a_value_that_reaches_a_threshold_is_an_alert() {
    let manager = AlertManager::with_queue_depth_alerts(100, 200);
    let heard = alerts_of(&manager);
    for depth in [0, 99, 100, 199, 200] {
        block_on(manager.check_queue_depth("api", depth));
    }
    levels_in_the_end(&manager, &heard);
    let heard = heard.lock().unwrap();
    let found: Vec<_> = heard.iter().map(|alert| (alert.level, alert.current_value, alert.threshold)).collect();
    assert_eq!(found, [(WARNING, 100.0, 100.0), (CRITICAL, 200.0, 200.0)]);
    assert!(heard.iter().all(|alert| alert.lane_id == "api"));
    assert_eq!(heard[0].message, "lane api: queue depth 100 (warning from 100)");
}

#[test]
fn latencies_are_in_milliseconds() {
    let manager = AlertManager::with_latency_alerts(100.0, 500.0);
    let heard = alerts_of(&manager);
    for latency in [99.9, f64::NAN, 250.0, 600.0] {
        block_on(manager.check_latency("api", latency));
    }
    levels_in_the_end(&manager, &heard);
    let heard = heard.lock().unwrap();
    let found: Vec<_> = heard.iter().map(|alert| (alert.level, alert.current_value, alert.threshold)).collect();
    assert_eq!(found, [(WARNING, 250.0, 100.0), (CRITICAL, 600.0, 500.0)]);
    assert_eq!(heard[1].message, "lane api: latency 600.00ms (critical from 500.00ms)");
}

#[test]
fn without_rules_there_are_no_alerts() {
    let manager = AlertManager::new();
    let heard = alerts_of(&manager);
    block_on(manager.check_queue_depth("api", usize::MAX));
    block_on(manager.check_latency("api", f64::INFINITY));
    depths(&manager, [u64::MAX]);
    assert_eq!(levels(&heard), []);
    assert_eq!(block_on(manager.queue_depth_config()), QueueDepthAlertConfig::disabled());
    assert_eq!(block_on(manager.latency_config()), LatencyAlertConfig::disabled());
}

#[test]
fn settings_may_change_at_any_time() {
    let manager = AlertManager::new();
    block_on(manager.set_queue_depth_config(QueueDepthAlertConfig::new(10, 20)));
    block_on(manager.check_queue_depth("api", 15));
    block_on(manager.set_queue_depth_config(QueueDepthAlertConfig::new(5, 15)));
    block_on(manager.check_queue_depth("api", 15));
    assert_eq!(block_on(manager.queue_depth_config()), QueueDepthAlertConfig::new(5, 15));
    block_on(manager.set_queue_depth_config(QueueDepthAlertConfig::disabled()));
    assert_eq!(told(&manager), [(FIRING, WARNING), (FIRING, CRITICAL), (RESOLVED, CRITICAL)]);
    assert_eq!(manager.active(), []);
}

#[test]
fn what_goes_on_is_not_told_again_before_the_repeat_interval() {
    for (interval, expected) in [(NEVER, 1), (Duration::ZERO, 100)] {
        let manager = AlertManager::with_queue_depth_alerts(100, 200).with_repeat_interval(interval);
        let heard = alerts_of(&manager);
        for _ in 0..100 {
            block_on(manager.check_queue_depth("api", 150));
        }
        assert_eq!(levels_in_the_end(&manager, &heard), vec![WARNING; expected]);
    }
    let manager = AlertManager::with_queue_depth_alerts(100, 200).with_repeat_interval(4 * SECOND);
    depths(&manager, [150; 10]);
    assert_eq!(manager.history().iter().map(|told| told.sequence).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn lanes_have_alerts_of_their_own() {
    let manager = AlertManager::with_queue_depth_alerts(100, 200);
    for lane in ["a", "b", "a", "b"] {
        block_on(manager.check_queue_depth(lane, 150));
    }
    let lanes: Vec<_> = manager.active().into_iter().map(|told| told.alert.lane_id).collect();
    assert_eq!((lanes, manager.history().len()), (vec!["a".to_owned(), "b".to_owned()], 2));
}

#[test]
fn clones_are_the_same() {
    let manager = AlertManager::with_queue_depth_alerts(100, 200);
    let clone = manager.clone();
    let heard = alerts_of(&clone);
    block_on(clone.set_latency_config(LatencyAlertConfig::new(1.0, 2.0)));
    drop(clone);
    block_on(manager.check_queue_depth("api", 150));
    block_on(manager.clone().check_latency("api", 2.0));
    assert_eq!(levels_in_the_end(&manager, &heard), [WARNING, CRITICAL]);
    assert_eq!(block_on(manager.queue_depth_config()), QueueDepthAlertConfig::new(100, 200));
}

#[test]
fn a_value_that_flaps_around_the_threshold_fires_once_and_is_resolved_once() {
    let rule = AlertRule::queue_depth(100).with_for(Duration::ZERO).with_keep_firing_for(5 * SECOND);
    let manager = AlertManager::new().with_rule(rule).unwrap().with_repeat_interval(NEVER);
    // Around the threshold; then to nothing and back, each time for less than it takes to be over.
    let around = (0..500).map(|at| if at % 2 == 0 { 101 } else { 85 });
    let leaps = (0..500).map(|at| if at % 5 == 0 { 400 } else { 0 });
    depths(&manager, around.chain(leaps).chain([0; 10]));
    assert_eq!(told(&manager), [(FIRING, WARNING), (RESOLVED, WARNING)]);
}

#[test]
fn an_alert_that_gets_worse_or_better_is_the_same_alert() {
    let rule = AlertRule::queue_depth(100).with_critical(200).with_for(Duration::ZERO);
    let rule = rule.with_keep_firing_for(Duration::ZERO);
    let manager = AlertManager::new().with_rule(rule).unwrap();
    let heard = alerts_of(&manager);
    depths(&manager, [150, 250, 170, 150, 90, 79]);
    assert_eq!(told(&manager), [(FIRING, WARNING), (FIRING, CRITICAL), (FIRING, WARNING), (RESOLVED, WARNING)]);
    let history = manager.history();
    assert!(history.iter().all(|told| told.fingerprint == history[0].fingerprint));
    assert!(history.iter().all(|told| told.started_at == history[0].started_at));
    assert_eq!(history.iter().map(|told| told.sequence).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(history[3].ended_at.is_some(), history[2].ended_at.is_none());
    assert_eq!(levels(&heard), [WARNING, CRITICAL, WARNING]);
}

#[test]
fn callbacks_hear_of_thresholds_that_are_reached() {
    // From critical into the range where a warning would only go on: told to sinks, but no value has reached a threshold.
    let rule = AlertRule::queue_depth(100).with_critical(200).with_for(Duration::ZERO);
    let manager = AlertManager::new().with_rule(rule.with_keep_firing_for(Duration::ZERO)).unwrap();
    let heard = alerts_of(&manager);
    depths(&manager, [250, 90]);
    assert_eq!(told(&manager), [(FIRING, CRITICAL), (FIRING, WARNING)]);
    assert_eq!(levels(&heard), [CRITICAL]);
}

#[test]
fn a_value_has_to_hold() {
    let rule = AlertRule::queue_depth(100).with_for(3 * SECOND);
    let manager = AlertManager::new().with_rule(rule).unwrap();
    depths(&manager, [150, 150, 150, 50, 150, 150, 150]);
    assert_eq!(told(&manager), []);
    manager.observe(&reading(7, vec![lane("api", 150)]));
    assert_eq!(told(&manager), [(FIRING, WARNING)]);
}

#[test]
fn a_stalled_lane_is_an_alert_until_it_goes_on() {
    let rules = [
        AlertRule::no_progress(10 * SECOND).only_critical().with_keep_firing_for(Duration::ZERO),
        AlertRule::oldest_pending_age(10 * SECOND).with_keep_firing_for(Duration::ZERO),
    ];
    let manager = AlertManager::new().with_rules(rules).unwrap();
    for second in 0..40u64 {
        let mut lane = lane("api", 1);
        let stalled = (5..30).contains(&second);
        lane.started = if stalled { 5 } else { second };
        lane.oldest_pending = stalled.then(|| Duration::from_secs(second - 5));
        manager.observe(&reading(second, vec![lane]));
        let expected = if (15..30).contains(&second) { 2 } else { 0 };
        assert_eq!(manager.active().len(), expected, "{second}");
    }
    let rules = |status| -> Vec<String> {
        manager.history().into_iter().filter(|told| told.status == status).map(|told| told.rule).collect()
    };
    assert_eq!(rules(FIRING), ["no_progress", "oldest_pending_age"]);
    assert_eq!(rules(RESOLVED), ["no_progress", "oldest_pending_age"]);
}

#[test]
fn rules_are_about_the_lanes_that_they_name() {
    let rules =
        [AlertRule::queue_depth(1).with_for(Duration::ZERO).with_lanes(["a"]), AlertRule::storage_errors(1, SECOND)];
    let manager = AlertManager::new().with_rules(rules).unwrap();
    let mut reading = (*reading(1, vec![lane("a", 5), lane("b", 5)])).clone();
    reading.storage_errors = 3;
    manager.observe(&Arc::new(reading));
    block_on(manager.check_queue_depth("b", 9));
    let found: Vec<_> = manager.active().into_iter().map(|told| (told.rule, told.alert.lane_id)).collect();
    assert_eq!(found, [("queue_depth".into(), "a".into()), ("storage_errors".into(), String::new())]);
}

#[test]
fn what_is_not_measured_any_more_is_over() {
    let manager = AlertManager::with_queue_depth_alerts(1, 10);
    manager.observe(&reading(0, vec![lane("a", 5), lane("b", 5)]));
    manager.observe(&reading(1, vec![lane("b", 5)]));
    let lanes: Vec<_> = manager.active().into_iter().map(|told| told.alert.lane_id).collect();
    assert_eq!(lanes, ["b"]);
    assert_eq!(manager.history().last().unwrap().status, RESOLVED);
}

#[test]
fn a_check_by_hand_counts_beside_what_is_measured() {
    let manager = AlertManager::with_queue_depth_alerts(100, 200).with_repeat_interval(NEVER);
    depths(&manager, [0]);
    for second in 1..50 {
        block_on(manager.check_queue_depth("api", 250));
        manager.observe(&reading(second, vec![lane("api", 3)]));
    }
    assert_eq!(told(&manager), [(FIRING, CRITICAL)], "they do not fight");
    for second in 50..130 {
        manager.observe(&reading(second, vec![lane("api", 3)]));
    }
    assert_eq!(told(&manager), [(FIRING, CRITICAL), (RESOLVED, CRITICAL)]);
}

#[test]
fn a_silence_holds_back_all_but_the_end_of_what_was_told() {
    let rule = AlertRule::queue_depth(100).with_for(Duration::ZERO).with_keep_firing_for(Duration::ZERO);
    let manager = AlertManager::new().with_rule(rule).unwrap();
    let heard = alerts_of(&manager);
    let at = |second, a, b| {
        manager.observe(&reading(second, vec![lane("a", a), lane("b", b)]));
        assert!(block_on(manager.flush(HANG)));
    };
    at(0, 150, 0);
    let silence = manager.silence(AlertMatcher::all().with_rule("queue_depth").with_lane("a"), 100 * SECOND);
    assert_eq!(manager.silences()[0].id, silence);
    at(1, 0, 150);
    at(2, 150, 150);
    let found: Vec<_> = manager.history().into_iter().map(|told| (told.status, told.alert.lane_id)).collect();
    assert_eq!(found, [(FIRING, "a".into()), (RESOLVED, "a".into()), (FIRING, "b".into())]);
    assert_eq!(manager.active().len(), 2, "it fires all the same");
    // When it ends, what still holds is told.
    at(102, 150, 150);
    assert_eq!(manager.silences(), []);
    assert_eq!(manager.history().len(), 4);
    assert!(!manager.unsilence(silence));
    assert_eq!(levels(&heard).len(), 3);
}

#[test]
fn a_silence_can_be_ended() {
    let manager = AlertManager::with_queue_depth_alerts(100, 200);
    let silence = manager.silence(AlertMatcher::all(), NEVER);
    block_on(manager.check_queue_depth("api", 150));
    assert_eq!(told(&manager), []);
    assert!(manager.unsilence(silence));
    block_on(manager.check_queue_depth("api", 150));
    assert_eq!(told(&manager), [(FIRING, WARNING)]);
}

#[test]
fn an_alert_has_the_same_name_in_every_process() {
    let fingerprint = |instance: &str, lane: &str, depth| {
        let manager = AlertManager::with_queue_depth_alerts(100, 200).with_instance(instance);
        block_on(manager.check_queue_depth(lane, depth));
        let told = manager.history().remove(0);
        assert_eq!(told.instance, instance);
        told.fingerprint
    };
    let one = fingerprint("host-1", "api", 150);
    assert_eq!(one, "df81e01da0a63ac0af53e186c7871411", "it may never change");
    assert_eq!(one, fingerprint("host-1", "api", 250));
    assert_ne!(one, fingerprint("host-2", "api", 150));
    assert_ne!(one, fingerprint("host-1", "web", 150));
}

#[test]
fn all_that_is_wrong_with_rules_is_reported_at_once() {
    let wrong = [
        AlertRule::queue_depth(100).with_critical(50).with_name("upside down"),
        AlertRule::new("nothing", AlertCondition::QueueDepth),
        AlertRule::failure_ratio(1.5, Duration::ZERO).with_clear_ratio(1.2),
        AlertRule::no_progress(SECOND).with_critical(10),
        AlertRule::queue_depth(0).with_critical(SECOND).with_lanes::<&str>([]),
        AlertRule::run_quantile(95.0, SECOND),
        AlertRule::storage_errors(1, SECOND).with_name("queue_depth").with_lanes(["api"]),
    ];
    let errors = AlertManager::new().with_rules(wrong).unwrap_err();
    let paths: Vec<_> = errors.problems().iter().map(|problem| problem.path.as_str()).collect();
    let expected = [
        r#"alerts["upside down"].critical"#,
        r#"alerts["nothing"].warning"#,
        r#"alerts["failure_ratio"].warning"#,
        r#"alerts["failure_ratio"].clear_ratio"#,
        r#"alerts["failure_ratio"].window"#,
        r#"alerts["no_progress"].critical"#,
        r#"alerts["queue_depth"].warning"#,
        r#"alerts["queue_depth"].critical"#,
        r#"alerts["queue_depth"].lanes"#,
        r#"alerts["run_quantile"].q"#,
        r#"alerts["queue_depth"].lanes"#,
        r#"alerts["queue_depth"].name"#,
    ];
    assert_eq!(paths, expected, "{errors}");
    let taken = AlertManager::with_queue_depth_alerts(1, 2).with_rule(AlertRule::queue_depth(5)).unwrap_err();
    assert_eq!(taken.problems().len(), 1);
}

#[test]
fn the_recommended_rules_are_right() {
    AlertManager::new().with_rules(AlertRule::recommended()).unwrap();
}

#[test]
fn a_callback_that_panics_disturbs_nobody() {
    let manager = AlertManager::with_queue_depth_alerts(100, 200);
    block_on(manager.add_callback(|_| panic!("on purpose")));
    let heard = alerts_of(&manager);
    block_on(manager.check_queue_depth("api", 150));
    block_on(manager.check_queue_depth("api", 250));
    assert_eq!(levels_in_the_end(&manager, &heard), [WARNING, CRITICAL]);
    assert_eq!(manager.delivery_stats()[0].refused, 2);
}

#[test]
fn a_callback_may_call_anything() {
    let manager = Arc::new(AlertManager::with_queue_depth_alerts(100, 200));
    let heard = alerts_of(&manager);
    let weak = Arc::downgrade(&manager);
    block_on(manager.add_callback(move |alert| {
        let manager = weak.upgrade().unwrap();
        if alert.lane_id == "first" {
            block_on(manager.add_callback(|_| {}));
            block_on(manager.check_queue_depth("second", 250));
            block_on(manager.set_latency_config(LatencyAlertConfig::new(1.0, 2.0)));
            manager.silence(AlertMatcher::all().with_lane("third"), NEVER);
            assert!(block_on(manager.flush(HANG)), "it does not wait for itself");
            assert_eq!(manager.active().len(), 2);
        }
    }));
    block_on(manager.check_queue_depth("first", 150));
    assert!(block_on(manager.flush(HANG)));
    block_on(manager.check_queue_depth("third", 150));
    assert_eq!(levels_in_the_end(&manager, &heard), [WARNING, CRITICAL]);
    assert_eq!(manager.delivery_stats()[0].refused, 0);
}

/// A sink that says what it was given, and answers as the test says.
struct Scripted {
    name: &'static str,
    given: Sender<Notification>,
    answers: Mutex<Receiver<Result<(), SinkError>>>,
}

struct Script {
    given: Receiver<Notification>,
    answers: Sender<Result<(), SinkError>>,
    sink: Weak<Scripted>,
}

impl AlertSink for Scripted {
    fn name(&self) -> &str {
        self.name
    }

    fn deliver(&self, notification: &Notification) -> Result<(), SinkError> {
        self.given.send(notification.clone()).unwrap();
        self.answers.lock().unwrap().recv().unwrap_or(Ok(()))
    }
}

impl Script {
    fn new(name: &'static str) -> (Arc<Scripted>, Self) {
        let ((given, takes), (answers, answer)) = (channel(), channel());
        let sink = Arc::new(Scripted { name, given, answers: Mutex::new(answer) });
        let script = Self { given: takes, answers, sink: Arc::downgrade(&sink) };
        (sink, script)
    }

    fn next(&self) -> (AlertStatus, u32) {
        let notification = self.given.recv_timeout(HANG).unwrap();
        (notification.status, notification.sequence)
    }

    fn answer(&self, answer: Result<(), SinkError>) {
        self.answers.send(answer).unwrap();
    }

    /// Waits until nobody has the sink any more: not even its thread.
    fn until_gone(&self) {
        eventually("the thread has ended", || self.sink.strong_count() == 0);
    }
}

fn busy() -> Result<(), SinkError> {
    Err(SinkError::Retry { message: "busy".into(), after: None })
}

#[test]
fn a_sink_is_tried_again_and_hears_in_order() {
    let rule = AlertRule::queue_depth(100).with_critical(200).with_keep_firing_for(Duration::ZERO);
    let (sink, script) = Script::new("scripted");
    let manager = AlertManager::new().with_rule(rule).unwrap().with_sink(sink);
    block_on(manager.check_queue_depth("api", 150));
    assert_eq!(script.next(), (FIRING, 1));
    script.answer(busy());
    // The second try, after less than a second.
    assert_eq!(script.next(), (FIRING, 1));
    block_on(manager.check_queue_depth("api", 250));
    script.answer(Ok(()));
    assert_eq!(script.next(), (FIRING, 2));
    block_on(manager.check_queue_depth("api", 0));
    script.answer(Ok(()));
    assert_eq!(script.next(), (RESOLVED, 3));
    script.answer(Ok(()));
    assert!(block_on(manager.flush(HANG)));
    let stats = &manager.delivery_stats()[1];
    assert_eq!((stats.sink.as_str(), stats.delivered, stats.retried, stats.queued), ("scripted", 3, 1, 0));
    assert_eq!(stats.by_result().iter().map(|(_, count)| count).sum::<u64>(), 4);
}

#[test]
fn a_slow_sink_delays_neither_callbacks_nor_other_sinks() {
    let ((slow, slow_script), (quick, quick_script)) = (Script::new("slow"), Script::new("quick"));
    let manager = AlertManager::with_queue_depth_alerts(100, 200).with_sink(slow).with_sink(quick);
    let heard = alerts_of(&manager);
    block_on(manager.check_queue_depth("api", 150));
    assert_eq!(slow_script.next(), (FIRING, 1));
    for (depth, sequence) in [(250, 2), (251, 2)] {
        quick_script.answer(Ok(()));
        block_on(manager.check_queue_depth("api", depth));
        eventually("callbacks hear of it", || levels(&heard).len() == sequence);
    }
    assert_eq!((quick_script.next(), quick_script.next()), ((FIRING, 1), (FIRING, 2)));
    assert!(!block_on(manager.flush(Duration::from_millis(1))), "the slow one is not done");
    drop(slow_script.answers);
    assert!(block_on(manager.flush(HANG)));
    assert_eq!(manager.delivery_stats()[1].delivered, 2);
}

#[test]
fn a_check_waits_for_the_callbacks_that_it_causes() {
    let manager = AlertManager::with_queue_depth_alerts(100, 200);
    let (release, held) = channel::<()>();
    let held = Mutex::new(held);
    block_on(manager.add_callback(move |_| _ = held.lock().unwrap().recv()));
    let mut check = Box::pin(manager.check_queue_depth("api", 150));
    assert!(check.as_mut().now_or_never().is_none());
    drop(release);
    block_on(check);
    // Nothing to call, nothing to wait for.
    assert!(manager.check_queue_depth("api", 150).now_or_never().is_some());
    assert!(block_on(manager.flush(HANG)));
}

#[test]
fn a_check_does_not_wait_for_ever_for_a_callback() {
    let manager = AlertManager::with_queue_depth_alerts(100, 200);
    let (release, held) = channel::<()>();
    let held = Mutex::new(held);
    block_on(manager.add_callback(move |_| _ = held.lock().unwrap().recv()));
    block_on(manager.check_queue_depth("api", 150));
    assert_eq!(manager.delivery_stats()[0].delivered, 0);
    drop(release);
    assert!(block_on(manager.flush(HANG)));
    assert_eq!(manager.delivery_stats()[0].delivered, 1);
}

#[test]
fn a_sink_that_is_gone_is_left_alone() {
    let (sink, script) = Script::new("gone");
    let manager = AlertManager::with_queue_depth_alerts(100, 200).with_sink(sink);
    block_on(manager.check_queue_depth("api", 150));
    assert_eq!(script.next(), (FIRING, 1));
    script.answer(Err(SinkError::Gone("410".into())));
    assert!(block_on(manager.flush(HANG)));
    block_on(manager.check_queue_depth("api", 250));
    assert!(block_on(manager.flush(HANG)));
    let stats = &manager.delivery_stats()[1];
    assert_eq!((stats.gone, stats.dropped, stats.delivered), (true, 2, 0));
    assert!(script.given.try_recv().is_err());
}

#[test]
fn a_sink_that_panics_goes_on() {
    struct Panics(AtomicUsize);
    impl AlertSink for Panics {
        fn name(&self) -> &str {
            "panics"
        }
        fn deliver(&self, _notification: &Notification) -> Result<(), SinkError> {
            assert!(self.0.fetch_add(1, Ordering::Relaxed) > 0, "on purpose");
            Ok(())
        }
    }
    let manager = AlertManager::with_queue_depth_alerts(100, 200).with_sink(Arc::new(Panics(AtomicUsize::new(0))));
    block_on(manager.check_queue_depth("api", 150));
    block_on(manager.check_queue_depth("api", 250));
    assert!(block_on(manager.flush(HANG)));
    let stats = &manager.delivery_stats()[1];
    assert_eq!((stats.refused, stats.delivered), (1, 1));
}

#[test]
fn threads_end_with_the_last_clone() {
    let (sink, script) = Script::new("scripted");
    let manager = AlertManager::with_queue_depth_alerts(100, 200).with_sink(sink);
    block_on(manager.check_queue_depth("api", 150));
    block_on(manager.check_queue_depth("web", 150));
    assert_eq!(script.next(), (FIRING, 1));
    // Does not wait for the sink, which is in the middle of it.
    drop(manager);
    script.answer(Ok(()));
    script.until_gone();
    assert!(script.given.try_recv().is_err(), "the second is not delivered");
}

#[test]
fn shutdown_delivers_and_ends() {
    let (sink, script) = Script::new("scripted");
    let manager = AlertManager::with_queue_depth_alerts(100, 200).with_sink(sink);
    let heard = alerts_of(&manager);
    block_on(manager.check_queue_depth("api", 150));
    block_on(manager.check_queue_depth("web", 150));
    drop(script.answers);
    assert!(block_on(manager.shutdown(HANG)));
    assert_eq!(script.given.try_iter().count(), 2);
    block_on(manager.check_queue_depth("api", 250));
    assert!(block_on(manager.flush(HANG)));
    assert_eq!(levels(&heard).len(), 2, "nothing is delivered afterwards");
    assert_eq!(manager.delivery_stats()[0].dropped, 1);
}

#[test]
fn shutdown_does_not_wait_for_ever() {
    let (sink, script) = Script::new("scripted");
    let manager = AlertManager::with_queue_depth_alerts(100, 200).with_sink(sink);
    block_on(manager.check_queue_depth("api", 150));
    block_on(manager.check_queue_depth("web", 150));
    assert_eq!(script.next(), (FIRING, 1));
    assert!(!block_on(manager.shutdown(Duration::from_millis(1))));
    assert_eq!(manager.delivery_stats()[1].dropped, 1);
    drop(script.answers);
}

#[test]
fn an_alert_that_nobody_looks_at_any_more_ends_by_itself() {
    // As that of a check by hand: no reading comes.
    let rule = AlertRule::queue_depth(100).with_keep_firing_for(Duration::from_millis(20));
    let manager = AlertManager::new().with_rule(rule).unwrap();
    let (over, ends) = channel();
    manager.add_notification_callback(move |told| over.send(told.status).unwrap());
    block_on(manager.check_queue_depth("api", 150));
    block_on(manager.check_queue_depth("api", 0));
    assert_eq!(ends.recv_timeout(HANG), Ok(FIRING));
    assert_eq!(ends.recv_timeout(HANG), Ok(RESOLVED));
    assert_eq!(manager.active(), []);
}

#[test]
fn a_lane_that_stalls_is_told_and_its_recovery_as_well() {
    let mut simulation = Simulation::new(2, 7);
    let keep = |rule: AlertRule| rule.with_keep_firing_for(5 * SECOND);
    let rules = [
        keep(AlertRule::no_progress(30 * SECOND).only_critical()),
        keep(AlertRule::oldest_pending_age(40 * SECOND)),
        keep(AlertRule::oldest_active_age(50 * SECOND)),
        keep(AlertRule::saturated(60 * SECOND)),
    ];
    let alerts = Arc::new(AlertManager::new().with_rules(rules).unwrap());
    let builder = QueueManagerBuilder::new(EventEmitter::new(1)).with_alerts(Arc::clone(&alerts));
    let builder = builder.with_executor(simulation.executor().clone());
    let builder = builder.with_lane("api", LaneConfig::new(1, 1), 0).with_lane("idle", LaneConfig::new(1, 1), 1);
    let manager = simulation.block_on(builder.build()).unwrap();
    simulation.block_on(manager.start()).unwrap();
    assert!(Arc::ptr_eq(manager.alerts().unwrap(), &alerts));

    let sleeps = |time| manager.submit_fn("api", "sleeps", move || async move { Ok(sleep(time).await) }).unwrap();
    let tickets = [sleeps(100 * SECOND), sleeps(SECOND), sleeps(SECOND)];
    let mut found = Vec::new();
    for second in 1..120u64 {
        simulation.advance(SECOND);
        let new = alerts.history().split_off(found.len());
        found.extend(new.into_iter().map(|told| (second, told.status, told.rule)));
    }
    tickets.into_iter().for_each(|ticket| simulation.block_on(ticket).unwrap().unwrap());
    let rules = |status| found.iter().filter(move |(_, own, _)| *own == status);
    let fired: Vec<_> = rules(FIRING).map(|(_, _, rule)| rule.as_str()).collect();
    assert_eq!(fired, ["no_progress", "oldest_pending_age", "oldest_active_age", "saturated"]);
    for ((second, _, rule), after) in rules(FIRING).zip([30, 40, 50, 60]) {
        // Readings come once a second, and what they show may have begun up to a second before.
        assert!((after..=after + 2).contains(second), "{rule}: {second}");
    }
    assert_eq!(rules(RESOLVED).count(), 4);
    assert!(rules(RESOLVED).all(|(second, ..)| (105..=108).contains(second)), "{found:?}");
    assert_eq!(alerts.active(), []);
}

#[test]
fn alerts_end_with_the_queue_that_they_are_about() {
    let executor = executor(1);
    let alerts = Arc::new(AlertManager::with_queue_depth_alerts(1, 100));
    let builder = QueueManagerBuilder::new(EventEmitter::new(1)).with_executor(executor);
    let builder =
        builder.with_alerts(Arc::clone(&alerts)).with_metrics(QueueMetrics::local().with_interval(SECOND / 100));
    let manager = block_on(builder.with_lane("api", LaneConfig::new(1, 1), 0).build()).unwrap();
    // Not started: it waits.
    let ticket = manager.submit_fn("api", "waits", || async { Ok(()) }).unwrap();
    eventually("it fires", || !alerts.active().is_empty());
    drop(manager);
    assert!(block_on(ticket).unwrap().is_err());
    eventually("it is over", || alerts.active().is_empty());
    assert_eq!(told(&alerts), [(FIRING, WARNING), (RESOLVED, WARNING)]);
}

#[test]
fn queues_that_share_alerts_are_judged_once() {
    let executor = executor(1);
    let alerts = Arc::new(AlertManager::with_queue_depth_alerts(3, 5).with_repeat_interval(NEVER));
    let managers: Vec<_> = (0..4)
        .map(|_| {
            let builder = QueueManagerBuilder::new(EventEmitter::new(1)).with_executor(executor.clone());
            let builder = builder.with_alerts(Arc::clone(&alerts)).with_lane("api", LaneConfig::new(1, 1), 0);
            block_on(builder.build()).unwrap()
        })
        .collect();
    let tickets: Vec<_> =
        managers.iter().map(|manager| manager.submit_fn("api", "waits", || async { Ok(()) }).unwrap()).collect();
    // One each: only all together are they many.
    let _reading = managers[0].metrics().unwrap().collect();
    let active = alerts.active();
    assert_eq!((active.len(), active[0].alert.current_value), (1, 4.0));
    for manager in &managers {
        block_on(manager.start()).unwrap();
    }
    tickets.into_iter().for_each(|ticket| block_on(ticket).unwrap().unwrap());
}
