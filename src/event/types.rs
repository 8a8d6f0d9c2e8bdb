//! Names of command types that are too long for a record, as numbers of this process.
//!
//! A type is recognised by its text, never by its address alone: names may come and go. A thread remembers the last ones it has
//! asked for. What does not fit into the table is told in full, at the price of a rare event.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Names kept, for as long as the process lives, and the longest of them in bytes.
const NAMES: usize = 4096;
const LONGEST: usize = 256;

/// Names that a thread remembers, by a part of the address.
const REMEMBERED: usize = 16;

#[derive(Default)]
struct Table {
    numbers: HashMap<&'static str, u32>,
    names: Vec<&'static str>,
}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

thread_local! {
    static LAST: [Cell<(&'static str, u32)>; REMEMBERED] = const { [const { Cell::new(("", 0)) }; REMEMBERED] };
}

/// The number of a name; none if there is no room for it.
#[inline(never)]
pub(super) fn number(name: &str) -> Option<u32> {
    LAST.with(|last| {
        let last = &last[name.as_ptr().addr() >> 3 & (REMEMBERED - 1)];
        let (known, number) = last.get();
        if known == name {
            return Some(number);
        }
        let (name, number) = look_up(name)?;
        last.set((name, number));
        Some(number)
    })
}

#[cold]
fn look_up(name: &str) -> Option<(&'static str, u32)> {
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let table = table.get_or_insert_default();
    if let Some((name, number)) = table.numbers.get_key_value(name) {
        return Some((name, *number));
    }
    if table.names.len() == NAMES || name.len() > LONGEST {
        return None;
    }
    let (name, number): (&'static str, _) = (Box::leak(name.into()), table.names.len() as u32);
    table.names.push(name);
    table.numbers.insert(name, number);
    Some((name, number))
}

/// The name of this number.
pub(super) fn of(number: u64) -> Arc<str> {
    let table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let name = table.as_ref().and_then(|table| table.names.get(usize::try_from(number).ok()?));
    name.copied().unwrap_or("unknown").into()
}
