//! A command of an envelope, and what it knows of its delivery.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use pin_project_lite::pin_project;
use scoped_tls::scoped_thread_local;
use serde_json::Value;

use super::Function;
use super::held::Guard;
use crate::distributed::{CommandEnvelope, Leased};
use crate::error::{LaneError, Result};
use crate::executor::{discard_panic, panic_message};
use crate::queue::{Command, DurableCommand};

type Make = Box<dyn Fn(u32, Value) -> Result<Box<dyn Command>> + Send + Sync>;

/// How commands are made of their envelopes, by their types.
///
/// ```
/// # use corelane::{DurableCommand, Result};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Resize;
/// # impl DurableCommand for Resize {
/// #     const TYPE: &'static str = "resize";
/// #     type Output = ();
/// #     async fn execute(&self) -> Result<()> { Ok(()) }
/// # }
/// use corelane::RemoteCommands;
///
/// let commands = RemoteCommands::new().with_durable::<Resize>();
/// ```
#[derive(Default)]
#[must_use]
pub struct RemoteCommands {
    /// With the latest version that is read.
    constructors: HashMap<String, (u32, Make)>,
    doubles: Vec<String>,
}

impl RemoteCommands {
    /// No types.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also commands of type `C`. Their result is `C`'s output as JSON.
    pub fn with_durable<C: DurableCommand>(self) -> Self {
        let make = |version, payload| Ok(Box::new(Data(C::decode(version, payload)?)) as Box<dyn Command>);
        self.with(C::TYPE.to_owned(), C::VERSION, Box::new(make))
    }

    /// Also commands of this type. The constructor gets the version of the payload, 1 if none was given, and the payload.
    pub fn with_constructor(
        self,
        command_type: impl Into<String>,
        make: impl Fn(u32, Value) -> Result<Box<dyn Command>> + Send + Sync + 'static,
    ) -> Self {
        self.with(command_type.into(), u32::MAX, Box::new(make))
    }

    fn with(mut self, command_type: String, version: u32, make: Make) -> Self {
        if self.constructors.insert(command_type.clone(), (version, make)).is_some() {
            self.doubles.push(command_type);
        }
        self
    }

    pub(super) fn doubles(&self) -> &[String] {
        &self.doubles
    }

    /// The command of an envelope; why not, if not. Calls others' code, which may panic.
    pub(super) fn make(&self, leased: &Leased) -> Result<Box<dyn Command>, String> {
        let CommandEnvelope { command_type, payload, .. } = &leased.envelope;
        let version = leased.payload_version;
        let Some((known, make)) = self.constructors.get(command_type) else {
            return Err(format!("type {command_type:?} is not known here: add with_durable or with_constructor"));
        };
        if version > *known {
            return Err(format!("its payload is of version {version}, and this program reads up to {known}"));
        }
        match catch_unwind(AssertUnwindSafe(|| make(version, payload.clone()))) {
            Ok(made) => made.map_err(|error| error.to_string()),
            Err(panic) => {
                let message = format!("its constructor panicked: {}", panic_message(panic.as_ref()));
                discard_panic(panic);
                Err(message)
            }
        }
    }
}

impl fmt::Debug for RemoteCommands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.constructors.keys()).finish()
    }
}

/// A command that is data, with a JSON result.
struct Data<C>(C);

#[async_trait]
impl<C: DurableCommand> Command for Data<C> {
    async fn execute(&self) -> Result<Value> {
        let output = self.0.execute().await?;
        serde_json::to_value(output).map_err(|error| {
            LaneError::CommandError(format!("the result of {} is not data: {error}", C::TYPE)).permanent()
        })
    }

    fn command_type(&self) -> &str {
        C::TYPE
    }

    fn payload(&self) -> Option<Value> {
        self.0.encode().ok()
    }
}

/// A command that one function runs.
pub(super) struct ByFunction {
    pub(super) run: Function,
    pub(super) envelope: CommandEnvelope,
}

#[async_trait]
impl Command for ByFunction {
    async fn execute(&self) -> Result<Value> {
        (self.run)(self.envelope.clone()).await.map_err(LaneError::Other)
    }

    fn command_type(&self) -> &str {
        &self.envelope.command_type
    }

    fn payload(&self) -> Option<Value> {
        Some(self.envelope.payload.clone())
    }
}

/// The delivery that a command runs for.
///
/// What a command does elsewhere happens at least once. To have it happen once, give `command_id` to what can tell that it has
/// been there, or `fence` to what can refuse lower ones than it has seen.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Delivery {
    /// The id of the envelope: the same in every delivery.
    pub command_id: String,
    /// Higher than in every delivery before; 0 where the queue has no leases.
    pub fence: u64,
    /// How often it was delivered, from 1.
    pub delivery: u32,
    /// What went along with the command.
    pub headers: BTreeMap<String, String>,
}

scoped_thread_local!(static CURRENT: Arc<Delivery>);

impl Delivery {
    /// That of the command which is being polled on this thread; none elsewhere.
    #[must_use]
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.is_set().then(|| CURRENT.with(Arc::clone))
    }

    pub(super) fn of(leased: &Leased) -> Self {
        Self {
            command_id: leased.envelope.id.clone(),
            fence: leased.token.fence(),
            delivery: leased.delivery,
            headers: leased.headers.clone(),
        }
    }
}

/// A command that knows its delivery.
pub(super) struct Delivered {
    pub(super) command: Box<dyn Command>,
    pub(super) delivery: Arc<Delivery>,
    /// Dropped last.
    pub(super) guard: Guard,
}

#[async_trait]
impl Command for Delivered {
    async fn execute(&self) -> Result<Value> {
        let result = Within { delivery: &self.delivery, inner: self.command.execute() }.await;
        self.guard.returns(&result);
        result
    }

    fn command_type(&self) -> &str {
        self.command.command_type()
    }

    fn payload(&self) -> Option<Value> {
        self.command.payload()
    }
}

pin_project! {
    struct Within<'a, F> {
        delivery: &'a Arc<Delivery>,
        #[pin]
        inner: F,
    }
}

impl<F: Future> Future for Within<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        CURRENT.set(this.delivery, || this.inner.poll(cx))
    }
}
