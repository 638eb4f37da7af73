//! Lines on stderr, bounded in length and number: what a guest does cannot fill the disk of its host.
//!
//! A line is put together first and written with one call. Whoever reads finds whole lines, also where several processes
//! have one stderr.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;

/// Lines written before the log falls silent.
const MAX_LINES: u32 = 1000;
/// Bytes of a line, its end included.
const MAX_LINE: usize = 1024;
const CUT: &str = "...\n";

struct Logger {
    program: OnceLock<&'static str>,
    lines: AtomicU32,
}

static LOGGER: Logger = Logger {
    program: OnceLock::new(),
    lines: AtomicU32::new(0),
};

impl log::Log for Logger {
    fn enabled(&self, _metadata: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        let is_bounded = log::max_level() <= log::LevelFilter::Info;
        let written = self.lines.load(Ordering::Relaxed);
        if is_bounded && written > MAX_LINES {
            return;
        }
        self.lines.fetch_add(1, Ordering::Relaxed);
        if is_bounded && written == MAX_LINES {
            say(format_args!("too many messages, silent from here on"));
        } else {
            say(format_args!("{}: {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// A line that is being put together: what a terminal could take for an order is written out, what is too much left out.
struct Line(String);

impl Line {
    fn new(program: &str, text: fmt::Arguments<'_>) -> Self {
        let mut line = Line(String::with_capacity(MAX_LINE));
        let end = match write!(line, "{program}: {text}") {
            Ok(()) => "\n",
            Err(fmt::Error) => CUT,
        };
        line.0.push_str(end);
        line
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            let before = self.0.len();
            match char {
                '"' | '\'' => self.0.push(char),
                char => self.0.extend(char.escape_debug()),
            }
            if self.0.len() + CUT.len() > MAX_LINE {
                self.0.truncate(before);
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

/// Writes a line, with the program's name in front.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    let program = LOGGER.program.get().copied().unwrap_or("cloche-device");
    // Whoever does not hear this cannot be told so either.
    let _ = io::stderr().write_all(Line::new(program, text).0.as_bytes());
}

/// Says whose lines these are; before the first of them.
pub(crate) fn set_program(name: &'static str) {
    LOGGER.program.get_or_init(|| name);
}

/// Sends the log to stderr from `level` on.
pub(crate) fn start(level: log::LevelFilter) {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        Line::new("cloche-test", format_args!("{text}")).0
    }

    #[test]
    fn a_line_is_one_line() {
        assert_eq!(
            line("it's \"as\" it was"),
            "cloche-test: it's \"as\" it was\n"
        );
    }

    #[test]
    fn what_a_terminal_obeys_is_written_out() {
        assert_eq!(
            line("a\n\x1b[2Jb\u{202e}"),
            "cloche-test: a\\n\\u{1b}[2Jb\\u{202e}\n"
        );
    }

    #[test]
    fn a_long_line_is_cut() {
        for long in [
            "x".repeat(1 << 20),
            "\x1b".repeat(1 << 20),
            "\u{10fff0}".repeat(1 << 20),
        ] {
            let line = line(&long);
            assert!(line.len() <= MAX_LINE && line.len() > MAX_LINE - 64);
            assert!(line.ends_with(CUT));
            assert_eq!(line.matches('\n').count(), 1);
        }
    }
}
