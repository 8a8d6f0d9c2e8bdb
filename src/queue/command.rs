//! Three ways to say what to run, and the one form that the queue runs.

use std::borrow::Cow;
use std::future::Future;

use async_trait::async_trait;

use crate::error::Result;

/// Something to execute, with a JSON result: the trait of a3s-lane.
#[async_trait]
pub trait Command: Send + Sync {
    /// Executes the command. May be dropped at any await: at its deadline, or when it is cancelled.
    async fn execute(&self) -> Result<serde_json::Value>;

    /// What kind of command this is, for events and logs.
    fn command_type(&self) -> &str;
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

    /// What kind of command this is, for events and logs.
    fn command_type(&self) -> &str;
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
}

/// The form in which the queue runs every command.
pub(crate) trait Job: Send + 'static {
    type Output: Send + 'static;

    fn command_type(&self) -> &str;

    fn attempt(&mut self) -> impl Future<Output = Result<Self::Output>> + Send;
}

impl Job for Box<dyn Command> {
    type Output = serde_json::Value;

    fn command_type(&self) -> &str {
        (**self).command_type()
    }

    fn attempt(&mut self) -> impl Future<Output = Result<Self::Output>> + Send {
        self.execute()
    }
}

/// A [`TypedCommand`] as a job.
pub(crate) struct Typed<C>(pub(crate) C);

impl<C: TypedCommand> Job for Typed<C> {
    type Output = C::Output;

    fn command_type(&self) -> &str {
        self.0.command_type()
    }

    fn attempt(&mut self) -> impl Future<Output = Result<Self::Output>> + Send {
        self.0.execute()
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

    async fn attempt(&mut self) -> Result<T> {
        match self.make.take() {
            Some(make) => make().await,
            None => Err(crate::error::LaneError::CommandError("a closure runs once".into())),
        }
    }
}
