//! Tracers are others' code.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use corelane::{
    EndedCommand, EventEmitter, LaneConfig, LaneError, QueueManager, QueueManagerBuilder, Simulation, TraceContext,
    TraceOutcome, Traced, Tracer,
};
use futures::executor::block_on;

/// Panics before or after a poll, and wherever else it is asked.
struct Broken {
    polls_first: bool,
    panics: AtomicUsize,
}

impl Broken {
    fn panic(&self) -> ! {
        self.panics.fetch_add(1, Ordering::Relaxed);
        // Without the panic hook: nothing is to be printed.
        std::panic::resume_unwind(Box::new("a broken tracer"))
    }
}

impl Tracer for Broken {
    fn accept(&self, _: &str, _: Option<&TraceContext>) -> Option<Traced> {
        Some(Box::new(()))
    }

    fn begin(&self, _: &mut Traced, _: u32) {
        self.panic()
    }

    fn during(&self, _: &Traced, poll: &mut dyn FnMut()) {
        if self.polls_first {
            poll();
        }
        self.panic()
    }

    fn wants(&self, _: TraceOutcome, _: Duration) -> bool {
        self.panic()
    }

    fn ended(&self, _: Option<Traced>, _: &EndedCommand<'_>) {
        self.panic()
    }
}

fn queue(simulation: &Simulation, tracer: &Arc<Broken>) -> QueueManager {
    let builder = QueueManagerBuilder::new(EventEmitter::new(16)).with_executor(simulation.executor().clone());
    let builder = builder.with_tracer(Arc::clone(tracer) as Arc<dyn Tracer>).with_lane("a", LaneConfig::new(1, 1), 0);
    let manager = block_on(builder.build()).unwrap();
    block_on(manager.start()).unwrap();
    manager
}

#[test]
fn a_tracer_that_panics_changes_nothing_for_commands() {
    for polls_first in [true, false] {
        let mut simulation = Simulation::new(1, 7);
        let tracer = Arc::new(Broken { polls_first, panics: AtomicUsize::new(0) });
        let manager = queue(&simulation, &tracer);
        let value = manager
            .submit_fn("a", "t", || async {
                corelane::sleep(Duration::from_secs(1)).await;
                Ok(7)
            })
            .unwrap();
        assert_eq!(simulation.block_on(value).unwrap().unwrap(), 7);
        // Begun, polled twice, ended.
        assert_eq!(tracer.panics.load(Ordering::Relaxed), 4);
    }
}

#[test]
fn a_traced_command_that_panics_has_panicked_and_not_its_tracer() {
    for polls_first in [true, false] {
        let mut simulation = Simulation::new(1, 7);
        let tracer = Arc::new(Broken { polls_first, panics: AtomicUsize::new(0) });
        let manager = queue(&simulation, &tracer);
        let panics = manager.submit_fn("a", "t", || async {
            if true {
                std::panic::resume_unwind(Box::new("known to panic"));
            }
            Ok(())
        });
        let ended = simulation.block_on(panics.unwrap()).unwrap();
        assert!(matches!(&ended, Err(LaneError::Panicked(message)) if message == "known to panic"), "{ended:?}");
    }
}
