//! The architecture holds: layers point down only, and each thing has its place. See ARCHITECTURE.md.

use std::fs;
use std::path::{Path, PathBuf};

/// The layers, highest first. Modules of one layer do not use each other.
const LAYERS: &[&[&str]] = &[
    &["lib"],
    &["adapters", "monitor", "simulation"],
    &["testing"],
    &["distributed"],
    &["queue"],
    &["alert"],
    &["executor", "limit", "event", "metrics", "policy", "storage", "trace"],
    &["clock", "id", "error"],
    &["sync"],
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn module(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    inside.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn layer(module: &str) -> usize {
    let found = LAYERS.iter().position(|layer| layer.contains(&module));
    found.unwrap_or_else(|| panic!("module {module} is in no layer: add it to this test and to ARCHITECTURE.md"))
}

/// The modules of this crate that a line of code names: what follows `crate::`.
fn named_modules(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    code.split("crate::")
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .collect()
}

#[test]
fn arrows_point_down_only() {
    let mut wrong = Vec::new();
    for path in sources(&root().join("src")) {
        let own = module(&path);
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            for used in named_modules(line) {
                // `crate::ambient` is the one hook by which the crate root wires adapters to queues.
                if used == own || used.is_empty() || used == "ambient" || own == "lib" {
                    continue;
                }
                // Foundations of the same layer may know each other: an error names an id, and the like.
                let foundation = layer(&own) == layer(&used) && layer(&own) == layer("clock");
                if layer(&used) <= layer(&own) && !foundation {
                    wrong.push(format!("{}:{}: {own} uses {used}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn features_are_switched_in_lib_and_adapters_only() {
    for path in sources(&root().join("src")) {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        if name != "src/lib.rs" && name != "src/adapters/mod.rs" {
            let text = fs::read_to_string(&path).unwrap();
            assert!(!text.contains("cfg(feature") && !text.contains("cfg(not(feature"), "{name} switches on a feature");
        }
    }
}

#[test]
fn unsafe_code_is_allowed_in_named_files_only() {
    for path in sources(&root().join("src")) {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let allows = fs::read_to_string(&path).unwrap().contains("allow(unsafe_code)");
        let expected = ["cell", "memory", "shared", "shown", "slab", "task", "worker"];
        let expected = expected.map(|file| format!("src/executor/{file}.rs"));
        // And where the processor's counter is read.
        assert_eq!(allows, expected.contains(&name) || name == "src/clock/stamp.rs", "{name}");
    }
}

#[test]
fn the_system_clock_is_read_in_one_place() {
    for path in sources(&root().join("src")) {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        for forbidden in ["Instant::now", "SystemTime::now", "Utc::now"] {
            assert!(name == "src/clock/mod.rs" || !text.contains(forbidden), "{name} calls {forbidden}");
        }
    }
}

#[test]
fn every_module_says_what_it_is() {
    for path in sources(&root().join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!") || text.starts_with("#![doc"), "{} has no header", path.display());
    }
}

#[test]
fn every_guarantee_names_a_test_that_exists() {
    let text = fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    let mut named = 0;
    for word in text.split('`').skip(1).step_by(2) {
        let Some((module, test)) = word.split_once("::").filter(|(_, test)| test.contains('_')) else { continue };
        named += 1;
        let file = root().join("tests/contract").join(module).with_extension("rs");
        let source = fs::read_to_string(&file).unwrap_or_else(|_| panic!("{word}: there is no {}", file.display()));
        assert!(source.contains(&format!("\nfn {test}() {{")), "docs/guarantees.md names {word}, which does not exist");
    }
    assert!(named > 40, "{named}");
    for other in ["tests/torture.rs", "tests/truth.rs", "src/adapters/redb/faults/bit_flips.rs"] {
        assert!(root().join(other).exists(), "{other}");
    }
}

#[test]
fn files_named_in_the_documents_exist() {
    for document in ["README.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let named = text.split('`').skip(1).step_by(2).filter(|word| {
            let code = word.contains(' ') || word.contains('*') || word.contains("::") || word.contains('<');
            !code && (word.ends_with(".rs") || word.ends_with(".md") || word.ends_with('/'))
        });
        for name in named {
            let found = root().join(name).exists() || root().join("src").join(name).exists();
            assert!(found, "{document} names {name}, which does not exist");
        }
    }
}
