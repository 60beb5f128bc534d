//! Commands that are printed as a person would type them, then run.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};

/// A command with its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    program: String,
    folder: Option<PathBuf>,
    variables: Vec<(&'static str, String)>,
    arguments: Vec<String>,
}

impl Command {
    /// Creates a `cargo` command with the words of `line`.
    pub(crate) fn cargo(line: &str) -> Self {
        Self::program("cargo", line)
    }

    /// Creates a command of `program` with the words of `line`.
    pub(crate) fn program(program: &str, line: &str) -> Self {
        let arguments = line.split_whitespace().map(String::from).collect();
        Self { program: String::from(program), folder: None, variables: Vec::new(), arguments }
    }

    /// Adds an argument, which may contain spaces.
    pub(crate) fn with_argument(mut self, argument: String) -> Self {
        self.arguments.push(argument);
        self
    }

    pub(crate) fn with_variable(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// Sets the folder in which it runs.
    pub(crate) fn in_folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_path_buf());
        self
    }

    /// Runs it with the terminal of this process.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        println!("\n$ {self}");
        let status =
            self.process().status().with_context(|| format!("could not start `{self}`"))?;
        if !status.success() {
            bail!("`{self}` failed ({status})");
        }
        Ok(())
    }

    /// Runs it without output and returns whether it succeeded.
    pub(crate) fn succeeds(&self) -> bool {
        self.process()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Runs it and returns what it printed.
    pub(crate) fn output(&self) -> anyhow::Result<Vec<u8>> {
        let output = self
            .process()
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("could not start `{self}`"))?;
        if !output.status.success() {
            bail!("`{self}` failed ({})", output.status);
        }
        Ok(output.stdout)
    }

    fn process(&self) -> std::process::Command {
        // The cargo that started this process, which is not necessarily the first one in PATH.
        let this_cargo = std::env::var_os("CARGO").filter(|_| self.program == "cargo");
        let mut process =
            std::process::Command::new(this_cargo.unwrap_or_else(|| OsString::from(&self.program)));
        process
            .args(&self.arguments)
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.folder {
            process.current_dir(folder);
        }
        process
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(folder) = &self.folder {
            write!(f, "cd {} && ", folder.display())?;
        }
        for (name, value) in &self.variables {
            if value.contains(' ') {
                write!(f, "{name}='{value}' ")?;
            } else {
                write!(f, "{name}={value} ")?;
            }
        }
        f.write_str(&self.program)?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {argument}"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Command;

    #[test]
    fn is_shown_as_it_is_typed() {
        let command = Command::cargo("doc  --no-deps").with_variable("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(
            command.with_variable("A", "1").to_string(),
            "RUSTDOCFLAGS='-D warnings' A=1 cargo doc --no-deps"
        );
        assert_eq!(Command::program("id", "").in_folder(Path::new("/")).to_string(), "cd / && id");
    }

    #[test]
    fn other_programs_than_cargo_run_too() {
        assert_eq!(Command::program("echo", "some words").output().unwrap(), b"some words\n");
        assert_eq!(Command::program("pwd", "").in_folder(Path::new("/")).output().unwrap(), b"/\n");
    }

    #[test]
    fn a_failing_command_is_an_error_that_names_it() {
        let command = Command::cargo("no-such-command-of-cargo");
        assert!(!command.succeeds());
        assert!(
            command
                .output()
                .unwrap_err()
                .to_string()
                .contains("`cargo no-such-command-of-cargo` failed")
        );
    }
}
