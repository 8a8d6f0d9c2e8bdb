//! Measures with the system's allocator, and has the other two binaries measure with theirs.

fn main() -> std::process::ExitCode {
    compare::main(compare::Allocator::System)
}
