# Recipes for developing corelane. `just` lists them.

loom := 'RUSTFLAGS="--cfg corelane_loom" CARGO_TARGET_DIR=target/loom'

default:
    @just --list

# Debug build
build:
    cargo build

# Release build
release:
    cargo build --release

# All tests
test:
    cargo test

# All tests, with their output
test-v:
    cargo test -- --nocapture

# One test
test-one TEST:
    cargo test {{TEST}}

# The store under faults, crashes and flipped bits, much deeper than in `just test`
faults-deep:
    CORELANE_DEEP=1 cargo test --release --lib redb::faults -- --nocapture

# Kill cycles on a durable queue: `just torture`, or with another number; the seed of a run is printed
torture CYCLES="2000":
    CORELANE_TORTURE_CYCLES={{CYCLES}} cargo test --test torture

# Faults of servers, workers and connections, for each backend that is installed: `just faults-backends`, or with another number;
# the seeds of a run are printed
faults-backends CYCLES="500":
    CORELANE_FAULTS_CYCLES={{CYCLES}} cargo test --all-features --test backends survives_faults -- --nocapture --test-threads=1

# The contract without the tokio shim
test-no-default:
    cargo test --no-default-features --lib --test contract

# The snippets of the seed document against this crate
test-seed:
    cargo test --manifest-path tests/seed/Cargo.toml

# Loom models and their mutants, quick: what CI runs
loom:
    {{loom}} LOOM_MAX_PREEMPTIONS=2 cargo test --release --lib loom_tests -- --test-threads=1

# Loom models, deep: one preemption more
loom-deep:
    {{loom}} LOOM_MAX_PREEMPTIONS=3 cargo test --release --lib loom_tests -- --test-threads=1

# Criterion benches
bench *ARGS:
    cargo bench --bench executor --bench queue_benchmark --bench limiters {{ARGS}}

# How exact rate limits are in real time
rates:
    cargo bench --bench rates

# Instructions per operation against the checked-in baseline (needs valgrind); `just instructions --save` replaces it
instructions *ARGS:
    cargo bench --no-default-features --bench instructions -- {{ARGS}}

# Side by side with other executors and queues; writes BENCHMARKS.md, its charts and the README's section
compare *ARGS:
    cargo build --release --bins --manifest-path benches/compare/Cargo.toml
    cargo run --release --manifest-path benches/compare/Cargo.toml -- --report {{ARGS}}

# A tenth of that, to see that everything runs; writes nothing. A part of a workload's name selects
compare-quick *ARGS:
    just compare --quick {{ARGS}}

# The comparison's own tests
compare-test:
    cargo test --manifest-path benches/compare/Cargo.toml

# Queues in servers, beside plain clients and apalis; writes benches/backends/RESULTS.md. A part of a work's name selects
backends *ARGS:
    cargo run --release --manifest-path benches/backends/Cargo.toml -- --report {{ARGS}}

# The quickstart on a folder
quickstart *ARGS:
    cargo run --release --example quickstart -- {{ARGS}}

# Files of this format version, for tests of later ones: once per version
golden:
    cargo test --test contract golden::store::write_the_files_of_this_version -- --ignored --exact

# Format
fmt:
    cargo fmt

# Check the format
fmt-check:
    cargo fmt --check

# Clippy with warnings denied: default, no and all features
lint:
    cargo clippy --all-targets -- -D warnings
    cargo clippy --all-targets --no-default-features -- -D warnings
    cargo clippy --all-targets --all-features -- -D warnings

# Everything CI checks
ci:
    bash .ci/run

# Fast compile check
check:
    cargo check --all-targets

# Dependencies: licences, advisories, sources (needs cargo-deny)
deny:
    cargo deny check

# Docs, opened
doc:
    cargo doc --no-deps --open

# Remove build artefacts
clean:
    cargo clean

# Update dependencies
update:
    cargo update
