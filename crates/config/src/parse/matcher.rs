//! String, header and query matchers, regular expressions and substitutions.

use std::sync::Arc;

use envoy_types::pb;
use pb::envoy::config::route::v3 as route;
use pb::envoy::r#type::matcher::v3 as matcher;

use super::wkt::non_empty;
use super::{Cx, Result, UNSUPPORTED, ignore_set};
use crate::matcher::{
    CompiledRegex, HeaderMatchKind, HeaderMatcher, QueryParameterMatcher, StringMatcher,
    StringPattern, translate_substitution,
};
use crate::route::RegexRewrite;

/// `RegexMatcher`. The same expression in one resource is compiled once.
pub(super) fn regex(cx: &mut Cx, value: matcher::RegexMatcher) -> Result<Arc<CompiledRegex>> {
    let matcher::RegexMatcher { regex, engine_type } = value;
    if let Some(matcher::regex_matcher::EngineType::GoogleRe2(re2)) = engine_type {
        let matcher::regex_matcher::GoogleRe2 { max_program_size } = re2;
        ignore_set!(cx, "one limit for program sizes applies to every expression"; max_program_size);
    }
    if regex.is_empty() {
        return Err(cx.err_at("regex", "value length must be at least 1 characters"));
    }
    if let Some(known) = cx.regexes.get(&regex) {
        return Ok(Arc::clone(known));
    }
    let compiled =
        Arc::new(CompiledRegex::new(&regex).map_err(|e| cx.err_at("regex", e.to_string()))?);
    cx.regexes.insert(regex, Arc::clone(&compiled));
    Ok(compiled)
}

/// `RegexMatchAndSubstitute`.
pub(super) fn substitution(
    cx: &mut Cx,
    value: matcher::RegexMatchAndSubstitute,
) -> Result<RegexRewrite> {
    let matcher::RegexMatchAndSubstitute {
        pattern,
        substitution,
    } = value;
    let pattern = cx.required("pattern", pattern, regex)?;
    let substitution = translate_substitution(&substitution, pattern.search.captures_len())
        .map_err(|e| cx.err_at("substitution", e.to_string()))?;
    Ok(RegexRewrite {
        pattern,
        substitution,
    })
}

/// `StringMatcher`.
pub(super) fn string(cx: &mut Cx, value: matcher::StringMatcher) -> Result<StringMatcher> {
    use matcher::string_matcher::MatchPattern as P;
    let matcher::StringMatcher {
        ignore_case,
        match_pattern,
    } = value;
    let fold = |s: String| -> Arc<str> {
        if ignore_case {
            s.to_ascii_lowercase().into()
        } else {
            s.into()
        }
    };
    let some = |cx: &Cx, field: &str, s: String| -> Result<Arc<str>> {
        non_empty(cx, field, s).map(|s| fold(s.to_string()))
    };
    let pattern = match match_pattern {
        Some(P::Exact(s)) => StringPattern::Exact(fold(s)),
        Some(P::Prefix(s)) => StringPattern::Prefix(some(cx, "prefix", s)?),
        Some(P::Suffix(s)) => StringPattern::Suffix(some(cx, "suffix", s)?),
        Some(P::Contains(s)) => StringPattern::Contains(some(cx, "contains", s)?),
        Some(P::SafeRegex(r)) => StringPattern::Regex(cx.field("safe_regex", |cx| regex(cx, r))?),
        Some(P::Custom(_)) => return Err(cx.err_at("custom", UNSUPPORTED)),
        None => return Err(cx.err("match_pattern: is required")),
    };
    // ignore_case has no effect on regular expressions.
    let ignore_case = ignore_case && !matches!(pattern, StringPattern::Regex(_));
    Ok(StringMatcher {
        pattern,
        ignore_case,
    })
}

/// `HeaderMatcher`, the deprecated forms included.
pub(super) fn header(cx: &mut Cx, value: route::HeaderMatcher) -> Result<HeaderMatcher> {
    use route::header_matcher::HeaderMatchSpecifier as S;
    let route::HeaderMatcher {
        name,
        invert_match,
        treat_missing_header_as_empty,
        header_match_specifier,
    } = value;
    let plain = |pattern| {
        HeaderMatchKind::String(StringMatcher {
            pattern,
            ignore_case: false,
        })
    };
    let kind = match header_match_specifier {
        None => HeaderMatchKind::Present(true),
        Some(S::PresentMatch(present)) => HeaderMatchKind::Present(present),
        Some(S::StringMatch(m)) => {
            HeaderMatchKind::String(cx.field("string_match", |cx| string(cx, m))?)
        }
        Some(S::ExactMatch(s)) => plain(StringPattern::Exact(s.into())),
        Some(S::PrefixMatch(s)) => plain(StringPattern::Prefix(non_empty(cx, "prefix_match", s)?)),
        Some(S::SuffixMatch(s)) => plain(StringPattern::Suffix(non_empty(cx, "suffix_match", s)?)),
        Some(S::ContainsMatch(s)) => {
            plain(StringPattern::Contains(non_empty(cx, "contains_match", s)?))
        }
        Some(S::SafeRegexMatch(r)) => plain(StringPattern::Regex(
            cx.field("safe_regex_match", |cx| regex(cx, r))?,
        )),
        Some(S::RangeMatch(pb::envoy::r#type::v3::Int64Range { start, end })) => {
            HeaderMatchKind::Range { start, end }
        }
    };
    Ok(HeaderMatcher {
        name: header_name(cx, "name", name)?,
        kind,
        invert: invert_match,
        treat_missing_as_empty: treat_missing_header_as_empty,
    })
}

/// `QueryParameterMatcher`.
pub(super) fn query_parameter(
    cx: &mut Cx,
    value: route::QueryParameterMatcher,
) -> Result<QueryParameterMatcher> {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier as S;
    let route::QueryParameterMatcher {
        name,
        query_parameter_match_specifier,
    } = value;
    let (value, present) = match query_parameter_match_specifier {
        None => (None, true),
        Some(S::PresentMatch(p)) => (None, p),
        Some(S::StringMatch(m)) => (Some(cx.field("string_match", |cx| string(cx, m))?), true),
    };
    Ok(QueryParameterMatcher {
        name: non_empty(cx, "name", name)?,
        value,
        present,
    })
}

/// A header name (pseudo headers allowed), lower case.
pub(super) fn header_name(cx: &Cx, field: &str, name: String) -> Result<Arc<str>> {
    let name = non_empty(cx, field, name)?;
    let token = name.strip_prefix(':').unwrap_or(&name);
    if token.is_empty() || !token.bytes().all(is_token) {
        return Err(cx.err_at(field, format!("'{name}' is not a valid header name")));
    }
    Ok(name.to_ascii_lowercase().into())
}

/// RFC 9110 `tchar`.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}
