//! Commands that are data, and how they are made again.

use std::collections::HashMap;
use std::fmt;
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

type Make = Box<dyn Fn(u32, Value) -> Result<Box<dyn Recovered>> + Send + Sync>;

struct Constructor {
    /// The latest version that it reads.
    version: u32,
    make: Make,
}

/// How commands are made again, by type.
#[derive(Default)]
pub(in crate::queue) struct Registry {
    constructors: HashMap<String, Constructor>,
    /// Types that were given more than once.
    doubles: Vec<String>,
}

/// Why a command can not be made again.
pub(super) enum Unmade {
    UnknownType,
    TooNew { version: u32, known: u32 },
    Undecodable(LaneError),
}

impl fmt::Display for Unmade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType => f.write_str("its type is not registered: add with_durable or with_constructor"),
            Self::TooNew { version, known } => {
                write!(f, "its version is {version}, and this program reads up to {known}")
            }
            Self::Undecodable(error) => write!(f, "it can not be read: {error}"),
        }
    }
}

impl Registry {
    pub(in crate::queue) fn add_durable<C: DurableCommand>(&mut self) {
        let make = |version, payload| -> Result<Box<dyn Recovered>> {
            Ok(Box::new(Durable(Box::new(C::decode(version, payload)?))))
        };
        self.add(C::TYPE.to_owned(), C::VERSION, Box::new(make));
    }

    pub(in crate::queue) fn add_boxed(
        &mut self,
        command_type: String,
        make: impl Fn(u32, Value) -> Result<Box<dyn Command>> + Send + Sync + 'static,
    ) {
        let make =
            move |version, payload| -> Result<Box<dyn Recovered>> { Ok(Box::new(Boxed(make(version, payload)?))) };
        self.add(command_type, u32::MAX, Box::new(make));
    }

    fn add(&mut self, command_type: String, version: u32, make: Make) {
        let before = self.constructors.insert(command_type.clone(), Constructor { version, make });
        if before.is_some() {
            self.doubles.push(command_type);
        }
    }

    pub(in crate::queue) fn doubles(&self) -> &[String] {
        &self.doubles
    }

    pub(in crate::queue) fn is_empty(&self) -> bool {
        self.constructors.is_empty()
    }

    pub(super) fn knows(&self, command_type: &str) -> bool {
        self.constructors.contains_key(command_type)
    }

    /// Makes a command again. Calls others' code, which may panic.
    pub(super) fn make(&self, command_type: &str, version: u32, payload: Value) -> Result<Box<dyn Recovered>, Unmade> {
        let constructor = self.constructors.get(command_type).ok_or(Unmade::UnknownType)?;
        let known = constructor.version;
        if version > known {
            return Err(Unmade::TooNew { version, known });
        }
        super::stored::guarded(|| (constructor.make)(version, payload)).map_err(Unmade::Undecodable)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.constructors.keys()).finish()
    }
}
