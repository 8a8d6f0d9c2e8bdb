//! Three ways to say what to run, and the one form that the queue runs.

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;

use super::command_queue::CommandQueue;
use super::dead_letter::{DeadLetter, Replay};
use super::options::SubmitOptions;
use crate::error::Result;

/// Something to execute, with a JSON result: the trait of a3s-lane.
#[async_trait]
pub trait Command: Send + Sync {
    /// Executes the command. May be dropped at any await: at its deadline, or when it is cancelled.
    async fn execute(&self) -> Result<serde_json::Value>;

    /// What kind of command this is, for events and logs. Must not wait: it may be asked while the command executes, by a
    /// thread that the end of a poll waits for.
    fn command_type(&self) -> &str;

    /// What the command is to do, as data: kept in its dead letter. Default: none.
    fn payload(&self) -> Option<serde_json::Value> {
        None
    }
}

/// Something to execute, with a result of its own type: no boxing, no JSON, one allocation.
///
/// ```
/// use corelane::{Result, TypedCommand};
///
/// struct Square(u64);
///
/// impl TypedCommand for Square {
///     type Output = u64;
///     async fn execute(&self) -> Result<u64> {
///         Ok(self.0 * self.0)
///     }
///     fn command_type(&self) -> &str {
///         "square"
///     }
/// }
/// ```
pub trait TypedCommand: Send + Sync + 'static {
    /// What it results in.
    type Output: Send + 'static;

    /// Executes the command. May be dropped at any await: at its deadline, or when it is cancelled.
    fn execute(&self) -> impl Future<Output = Result<Self::Output>> + Send;

    /// What kind of command this is, for events and logs. Must not wait: it may be asked while the command executes, by a
    /// thread that the end of a poll waits for.
    fn command_type(&self) -> &str;

    /// What the command is to do, as data: kept in its dead letter. Default: none.
    fn payload(&self) -> Option<serde_json::Value> {
        None
    }
}

/// A command that is data: executing it returns its payload.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonCommand {
    command_type: String,
    payload: serde_json::Value,
}

impl JsonCommand {
    /// A command of this type with this payload.
    pub fn new(command_type: impl Into<String>, payload: serde_json::Value) -> Self {
        Self { command_type: command_type.into(), payload }
    }
}

#[async_trait]
impl Command for JsonCommand {
    async fn execute(&self) -> Result<serde_json::Value> {
        Ok(self.payload.clone())
    }

    fn command_type(&self) -> &str {
        &self.command_type
    }

    fn payload(&self) -> Option<serde_json::Value> {
        Some(self.payload.clone())
    }
}

/// The form in which the queue runs every command.
pub(crate) trait Job: Send + 'static {
    type Output: Send + 'static;

    fn command_type(&self) -> &str;

    /// The next attempt, and what says its command's type meanwhile: that may be asked while it is polled, from any thread.
    fn attempt<'a>(
        &'a mut self,
    ) -> (impl Future<Output = Result<Self::Output>> + Send, impl Fn() -> &'a str + Send + Sync);

    fn payload(&self) -> Option<serde_json::Value>;

    /// It is made to be stored, and refused where that can not be done.
    const IS_DATA: bool = false;

    /// As [`Job::payload`], for a store: an error if there is one that can not be written.
    fn encode(&self) -> Result<Option<serde_json::Value>> {
        Ok(self.payload())
    }

    /// The version of what [`Job::encode`] gives.
    fn payload_version(&self) -> u32 {
        1
    }

    /// A result as data, for others that wait for it; none if it is not data.
    fn to_json(_output: &Self::Output) -> Option<serde_json::Value> {
        None
    }

    /// The result of data from [`Job::to_json`].
    fn from_json(_value: serde_json::Value) -> Option<Self::Output> {
        None
    }

    /// Whether it can be tried again after it has failed.
    fn can_run_again(&self) -> bool {
        true
    }

    /// What submits it again from a dead letter.
    fn into_replay(self) -> Option<Arc<dyn Replay>>;

    /// Its own size in memory, in bytes.
    fn size(&self) -> usize;
}

/// A boxed [`Command`] as a job.
pub(crate) struct Boxed(pub(crate) Box<dyn Command>);

impl Job for Boxed {
    type Output = serde_json::Value;

    fn command_type(&self) -> &str {
        self.0.command_type()
    }

    fn attempt<'a>(
        &'a mut self,
    ) -> (impl Future<Output = Result<Self::Output>> + Send, impl Fn() -> &'a str + Send + Sync) {
        let command = &self.0;
        (command.execute(), move || command.command_type())
    }

    fn payload(&self) -> Option<serde_json::Value> {
        self.0.payload()
    }

    fn into_replay(self) -> Option<Arc<dyn Replay>> {
        Arc::<dyn Command>::from(self.0).into_replay()
    }

    fn size(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.0)
    }

    fn to_json(output: &serde_json::Value) -> Option<serde_json::Value> {
        Some(output.clone())
    }

    fn from_json(value: serde_json::Value) -> Option<serde_json::Value> {
        Some(value)
    }
}

