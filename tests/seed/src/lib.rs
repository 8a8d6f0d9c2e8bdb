//! Helps the tests see what a snippet prints.
//!
//! Each test holds one snippet between two lines of comment, as the documentation prints it (indented). What stands
//! around it is what the snippet presupposes, and the assertions.

use std::sync::Mutex;

static PRINTED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Stands in for the standard macro where it is imported: also keeps the line for [`printed`].
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {
        $crate::print(format!($($arg)*))
    };
}

/// Prints a line and keeps it.
pub fn print(line: String) {
    std::println!("{line}");
    PRINTED.lock().unwrap().push(line);
}

/// The lines printed so far in this process.
pub fn printed() -> Vec<String> {
    PRINTED.lock().unwrap().clone()
}
