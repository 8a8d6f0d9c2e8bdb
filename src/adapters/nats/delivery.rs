//! One delivery of a message, as the server names it: what is said of it goes to that name.

use std::time::Duration;

use async_nats::Message;

use super::core::read;
use super::record::Stored;

/// It is not to be delivered any more, and is removed from its stream.
pub(super) const ACK: &str = "+ACK";
/// It is to be delivered again, at once.
pub(super) const AGAIN: &str = "-NAK";
/// It is being worked on: the time after which it is delivered again begins anew.
pub(super) const IN_PROGRESS: &str = "+WPI";

/// It is to be delivered again after this time, unless something else is said of it by then.
pub(super) fn again_after(time: Duration) -> String {
    // The server counts in nanoseconds; 0 would be at once.
    format!("{AGAIN} {{\"delay\": {}}}", time.as_nanos().max(1))
}

/// By what a delivery is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    /// Where to say what becomes of it.
    pub(super) name: String,
    pub(super) stream: String,
    pub(super) sequence: u64,
    /// When the message was published, by the server's clock: in nanoseconds since 1970.
    pub(super) published: i64,
}

impl Delivery {
    /// `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<its number>.<published>.<pending>`, or with a domain and an account
    /// before the stream, and perhaps more behind.
    pub(super) fn of(name: &str) -> Option<Self> {
        let words: Vec<_> = name.strip_prefix("$JS.ACK.")?.split('.').collect();
        let words = match words.len() {
            7 => &words[..],
            9.. => &words[2..],
            _ => return None,
        };
        Some(Self {
            name: name.to_owned(),
            stream: (*words.first()?).to_owned(),
            sequence: words.get(3)?.parse().ok()?,
            published: words.get(5)?.parse().ok()?,
        })
    }
}

/// A message that was delivered.
pub(super) struct Delivered {
    pub(super) delivery: Delivery,
    /// The command, or what is wrong with it.
    pub(super) stored: Result<Stored, String>,
    pub(super) body: bytes::Bytes,
}

impl Delivered {
    /// None if it is no message of JetStream.
    pub(super) fn of(message: Message) -> Option<Self> {
        let delivery = Delivery::of(message.reply.as_deref()?)?;
        Some(Self { delivery, stored: read(&message.payload), body: message.payload })
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_known_by_its_name_of_both_forms() {
        let old = Delivery::of("$JS.ACK.mail-q0.p1.3.17.40.1700000000000000000.5").expect("it is one");
        assert_eq!((old.stream.as_str(), old.sequence, old.published), ("mail-q0", 17, 1_700_000_000_000_000_000));
        let new = Delivery::of("$JS.ACK.hub.abc.mail-q0.p1.3.17.40.1700000000000000000.5.x.y").expect("it is one");
        assert_eq!((new.stream.as_str(), new.sequence, new.published), ("mail-q0", 17, 1_700_000_000_000_000_000));
        assert_eq!(Delivery::of("$JS.ACK.mail-q0.p1"), None);
        assert_eq!(Delivery::of(""), None);
    }

    #[test]
    fn again_after_no_time_is_not_forgotten() {
        assert_eq!(again_after(Duration::ZERO), "-NAK {\"delay\": 1}");
        assert_eq!(again_after(Duration::from_millis(2)), "-NAK {\"delay\": 2000000}");
    }
}