/// A boxed command that a dead letter has kept.
impl Job for Arc<dyn Command> {
    type Output = serde_json::Value;

    fn command_type(&self) -> &str {
        (**self).command_type()
    }

    fn attempt<'a>(
        &'a mut self,
    ) -> (impl Future<Output = Result<Self::Output>> + Send, impl Fn() -> &'a str + Send + Sync) {
        let command = &**self;
        (command.execute(), move || command.command_type())
    }

    fn payload(&self) -> Option<serde_json::Value> {
        (**self).payload()
    }

    fn into_replay(self) -> Option<Arc<dyn Replay>> {
        Some(Arc::new(Kept(self)))
    }

    fn size(&self) -> usize {
        size_of::<Self>() + size_of_val(&**self)
    }

    fn to_json(output: &serde_json::Value) -> Option<serde_json::Value> {
        Some(output.clone())
    }

    fn from_json(value: serde_json::Value) -> Option<serde_json::Value> {
        Some(value)
    }
}

/// A job of which each submission is a cheap copy.
struct Kept<J>(J);

impl<J: Job + Clone + Sync> Replay for Kept<J> {
    fn submit(self: Arc<Self>, queue: &CommandQueue, letter: &DeadLetter) -> Result<()> {
        queue.accept(&letter.lane_id, self.0.clone(), Some(replay_options(letter, queue)))?.detach();
        Ok(())
    }
}

/// What submits a job again from a dead letter.
pub(super) fn kept<J: Job + Clone + Sync>(job: J) -> Arc<dyn Replay> {
    Arc::new(Kept(job))
}

/// How the command of a letter is submitted again: as the same command.
pub(super) fn replay_options(letter: &DeadLetter, queue: &CommandQueue) -> SubmitOptions {
    let is_stored = queue.has_stored(letter);
    let mut options = SubmitOptions::new().replayed(letter.command_id, letter.replays.saturating_add(1), is_stored);
    for tag in &letter.tags {
        options = options.tag(tag.as_str());
    }
    options
}

/// A [`TypedCommand`] as a job.
pub(crate) struct Typed<C>(pub(crate) C);

impl<C: TypedCommand> Job for Typed<C> {
    type Output = C::Output;

    fn command_type(&self) -> &str {
        self.0.command_type()
    }

    fn attempt<'a>(
        &'a mut self,
    ) -> (impl Future<Output = Result<Self::Output>> + Send, impl Fn() -> &'a str + Send + Sync) {
        let command = &self.0;
        (command.execute(), move || command.command_type())
    }

    fn payload(&self) -> Option<serde_json::Value> {
        self.0.payload()
    }

    fn into_replay(self) -> Option<Arc<dyn Replay>> {
        Some(Arc::new(Kept(Shared(Arc::new(self.0)))))
    }

    fn size(&self) -> usize {
        size_of::<C>()
    }
}

/// A typed command that a dead letter has kept.
struct Shared<C>(Arc<C>);

impl<C> Clone for Shared<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C: TypedCommand> Job for Shared<C> {
    type Output = C::Output;

    fn command_type(&self) -> &str {
        self.0.command_type()
    }

    fn attempt<'a>(
        &'a mut self,
    ) -> (impl Future<Output = Result<Self::Output>> + Send, impl Fn() -> &'a str + Send + Sync) {
        let command = &self.0;
        (command.execute(), move || command.command_type())
    }

    fn payload(&self) -> Option<serde_json::Value> {
        self.0.payload()
    }

    fn into_replay(self) -> Option<Arc<dyn Replay>> {
        Some(Arc::new(Kept(self)))
    }

    fn size(&self) -> usize {
        size_of::<C>()
    }
}

/// A closure that makes a future, to run once.
pub(crate) struct Once<F> {
    command_type: Cow<'static, str>,
    /// None once it has run.
    make: Option<F>,
}

impl<F> Once<F> {
    pub(crate) fn new(command_type: impl Into<Cow<'static, str>>, make: F) -> Self {
        Self { command_type: command_type.into(), make: Some(make) }
    }
}

impl<F, Fut, T> Job for Once<F>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<T>> + Send,
    T: Send + 'static,
{
    type Output = T;

    fn command_type(&self) -> &str {
        &self.command_type
    }

    fn payload(&self) -> Option<serde_json::Value> {
        None
    }

    fn can_run_again(&self) -> bool {
        false
    }

    fn into_replay(self) -> Option<Arc<dyn Replay>> {
        None
    }

    fn size(&self) -> usize {
        size_of::<Self>()
    }

    fn attempt<'a>(&'a mut self) -> (impl Future<Output = Result<T>> + Send, impl Fn() -> &'a str + Send + Sync) {
        let Self { command_type, make } = self;
        let command_type = &*command_type;
        let attempt = async {
            match make.take() {
                Some(make) => make().await,
                None => Err(crate::error::LaneError::CommandError("a closure runs once".into())),
            }
        };
        (attempt, move || &**command_type)
    }
}
