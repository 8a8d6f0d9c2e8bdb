//! Memory of task cells, kept for the next ones.
//!
//! A cell is most often made by one thread and destroyed by another, which general allocators pay for: 208 ns on top with
//! glibc, where a spawn takes less (the design's measurements). So each thread keeps cells that it has destroyed in
//! *magazines*, lists of up to [`MAGAZINE`] cells, two for each size. One that is full goes to a depot that all threads
//! share, and who has none left takes one from there: one shared step in 32 cells. What the depot has not, or has no room for,
//! is the slabs' (`slab`).
//!
//! What is kept is bounded: two magazines for each size and thread, and [`DEPOT_BYTES`] for each size in the process.
#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::cell::Cell;
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;

use crossbeam_queue::ArrayQueue;

use super::slab::slabs;

/// Cells in a full magazine.
const MAGAZINE: u32 = 32;
/// Sizes are multiples of a cache line, and cells begin at one, so that no two share any.
pub(super) const LINE: usize = 64;
/// Larger ones are not kept.
pub(super) const CLASSES: usize = 16;
/// Of each size that is used, in the depot.
const DEPOT_BYTES: usize = 4 << 20;

thread_local! {
    static MAGAZINES: Magazines = const { Magazines([const { Class::new() }; CLASSES]) };
}

static DEPOTS: [OnceLock<ArrayQueue<Magazine>>; CLASSES] = [const { OnceLock::new() }; CLASSES];

/// A list of free cells of one size, linked through their first word. Not empty.
pub(super) struct Magazine {
    pub(super) first: NonNull<Free>,
    pub(super) cells: u32,
}

pub(super) struct Free {
    pub(super) next: *mut Self,
}

// SAFETY: the cells are free, and the magazine's alone.
unsafe impl Send for Magazine {}

/// A thread's, by size.
struct Magazines([Class; CLASSES]);

struct Class {
    first: Cell<*mut Free>,
    cells: Cell<u32>,
    /// Empty or full.
    spare: Cell<*mut Free>,
}

/// Memory of this layout.
#[inline]
pub(super) fn allocate(layout: Layout) -> NonNull<u8> {
    match class_of(layout) {
        // While a thread ends, its magazines may be gone already.
        Some(class) => MAGAZINES
            .try_with(|Magazines(classes)| classes[class].pop(class))
            .unwrap_or_else(|_| slabs(class).take(1).first.cast()),
        None => {
            // SAFETY: a cell is not empty: it has a header.
            let memory = unsafe { std::alloc::alloc(layout) };
            NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
        }
    }
}

/// Takes memory back.
///
/// # Safety
///
/// It is from [`allocate`] with this layout, and not used any more.
#[inline]
pub(super) unsafe fn free(memory: NonNull<u8>, layout: Layout) {
    let Some(class) = class_of(layout) else {
        // SAFETY: as for this function.
        return unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
    };
    let kept = MAGAZINES.try_with(|Magazines(classes)| classes[class].push(class, memory.cast()));
    if kept.is_err() {
        let first = memory.cast::<Free>();
        // SAFETY: free, ours, and large enough for a pointer.
        unsafe { first.write(Free { next: null_mut() }) };
        slabs(class).put(&Magazine { first, cells: 1 });
    }
}

/// None if such cells are not kept. Nor are any where a tool watches the use of memory.
#[inline]
fn class_of(layout: Layout) -> Option<usize> {
    if cfg!(any(miri, all(test, corelane_loom))) || layout.align() > LINE {
        return None;
    }
    let class = layout.size().div_ceil(LINE) - 1;
    (class < CLASSES).then_some(class)
}

pub(super) const fn class_size(class: usize) -> usize {
    (class + 1) * LINE
}

fn depot(class: usize) -> &'static ArrayQueue<Magazine> {
    DEPOTS[class].get_or_init(|| ArrayQueue::new(DEPOT_BYTES / (class_size(class) * MAGAZINE as usize)))
}

impl Class {
    const fn new() -> Self {
        Self { first: Cell::new(null_mut()), cells: Cell::new(0), spare: Cell::new(null_mut()) }
    }

    #[inline]
    fn pop(&self, class: usize) -> NonNull<u8> {
        let first = NonNull::new(self.first.get()).unwrap_or_else(|| self.refill(class));
        // SAFETY: a free cell of this thread's own.
        let next = unsafe { first.as_ref().next };
        // The next one to be handed out: it was last used long ago, perhaps by another CPU.
        (0..=class).for_each(|line| prefetch(next.wrapping_byte_add(line * LINE)));
        self.first.set(next);
        self.cells.set(self.cells.get() - 1);
        first.cast()
    }

