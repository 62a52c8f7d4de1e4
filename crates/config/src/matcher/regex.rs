//! RE2 expressions on the `regex` crate: syntax is translated where the two differ, so that what RE2 accepts
//! means the same here. Expressions that cannot mean the same are refused.

use std::sync::Arc;

use ::regex::{Regex, RegexBuilder};

use super::CompiledRegex;

/// Largest compiled size of one expression in bytes. RE2's own limit is 32 768 instructions under Istio's
/// bootstrap; this many bytes hold about as much.
const SIZE_LIMIT: usize = 2 * 1024 * 1024;
/// Deepest nesting of groups and repetitions.
const NEST_LIMIT: u32 = 200;

/// Why an expression or a substitution was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegexError {
    /// Syntax error, or a construct that the engine does not have.
    #[error("Invalid regex '{expression}': {reason}")]
    Syntax {
        /// As configured.
        expression: String,
        /// The engine's words, on one line.
        reason: String,
    },
    /// The compiled program is too large.
    #[error("regex '{expression}': program size exceeds the limit of {limit} bytes")]
    TooLarge {
        /// As configured.
        expression: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// A substitution refers to a group that does not exist, or ends in a lone backslash.
    #[error("Invalid substitution '{substitution}': {reason}")]
    Substitution {
        /// As configured.
        substitution: String,
        /// What is wrong.
        reason: &'static str,
    },
}

impl CompiledRegex {
    /// Compiles an RE2 expression for full match and for search.
    ///
    /// # Errors
    /// [`RegexError`] when the expression is malformed or too large.
    pub fn new(source: &str) -> Result<Self, RegexError> {
        let translated = translate(source);
        Ok(Self {
            source: source.into(),
            full: compile(source, &format!(r"\A(?:{translated})\z"))?,
            search: compile(source, &translated)?,
        })
    }
}

fn compile(source: &str, expression: &str) -> Result<Regex, RegexError> {
    RegexBuilder::new(expression)
        .size_limit(SIZE_LIMIT)
        .dfa_size_limit(SIZE_LIMIT)
        .nest_limit(NEST_LIMIT)
        .build()
        .map_err(|e| match e {
            ::regex::Error::CompiledTooBig(limit) => RegexError::TooLarge {
                expression: source.to_owned(),
                limit,
            },
            e => RegexError::Syntax {
                expression: source.to_owned(),
                reason: e
                    .to_string()
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .trim_start_matches("error: ")
                    .to_owned(),
            },
        })
}

/// Rewrites what RE2 and the regex crate read differently: Perl classes and word boundaries are ASCII in RE2;
/// `\<` and `\>` are plain characters; `\Q…\E` quotes; inside brackets `[`, `&&`, `--`, `~~` are plain.
fn translate(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 16);
    let mut chars = source.chars().peekable();
    // Characters since the opening bracket; `]` right after `[` or `[^` is a plain character.
    let mut class: Option<usize> = None;
    while let Some(c) = chars.next() {
        match (c, class) {
            ('\\', _) => {
                let Some(escaped) = chars.next() else {
                    out.push('\\');
                    break;
                };
                if escaped == 'Q' && class.is_none() {
                    quote(&mut chars, &mut out);
                } else {
                    escape(escaped, class.is_some(), &mut chars, &mut out);
                }
                class = class.map(|n| n + 1);
            }
            ('[', None) => {
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                class = Some(0);
            }
            (']', Some(n)) if n > 0 => {
                out.push(']');
                class = None;
            }
            (']', Some(n)) => {
                out.push_str(r"\]");
                class = Some(n + 1);
            }
            ('[', Some(n)) => {
                if chars.peek() == Some(&':') {
                    posix_class(&mut chars, &mut out);
                } else {
                    out.push_str(r"\[");
                }
                class = Some(n + 1);
            }
            ('&' | '~', Some(n)) => {
                out.push('\\');
                out.push(c);
                class = Some(n + 1);
            }
            ('-', Some(n)) => {
                // `--` would be a set difference.
                out.push_str(if out.ends_with('-') { r"\-" } else { "-" });
                class = Some(n + 1);
            }
            (c, class_now) => {
                out.push(c);
                class = class_now.map(|n| n + 1);
            }
        }
    }
    out
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Copies `[:name:]` after its bracket.
fn posix_class(chars: &mut Chars<'_>, out: &mut String) {
    out.push('[');
    for c in chars.by_ref() {
        out.push(c);
        if c == ']' {
            break;
        }
    }
}

/// Copies up to `\E` with every character taken literally.
fn quote(chars: &mut Chars<'_>, out: &mut String) {
    let mut buffer = [0; 4];
    while let Some(c) = chars.next() {
        if c == '\\' && chars.next_if_eq(&'E').is_some() {
            return;
        }
        out.push_str(&::regex::escape(c.encode_utf8(&mut buffer)));
    }
}

