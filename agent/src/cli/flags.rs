//! Flag syntax of Go's pflag: what users' injection templates are written for. Knows no command.

use std::collections::BTreeMap;

use bootstrap_templates::parse_go_bool;

/// A flag that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FlagError {
    /// No such flag, and the command does not accept unknown ones.
    #[error("unknown flag: {0}")]
    Unknown(String),
    /// A flag at the end without its value.
    #[error("flag needs an argument: {0}")]
    MissingValue(String),
    /// A value of the wrong kind.
    #[error("invalid argument {value:?} for \"--{name}\" flag")]
    InvalidValue {
        /// Flag.
        name: String,
        /// Text given.
        value: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlagKind {
    Text,
    List,
    Boolean,
    Number,
}

/// Declaration of a flag.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    kind: FlagKind,
    default_text: &'static str,
    default_number: i64,
    pub(super) letter: Option<char>,
    /// One line for people; empty for flags that are not for them.
    pub(super) help: &'static str,
}

impl Flag {
    const fn new(name: &'static str, kind: FlagKind) -> Self {
        Self {
            name,
            kind,
            default_text: "",
            default_number: 0,
            letter: None,
            help: "",
        }
    }

    pub(super) const fn text(name: &'static str, default: &'static str) -> Self {
        Self {
            default_text: default,
            ..Self::new(name, FlagKind::Text)
        }
    }

    pub(super) const fn list(name: &'static str) -> Self {
        Self::new(name, FlagKind::List)
    }

    pub(super) const fn boolean(name: &'static str, default: bool) -> Self {
        Self {
            default_number: default as i64,
            ..Self::new(name, FlagKind::Boolean)
        }
    }

    pub(super) const fn number(name: &'static str, default: i64) -> Self {
        Self {
            default_number: default,
            ..Self::new(name, FlagKind::Number)
        }
    }

    pub(super) const fn short(self, letter: char) -> Self {
        Self {
            letter: Some(letter),
            ..self
        }
    }

    pub(super) const fn help(self, help: &'static str) -> Self {
        Self { help, ..self }
    }

    /// The default as a user would write it; empty for none.
    pub(super) fn default_text(&self) -> String {
        match self.kind {
            FlagKind::Number if self.default_number == 0 => String::new(),
            _ => self.default().join(","),
        }
    }

    pub(super) fn is_boolean(&self) -> bool {
        self.kind == FlagKind::Boolean
    }

    fn default(&self) -> Vec<String> {
        match self.kind {
            FlagKind::Text => vec![self.default_text.to_owned()],
            FlagKind::List => Vec::new(),
            FlagKind::Boolean => vec![(self.default_number != 0).to_string()],
            FlagKind::Number => vec![self.default_number.to_string()],
        }
    }

    fn check(&self, value: &str) -> Result<String, FlagError> {
        let canonical = match self.kind {
            FlagKind::Text | FlagKind::List => Some(value.to_owned()),
            FlagKind::Boolean => parse_go_bool(value).map(|b| b.to_string()),
            FlagKind::Number => value.parse::<i64>().ok().map(|n| n.to_string()),
        };
        let invalid = || FlagError::InvalidValue {
            name: self.name.to_owned(),
            value: value.to_owned(),
        };
        canonical.ok_or_else(invalid)
    }
}

/// Values of all declared flags, and the arguments that are no flags.
#[derive(Debug)]
pub(super) struct ParsedFlags {
    values: BTreeMap<&'static str, Vec<String>>,
    pub(super) arguments: Vec<String>,
    pub(super) help: bool,
}

impl ParsedFlags {
    pub(super) fn text(&self, name: &str) -> String {
        self.values
            .get(name)
            .and_then(|v| v.last())
            .cloned()
            .unwrap_or_default()
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        self.values.get(name).cloned().unwrap_or_default()
    }

    pub(super) fn boolean(&self, name: &str) -> bool {
        self.text(name) == "true"
    }

    pub(super) fn integer<T: std::str::FromStr>(&self, name: &str) -> Result<T, FlagError> {
        let value = self.text(name);
        value.parse().map_err(|_| FlagError::InvalidValue {
            name: name.to_owned(),
            value,
        })
    }

    pub(super) fn all(&self) -> Vec<(String, String)> {
        let join = |values: &Vec<String>| values.join(",");
        self.values
            .iter()
            .map(|(name, values)| ((*name).to_owned(), join(values)))
            .collect()
    }
}

/// Parses `arguments` against the tables. With `accept_unknown`, an unknown flag is dropped
/// together with a following argument that does not look like a flag, as pflag does.
pub(super) fn parse(
    arguments: &[String],
    tables: &[&'static [Flag]],
    accept_unknown: bool,
) -> Result<ParsedFlags, FlagError> {
    let declared: Vec<&'static Flag> = tables.iter().flat_map(|table| table.iter()).collect();
    let values = declared
        .iter()
        .map(|flag| (flag.name, flag.default()))
        .collect();
    let mut parsed = ParsedFlags {
        values,
        arguments: Vec::new(),
        help: false,
    };
    let mut set: Vec<&str> = Vec::new();
    let mut iter = arguments.iter().peekable();
    while let Some(argument) = iter.next() {
        if argument == "--" {
            parsed.arguments.extend(iter.cloned());
            break;
        }
        if !argument.starts_with('-') || argument == "-" {
            parsed.arguments.push(argument.clone());
            continue;
        }
        let (name, inline) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (argument.as_str(), None),
        };
        if name == "--help" || name == "-h" {
            parsed.help = true;
            continue;
        }
        let Some(flag) = declared.iter().find(|flag| matches(flag, name)) else {
            if !accept_unknown {
                return Err(FlagError::Unknown(name.to_owned()));
            }
            if inline.is_none() && iter.peek().is_some_and(|next| !next.starts_with('-')) {
                iter.next();
            }
            continue;
        };
        let value = match inline {
            Some(value) => value,
            None if flag.is_boolean() => "true".to_owned(),
            None => {
                let missing = || FlagError::MissingValue(argument.clone());
                iter.next().cloned().ok_or_else(missing)?
            }
        };
        let value = flag.check(&value)?;
        let slot = parsed.values.entry(flag.name).or_default();
        if flag.kind != FlagKind::List || !set.contains(&flag.name) {
            slot.clear();
        }
        slot.push(value);
        set.push(flag.name);
    }
    Ok(parsed)
}

fn matches(flag: &Flag, name: &str) -> bool {
    match name.strip_prefix("--") {
        Some(long) => long == flag.name,
        None => name.strip_prefix('-').is_some_and(|short| {
            flag.letter
                .is_some_and(|letter| short.chars().eq(std::iter::once(letter)))
        }),
    }
}