    #[cold]
    fn refill(&self, class: usize) -> NonNull<Free> {
        let Magazine { first, cells } = match NonNull::new(self.spare.replace(null_mut())) {
            Some(first) => Magazine { first, cells: MAGAZINE },
            None => DEPOTS[class].get().and_then(ArrayQueue::pop).unwrap_or_else(|| slabs(class).take(MAGAZINE)),
        };
        self.cells.set(cells);
        first
    }

    #[inline]
    fn push(&self, class: usize, memory: NonNull<Free>) {
        if self.cells.get() == MAGAZINE {
            self.unload(class);
        }
        // SAFETY: free, ours, and large enough for a pointer.
        unsafe { memory.write(Free { next: self.first.get() }) };
        self.first.set(memory.as_ptr());
        self.cells.set(self.cells.get() + 1);
    }

    /// Makes room for a new magazine.
    #[cold]
    fn unload(&self, class: usize) {
        self.cells.set(0);
        let full = self.first.replace(null_mut());
        if let Some(first) = NonNull::new(self.spare.replace(full)) {
            hand_in(class, Magazine { first, cells: MAGAZINE });
        }
    }
}

/// Has the CPU fetch a line while it does other things. Any address will do.
#[inline]
pub(super) fn prefetch<T>(address: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint, which reads nothing and can not fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

/// To the depot, if it has room.
fn hand_in(class: usize, magazine: Magazine) {
    if let Err(magazine) = depot(class).push(magazine) {
        slabs(class).put(&magazine);
    }
}

impl Drop for Magazines {
    /// The thread ends: its cells are for others.
    fn drop(&mut self) {
        for (class, Class { first, cells, spare }) in self.0.iter().enumerate() {
            for (first, cells) in [(first.get(), cells.get()), (spare.get(), MAGAZINE)] {
                if let Some(first) = NonNull::new(first) {
                    hand_in(class, Magazine { first, cells });
                }
            }
        }
    }
}

#[cfg(all(test, not(corelane_loom), not(miri)))]
mod tests {
    use std::collections::HashSet;
    use std::sync::mpsc::{Sender, channel};
    use std::thread;

    use super::*;

    /// Of no other test in this crate, since each uses sizes of its own: the depots are the process's.
    fn size(class: usize) -> Layout {
        Layout::from_size_align((class + 1) * LINE - 8, 8).expect("small")
    }

    /// What a test has allocated; it may go to other threads.
    struct Memory {
        at: NonNull<u8>,
        layout: Layout,
    }

    // SAFETY: it is its owner's alone.
    unsafe impl Send for Memory {}

    impl Memory {
        fn new(layout: Layout) -> Self {
            let at = allocate(layout);
            assert!((at.addr().get()).is_multiple_of(layout.align()));
            // SAFETY: it is as large as it was asked for.
            unsafe { at.write_bytes(layout.size() as u8, layout.size()) };
            Self { at, layout }
        }

        fn many(layout: Layout, n: usize) -> Vec<Self> {
            (0..n).map(|_| Self::new(layout)).collect()
        }

        fn addresses(cells: &[Self]) -> HashSet<usize> {
            cells.iter().map(|cell| cell.at.addr().get()).collect()
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            let size = self.layout.size();
            // SAFETY: from `allocate`, written in `new`, and not used any more.
            unsafe {
                let bytes = std::slice::from_raw_parts(self.at.as_ptr(), size);
                assert!(bytes.iter().all(|byte| *byte == size as u8), "somebody else has written to it");
                free(self.at, self.layout);
            }
        }
    }

    fn on_a_thread<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
        thread::spawn(f).join().expect("no panic")
    }

    #[test]
    fn cells_that_another_thread_freed_come_back() {
        const CLASS: usize = 15;
        // Whole magazines and a part of one, all handed in when the thread ends.
        let n = 5 * MAGAZINE as usize + 7;
        let mut cells = Memory::many(size(CLASS), 6 * MAGAZINE as usize);
        // Not free: this thread would begin with it.
        let _rest = cells.split_off(n);
        let before = Memory::addresses(&cells);
        on_a_thread(move || drop(cells));
        let again = Memory::many(size(CLASS), n);
        assert_eq!(Memory::addresses(&again), before);
        // As they do on the thread itself, in any number.
        drop(again);
        let again = Memory::many(size(CLASS), n);
        assert_eq!(Memory::addresses(&again), before);
    }

    #[test]
    fn a_thread_keeps_two_magazines_and_the_depot_what_it_may() {
        const CLASS: usize = 14;
        let most = DEPOT_BYTES / ((CLASS + 1) * LINE * MAGAZINE as usize);
        let magazine = MAGAZINE as usize;
        let cells = Memory::many(size(CLASS), (most + 10) * magazine);
        on_a_thread(move || {
            let mut cells = cells;
            let mut freed = |n| cells.truncate(cells.len() - n);
            freed(2 * magazine);
            assert!(DEPOTS[CLASS].get().is_none_or(ArrayQueue::is_empty), "two magazines are the thread's own");
            freed(1);
            assert_eq!(depot(CLASS).len(), 1);
            drop(cells);
            assert_eq!(depot(CLASS).len(), most);
        });
        assert_eq!(depot(CLASS).len(), most);
    }

    #[test]
    fn a_thread_hands_in_all_that_it_has_when_it_ends() {
        const CLASS: usize = 13;
        let cells = Memory::many(size(CLASS), 2 * MAGAZINE as usize - 5);
        on_a_thread(move || drop(cells));
        let counts: Vec<u32> = std::iter::from_fn(|| depot(CLASS).pop())
            .map(|magazine| {
                let (mut linked, mut next) = (0, magazine.first.as_ptr());
                while let Some(cell) = NonNull::new(next) {
                    linked += 1;
                    // SAFETY: a free cell of a magazine that is ours.
                    next = unsafe { cell.as_ref().next };
                }
                assert_eq!(linked, magazine.cells);
                slabs(CLASS).put(&magazine);
                linked
            })
            .collect();
        assert_eq!(counts.iter().sum::<u32>(), 2 * MAGAZINE - 5);
        assert_eq!(counts.len(), 2);
    }

    #[test]
    fn sizes_and_alignments_beyond_the_classes_are_not_kept() {
        assert_eq!(class_of(Layout::from_size_align(CLASSES * LINE, LINE).expect("small")), Some(CLASSES - 1));
        for (size, align) in [(CLASSES * LINE + 1, 8), (100_000, 16), (128, 128), (4096, 4096)] {
            let layout = Layout::from_size_align(size, align).expect("small");
            assert_eq!(class_of(layout), None);
            drop(Memory::many(layout, 100));
        }
    }

    #[test]
    fn slabs_go_back_when_all_of_their_cells_are_free() {
        const CLASS: usize = 7;
        let cells: Vec<_> = (0..1000).map(|_| slabs(CLASS).take(1)).collect();
        assert!(slabs(CLASS).has_free());
        let (kept, rest) = cells.split_first().expect("many");
        // In another order than they were taken in.
        rest.iter().step_by(2).for_each(|cell| slabs(CLASS).put(cell));
        rest.iter().skip(1).step_by(2).for_each(|cell| slabs(CLASS).put(cell));
        assert!(slabs(CLASS).has_free(), "one cell keeps its slab");
        slabs(CLASS).put(kept);
        assert!(!slabs(CLASS).has_free());
    }

    #[test]
    fn no_two_have_the_same_cell_however_they_travel() {
        // Each thread makes cells of a few sizes, frees some, and sends the others on to the next thread, which frees them.
        const THREADS: usize = 4;
        let (senders, receivers): (Vec<Sender<Memory>>, Vec<_>) = (0..THREADS).map(|_| channel()).unzip();
        let threads: Vec<_> = receivers
            .into_iter()
            .enumerate()
            .map(|(index, received)| {
                let next = senders[(index + 1) % THREADS].clone();
                thread::spawn(move || {
                    let mut own = Vec::new();
                    for turn in 0..20_000 {
                        let cell = Memory::new(size(8 + turn % 5));
                        if (turn / 50) % 2 == 0 {
                            own.push(cell);
                        } else {
                            next.send(cell).expect("the next thread waits for its last one");
                        }
                        if turn % 70 == 0 {
                            own.clear();
                        }
                        drop(received.try_recv());
                    }
                    drop(next);
                    drop(own);
                    drop(received.into_iter().collect::<Vec<_>>());
                })
            })
            .collect();
        drop(senders);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    }
}
