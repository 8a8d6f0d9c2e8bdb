//! The quickstart example, run as a program on folders whose words are known.
#![allow(clippy::print_stderr)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

const TEXTS: [(&str, &str); 8] = [
    ("plain.txt", "The lane admits, the lane waits: one lane, two lanes. A 3rd lane2 x y z\n"),
    ("no_line_end.txt", "the end has no line feed"),
    ("empty.txt", ""),
    ("unicode.txt", "Straße STRASSE straße, ÉCOLE école; Привет привет ПРИВЕТ — 東京 東京\r\nnaïve café\u{2028}ǅ ǅx\n"),
    ("deep/er/and/deeper/words.md", "deep deeper deepest\n\n\n# deep\n"),
    ("deep/.hidden", "hidden files count, too\n"),
    (".gitignore", "*.log\n"),
    ("with space/ü.txt", "snake_case kebab-case camelCase 'tis don't 1st a1 1a\n"),
];

const NO_TEXTS: [(&str, &[u8], &str); 3] = [
    ("binary.dat", b"words before\0words after", "binary"),
    ("deep/late.txt", b"a fine first line\nand then \xff\xfe\n", "not UTF-8"),
    ("invalid.txt", b"\xc3\x28 words", "not UTF-8"),
];

const NOT_WANTED: [(&str, &str); 4] = [
    ("ignored.log", "ignored ignored ignored"),
    ("target/built.txt", "built built built"),
    ("deep/target/built.txt", "built built built"),
    (".git/config", "git git git"),
];

#[test]
fn quickstart_counts_what_a_plain_loop_counts() {
    let folder = Folder::new("counts");
    TEXTS.iter().chain(&NOT_WANTED).for_each(|(path, text)| folder.write(path, text.as_bytes()));
    NO_TEXTS.iter().for_each(|(path, bytes, _)| folder.write(path, bytes));

    let result = json_of(&quickstart(&folder, &["--json", "--check"]));
    let plain = plain_count(TEXTS.map(|(_, text)| text));
    assert_counts(&result, TEXTS.len(), &plain);
    assert_eq!(result["checked"], true);

    let skipped = result["skipped"].as_array().expect("a list of skipped files");
    let expected = BTreeMap::from(NO_TEXTS.map(|(path, _, reason)| (path, reason)));
    assert_eq!(skipped.len(), expected.len(), "{skipped:?}");
    for (file, (path, reason)) in skipped.iter().zip(expected) {
        assert_eq!(file["path"], path);
        assert!(file["reason"].as_str().is_some_and(|text| text.starts_with(reason)), "{file} should say {reason:?}");
    }
}

#[test]
fn pausing_and_cancelling_lose_nothing_and_double_nothing() {
    let folder = Folder::new("many");
    let text = |file: usize| format!("common word{file} Word{file}\n").repeat(file % 50 + 1);
    let texts: Vec<String> = (0..500).map(text).collect();
    for (file, text) in texts.iter().enumerate() {
        folder.write(&format!("{}/{file:03}.txt", file % 7), text.as_bytes());
    }
    let plain = plain_count(&texts);
    for _ in 0..5 {
        assert_counts(&json_of(&quickstart(&folder, &["--json"])), texts.len(), &plain);
    }
}

#[test]
fn every_indexed_file_gets_its_most_characteristic_words() {
    let folder = Folder::new("characteristic");
    let topics = ["apple", "banana", "cherry", "damson"];
    for topic in topics {
        folder.write(topic, format!("this is about {topic} and {topic}").as_bytes());
    }
    let result = json_of(&quickstart(&folder, &["--json"]));
    let files = result["characteristic_words"].as_array().expect("a list of files");
    assert_eq!(files.len(), topics.len());
    for (file, topic) in files.iter().zip(topics) {
        assert_eq!((&file["path"], &file["words"][0]), (&json!(topic), &json!(topic)));
    }
}

#[test]
#[cfg(unix)]
fn an_unreadable_file_is_reported_and_the_rest_indexed() {
    use std::os::unix::fs::PermissionsExt;

    let folder = Folder::new("unreadable");
    folder.write("open.txt", b"open words");
    folder.write("closed.txt", b"closed words");
    let closed = folder.path.join("closed.txt");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("permissions are set");
    if fs::File::open(&closed).is_ok() {
        eprintln!("not tested: this user may read every file");
        return;
    }
    let result = json_of(&quickstart(&folder, &["--json", "--check"]));
    assert_counts(&result, 1, &plain_count(["open words"]));
    assert_eq!(result["skipped"][0]["path"], "closed.txt");
    assert!(result["skipped"][0]["reason"].as_str().is_some_and(|reason| reason.starts_with("cannot be read: ")));
}

