//! Bad input: a clear error that says what, where and how to fix it; nothing is lost.

use std::time::Duration;

use corelane::{
    Command, EventEmitter, JsonCommand, Lane, LaneConfig, LaneError, QueueManagerBuilder, Rejected, Result,
    TypedCommand,
};
use serde_json::json;

use crate::support::{block_on, manager, on_workers};

#[test]
fn build_reports_every_problem_at_once_with_path_value_and_hint() {
    let builder = QueueManagerBuilder::new(EventEmitter::new(1))
        .with_lane("zero", LaneConfig::new(0, 0), 0)
        .with_lane("inverted", LaneConfig::new(5, 2), 0)
        .with_lane("hasty", LaneConfig::new(1, 1).with_timeout(Duration::ZERO), 0)
        .with_lane("low", LaneConfig::new(1, 1), 64)
        .with_lane("", LaneConfig::new(1, 1), 0)
        .with_lane("bell\u{7}", LaneConfig::new(1, 1), 0)
        .with_lane("twice", LaneConfig::new(1, 1), 0)
        .with_lane("twice", LaneConfig::new(1, 2), 0)
        .with_lane("tense", LaneConfig::new(1, 1).with_pressure_threshold(0), 0)
        .with_lane("huge", LaneConfig::new(1, usize::MAX), 0);
    let error = block_on(builder.build()).unwrap_err();
    let LaneError::ConfigError(errors) = &error else { panic!("{error:?}") };
    let expected = [
        (r#"lanes["zero"].max_concurrency"#, "0", "at least 1"),
        (r#"lanes["inverted"].min_concurrency"#, "5", "at most max_concurrency, which is 2"),
        (r#"lanes["hasty"].default_timeout"#, "0ns", "more than zero"),
        (r#"lanes["low"].priority"#, "64", "0 (best) to 63 (worst)"),
        (r#"lanes[""].id"#, "\"\"", "name"),
        (r#"lanes["bell\u{7}"].id"#, r#""bell\u{7}""#, "control characters"),
        (r#"lanes["twice"].id"#, "\"twice\"", "taken"),
        (r#"lanes["tense"].pressure_threshold"#, "0", "at least 1"),
        (r#"lanes["huge"].max_concurrency"#, "18446744073709551615", "at most 268435455"),
    ];
    for (path, value, hint) in expected {
        let found = errors.problems().iter().find(|problem| problem.path == path);
        let problem = found.unwrap_or_else(|| panic!("{path} is not reported in {error}"));
        assert_eq!(problem.value, value, "{path}");
        assert!(problem.hint.contains(hint), "{path}: {}", problem.hint);
    }
    assert_eq!(errors.problems().len(), expected.len());
    let text = error.to_string();
    assert!(text.starts_with("9 configuration errors:"), "{text}");
}

#[test]
fn a_lane_registered_later_is_checked_too() {
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::default(), 0)]);
        let bad = block_on(manager.queue().register_lane(Lane::new("b", LaneConfig::new(2, 1), 99)));
        let Err(LaneError::ConfigError(errors)) = bad else { panic!("{bad:?}") };
        assert_eq!(errors.problems().len(), 2);
        assert!(manager.lane("b").is_none());
    });
}

#[test]
fn a_lane_belongs_to_one_queue() {
    on_workers(|executor| {
        let (one, two) = (manager(executor, &[]), manager(executor, &[]));
        let lane = Lane::new("a", LaneConfig::default(), 0);
        let early = lane.try_submit(Box::new(JsonCommand::new("early", json!(1)))).unwrap_err();
        assert!(matches!(&early.error, LaneError::QueueError(text) if text.contains("not registered")), "{early}");
        block_on(one.queue().register_lane(lane.clone())).unwrap();
        let second = block_on(two.queue().register_lane(lane));
        assert!(
            matches!(&second, Err(LaneError::ConfigError(errors)) if errors.to_string().contains("another")
            || errors.to_string().contains("belongs")),
            "{second:?}"
        );
        assert!(two.lane("a").is_none());
    });
}

#[test]
fn an_unknown_lane_is_named_and_the_command_comes_back() {
    #[derive(Debug)]
    struct Mine(u32);
    impl TypedCommand for Mine {
        type Output = u32;
        async fn execute(&self) -> Result<u32> {
            Ok(self.0)
        }
        fn command_type(&self) -> &str {
            "mine"
        }
    }
    on_workers(|executor| {
        let manager = manager(executor, &[("a", LaneConfig::default(), 0)]);
        let command: Box<dyn Command> = Box::new(JsonCommand::new("t", json!(1)));
        let Rejected { error, command, .. } = manager.try_submit("nope", command).unwrap_err();
        assert!(matches!(&error, LaneError::LaneNotFound(id) if id == "nope"));
        assert!(error.to_string().contains("nope"));
        let ticket = manager.try_submit("a", command).unwrap();
        assert_eq!(block_on(ticket).unwrap().unwrap(), json!(1));

        let Rejected { error, command, .. } = manager.submit_typed("nope", Mine(5)).unwrap_err();
        assert!(matches!(error, LaneError::LaneNotFound(_)));
        assert_eq!(block_on(manager.submit_typed("a", command).unwrap()).unwrap().unwrap(), 5);

        let by_future = block_on(manager.submit("nope", Box::new(JsonCommand::new("t", json!(1)))));
        assert!(matches!(by_future, Err(LaneError::LaneNotFound(_))));
    });
}

#[test]
fn errors_fit_into_anyhow_and_keep_their_text() {
    fn fails() -> anyhow::Result<()> {
        Err(LaneError::LaneNotFound("x".into()))?;
        Ok(())
    }
    assert!(fails().unwrap_err().to_string().contains("x"));
    let own: LaneError = corelane::ConfigErrors::from("say what is wrong").into();
    assert_eq!(own.to_string(), "configuration error: say what is wrong");
}
