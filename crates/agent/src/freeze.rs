//! Letting every program of the guest stand still, so that none runs in a guest that was restored before that has fresh
//! randomness.
//!
//! Programs are moved into a group of their own that is frozen before they come, and stay in it afterwards; groups that
//! somebody has made are frozen as they are. A process that is in the kernel stands still before it is back in user space.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cgroup::{self, ROOT};
use crate::sys::Result;

const PROGRAMS: &str = "cloche-programs";
const FREEZE: &str = "cgroup.freeze";
const PROCS: &str = "cgroup.procs";
/// A program that makes processes all the time is in the group itself after a few turns.
const TURNS: usize = 100;

/// What was frozen.
#[derive(Debug)]
pub struct Frozen(Vec<PathBuf>);

impl Frozen {
    /// Freezes everything but the agent.
    ///
    /// # Errors
    /// When the guest has no control groups; nothing is frozen then.
    pub fn new() -> Result<Self> {
        cgroup::ensure_mounted()?;
        let programs = Path::new(ROOT).join(PROGRAMS);
        match fs::create_dir(&programs) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        fs::write(programs.join(FREEZE), "1")?;
        let mut frozen = vec![programs.clone()];
        for entry in fs::read_dir(ROOT)?.flatten() {
            let group = entry.path();
            // What a program of the guest has frozen stays so.
            if group != programs && fs::read(group.join(FREEZE)).is_ok_and(|now| now == b"0\n") {
                fs::write(group.join(FREEZE), "1")?;
                frozen.push(group);
            }
        }
        let all = Path::new(ROOT).join(PROCS);
        let into = programs.join(PROCS);
        for _ in 0..TURNS {
            let listed = fs::read_to_string(&all)?;
            let others = listed.lines().filter(|pid| *pid != "1" && is_program(pid));
            // One that has just ended cannot be moved.
            if others.filter(|pid| fs::write(&into, pid).is_ok()).count() == 0 {
                break;
            }
        }
        Ok(Self(frozen))
    }

    /// Freezes a program that was started meanwhile.
    pub fn add(&self, pid: i32) {
        if let Some(programs) = self.0.first() {
            // One that has ended already needs no more.
            drop(fs::write(programs.join(PROCS), pid.to_string()));
        }
    }

    /// Lets everything go on.
    pub fn thaw(self) {
        for group in self.0 {
            // A group that is not there any more holds nobody.
            drop(fs::write(group.join(FREEZE), "0"));
        }
    }
}

/// Whether a process is no thread of the kernel's: these are children of process 2.
fn is_program(pid: &str) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The name in the middle may hold anything; behind it come the state and the parent.
    let parent = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(1));
    pid != "2" && parent != Some("2")
}
