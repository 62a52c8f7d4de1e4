//! String, header and query matchers.

use std::sync::Arc;

use ::regex::Regex;

pub use self::regex::{RegexError, translate_substitution};

mod regex;

/// `envoy.type.matcher.v3.StringMatcher`.
#[derive(Debug, Clone)]
pub struct StringMatcher {
    /// The pattern.
    pub pattern: StringPattern,
    /// ASCII case-insensitive (not for regex).
    pub ignore_case: bool,
}

/// The pattern of a [`StringMatcher`]. Patterns of case-insensitive matchers are stored lower-cased.
#[derive(Debug, Clone)]
pub enum StringPattern {
    /// Whole string.
    Exact(Arc<str>),
    /// Start.
    Prefix(Arc<str>),
    /// End.
    Suffix(Arc<str>),
    /// Anywhere.
    Contains(Arc<str>),
    /// RE2 full match, compiled with anchors.
    Regex(Arc<CompiledRegex>),
}

/// A regular expression that must match the whole input.
#[derive(Debug)]
pub struct CompiledRegex {
    /// As configured.
    pub source: Arc<str>,
    /// Anchored for full match.
    pub full: Regex,
    /// As configured, for rewriting (unanchored).
    pub search: Regex,
}

impl PartialEq for StringMatcher {
    fn eq(&self, other: &Self) -> bool {
        self.ignore_case == other.ignore_case
            && match (&self.pattern, &other.pattern) {
                (StringPattern::Exact(a), StringPattern::Exact(b))
                | (StringPattern::Prefix(a), StringPattern::Prefix(b))
                | (StringPattern::Suffix(a), StringPattern::Suffix(b))
                | (StringPattern::Contains(a), StringPattern::Contains(b)) => a == b,
                (StringPattern::Regex(a), StringPattern::Regex(b)) => a.source == b.source,
                _ => false,
            }
    }
}

impl Eq for StringMatcher {}

impl StringMatcher {
    /// Whether `value` matches. Non-UTF-8 input matches regexes only through its lossless bytes: never.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        let fold = |p: &str, v: &[u8]| {
            if self.ignore_case {
                v.eq_ignore_ascii_case(p.as_bytes())
            } else {
                v == p.as_bytes()
            }
        };
        match &self.pattern {
            StringPattern::Exact(p) => fold(p, value),
            StringPattern::Prefix(p) => value.get(..p.len()).is_some_and(|v| fold(p, v)),
            StringPattern::Suffix(p) => value
                .len()
                .checked_sub(p.len())
                .and_then(|at| value.get(at..))
                .is_some_and(|v| fold(p, v)),
            StringPattern::Contains(p) => {
                p.is_empty() || value.windows(p.len()).any(|v| fold(p, v))
            }
            StringPattern::Regex(r) => std::str::from_utf8(value).is_ok_and(|v| r.full.is_match(v)),
        }
    }
}

/// `envoy.config.route.v3.HeaderMatcher`.
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    /// Lower-case name; may be `:method`, `:path`, `:authority`, `:scheme`.
    pub name: Arc<str>,
    /// What the value must be.
    pub kind: HeaderMatchKind,
    /// `invert_match`.
    pub invert: bool,
    /// `treat_missing_header_as_empty`.
    pub treat_missing_as_empty: bool,
}

/// The test of a [`HeaderMatcher`].
#[derive(Debug, Clone)]
pub enum HeaderMatchKind {
    /// `present_match`.
    Present(bool),
    /// `string_match` and the deprecated exact, prefix, suffix, contains, safe_regex forms.
    String(StringMatcher),
    /// `range_match`, half open.
    Range {
        /// First value.
        start: i64,
        /// First value after the range.
        end: i64,
    },
}

/// `QueryParameterMatcher`.
#[derive(Debug, Clone)]
pub struct QueryParameterMatcher {
    /// Parameter name.
    pub name: Arc<str>,
    /// `None` = present.
    pub value: Option<StringMatcher>,
    /// For `present_match: false`.
    pub present: bool,
}
