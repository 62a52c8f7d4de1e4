//! The files of the downward API: one `key="value"` per line, the value quoted as Go quotes.

use std::collections::BTreeMap;

/// A value that is not a Go string literal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: value is not a quoted string")]
pub struct DownwardError {
    /// 1-based.
    pub line: usize,
}

/// Parses a labels or annotations file. Lines without `=` are skipped, as in the reference.
///
/// # Errors
/// The first line whose value is not quoted properly.
pub fn parse_downward_api(text: &str) -> Result<BTreeMap<String, String>, DownwardError> {
    let mut out = BTreeMap::new();
    for (index, line) in text.split('\n').enumerate() {
        let Some((key, quoted)) = line.split_once('=') else {
            continue;
        };
        let value = unquote(quoted).ok_or(DownwardError { line: index + 1 })?;
        out.insert(key.to_owned(), value);
    }
    Ok(out)
}

/// Go's `strconv.Unquote` for double-quoted and raw strings. Bytes written as escapes must form
/// UTF-8 together.
pub(crate) fn unquote(text: &str) -> Option<String> {
    if let Some(raw) = text.strip_prefix('`').and_then(|t| t.strip_suffix('`')) {
        return (!raw.contains('`')).then(|| raw.replace('\r', ""));
    }
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut out = Vec::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return None,
            '\\' => escape(&mut chars, &mut out)?,
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    String::from_utf8(out).ok()
}

fn escape(chars: &mut std::str::Chars<'_>, out: &mut Vec<u8>) -> Option<()> {
    let number = |chars: &mut std::str::Chars<'_>, digits: usize, radix: u32| {
        let mut value: u32 = 0;
        for _ in 0..digits {
            value = value
                .checked_mul(radix)?
                .checked_add(chars.next()?.to_digit(radix)?)?;
        }
        Some(value)
    };
    let byte = match chars.next()? {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' => b'\\',
        '"' => b'"',
        'x' => u8::try_from(number(chars, 2, 16)?).ok()?,
        c @ ('u' | 'U') => {
            let value = number(chars, if c == 'u' { 4 } else { 8 }, 16)?;
            let c = char::from_u32(value)?;
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(());
        }
        c @ '0'..='7' => {
            let value = c
                .to_digit(8)?
                .checked_mul(64)?
                .checked_add(number(chars, 2, 8)?)?;
            u8::try_from(value).ok()?
        }
        _ => return None,
    };
    out.push(byte);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unquotes_go_strings() {
        for (text, value) in [
            (r#""plain""#, Some("plain")),
            (r#""a\"b\\c\n\té\x41\101\u00e9""#, Some("a\"b\\c\n\téAAé")),
            (r#""\xc3\xa9""#, Some("é")),
            (r#""\xff""#, None),
            (r#""\400""#, None),
            (r#""open"#, None),
            (r#""a"b""#, None),
            (r#""\q""#, None),
            ("bare", None),
            ("`raw \\n`", Some("raw \\n")),
        ] {
            assert_eq!(unquote(text).as_deref(), value, "{text}");
        }
    }

    #[test]
    fn names_the_line_that_is_not_quoted() {
        let error = parse_downward_api("a=\"1\"\n\nb=2\n").expect_err("second value is bare");
        assert_eq!(error, DownwardError { line: 3 });
    }
}
