//! Hearing of what others put in: on a connection of its own, begun when somebody first waits.
//!
//! A word that is lost costs no more than time: who waits looks again by itself, more often while nothing is heard at all.

use std::sync::Arc;
use std::time::Duration;

use futures_lite::StreamExt as _;
use redis::{RedisResult, Value};
use tokio::time::{sleep, timeout};

use super::queue::Queue;
use crate::adapters::remote::Backoff;

/// After so long a silence, it is asked whether the connection is still there.
const SILENCE: Duration = Duration::from_secs(15);

/// Wakes who waits, for as long as the backend's thread lives.
pub(super) async fn listen(queue: Arc<Queue>) {
    let mut backoff = Backoff::new();
    loop {
        if hear(&queue).await.is_ok() {
            backoff.reset();
        }
        queue.set_hears(false);
        sleep(backoff.wait()).await;
    }
}

/// Until the connection is lost; an error, if there was none.
async fn hear(queue: &Queue) -> RedisResult<()> {
    let patience = queue.settings.connect_timeout;
    let mut listener = timeout(patience, queue.connection.listener()).await.map_err(std::io::Error::from)??;
    timeout(patience, listener.subscribe(queue.connection.channel())).await.map_err(std::io::Error::from)??;
    let (mut asked, mut words) = listener.split();
    // What came before this was not heard: so all look again.
    queue.set_hears(true);
    loop {
        match timeout(SILENCE, words.next()).await {
            Ok(Some(_)) => queue.stir(),
            Ok(None) => return Ok(()),
            Err(_) => {
                if !matches!(timeout(patience, asked.ping::<Value>()).await, Ok(Ok(_))) {
                    return Ok(());
                }
            }
        }
    }
}
