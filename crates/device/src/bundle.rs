//! Several devices in one process: what is given up by it (a hole in one is a hole in all) is to be weighed against what it
//! saves, and for that it has to be measured.
//!
//! Each device has a thread with a loop of its own, as it would have in a process of its own. All threads are made, and all
//! devices opened, before the one filter goes on; it does not allow another thread.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::sync::{mpsc, Arc, Barrier};
use std::thread;

use crate::{confine, limit, prepare, process, read, run, Inherited, Kind, OptionsError, Told};

/// The word before each device on the command line, and before its kind.
const DEVICE: &str = "--device";

/// A program with several devices.
#[derive(Debug, Clone, Copy)]
pub struct Bundle {
    /// Its name, in front of every line it logs.
    pub name: &'static str,
    /// What each of its devices may be: `--device NAME` and that kind's options, for every device.
    pub kinds: &'static [Kind],
    /// The filter it puts on itself once all devices are ready: a classic BPF program.
    pub filter: &'static [u8],
}

impl Bundle {
    /// The whole of `main`.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        let words = std::env::args_os().skip(1);
        run(self.name, || self.read(words), |told| self.serve(told))
    }

    fn read(&self, words: impl Iterator<Item = OsString>) -> Result<Vec<Told>, OptionsError> {
        split(words)?
            .into_iter()
            .map(|(name, words)| {
                let kind = self.kinds.iter().find(|kind| kind.name == name);
                let kind = kind.ok_or(OptionsError::BadValue {
                    option: DEVICE,
                    value: name,
                })?;
                read(*kind, words.into_iter())
            })
            .collect()
    }

    /// Serves all devices until the first of them ends; with that the process ends.
    fn serve(&self, told: Vec<Told>) -> io::Result<()> {
        process::harden()?;
        let inherited = Inherited::adopt(told.iter().map(|told| &told.options))?;
        process::block_end_signals()?;
        let count = told.len();
        let first = told.first().map(|told| told.options.clone());
        let gate = Arc::new(Barrier::new(count + 1));
        let (tell, heard) = mpsc::channel();
        for (told, inherited) in told.into_iter().zip(inherited) {
            let (tell, gate) = (tell.clone(), gate.clone());
            thread::Builder::new()
                .name(format!("device-{}", told.kind.name))
                .spawn(move || live(told, inherited, &gate, &tell))?;
        }
        let silent = || io::Error::other("a device is gone");
        for _ in 0..count {
            heard.recv().map_err(|_| silent())??;
        }
        // Each of the others has done so for itself.
        let first = first.ok_or_else(silent)?;
        limit(&[], &first)?;
        confine(self.filter, &first)?;
        gate.wait();
        heard.recv().map_err(|_| silent())?
    }
}

/// The life of one device. Twice it is told how that goes: when it is ready, and when it ends.
fn live(told: Told, inherited: Inherited, gate: &Barrier, tell: &mpsc::Sender<io::Result<()>>) {
    let options = told.options.clone();
    let prepared = process::leave_shared_directory()
        .and_then(|()| std::env::set_current_dir("/"))
        .and_then(|()| prepare(told, inherited))
        .and_then(|prepared| limit(&prepared.reach, &options).map(|()| prepared));
    // Whoever does not hear this has gone already, and the process with it.
    let _ = match prepared {
        Ok(prepared) => {
            let _ = tell.send(Ok(()));
            gate.wait();
            tell.send(prepared.serve())
        }
        Err(error) => tell.send(Err(error)),
    };
    // The end of a thread takes calls that nothing else does: the end of the process takes this one, too.
    loop {
        thread::park();
    }
}

/// The words of each device.
fn split(
    words: impl Iterator<Item = OsString>,
) -> Result<Vec<(String, Vec<OsString>)>, OptionsError> {
    let mut words = words.peekable();
    let mut devices: Vec<(String, Vec<OsString>)> = Vec::new();
    while let Some(word) = words.next() {
        if word == DEVICE {
            let kind = words.next().ok_or(OptionsError::MissingValue(DEVICE))?;
            devices.push((kind.to_string_lossy().into_owned(), Vec::new()));
        } else if let Some((_, words)) = devices.last_mut() {
            words.push(word);
        } else {
            let word = word.to_string_lossy().into_owned();
            return Err(OptionsError::Unknown(word));
        }
    }
    if devices.is_empty() {
        return Err(OptionsError::Required(DEVICE));
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_text(text: &str) -> Result<Vec<(String, Vec<OsString>)>, OptionsError> {
        split(text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn each_device_has_its_own_words() {
        let found = split_text("--device fs --fd 3 --root /a --device rng --fd 4").unwrap();
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            found,
            [
                ("fs".to_owned(), words("--fd 3 --root /a")),
                ("rng".to_owned(), words("--fd 4")),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(split_text(""), Err(OptionsError::Required(DEVICE)));
        assert_eq!(
            split_text("--device"),
            Err(OptionsError::MissingValue(DEVICE))
        );
        assert_eq!(
            split_text("--fd 3 --device fs"),
            Err(OptionsError::Unknown("--fd".into()))
        );
        let bundle = Bundle {
            name: "test",
            kinds: &[],
            filter: &[],
        };
        let words = ["--device", "fs"].map(OsString::from);
        assert!(bundle.read(words.into_iter()).is_err());
    }
}