/// Writes one escape sequence.
fn escape(c: char, in_class: bool, chars: &mut Chars<'_>, out: &mut String) {
    let text = match (c, in_class) {
        ('d', true) => "0-9",
        ('w', true) => "0-9A-Za-z_",
        ('s', true) => r"\t\n\f\r ",
        ('d', false) => "[0-9]",
        ('w', false) => "[0-9A-Za-z_]",
        ('s', false) => r"[\t\n\f\r ]",
        ('D', _) => "[^0-9]",
        ('W', _) => "[^0-9A-Za-z_]",
        ('S', _) => r"[^\t\n\f\r ]",
        ('b', false) => r"(?-u:\b)",
        ('B', false) => r"(?-u:\B)",
        ('<' | '>', _) => {
            out.push(c);
            return;
        }
        ('0', _) => {
            let mut value = 0;
            for _ in 0..2 {
                let Some(digit) = chars.next_if(|d| d.is_digit(8)) else {
                    break;
                };
                value = value * 8 + digit.to_digit(8).unwrap_or(0);
            }
            out.push_str(&format!(r"\x{{{value:x}}}"));
            return;
        }
        (c, _) => {
            out.push('\\');
            out.push(c);
            return;
        }
    };
    out.push_str(text);
}

/// Translates an RE2 rewrite (`\0` to `\9`, `\\`) to the regex crate's (`${N}`, `$$`).
///
/// # Errors
/// When a group is named that the pattern (of `groups` groups, the whole match included) does not have, or a
/// backslash is followed by anything else.
pub fn translate_substitution(substitution: &str, groups: usize) -> Result<Arc<str>, RegexError> {
    let refuse = |reason| RegexError::Substitution {
        substitution: substitution.to_owned(),
        reason,
    };
    let mut out = String::with_capacity(substitution.len() + 8);
    let mut chars = substitution.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(d) if d.is_ascii_digit() => {
                    let group = d.to_digit(10).unwrap_or(0) as usize;
                    if group >= groups {
                        return Err(refuse("refers to a group that the pattern does not have"));
                    }
                    out.push_str(&format!("${{{group}}}"));
                }
                _ => {
                    return Err(refuse(
                        "a backslash must be followed by a digit or a backslash",
                    ));
                }
            },
            c => out.push(c),
        }
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn re2_expressions_keep_their_meaning() {
        for (expression, input, matches) in [
            (r"/items/\d+", "/items/42", true),
            (r"/items/\d+", "/items/\u{664}\u{662}", false),
            (r"\w+", "abc_1", true),
            (r"\w+", "\u{e4}", false),
            (r"[\w-]+", "a-b", true),
            (r"[\D]+", "ab", true),
            (r"a\sb", "a\u{a0}b", false),
            (r"\S+", "\u{a0}", true),
            (r"[[]x", "[x", true),
            (r"[]a]+", "]a", true),
            (r"[^]a]+", "bc", true),
            (r"[^]a]+", "]", false),
            (r"[a&&b]+", "a&b", true),
            (r"[+--]+", "+,-", true),
            (r"[[:alpha:]]+", "abc", true),
            (r"\<a\>", "<a>", true),
            (r"\Qa.b\E.", "a.bc", true),
            (r"\Qa.b\E.", "axbc", false),
            (r"\x41\012", "A\n", true),
            (r"a|ab", "ab", true),
            (r"foo\b.*", "foo bar", true),
            (r"(?i)abc", "ABC", true),
            (
                r"https://.*\.b\.example\.com",
                "https://x.b.example.com",
                true,
            ),
            (r"\pL+", "\u{e4}", true),
        ] {
            match CompiledRegex::new(expression) {
                Ok(re) => assert_eq!(
                    re.full.is_match(input),
                    matches,
                    "{expression} on {input:?}"
                ),
                Err(_) => assert!(!matches, "{expression} must compile"),
            }
        }
        assert!(CompiledRegex::new(r"A\0012").is_ok_and(|r| r.full.is_match("A\u{1}2")));
    }

    #[test]
    fn full_match_covers_the_whole_input() {
        let re = CompiledRegex::new("/re/[0-9]+").expect("compiles");
        assert!(re.full.is_match("/re/12"));
        assert!(!re.full.is_match("/re/12a"));
        assert!(re.search.is_match("x/re/12a"));
    }

    #[test]
    fn malformed_and_oversized_expressions_are_refused() {
        assert_eq!(
            CompiledRegex::new("(").map(drop),
            Err(RegexError::Syntax {
                expression: "(".into(),
                reason: "unclosed group".into()
            })
        );
        assert!(matches!(
            CompiledRegex::new("(?:[^a]{1000}){1000}"),
            Err(RegexError::TooLarge { .. })
        ));
        assert!(CompiledRegex::new(r"(a)\1").is_err());
        assert!(CompiledRegex::new(&"(".repeat(5000)).is_err());
    }

    #[test]
    fn substitutions_are_translated() {
        for (input, groups, expected) in [
            (r"/\2", 3, Some("/${2}")),
            (r"/item?id=\1", 2, Some("/item?id=${1}")),
            (r"a$b\\c", 1, Some(r"a$$b\c")),
            (r"\1", 1, None),
            (r"\x", 2, None),
            ("\\", 2, None),
        ] {
            assert_eq!(
                translate_substitution(input, groups).ok().as_deref(),
                expected,
                "{input}"
            );
        }
    }
}