#[test]
fn a_folder_without_any_text_is_a_result_and_no_failure() {
    let folder = Folder::new("no_text");
    folder.write("only.bin", &[0; 100]);
    let result = json_of(&quickstart(&folder, &["--json", "--check"]));
    assert_counts(&result, 0, &BTreeMap::new());
    assert_eq!(result["skipped"][0]["path"], "only.bin");
}

#[test]
fn a_folder_that_is_not_usable_is_exit_code_2_and_says_what_to_do() {
    let folder = Folder::new("not_usable");
    fs::create_dir(folder.path.join("empty")).expect("a folder is made");
    folder.write("file.txt", b"words");
    let cases = [
        ("missing", "there is no folder", "give the path of one that exists"),
        ("empty", "there is no file to index", "give a folder with text files in it"),
        ("file.txt", "is not a folder", "give the folder that it is in"),
    ];
    for (name, what, fix) in cases {
        let path = folder.path.join(name);
        let output = run([path.as_os_str()]);
        assert_refused(&output, &[what, fix, name]);
    }
}

#[test]
fn a_command_line_that_is_not_usable_is_exit_code_2_and_says_what_to_do() {
    assert_refused(&run(["--jsno"]), &["unknown flag \"--jsno\"", "--help"]);
    assert_refused(&run(["--word"]), &["--word needs a word"]);
    assert_refused(&run(["one", "two"]), &["two folders given, \"one\" and \"two\""]);
}

#[test]
fn help_names_every_flag() {
    let output = run(["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("the usage is UTF-8");
    for flag in ["FOLDER", "--word", "--check", "--json", "--help"] {
        assert!(text.contains(flag), "{flag} is missing in:\n{text}");
    }
}

#[test]
fn what_is_not_shown_on_a_terminal_has_no_control_characters() {
    let folder = Folder::new("plain_output");
    (0..100).for_each(|file| folder.write(&format!("{file}.txt"), b"some words to count"));
    let output = quickstart(&folder, &["--check"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("the report is UTF-8");
    let control: Vec<char> = text.chars().filter(|c| c.is_control() && *c != '\n').collect();
    assert!(control.is_empty(), "{control:?} in:\n{text}");
    assert!(output.stderr.is_empty(), "{:?}", String::from_utf8_lossy(&output.stderr));
    for line in ["system ", "control ", "query ", "session ", "skill ", "prompt "] {
        assert!(text.lines().any(|it| it.starts_with(line)), "no line for {line}in:\n{text}");
    }
    assert!(text.ends_with("checked: equal to a single-threaded count\n"), "{text}");
}

/// Counts one character at a time, unlike the example, which splits.
fn plain_count<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for text in texts {
        let mut run = String::new();
        for c in text.as_ref().chars().chain([' ']) {
            if c.is_alphanumeric() {
                run.push(c);
                continue;
            }
            let run = std::mem::take(&mut run);
            let mut chars = run.chars();
            if chars.next().is_some_and(char::is_alphabetic) && chars.next().is_some() {
                *counts.entry(run.to_lowercase()).or_default() += 1;
            }
        }
    }
    counts
}

fn assert_counts(result: &Value, files: usize, plain: &BTreeMap<String, u64>) {
    assert_eq!(result["files"], files);
    assert_eq!(result["words"], plain.values().sum::<u64>());
    assert_eq!(result["distinct"], plain.len());
    let mut top: Vec<_> = plain.iter().collect();
    // Stable: words of the same count stay in alphabetical order.
    top.sort_by(|(_, count), (_, other)| other.cmp(count));
    let top: Vec<_> = top.into_iter().take(10).map(|(word, count)| json!({ "word": word, "count": count })).collect();
    assert_eq!(result["top_words"], json!(top));
}

fn assert_refused(output: &Output, message: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in message {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
}

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("the output is JSON")
}

fn quickstart(folder: &Folder, flags: &[&str]) -> Output {
    run([folder.path.as_os_str()].into_iter().chain(flags.iter().map(AsRef::as_ref)))
}

/// Runs the example that `cargo test` has built next to this test: target/PROFILE/deps/TEST, target/PROFILE/examples/.
fn run<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    let test = std::env::current_exe().expect("a test knows where it is");
    let profile = test.parent().and_then(Path::parent).expect("a test is two folders down");
    let example = profile.join("examples").join(format!("quickstart{}", std::env::consts::EXE_SUFFIX));
    assert!(
        example.is_file(),
        "{example:?} is missing: `cargo test` builds it, `cargo test --test quickstart` does not; run `cargo build \
         --example quickstart` first, with the same profile and features"
    );
    Command::new(&example).args(arguments).output().expect("the example can be started")
}

/// A folder for one test, removed with it.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("quickstart-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder is made");
        Self { path }
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.path.join(path);
        fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("its folder is made");
        fs::write(path, bytes).expect("the file is written");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is in target/tmp.
        let _ = fs::remove_dir_all(&self.path);
    }
}
