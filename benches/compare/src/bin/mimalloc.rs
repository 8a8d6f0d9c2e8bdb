//! Measures with mimalloc. Run by `compare`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    compare::main(compare::Allocator::Mimalloc)
}
