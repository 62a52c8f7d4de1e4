//! Completion scripts for shells, made from the same flag tables that the parser uses.

use clap_complete::Shell;

use super::flags::Flag;
use super::{COMMANDS, LOG_FLAGS};

/// Shells that pilot-agent has scripts for.
pub(super) const SHELLS: [(&str, Shell); 4] = [
    ("bash", Shell::Bash),
    ("fish", Shell::Fish),
    ("powershell", Shell::PowerShell),
    ("zsh", Shell::Zsh),
];

/// The script for `shell`.
pub fn script(shell: Shell) -> Vec<u8> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut command(), "pilot-agent", &mut out);
    out
}

/// The command line in the terms of the generator. It parses nothing.
fn command() -> clap::Command {
    let mut root = clap::Command::new("pilot-agent").disable_help_subcommand(true);
    for flag in LOG_FLAGS {
        root = root.arg(argument(flag).global(true));
    }
    for (name, about, flags) in COMMANDS {
        let mut command = clap::Command::new(*name).about(*about);
        for flag in flags.iter().filter(|flag| !flag.help.is_empty()) {
            command = command.arg(argument(flag));
        }
        if *name == "completion" {
            let shells = SHELLS.map(|(name, _)| name);
            command = command.arg(clap::Arg::new("shell").value_parser(shells));
        }
        root = root.subcommand(command);
    }
    root
}

fn argument(flag: &'static Flag) -> clap::Arg {
    let action = if flag.is_boolean() {
        clap::ArgAction::SetTrue
    } else {
        clap::ArgAction::Append
    };
    let argument = clap::Arg::new(flag.name)
        .long(flag.name)
        .action(action)
        .help(flag.help);
    match flag.letter {
        Some(letter) => argument.short(letter),
        None => argument,
    }
}
