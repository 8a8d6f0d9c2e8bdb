//! From a list of files to an index: what runs in which lane.

use std::cell::Cell;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Result;
use corelane::{TypedCommand, lane_ids, should_yield, sleep, yield_now};
use futures::future::{Either, select};
use futures::stream::{FuturesUnordered, StreamExt};
use futures::try_join;
use indicatif::ProgressBar;

use crate::folder::Listing;
use crate::index::Index;
use crate::lanes::Lanes;
use crate::text::{Lines, Reason, Skipped, WordCounts, count_line};
use crate::{control, progress};

/// How long lane `skill` is paused in the middle, to show that nothing is lost by it.
const PAUSE: Duration = Duration::from_millis(20);
const TIME_BETWEEN_QUERIES: Duration = Duration::from_millis(5);
const TIME_BETWEEN_LOOKS: Duration = Duration::from_millis(50);
const CHARACTERISTIC_WORDS: usize = 4;

pub(crate) struct Outcome {
    pub(crate) index: Index,
    /// By path.
    pub(crate) skipped: Vec<Skipped>,
    /// The most characteristic words of each file, best first.
    pub(crate) characteristic: Vec<(PathBuf, Vec<String>)>,
    pub(crate) answers: Answers,
    /// Files that waited while lane `skill` was paused.
    pub(crate) held_back: usize,
    /// The most commands that ever waited, of all lanes together, as lane `system` saw it.
    pub(crate) most_waiting: usize,
}

