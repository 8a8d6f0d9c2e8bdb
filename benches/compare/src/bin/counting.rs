//! Counts allocations and bytes. Run by `compare`.

use compare::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> std::process::ExitCode {
    compare::main(compare::Allocator::Counting)
}
