//! The functions of a bootstrap template: Go's own, `toJSON`, and those of Sprig whose result
//! depends on nothing but their arguments and the environment.

mod collections;
mod compare;
mod format;
mod json;
mod math;
mod text;

use super::value::Value;

/// Depth and number of parts of a value; `set` could otherwise build one without end.
const MAX_VALUE_DEPTH: usize = 32;
const MAX_VALUE_PARTS: usize = 100_000;

/// What functions may use besides their arguments.
pub(super) struct Context<'a> {
    /// Looks an environment variable up.
    pub(super) environment: &'a dyn Fn(&str) -> Option<String>,
}

type Call = fn(&Context<'_>, &[Value]) -> Result<Value, String>;

/// A function and how many arguments it takes.
pub(super) struct Function {
    name: &'static str,
    min: usize,
    max: usize,
    call: Call,
}

/// A function with a fixed number of arguments, or a range of it.
const fn function(name: &'static str, min: usize, max: usize, call: Call) -> Function {
    Function {
        name,
        min,
        max,
        call,
    }
}

const ANY: usize = usize::MAX;

/// Functions of Sprig that need time, chance, keys, the network, or a library of their own.
const ELSEWHERE: &[&str] = &[
    "adler32sum",
    "ago",
    "b32dec",
    "b32enc",
    "bcrypt",
    "buildCustomCert",
    "camelcase",
    "chunk",
    "clean",
    "date",
    "dateInZone",
    "dateModify",
    "date_in_zone",
    "date_modify",
    "decryptAES",
    "derivePassword",
    "dir",
    "duration",
    "durationRound",
    "encryptAES",
    "genCA",
    "genCAWithKey",
    "genPrivateKey",
    "genSelfSignedCert",
    "genSelfSignedCertWithKey",
    "genSignedCert",
    "genSignedCertWithKey",
    "getHostByName",
    "hello",
    "htmlDate",
    "htmlDateInZone",
    "htpasswd",
    "initials",
    "kebabcase",
    "mustChunk",
    "mustDateModify",
    "mustRegexFind",
    "mustRegexFindAll",
    "mustRegexMatch",
    "mustRegexReplaceAll",
    "mustRegexReplaceAllLiteral",
    "mustRegexSplit",
    "mustToDate",
    "must_date_modify",
    "now",
    "osBase",
    "osClean",
    "osDir",
    "osExt",
    "osIsAbs",
    "plural",
    "randAlpha",
    "randAlphaNum",
    "randAscii",
    "randBytes",
    "randInt",
    "randNumeric",
    "regexFind",
    "regexFindAll",
    "regexMatch",
    "regexQuoteMeta",
    "regexReplaceAll",
    "regexReplaceAllLiteral",
    "regexSplit",
    "semver",
    "semverCompare",
    "sha1sum",
    "sha256sum",
    "sha512sum",
    "shuffle",
    "snakecase",
    "swapcase",
    "toDate",
    "toDecimal",
    "typeIs",
    "typeIsLike",
    "typeOf",
    "unixEpoch",
    "urlJoin",
    "urlParse",
    "uuidv4",
    "wrap",
    "wrapWith",
    "addf",
    "add1f",
    "subf",
    "divf",
    "mulf",
    "maxf",
    "minf",
    "call",
];

/// Whether Istio's agent has the function and this one does not.
pub(super) fn exists_elsewhere(name: &str) -> bool {
    ELSEWHERE.contains(&name)
}

/// The function of that name.
pub(super) fn find(name: &str) -> Option<&'static Function> {
    let tables = [
        compare::TABLE,
        format::TABLE,
        text::TABLE,
        math::TABLE,
        json::TABLE,
        collections::TABLE,
    ];
    tables
        .into_iter()
        .flatten()
        .find(|function| function.name == name)
}

/// Calls a function that [`find`] knows.
pub(super) fn call(
    name: &str,
    context: &Context<'_>,
    arguments: &[Value],
) -> Result<Value, String> {
    let function = find(name).ok_or("not defined")?;
    if arguments.len() < function.min || arguments.len() > function.max {
        return Err(format!("wrong number of arguments: {}", arguments.len()));
    }
    let value = (function.call)(context, arguments)?;
    let mut parts = MAX_VALUE_PARTS;
    if !bounded(&value, MAX_VALUE_DEPTH, &mut parts) {
        return Err("the result is too large or contains itself".to_owned());
    }
    Ok(value)
}

fn bounded(value: &Value, depth: usize, parts: &mut usize) -> bool {
    if depth == 0 || *parts == 0 {
        return false;
    }
    *parts -= 1;
    match value {
        Value::List(items) => items.iter().all(|item| bounded(item, depth - 1, parts)),
        Value::Map(entries) => entries
            .borrow()
            .values()
            .all(|item| bounded(item, depth - 1, parts)),
        _ => true,
    }
}

/// The text of an argument that must be text.
fn text(value: &Value) -> Result<&str, String> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(format!("expected string, got {}", other.kind())),
    }
}

/// Sprig's conversion to text: whatever prints.
fn any_text(value: &Value) -> Result<String, String> {
    match value {
        Value::Nil => Ok("<nil>".to_owned()),
        other => other.print(),
    }
}

/// Sprig's conversion to a whole number: text that is none counts as 0, fractions are cut off.
fn whole(value: &Value) -> i64 {
    match value {
        Value::Int(value) => *value,
        Value::Float(value) => *value as i64,
        Value::Bool(value) => i64::from(*value),
        Value::Text(text) => super::lexer::parse_int(text).unwrap_or(0),
        _ => 0,
    }
}

/// Items of a list.
fn items(value: &Value) -> Result<&[Value], String> {
    match value {
        Value::List(items) => Ok(items),
        other => Err(format!("expected a list, got {}", other.kind())),
    }
}