/// What lane `query` said while indexing went on.
#[derive(Clone, Copy, Default)]
pub(crate) struct Answers {
    pub(crate) count: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// Sessions write to the index, queries and prompts read it.
type SharedIndex = Arc<RwLock<Index>>;

pub(crate) async fn index_files(lanes: &Lanes, folder: &Path, listing: &Listing, word: &str) -> Result<Outcome> {
    let index = SharedIndex::default();
    let bar = progress("counting", listing.files.len());
    let answers = Cell::default();
    let most_waiting = Cell::default();

    let work = pin!(async {
        let (mut skipped, held_back) = count_files(lanes, &index, folder, &listing.files, &bar).await?;
        skipped.extend(listing.skipped.iter().cloned());
        skipped.sort_by(|a, b| a.path.cmp(&b.path));
        let characteristic = find_characteristic_words(lanes, &index).await?;
        anyhow::Ok((skipped, held_back, characteristic))
    });
    let company =
        pin!(async { try_join!(keep_asking(lanes, &index, word, &answers), keep_looking(lanes, &bar, &most_waiting)) });
    // The work ends, its company only if it fails.
    let (skipped, held_back, characteristic) = match select(work, company).await {
        Either::Left((done, _)) => done?,
        Either::Right((Err(error), _)) => return Err(error),
    };
    let index = std::mem::take(&mut *index.write().unwrap_or_else(PoisonError::into_inner));
    let (answers, most_waiting) = (answers.take(), most_waiting.get());
    Ok(Outcome { index, skipped, characteristic, answers, held_back, most_waiting })
}

/// Lane `skill`: counts the words of every file, and hands them to lane `session`.
async fn count_files(
    lanes: &Lanes,
    index: &SharedIndex,
    folder: &Path,
    files: &[PathBuf],
    bar: &ProgressBar,
) -> Result<(Vec<Skipped>, usize)> {
    let mut counting = FuturesUnordered::new();
    for path in files {
        let ticket = lanes.submit(lane_ids::SKILL, CountWords { path: folder.join(path) })?;
        counting.push(async {
            match ticket.await?? {
                Ok(counts) => merge(lanes, index, path.clone(), counts).await.map(|()| None),
                Err(reason) => Ok(Some(Skipped { path: path.clone(), reason })),
            }
        });
    }
    let mut skipped = Vec::new();
    let mut held_back = 0;
    for done in 0..files.len() {
        if done == files.len() / 2 {
            held_back = control::hold(lanes, lane_ids::SKILL, PAUSE).await?;
        }
        if let Some(outcome) = counting.next().await {
            skipped.extend(outcome?);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((skipped, held_back))
}

struct CountWords {
    path: PathBuf,
}

impl TypedCommand for CountWords {
    /// A file that is no text is a result, and no failure of the command.
    type Output = Result<WordCounts, Reason>;

    async fn execute(&self) -> corelane::Result<Self::Output> {
        Ok(count_words(&self.path).await)
    }

    fn command_type(&self) -> &str {
        "count words"
    }
}

async fn count_words(path: &Path) -> Result<WordCounts, Reason> {
    let mut lines = Lines::open(path)?;
    let mut counts = WordCounts::new();
    while let Some(line) = lines.next()? {
        count_line(line, &mut counts);
        // A large file makes way for better lanes.
        if should_yield() {
            yield_now().await;
        }
    }
    Ok(counts)
}

/// Lane `session`. A closure, since it must run once and gives its counts away; a [`TypedCommand`] can be tried again.
async fn merge(lanes: &Lanes, index: &SharedIndex, path: PathBuf, counts: WordCounts) -> Result<()> {
    let index = Arc::clone(index);
    let merge = lanes.submit_once(lane_ids::SESSION, "merge counts", move || async move {
        index.write().unwrap_or_else(PoisonError::into_inner).add(path, counts);
        Ok(())
    })?;
    Ok(merge.await??)
}

/// Lane `prompt`: the words that set each file apart. One command too many is submitted, and cancelled before it runs.
async fn find_characteristic_words(lanes: &Lanes, index: &SharedIndex) -> Result<Vec<(PathBuf, Vec<String>)>> {
    let paths = index.read().unwrap_or_else(PoisonError::into_inner).paths();
    let Some(first) = paths.first() else { return Ok(Vec::new()) };
    let bar = progress("comparing", paths.len());
    let command = |path: &PathBuf| CharacteristicWords { index: Arc::clone(index), path: path.clone() };

    // In a paused lane, no command starts before the one that nobody needs is cancelled.
    control::pause(lanes, lane_ids::PROMPT).await?;
    let needless = lanes.submit(lane_ids::PROMPT, command(first))?;
    let tickets = paths.iter().map(|path| lanes.submit(lane_ids::PROMPT, command(path)));
    let tickets = tickets.collect::<corelane::Result<Vec<_>>>()?;
    control::cancel(lanes, needless).await?;
    control::resume(lanes, lane_ids::PROMPT).await?;

    let mut words = Vec::new();
    for (path, ticket) in paths.into_iter().zip(tickets) {
        words.push((path, ticket.await??));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(words)
}

struct CharacteristicWords {
    index: SharedIndex,
    path: PathBuf,
}

impl TypedCommand for CharacteristicWords {
    type Output = Vec<String>;

    async fn execute(&self) -> corelane::Result<Vec<String>> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        Ok(index.characteristic_words(&self.path, CHARACTERISTIC_WORDS))
    }

    fn command_type(&self) -> &str {
        "characteristic words"
    }
}

/// Lane `query`: how often does this word occur so far?
async fn keep_asking(lanes: &Lanes, index: &SharedIndex, word: &str, answers: &Cell<Answers>) -> Result<Infallible> {
    loop {
        let (index, word) = (Arc::clone(index), word.to_owned());
        let query = lanes.submit_once(lane_ids::QUERY, "look up", move || async move {
            Ok(index.read().unwrap_or_else(PoisonError::into_inner).count_of(&word))
        })?;
        let last = query.await??;
        let Answers { count, first, .. } = answers.get();
        answers.set(Answers { count: count + 1, first: if count == 0 { last } else { first }, last });
        sleep(TIME_BETWEEN_QUERIES).await;
    }
}

/// Lane `system`: the numbers of the queue, for the progress bar and the report.
async fn keep_looking(lanes: &Lanes, bar: &ProgressBar, most_waiting: &Cell<usize>) -> Result<Infallible> {
    loop {
        let queue = lanes.queue();
        let look = lanes.submit_once(lane_ids::SYSTEM, "statistics", move || async move { Ok(queue.stats()) })?;
        let stats = look.await??;
        most_waiting.set(most_waiting.get().max(stats.total_pending));
        bar.set_message(format!("{} waiting, {} running", stats.total_pending, stats.total_active));
        sleep(TIME_BETWEEN_LOOKS).await;
    }
}
