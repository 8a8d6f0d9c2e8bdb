//! Commands that are data.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::recover::Recovered;
use crate::error::{LaneError, Result, StorageError};
use crate::queue::command::{Boxed, Command, Job};
use crate::queue::dead_letter::Replay;
use crate::queue::registry::Registry;

/// A command that can be stored and made again: serde data, and what to do with it. Register its type with
/// [`QueueManagerBuilder::with_durable`](crate::QueueManagerBuilder::with_durable).
///
/// ```
/// use corelane::{DurableCommand, Result};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Resize {
///     image: String,
///     width: u32,
/// }
///
/// impl DurableCommand for Resize {
///     const TYPE: &'static str = "resize";
///     type Output = u32;
///
///     async fn execute(&self) -> Result<u32> {
///         Ok(self.width)
///     }
/// }
/// ```
///
/// It may run more than once: again after a crash, and as its lane's retry policy says. [`CommandContext::id`] is the same
/// each time: give it to whatever must happen once.
///
/// [`CommandContext::id`]: crate::CommandContext
pub trait DurableCommand: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Names the type in the store and in events. Stays when the Rust type is renamed.
    const TYPE: &'static str;

    /// The version of what [`DurableCommand::encode`] gives. A stored command of a later version is parked. Default: 1.
    const VERSION: u32 = 1;

    /// What it results in. As data, so that a second submission under its idempotency key can have it.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// Executes the command. May be dropped at any await: at its deadline, or when it is cancelled.
    fn execute(&self) -> impl Future<Output = Result<Self::Output>> + Send;

    /// The command as data. Default: by serde.
    ///
    /// # Errors
    ///
    /// It can not be written as JSON; it is then not accepted.
    fn encode(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|error| StorageError::NotData(format!("{}: {error}", Self::TYPE)).into())
    }

    /// The command of data that this version, or an earlier one, has encoded. Default: by serde, of this version.
    ///
    /// # Errors
    ///
    /// It can not be read; it then goes to the dead letters.
    fn decode(version: u32, payload: Value) -> Result<Self> {
        if version != Self::VERSION {
            let (kind, own) = (Self::TYPE, Self::VERSION);
            let hint =
                format!("{kind} of version {version} is not read by version {own}: implement DurableCommand::decode");
            return Err(LaneError::CommandError(hint));
        }
        serde_json::from_value(payload).map_err(|error| LaneError::CommandError(format!("{}: {error}", Self::TYPE)))
    }
}

/// A [`DurableCommand`] as a job: in a box of its own, or shared with a dead letter.
#[derive(Clone)]
pub(in crate::queue) struct Durable<P>(pub(in crate::queue) P);

impl<C: DurableCommand, P: Deref<Target = C> + Into<Arc<C>> + Send + Sync + 'static> Job for Durable<P> {
    type Output = C::Output;

    const IS_DATA: bool = true;

    fn command_type(&self) -> &str {
        C::TYPE
    }

    fn attempt<'a>(
        &'a mut self,
    ) -> (impl Future<Output = Result<Self::Output>> + Send, impl Fn() -> &'a str + Send + Sync) {
        let command: &'a C = &self.0;
        (command.execute(), || C::TYPE)
    }

    fn payload(&self) -> Option<Value> {
        self.0.encode().ok()
    }

    fn encode(&self) -> Result<Option<Value>> {
        self.0.encode().map(Some)
    }

    fn payload_version(&self) -> u32 {
        C::VERSION
    }

    fn into_replay(self) -> Option<Arc<dyn Replay>> {
        Some(crate::queue::command::kept(Durable::<Arc<C>>(self.0.into())))
    }

    fn size(&self) -> usize {
        size_of::<C>()
    }

    fn to_json(output: &Self::Output) -> Option<Value> {
        serde_json::to_value(output).ok()
    }

    fn from_json(value: Value) -> Option<Self::Output> {
        serde_json::from_value(value).ok()
    }
}

impl Registry<dyn Recovered> {
    pub(in crate::queue) fn add_durable<C: DurableCommand>(&mut self) {
        self.add(C::TYPE.to_owned(), C::VERSION, |version, payload| {
            Ok(Box::new(Durable(Box::new(C::decode(version, payload)?))))
        });
    }

    pub(in crate::queue) fn add_boxed(
        &mut self,
        command_type: String,
        make: impl Fn(u32, Value) -> Result<Box<dyn Command>> + Send + Sync + 'static,
    ) {
        self.add(command_type, u32::MAX, move |version, payload| Ok(Box::new(Boxed(make(version, payload)?))));
    }
}
