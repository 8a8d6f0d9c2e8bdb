//! Snippet "Basic Usage": the program in `src/bin` prints its command's result and ends.

use std::process::Command;

#[test]
fn the_program_prints_the_result_and_ends() {
    let output = Command::new(env!("CARGO_BIN_EXE_basic_usage")).output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Result: {\"processed\":\"hello\"}\n");
    assert_eq!(stderr, "");
}
