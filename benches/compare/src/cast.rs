//! The executors that run for the whole process, started when first asked for. They sleep while others run.

use std::cell::OnceCell;

use crate::runtimes::{Corelane, Smol, SmolStatic, Tokio};

pub struct Cast {
    /// Of every contender.
    pub workers: usize,
    pinned: OnceCell<Corelane>,
    unpinned: OnceCell<Corelane>,
    tokio: OnceCell<Tokio>,
    smol: OnceCell<Smol>,
    smol_static: OnceCell<SmolStatic>,
    rayon: OnceCell<&'static rayon::ThreadPool>,
}

impl Cast {
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            pinned: OnceCell::new(),
            unpinned: OnceCell::new(),
            tokio: OnceCell::new(),
            smol: OnceCell::new(),
            smol_static: OnceCell::new(),
            rayon: OnceCell::new(),
        }
    }

    /// With the default settings.
    pub fn corelane(&self) -> Corelane {
        self.pinned.get_or_init(|| Corelane::start(self.workers, true)).clone()
    }

    pub fn corelane_unpinned(&self) -> Corelane {
        self.unpinned.get_or_init(|| Corelane::start(self.workers, false)).clone()
    }

    pub fn tokio(&self) -> Tokio {
        self.tokio.get_or_init(|| Tokio::start(self.workers)).clone()
    }

    pub fn smol(&self) -> Smol {
        self.smol.get_or_init(|| Smol::start(self.workers)).clone()
    }

    pub fn smol_static(&self) -> SmolStatic {
        self.smol_static.get_or_init(|| SmolStatic::start(self.workers)).clone()
    }

    pub fn rayon(&self) -> &'static rayon::ThreadPool {
        self.rayon.get_or_init(|| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(self.workers).build();
            Box::leak(Box::new(pool.expect("threads can be started")))
        })
    }
}
