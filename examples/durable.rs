//! Durable lanes: a program that dies half-way, and is finished by its next start.
//!
//! ```text
//! cargo run --example durable
//! ```
//!
//! It starts itself twice on the same store, lets the first start kill itself in the middle of its work, and fails if not
//! every invoice was sent, or one was sent under two names.
#![allow(clippy::print_stdout)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use corelane::{
    CommandContext, DurableCommand, EventEmitter, Executor, LaneConfig, LaneError, LocalStorage, QueueManagerBuilder,
    Result, Stop, SubmitOptions, sleep,
};
use serde::{Deserialize, Serialize};

const CUSTOMERS: [&str; 10] = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gwen", "Hugo", "Ines", "Jon"];

fn main() -> anyhow::Result<()> {
    match std::env::args_os().nth(1) {
        None => start_twice(),
        Some(folder) => Executor::global().block_on(send_all(Path::new(&folder))),
    }
}

/// A command that is data: so it can be stored, and made again.
#[derive(Serialize, Deserialize)]
struct SendInvoice {
    customer: String,
    outbox: PathBuf,
}

impl DurableCommand for SendInvoice {
    const TYPE: &'static str = "send_invoice";
    /// The id under which it was sent.
    type Output = String;

    async fn execute(&self) -> Result<String> {
        sleep(Duration::from_millis(20)).await;
        // The same in every attempt and after every restart: so what was sent already is recognised, and sent once.
        let id = CommandContext::current().map(|context| context.id.to_string()).unwrap_or_default();
        let file = self.outbox.join(format!("{id}.txt"));
        if file.exists() {
            println!(
                "  {:5} {id}: was sent before the end of the process, which came before that was stored",
                self.customer
            );
        } else {
            // Whole or not at all: a process can also die between the creation of a file and what is written to it.
            let draft = self.outbox.with_file_name(format!("{id}.draft"));
            fs::write(&draft, &self.customer)
                .and_then(|()| fs::rename(&draft, &file))
                .map_err(|error| LaneError::CommandError(error.to_string()))?;
            println!("  {:5} {id}: sent", self.customer);
        }
        if DIES.load(Ordering::Relaxed) && sent(&self.outbox) >= CUSTOMERS.len() / 2 {
            println!("  ... and here the process dies, as if by kill -9 or a power failure");
            std::process::abort();
        }
        Ok(id)
    }
}

/// Whether this start kills itself.
static DIES: AtomicBool = AtomicBool::new(false);

/// What every start does: the same, whatever has happened before.
async fn send_all(folder: &Path) -> anyhow::Result<()> {
    let outbox = folder.join("outbox");
    fs::create_dir_all(&outbox)?;
    let storage = Arc::new(LocalStorage::new(folder.join("store")).await?);
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_storage(storage)
        .with_durable::<SendInvoice>()
        // Lanes are durable now: what they accept is on the disk before it is acknowledged.
        .with_lane("invoices", LaneConfig::new(1, 2), 0)
        .build()
        .await?;
    let recovery = manager.recovery().context("there is a store")?;
    println!("  {} commands were left, and run again", recovery.recovered);
    DIES.store(!recovery.unclean, Ordering::Relaxed);
    manager.start().await?;

    let mut tickets = Vec::new();
    for customer in CUSTOMERS {
        let command = SendInvoice { customer: customer.into(), outbox: outbox.clone() };
        // The same work whenever it is submitted: it is not done again, and its result is remembered for a day.
        let options = SubmitOptions::new().idempotency_key(format!("invoice 2026-11 {customer}"));
        tickets.push(manager.submit_durable_with("invoices", command, options).await?);
    }
    for ticket in tickets {
        ticket.await??;
    }
    println!("  all invoices are sent");
    let report = manager.stop(Stop::drain(Duration::from_secs(10))).await;
    ensure!(report.is_complete() && report.storage.is_none(), "{report:?}");
    Ok(())
}

fn start_twice() -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("corelane-durable-{}", std::process::id()));
    let outbox = folder.join("outbox");
    let start = || Command::new(std::env::current_exe()?).arg(&folder).status();

    println!("first start:");
    let status = start()?;
    let first = sent(&outbox);
    println!("first start: {status}, {first} of {} invoices are sent\n", CUSTOMERS.len());
    ensure!(!status.success() && first < CUSTOMERS.len(), "it was to die half-way");

    println!("second start:");
    let status = start()?;
    ensure!(status.success(), "the second start has failed: {status}");
    let mut customers = Vec::new();
    for file in fs::read_dir(&outbox)? {
        customers.push(fs::read_to_string(file?.path())?);
    }
    customers.sort();
    ensure!(customers == CUSTOMERS, "these were sent: {customers:?}");
    println!("second start: every invoice is sent, each of them once");
    fs::remove_dir_all(&folder)?;
    Ok(())
}

fn sent(outbox: &Path) -> usize {
    fs::read_dir(outbox).map_or(0, Iterator::count)
}
