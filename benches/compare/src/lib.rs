//! Runs the same work on corelane and on its peers, in turns, in one process, and reports what each took.
//!
//! | module | has |
//! |---|---|
//! | `measure` | the trait of all workloads, and how they are run |
//! | `workloads` | the workloads, and who takes part in each |
//! | `runtimes`, `cast` | the executors that run futures, behind one trait |
//! | `results` | what was measured, as JSON |
//! | `report` | `BENCHMARKS.md` and the README's section, from that |
//! | `command_line` | what the binaries do |

mod cast;
mod command_line;
pub mod counting;
mod machine;
mod measure;
mod report;
mod results;
mod runtimes;
mod workloads;

pub use command_line::main;
pub use results::Allocator;
