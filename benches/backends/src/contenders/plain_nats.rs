//! The least that a queue in NATS is made of: one stream that keeps what is not acknowledged, and one pull consumer. No
//! priorities, delays or dead letters.

use std::ops::Range;

use anyhow::{Result, anyhow};
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::RetentionPolicy;
use async_nats::jetstream::{self, Context, Message};
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _};

use super::{Calls, LEASE, Payload};
use crate::plan::Task;

pub struct Queue {
    context: Context,
    consumer: PullConsumer,
    subject: String,
}

impl Queue {
    pub async fn connect(task: &Task) -> Result<Self> {
        let context = jetstream::new(async_nats::connect(task.url.as_str()).await?);
        let subject = task.namespace.clone();
        let stream = jetstream::stream::Config {
            name: task.namespace.clone(),
            subjects: vec![subject.clone()],
            retention: RetentionPolicy::WorkQueue,
            ..Default::default()
        };
        let consumer = pull::Config {
            durable_name: Some("workers".into()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: LEASE,
            max_ack_pending: -1,
            ..Default::default()
        };
        let stream = context.get_or_create_stream(stream).await?;
        let consumer = stream.get_or_create_consumer("workers", consumer).await?;
        Ok(Self { context, consumer, subject })
    }
}

impl Calls for Queue {
    type Claimed = Message;

    async fn enqueue(&mut self, numbers: Range<u64>) -> Result<()> {
        let mut stored = Vec::new();
        for number in numbers {
            let job = serde_json::to_vec(&Payload::new(number))?;
            stored.push(self.context.publish(self.subject.clone(), job.into()).await?.into_future());
        }
        try_join_all(stored).await?;
        Ok(())
    }

    async fn claim(&mut self, most: usize) -> Result<Vec<Message>> {
        let messages = self.consumer.fetch().max_messages(most).messages().await?;
        messages.map(|message| message.map_err(|error| anyhow!(error))).try_collect().await
    }

    async fn ack(&mut self, claimed: Vec<Message>) -> Result<()> {
        // Answered when it is stored.
        let acknowledged = claimed.iter().map(Message::double_ack);
        try_join_all(acknowledged).await.map_err(|error| anyhow!(error))?;
        Ok(())
    }
}
