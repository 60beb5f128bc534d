//! The project's commands. `cargo xtask test` checks everything; `cargo xtask --help` tells the rest.

mod arguments;
mod command;
mod features;
mod parts;
mod report;
mod servers;
mod test;

use std::process::ExitCode;

use arguments::Task;

/// The arguments make no sense, as opposed to a part that failed.
const USAGE_ERROR: u8 = 2;

fn main() -> ExitCode {
    match arguments::parse(lexopt::Parser::from_env()) {
        Ok(Task::Help) => {
            println!("{}", arguments::help());
            ExitCode::SUCCESS
        }
        Ok(Task::Test(options)) => match test::run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("error: {error}\n\n{}", arguments::help());
            ExitCode::from(USAGE_ERROR)
        }
    }
}
