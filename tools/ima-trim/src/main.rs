// SPDX-License-Identifier: GPL-2.0

//! The program `ima-trim`.

#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::Parser;
use clap::Subcommand;
use clap_complete::Shell;
use ima_trim::command;
use ima_trim::command::Failure;
use ima_trim::config::Config;
use ima_trim::inherited;
use ima_trim::steps::Step;

/// Keeps the IMA measurement list short in the kernel and whole for everybody who reads it.
#[derive(Debug, Parser)]
#[command(
    name = "ima-trim",
    version,
    max_term_width = 100,
    after_help = "Exit status: 0 fine; 1 a negative verdict: values that do not match, records that are missing, \
                  violations that nobody has looked at; 2 wrong usage; 3 something that is needed is missing or \
                  has failed.\n\nSee ima-trim(8)."
)]
struct Arguments {
    /// The configuration [default: /etc/ima-trim.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the whole list, archive, trim and restore; the service manager runs this
    Daemon(command::DaemonArguments),
    /// Show what is held, since when, what is wrong and what to do
    Status(command::status::Arguments),
    /// Print the whole list since boot, as the kernel would print it untrimmed; or, with --boot,
    /// what is archived of an earlier boot
    Log(command::log::Arguments),
    /// Archive, then trim the kernel's list
    Trim(command::trim::Arguments),
    /// Replay archive and list against the starting values and the TPM; with --boot, the archive of
    /// an earlier boot; or, with --log, judge what another machine has sent
    Verify(Box<command::verifier::Arguments>),
    /// Print the request that a verifier would sign for what it has just accepted
    Request(command::request::Arguments),
    /// Sign a request, for a module that demands it
    Sign(command::sign::Arguments),
    /// Hand what is known of a machine to another verifier
    #[command(subcommand)]
    State(command::state::Command),
    /// Give the module its values back from the archive
    Restore,
    /// Exchange the loaded module for another build of it
    ReloadModule(command::reload::Arguments),
    /// Do what the unit has done outside of the daemon
    #[command(hide = true, subcommand)]
    Step(Step),
    /// Print the completions of a shell
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: Shell,
    },
}

fn main() -> ExitCode {
    // Before anything is opened.
    inherited::take();
    let arguments = Arguments::parse();
    let config = match (
        Config::read(arguments.config.as_deref()),
        &arguments.command,
    ) {
        // Whoever reads what a daemon has left waits for the end of this.
        (Err(_), Command::Step(Step::Uncover)) => Ok(Config::default()),
        (config, _) => config,
    };
    let done = config
        .map_err(Failure::from)
        .and_then(|config| match &arguments.command {
            Command::Daemon(daemon) => {
                command::daemon(&config, arguments.config.as_deref(), daemon)
            }
            Command::Status(arguments) => command::status::run(arguments),
            Command::Log(arguments) => command::log::run(&config, arguments),
            Command::Trim(arguments) => command::trim::run(&config, arguments),
            Command::Verify(arguments) if arguments.log.is_some() => {
                command::verifier::run(arguments, &mut io::stdout())
            }
            Command::Verify(arguments) => command::verify::run(&config, arguments.boot.as_ref()),
            Command::Request(arguments) => command::request::run(arguments, &mut io::stdout()),
            Command::Sign(arguments) => command::sign::run(arguments),
            Command::State(command) => command::state::run(command, &mut io::stdout()),
            Command::Restore => command::restore(&config),
            Command::ReloadModule(arguments) => command::reload::run(&config, arguments),
            Command::Step(step) => command::step(&config, *step),
            Command::Completions { shell } => {
                let mut program = Arguments::command();
                clap_complete::generate(*shell, &mut program, "ima-trim", &mut io::stdout());
                Ok(())
            }
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("ima-trim: {failure}");
            ExitCode::from(failure.status())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::any::TypeId;

    use super::*;

    const PAGE: &str = include_str!("../ima-trim.8");
    const SAMPLE: &str = include_str!("../install/ima-trim.toml");

    /// The page as it is read, near enough for looking for words.
    fn page() -> String {
        PAGE.replace("\\-", "-")
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_is_in_the_manual_page() {
        let mut program = Arguments::command();
        program.build();
        let page = page();
        for command in program
            .get_subcommands()
            .filter(|found| !found.is_hide_set())
        {
            let name = command.get_name();
            // Some have several entries, one after the other.
            let entry: String = page
                .split("\n.It Cm ")
                .filter(|entry| entry.split_whitespace().next() == Some(name))
                .collect();
            assert!(!entry.is_empty(), "no entry for {name}");
            let below = command.get_subcommands();
            let arguments = below
                .filter(|found| found.get_name() != "help")
                .chain([command])
                .flat_map(clap::Command::get_arguments);
            for argument in arguments.filter(|found| !found.is_hide_set()) {
                match argument.get_long() {
                    Some("help" | "config" | "version") => {}
                    Some(long) => {
                        assert!(entry.contains(&format!("Fl -{long}")), "{name} --{long}");
                        for value in argument.get_possible_values() {
                            // Those of switches, and of options that say on and off, are clap's.
                            let on_off = TypeId::of::<bool>();
                            assert!(
                                argument.get_value_parser().type_id() == on_off
                                    || entry.contains(value.get_name()),
                                "{name} --{long}={}",
                                value.get_name()
                            );
                        }
                    }
                    None => assert!(entry.contains("Ar "), "{name} {}", argument.get_id()),
                }
            }
        }
        for argument in program.get_arguments() {
            let long = argument.get_long().unwrap();
            assert!(page.contains(&format!("Fl -{long}")), "--{long}");
        }
    }

    /// The names of all settings, each once as often as it is there.
    fn settings() -> Vec<String> {
        let text = format!("{:#?}", Config::default());
        let names = text.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix("        ")?.split_once(": ")?;
            (!name.starts_with(' ')).then(|| name.to_owned())
        });
        names.collect()
    }

    #[test]
    fn every_setting_is_in_the_manual_page_with_its_default() {
        let page = page();
        let names = settings();
        assert!(names.len() > 10, "{names:?}");
        for name in names {
            let sample = SAMPLE
                .lines()
                .find_map(|line| {
                    line.strip_prefix('#')?
                        .strip_prefix(name.as_str())?
                        .strip_prefix(" = ")
                })
                .unwrap_or_else(|| panic!("{name} is not in ima-trim.toml"));
            let value = match sample.strip_prefix('"') {
                Some(text) => format!("Qq {}", text.trim_end_matches('"')),
                None => sample.to_owned(),
            };
            let entry = match name.as_str() {
                // It has no default.
                "metrics" => format!("\n.It Cm {name}\n"),
                _ => format!("\n.It Cm {name} No = {value}\n"),
            };
            assert!(page.contains(&entry), "not in the page: {entry:?}");
        }
    }

    #[test]
    fn the_sample_has_the_defaults() {
        let text: String = SAMPLE
            .lines()
            // A comment has a blank after the first character.
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
                    .unwrap_or(line)
            })
            .filter(|line| !line.starts_with("metrics"))
            .flat_map(|line| [line, "\n"])
            .collect();
        let path = std::env::temp_dir().join(format!("ima-trim-sample.{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let read = Config::read(Some(&path));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            format!("{:?}", read.unwrap()),
            format!("{:?}", Config::default())
        );
    }
}
