//! Slabs: where the cells of one size come from and go back to, many at a time.
//!
//! A slab is [`SLAB`] bytes that begin at a multiple of that, so that a cell's address leads to its slab, whose first line says
//! which of its cells are free. A slab of which all are free goes back to the allocator. So what a burst of a million tasks
//! leaves behind is some thousand large pieces, instead of a million small ones: with glibc, one in 31 submissions took half a
//! millisecond while such a burst was worked off, sorting what had been freed (2 CPUs, 2026-11-25).
//!
//! Behind a lock per size, which is taken once for a magazine of 32 cells, and only if the depot has none or no room.
#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::memory::{CLASSES, Free, LINE, Magazine, class_size};

/// Bytes from one slab to the next.
const SLAB: usize = 16 << 10;

/// A line less, for what the allocator puts in front of each piece: so that one follows the other without a gap.
const LAYOUT: Layout = match Layout::from_size_align(SLAB - LINE, SLAB) {
    Ok(layout) => layout,
    Err(_) => panic!("a slab is small, and the alignment a power of two"),
};

/// The first line of a slab.
struct Slab {
    /// Its neighbours among those that have free cells.
    next: *mut Self,
    previous: *mut Self,
    free: *mut Free,
    /// Cells that are free: those in `free`, and those never used, which are the last ones.
    cells: u32,
    never_used: u32,
}

const _: () = assert!(size_of::<Slab>() <= LINE);

/// The slabs of one size that have free cells.
pub(super) struct Slabs {
    first: *mut Slab,
    class: usize,
}

// SAFETY: the slabs' first lines and free cells are used through this only.
unsafe impl Send for Slabs {}

static SLABS: [Mutex<Slabs>; CLASSES] = {
    let mut slabs = [const { Mutex::new(Slabs { first: null_mut(), class: 0 }) }; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        slabs[class] = Mutex::new(Slabs { first: null_mut(), class });
        class += 1;
    }
    slabs
};

/// The slabs of a size.
pub(super) fn slabs(class: usize) -> MutexGuard<'static, Slabs> {
    // Nothing under this lock can panic.
    SLABS[class].lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slabs {
    #[cfg(all(test, not(corelane_loom), not(miri)))]
    pub(super) fn has_free(&self) -> bool {
        !self.first.is_null()
    }

    const fn cells_in_a_slab(&self) -> u32 {
        ((SLAB - 2 * LINE) / class_size(self.class)) as u32
    }

    /// As many cells, as a list.
    pub(super) fn take(&mut self, cells: u32) -> Magazine {
        let mut first = null_mut();
        for _ in 0..cells {
            let cell = self.take_one();
            // SAFETY: a free cell, ours from here on.
            unsafe { cell.write(Free { next: first }) };
            first = cell.as_ptr();
        }
        // Not empty.
        Magazine { first: NonNull::new(first).unwrap_or(NonNull::dangling()), cells }
    }

    fn take_one(&mut self) -> NonNull<Free> {
        let slab = NonNull::new(self.first).unwrap_or_else(|| self.add());
        // SAFETY: a slab in the list is there, and used through this only. Its never used cells are the last ones of it.
        unsafe {
            let at = &mut *slab.as_ptr();
            at.cells -= 1;
            let cell = match NonNull::new(at.free) {
                Some(free) => {
                    at.free = free.as_ref().next;
                    free
                }
                None => {
                    let index = self.cells_in_a_slab() - at.never_used;
                    at.never_used -= 1;
                    slab.cast::<u8>().add(LINE + index as usize * class_size(self.class)).cast()
                }
            };
            if at.cells == 0 {
                self.unlink(slab);
            }
            cell
        }
    }

    /// Takes the cells of a magazine back.
    pub(super) fn put(&mut self, magazine: &Magazine) {
        let mut next = magazine.first.as_ptr();
        while let Some(cell) = NonNull::new(next) {
            // SAFETY: a free cell of the magazine, which is ours, in a slab of ours: it is as it was when it was taken.
            unsafe {
                next = cell.as_ref().next;
                let slab =
                    NonNull::new_unchecked(cell.as_ptr().map_addr(|address| address & !(SLAB - 1)).cast::<Slab>());
                self.put_one(slab, cell);
            }
        }
    }

    /// # Safety
    ///
    /// The cell is free, of this slab, and the caller's.
    unsafe fn put_one(&mut self, slab: NonNull<Slab>, cell: NonNull<Free>) {
        // SAFETY: as for this function; the slab is there as long as one of its cells is not free.
        unsafe {
            let at = &mut *slab.as_ptr();
            cell.write(Free { next: at.free });
            at.free = cell.as_ptr();
            at.cells += 1;
            let cells = at.cells;
            if cells == 1 {
                self.link(slab);
            }
            if cells == self.cells_in_a_slab() {
                self.unlink(slab);
                std::alloc::dealloc(slab.as_ptr().cast(), LAYOUT);
            }
        }
    }

    fn add(&mut self) -> NonNull<Slab> {
        // SAFETY: a slab is not empty.
        let memory = unsafe { std::alloc::alloc(LAYOUT) };
        let Some(slab) = NonNull::new(memory.cast::<Slab>()) else { handle_alloc_error(LAYOUT) };
        let cells = self.cells_in_a_slab();
        // SAFETY: new, ours, and large enough.
        unsafe {
            slab.write(Slab { next: null_mut(), previous: null_mut(), free: null_mut(), cells, never_used: cells });
            self.link(slab);
        }
        slab
    }

    /// # Safety
    ///
    /// The slab is there, and not in the list.
    unsafe fn link(&mut self, slab: NonNull<Slab>) {
        // SAFETY: as for this function; what is in the list is there.
        unsafe {
            let at = &mut *slab.as_ptr();
            (at.next, at.previous) = (self.first, null_mut());
            if let Some(next) = self.first.as_mut() {
                next.previous = slab.as_ptr();
            }
        }
        self.first = slab.as_ptr();
    }

    /// # Safety
    ///
    /// The slab is in the list.
    unsafe fn unlink(&mut self, slab: NonNull<Slab>) {
        // SAFETY: as for this function; what is in the list is there.
        unsafe {
            let Slab { next, previous, .. } = *slab.as_ptr();
            match previous.as_mut() {
                Some(previous) => previous.next = next,
                None => self.first = next,
            }
            if let Some(next) = next.as_mut() {
                next.previous = previous;
            }
        }
    }
}
