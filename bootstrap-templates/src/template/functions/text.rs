//! Text functions of Sprig, paths, base64 and the environment.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::value::Value;
use super::{ANY, Context, Function, any_text, function, text, whole};

/// Longest result of `repeat` and `indent`.
const MAX_TEXT: usize = 1 << 20;

pub(super) const TABLE: &[Function] = &[
    function("trim", 1, 1, |_, a| Ok(text(&a[0])?.trim().into())),
    function("trimAll", 2, 2, trim_all),
    function("trimall", 2, 2, trim_all),
    function("trimPrefix", 2, 2, |_, a| {
        let (prefix, text) = (text(&a[0])?, text(&a[1])?);
        Ok(text.strip_prefix(prefix).unwrap_or(text).into())
    }),
    function("trimSuffix", 2, 2, |_, a| {
        let (suffix, text) = (text(&a[0])?, text(&a[1])?);
        Ok(text.strip_suffix(suffix).unwrap_or(text).into())
    }),
    function("upper", 1, 1, |_, a| Ok(text(&a[0])?.to_uppercase().into())),
    function("lower", 1, 1, |_, a| Ok(text(&a[0])?.to_lowercase().into())),
    function("title", 1, 1, |_, a| Ok(title(text(&a[0])?).into())),
    function("untitle", 1, 1, |_, a| {
        let mut chars = text(&a[0])?.chars();
        let first = chars.next().map(|c| c.to_lowercase().to_string());
        Ok((first.unwrap_or_default() + chars.as_str()).into())
    }),
    function("nospace", 1, 1, |_, a| {
        Ok(text(&a[0])?.split_whitespace().collect::<String>().into())
    }),
    function("substr", 3, 3, |_, a| {
        let text = text(&a[2])?;
        let bound = |value: &Value, other: usize| {
            usize::try_from(whole(value)).map_or(other, |n| n.min(text.len()))
        };
        let (start, end) = (bound(&a[0], 0), bound(&a[1], text.len()));
        text.get(start..end.max(start))
            .map(Value::from)
            .ok_or_else(|| "cuts a character".to_owned())
    }),
    function("trunc", 2, 2, |_, a| {
        let (limit, text) = (whole(&a[0]), text(&a[1])?);
        let size = usize::try_from(limit.unsigned_abs()).unwrap_or(usize::MAX);
        let cut = if size >= text.len() {
            Some(text)
        } else if limit < 0 {
            text.get(text.len() - size..)
        } else {
            text.get(..size)
        };
        cut.map(Value::from)
            .ok_or_else(|| "cuts a character".to_owned())
    }),
    function("repeat", 2, 2, |_, a| {
        repeated(text(&a[1])?, whole(&a[0])).map(Value::from)
    }),
    function("contains", 2, 2, |_, a| {
        Ok(text(&a[1])?.contains(text(&a[0])?).into())
    }),
    function("hasPrefix", 2, 2, |_, a| {
        Ok(text(&a[1])?.starts_with(text(&a[0])?).into())
    }),
    function("hasSuffix", 2, 2, |_, a| {
        Ok(text(&a[1])?.ends_with(text(&a[0])?).into())
    }),
    function("replace", 3, 3, |_, a| {
        Ok(text(&a[2])?.replace(text(&a[0])?, text(&a[1])?).into())
    }),
    function("cat", 0, ANY, |_, a| {
        let present = a.iter().filter(|v| !matches!(v, Value::Nil));
        let texts: Result<Vec<_>, _> = present.map(any_text).collect();
        Ok(texts?.join(" ").into())
    }),
    function("indent", 2, 2, |_, a| {
        Ok(indent(&a[0], text(&a[1])?)?.into())
    }),
    function("nindent", 2, 2, |_, a| {
        Ok(format!("\n{}", indent(&a[0], text(&a[1])?)?).into())
    }),
    function("base", 1, 1, |_, a| Ok(base(text(&a[0])?).into())),
    function("ext", 1, 1, |_, a| {
        let name = text(&a[0])?.rsplit('/').next().unwrap_or_default();
        Ok(name.rfind('.').map_or("", |dot| &name[dot..]).into())
    }),
    function("isAbs", 1, 1, |_, a| {
        Ok(text(&a[0])?.starts_with('/').into())
    }),
    function("b64enc", 1, 1, |_, a| {
        Ok(STANDARD.encode(text(&a[0])?).into())
    }),
    function("b64dec", 1, 1, |_, a| {
        let bytes = STANDARD.decode(text(&a[0])?).map_err(|e| e.to_string())?;
        String::from_utf8(bytes)
            .map(Value::from)
            .map_err(|e| e.to_string())
    }),
    function("env", 1, 1, |c, a| {
        Ok((c.environment)(text(&a[0])?).unwrap_or_default().into())
    }),
    function("expandenv", 1, 1, |c, a| Ok(expand(c, text(&a[0])?).into())),
];

fn trim_all(_: &Context<'_>, a: &[Value]) -> Result<Value, String> {
    let cut: Vec<char> = text(&a[0])?.chars().collect();
    Ok(text(&a[1])?.trim_matches(cut.as_slice()).into())
}

fn title(text: &str) -> String {
    let mut start = true;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if start {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
        start = !(c.is_alphanumeric() || c == '_' || c == '\'');
    }
    out
}

fn repeated(text: &str, count: i64) -> Result<String, String> {
    let count = usize::try_from(count).map_err(|_| "negative count".to_owned())?;
    if text.len().saturating_mul(count) > MAX_TEXT {
        return Err(format!("more than {MAX_TEXT} bytes"));
    }
    Ok(text.repeat(count))
}

fn indent(spaces: &Value, text: &str) -> Result<String, String> {
    let pad = repeated(" ", whole(spaces))?;
    if pad.len().saturating_mul(text.matches('\n').count() + 1) > MAX_TEXT {
        return Err(format!("more than {MAX_TEXT} bytes"));
    }
    Ok(pad.clone() + &text.replace('\n', &format!("\n{pad}")))
}

/// The last part of a path; `.` for none.
fn base(path: &str) -> &str {
    let bare = path.trim_end_matches('/');
    match (path, bare) {
        ("", _) => ".",
        (_, "") => "/",
        (_, bare) => bare.rsplit('/').next().unwrap_or(bare),
    }
}

/// `$NAME` and `${NAME}`; an unset variable is nothing.
fn expand(context: &Context<'_>, text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let braced = after.strip_prefix('{').and_then(|a| a.split_once('}'));
        let (name, next) = braced.unwrap_or_else(|| {
            let end = after
                .find(|c: char| c != '_' && !c.is_ascii_alphanumeric())
                .unwrap_or(after.len());
            after.split_at(end)
        });
        if name.is_empty() {
            out.push('$');
        } else {
            out.push_str(&(context.environment)(name).unwrap_or_default());
        }
        rest = next;
    }
    out + rest
}
