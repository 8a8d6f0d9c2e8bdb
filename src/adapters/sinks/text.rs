//! Texts within limits. A limit counts UTF-16 units: never fewer than characters, which is how others count.

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use ring::digest::{SHA256, digest};

/// `text`, or what of it fits into `limit`, with an ellipsis.
pub(super) fn cut(text: &str, limit: usize) -> String {
    collect(text.chars(), limit, |c, out| out.push(c))
}

/// `text` in one line: control characters become spaces.
pub(super) fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `text` as Slack shows it as it is, within `limit`.
pub(super) fn slack(text: &str, limit: usize) -> String {
    collect(line(text).chars(), limit, |c, out| match c {
        '&' => out.push_str("&amp;"),
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        c => out.push(c),
    })
}

fn collect(chars: impl Iterator<Item = char>, limit: usize, write: impl Fn(char, &mut String)) -> String {
    let (mut out, mut units, mut fits) = (String::new(), 0, 0);
    for c in chars {
        let from = out.len();
        write(c, &mut out);
        units += out[from..].encode_utf16().count();
        // The last place is the ellipsis's, unless nothing follows.
        if units < limit {
            fits = out.len();
        }
        if units > limit {
            out.truncate(fits);
            out.push('…');
            return out;
        }
    }
    out
}

/// `name` within `limit` bytes. Names that differ still do after it: a hash stands for what is left out.
pub(super) fn name(name: &str, limit: usize) -> String {
    if name.len() <= limit {
        return name.to_owned();
    }
    let hash = hash(name);
    let room = limit - hash.len() - 1;
    let kept: String = name.char_indices().take_while(|(at, c)| at + c.len_utf8() <= room).map(|(_, c)| c).collect();
    format!("{kept}-{hash}")
}

/// 128 bits of SHA-256, in hex.
pub(super) fn hash(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref()[..16].iter().fold(String::new(), |mut out, byte| {
        _ = write!(out, "{byte:02x}");
        out
    })
}

/// `value` as part of an address.
pub(super) fn percent_encoded(value: &str) -> String {
    value.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            byte => _ = write!(out, "%{byte:02X}"),
        }
        out
    })
}

/// A number as people read it: three digits after the point at most.
pub(super) fn number(value: f64) -> String {
    if value != 0.0 && (value.abs() >= 1e15 || value.abs() < 1e-3) {
        return format!("{value:e}");
    }
    let text = format!("{value:.3}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A time as machines read it.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}
