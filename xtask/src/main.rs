//! The project's commands. `cargo xtask test` checks everything, `cargo xtask versions` the stores
//! on other servers, `cargo xtask bench` measures, `cargo xtask mutants` removes code to see which
//! test notices; `cargo xtask --help` lists the rest.

mod arguments;
mod command;
mod features;
mod links;
mod parts;
mod report;
mod servers;
mod test;
mod versions;
mod words;

use std::process::ExitCode;

use arguments::Task;

/// The exit code for invalid arguments, as opposed to a part that failed.
const USAGE_ERROR: u8 = 2;

fn main() -> ExitCode {
    match arguments::parse(lexopt::Parser::from_env()) {
        Ok(Task::Help) => {
            println!("{}", arguments::help());
            ExitCode::SUCCESS
        }
        Ok(Task::Test(options)) => exit_code(test::run(&options)),
        Ok(Task::Versions(servers)) => exit_code(versions::run(&servers)),
        Ok(Task::Bench(arguments)) => {
            let line =
                format!("run --release --package idempotency-bench -- {}", arguments.join(" "));
            exit_code(command::Command::cargo(&line).run())
        }
        Ok(Task::Mutants(arguments)) => {
            let line = format!("run --package idempotency-mutants -- {}", arguments.join(" "));
            exit_code(command::Command::cargo(&line).run())
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{}", arguments::help());
            ExitCode::from(USAGE_ERROR)
        }
    }
}

fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
