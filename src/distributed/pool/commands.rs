//! A command of an envelope, and what it knows of its delivery.

use std::collections::BTreeMap;
use std::future::Future;
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
use crate::queue::{Command, DurableCommand, Registry, Unmade};

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
#[derive(Debug, Default)]
#[must_use]
pub struct RemoteCommands(Registry<dyn Command>);

impl RemoteCommands {
    /// No types.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also commands of type `C`. Their result is `C`'s output as JSON.
    pub fn with_durable<C: DurableCommand>(mut self) -> Self {
        self.0.add(C::TYPE.to_owned(), C::VERSION, |version, payload| Ok(Box::new(Data(C::decode(version, payload)?))));
        self
    }

    /// Also commands of this type. The constructor gets the version of the payload, 1 if none was given, and the payload.
    pub fn with_constructor(
        mut self,
        command_type: impl Into<String>,
        make: impl Fn(u32, Value) -> Result<Box<dyn Command>> + Send + Sync + 'static,
    ) -> Self {
        self.0.add(command_type.into(), u32::MAX, make);
        self
    }

    pub(super) fn doubles(&self) -> &[String] {
        self.0.doubles()
    }

    /// The command of an envelope; why not, if not.
    pub(super) fn make(&self, leased: &Leased) -> Result<Box<dyn Command>, String> {
        let CommandEnvelope { command_type, payload, .. } = &leased.envelope;
        let made = self.0.make(command_type, leased.payload_version, payload.clone());
        made.map_err(|why| match why {
            Unmade::UnknownType => {
                format!("type {command_type:?} is not known here: add with_durable or with_constructor")
            }
            why => why.to_string(),
        })
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
