//! Each target with its seeds and some mutations of them: the same inputs every time, and no special compiler.

use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use cloche_fuzz::{mutations, seeds, Target, TARGETS};

/// Descriptors and memory are counted for the whole process.
static TURN: Mutex<()> = Mutex::new(());

fn smoke(target: &Target) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let seeds = seeds(target);
    let made = mutations(&seeds, target.smoke_runs, target.max_input);
    for input in seeds.iter().cloned().chain(made) {
        if let Err(panic) = catch_unwind(|| target.throw(&input)) {
            let digits: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("{} does not hold for this input:\n{digits}", target.name);
            resume_unwind(panic);
        }
    }
}

macro_rules! smoke {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            smoke(Target::find(stringify!($name)).expect("it is in the table"));
        })*

        #[test]
        fn every_target_is_here() {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

smoke! { frame message mux agent warden policy rng disk net vsock qcow2 undo tree share frontend }
