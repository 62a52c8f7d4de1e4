//! Tag extraction: which parts of a full stat name become Prometheus labels. Runs at scrape time only and
//! keeps its results; never on the request path.

use std::collections::HashMap;
use std::sync::Arc;

use outrigger_config::bootstrap::StatsConfig;
use parking_lot::Mutex;
use regex::Regex;

/// A tag regex that this proxy cannot run exactly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stats_config.stats_tags[{tag}].regex: {reason}")]
pub struct TagError {
    /// `tag_name`.
    pub tag: String,
    /// What is wrong.
    pub reason: String,
}

/// Extractors Envoy has built in (`use_all_default_tags`), as far as this proxy has such stats.
const DEFAULT_TAGS: [(&str, &str); 7] = [
    ("envoy.cluster_name", r"^cluster\.((.+?)\.)"),
    ("envoy.http_conn_manager_prefix", r"^http\.((.*?)\.)"),
    (
        "envoy.listener_address",
        r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
    ),
    ("envoy.tcp_prefix", r"^tcp\.((.*?)\.)\w+?$"),
    ("envoy.response_code", r"_rq(_(\d{3}))$"),
    ("envoy.response_code_class", r"_rq(_(\dxx))$"),
    ("envoy.worker_id", r"worker_((\d+)\.)"),
];

/// A name without its tags, and the tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extracted {
    /// Tag-extracted name.
    pub name: Arc<str>,
    /// Tag name and value, in the order of the bootstrap.
    pub labels: Arc<[(Arc<str>, Arc<str>)]>,
}

/// The extractors of the bootstrap.
#[derive(Debug, Default)]
pub struct Tags {
    extractors: Vec<(Arc<str>, TagRegex)>,
    fixed: Vec<(Arc<str>, Arc<str>)>,
    cache: Mutex<HashMap<Arc<str>, Extracted>>,
}

/// An ECMAScript tag regex; `guard` stands for a look-ahead after an anchored literal.
#[derive(Debug)]
struct TagRegex {
    regex: Regex,
    guard: Option<Regex>,
}

impl TagRegex {
    /// Translates `source`. The only look-ahead that can be taken out without changing what matches is one
    /// behind `^` and a literal: the rest must then match at the same place, so both are tested.
    fn new(source: &str) -> Result<Self, String> {
        let compile = |s: &str| Regex::new(s).map_err(|e| e.to_string());
        let Some(at) = source.find("(?=") else {
            if source.contains("(?!") {
                return Err("negative look-ahead is not supported".to_owned());
            }
            return Ok(Self {
                regex: compile(source)?,
                guard: None,
            });
        };
        let head = &source[..at];
        let end = group_end(source, at).ok_or("unbalanced look-ahead")?;
        let literal = head
            .strip_prefix('^')
            .is_some_and(|h| !h.contains(['(', '[', '*', '+', '?', '|', '.', '{']));
        let rest = &source[end + 1..];
        if !literal || rest.contains("(?=") || rest.contains("(?!") {
            return Err("look-ahead is supported only behind ^ and a literal".to_owned());
        }
        let guard = format!("{head}(?:{})", &source[at + 3..end]);
        Ok(Self {
            regex: compile(&format!("{head}{rest}"))?,
            guard: Some(compile(&guard)?),
        })
    }
}

/// Index of the parenthesis that closes the group opened at `at`.
fn group_end(source: &str, at: usize) -> Option<usize> {
    let (mut depth, mut escaped) = (0u32, false);
    for (i, c) in source.char_indices().skip_while(|(i, _)| *i < at) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' => depth += 1,
            ')' if depth == 1 => return Some(i),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

impl Tags {
    /// Compiles the extractors.
    ///
    /// # Errors
    /// [`TagError`] with the name of the tag.
    pub fn new(config: &StatsConfig) -> Result<Self, TagError> {
        let defaults = DEFAULT_TAGS
            .iter()
            .map(|(n, r)| (Arc::from(*n), Arc::from(*r)));
        let listed = config.tags.iter().cloned();
        let mut extractors: Vec<(Arc<str>, TagRegex)> = Vec::new();
        let all: Vec<(Arc<str>, Arc<str>)> = if config.use_all_default_tags {
            defaults.chain(listed).collect()
        } else {
            listed.collect()
        };
        for (name, source) in all {
            let regex = TagRegex::new(&source).map_err(|reason| TagError {
                tag: name.to_string(),
                reason,
            })?;
            extractors.push((name, regex));
        }
        Ok(Self {
            extractors,
            fixed: config.fixed_tags.clone(),
            cache: Mutex::default(),
        })
    }

    /// The tags of a full name.
    pub fn extract(&self, name: &Arc<str>) -> Extracted {
        if let Some(known) = self.cache.lock().get(name) {
            return known.clone();
        }
        let extracted = self.compute(name);
        self.cache
            .lock()
            .insert(Arc::clone(name), extracted.clone());
        extracted
    }

    /// Forgets names that are no longer there.
    pub fn retain(&self, mut exists: impl FnMut(&str) -> bool) {
        self.cache.lock().retain(|name, _| exists(name));
    }

    /// Names in the cache.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.cache.lock().len()
    }

    fn compute(&self, name: &str) -> Extracted {
        let mut labels = self.fixed.clone();
        let mut cuts: Vec<std::ops::Range<usize>> = Vec::new();
        for (tag, regex) in &self.extractors {
            if regex.guard.as_ref().is_some_and(|g| !g.is_match(name)) {
                continue;
            }
            let Some(captures) = regex.regex.captures(name) else {
                continue;
            };
            let Some(whole) = captures.get(1) else {
                continue;
            };
            let value = captures.get(2).unwrap_or(whole);
            labels.push((Arc::clone(tag), value.as_str().into()));
            cuts.push(whole.range());
        }
        let kept: String = name
            .char_indices()
            .filter(|(i, _)| !cuts.iter().any(|c| c.contains(i)))
            .map(|(_, c)| c)
            .collect();
        Extracted {
            name: kept.into(),
            labels: labels.into(),
        }
    }
}
