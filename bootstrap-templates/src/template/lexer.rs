//! Cuts a template into text and tokens, and applies trim markers. Knows no grammar.

use super::TemplateError;

/// One token of an action, or the text between actions.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// Copied to the output.
    Text(String),
    /// `{{`.
    Open,
    /// `}}`.
    Close,
    /// `.name`.
    Field(String),
    /// `$name`, with the dollar sign.
    Variable(String),
    /// `.` alone.
    Dot,
    /// Identifier or keyword.
    Word(String),
    /// Integer or character constant.
    Int(i64),
    /// Number with a fraction or an exponent.
    Float(f64),
    /// Quoted or raw string.
    Quoted(String),
    /// `|`.
    Pipe,
    /// `:=`.
    Declare,
    /// `=`.
    Assign,
    /// `,`.
    Comma,
    /// `(`.
    LeftParen,
    /// `)`.
    RightParen,
}

/// A token and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) token: Token,
    /// 1-based.
    pub(super) line: usize,
    /// Whether white space stands before it: `.a .b` are two operands, `.a.b` is one.
    pub(super) spaced: bool,
}

const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Cuts `source` into items.
pub(super) fn lex(source: &str) -> Result<Vec<Item>, TemplateError> {
    let mut lexer = Lexer {
        rest: source,
        line: 1,
        items: Vec::new(),
    };
    let mut trim_next = false;
    loop {
        let (text, found) = match lexer.rest.find("{{") {
            Some(at) => (&lexer.rest[..at], true),
            None => (lexer.rest, false),
        };
        let after = &lexer.rest[text.len()..];
        let trim_this = found && after[2..].starts_with('-') && after[3..].starts_with(SPACE);
        let mut kept = text;
        if trim_next {
            kept = kept.trim_start_matches(SPACE);
        }
        if trim_this {
            kept = kept.trim_end_matches(SPACE);
        }
        if !kept.is_empty() {
            lexer.push(Token::Text(kept.to_owned()), false);
        }
        lexer.advance(text.len());
        if !found {
            return Ok(lexer.items);
        }
        lexer.advance(if trim_this { 3 } else { 2 });
        trim_next = match lexer.comment(trim_this)? {
            Some(trim) => trim,
            None => lexer.action()?,
        };
    }
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    items: Vec<Item>,
}

impl Lexer<'_> {
    fn push(&mut self, token: Token, spaced: bool) {
        self.items.push(Item {
            token,
            line: self.line,
            spaced,
        });
    }

    fn advance(&mut self, bytes: usize) {
        self.line += self.rest[..bytes].matches('\n').count();
        self.rest = &self.rest[bytes..];
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, TemplateError> {
        Err(TemplateError::new(self.line, message))
    }

    /// The length of a closing delimiter at the start of `rest`, and whether it trims.
    fn closing(&self) -> Option<(usize, bool)> {
        if self.rest.starts_with("}}") {
            return Some((2, false));
        }
        let trimmed = self.rest.trim_start_matches(SPACE);
        let spaces = self.rest.len() - trimmed.len();
        (spaces > 0 && trimmed.starts_with("-}}")).then_some((spaces + 3, true))
    }

    /// A comment fills its action. `Some` tells whether the text after it is trimmed.
    fn comment(&mut self, after_trim: bool) -> Result<Option<bool>, TemplateError> {
        // Only the space that belongs to the trim marker may stand before it.
        let spaces = usize::from(after_trim);
        let body = &self.rest[spaces..];
        if !body.starts_with("/*") {
            return Ok(None);
        }
        let Some(end) = body.find("*/") else {
            return self.fail("unclosed comment");
        };
        self.advance(spaces + end + 2);
        let Some((length, trim)) = self.closing() else {
            return self.fail("comment ends before closing delimiter");
        };
        self.advance(length);
        Ok(Some(trim))
    }

    /// The tokens up to the closing delimiter; tells whether the text after it is trimmed.
    fn action(&mut self) -> Result<bool, TemplateError> {
        self.push(Token::Open, false);
        loop {
            if let Some((length, trim)) = self.closing() {
                self.push(Token::Close, false);
                self.advance(length);
                return Ok(trim);
            }
            let spaces = self.rest.len() - self.rest.trim_start_matches(SPACE).len();
            if spaces > 0 {
                self.advance(spaces);
                if let Some((length, trim)) = self.closing() {
                    self.push(Token::Close, true);
                    self.advance(length);
                    return Ok(trim);
                }
            }
            let line = self.line;
            let (token, length) = self.token()?;
            self.advance(length);
            self.items.push(Item {
                token,
                line,
                spaced: spaces > 0,
            });
        }
    }

    fn token(&self) -> Result<(Token, usize), TemplateError> {
        let mut chars = self.rest.chars();
        let Some(first) = chars.next() else {
            return self.fail("unclosed action");
        };
        let second = chars.next().unwrap_or('\0');
        match first {
            '|' => Ok((Token::Pipe, 1)),
            ',' => Ok((Token::Comma, 1)),
            '(' => Ok((Token::LeftParen, 1)),
            ')' => Ok((Token::RightParen, 1)),
            ':' if second == '=' => Ok((Token::Declare, 2)),
            '=' => Ok((Token::Assign, 1)),
            '"' => self.quoted(),
            '`' => self.raw(),
            '\'' => self.character(),
            '.' if second.is_ascii_digit() => self.number(),
            '0'..='9' => self.number(),
            '+' | '-' if second.is_ascii_digit() || second == '.' => self.number(),
            '.' => {
                let name = word(&self.rest[1..]);
                match name {
                    "" => Ok((Token::Dot, 1)),
                    name => Ok((Token::Field(name.to_owned()), 1 + name.len())),
                }
            }
            '$' => {
                let name = word(&self.rest[1..]);
                Ok((Token::Variable(format!("${name}")), 1 + name.len()))
            }
            c if c == '_' || c.is_alphabetic() => {
                let name = word(self.rest);
                Ok((Token::Word(name.to_owned()), name.len()))
            }
            c => self.fail(format!("unexpected {c:?} in an action")),
        }
    }

    fn quoted(&self) -> Result<(Token, usize), TemplateError> {
        let mut escaped = false;
        for (at, c) in self.rest.char_indices().skip(1) {
            match c {
                '\n' => break,
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => {
                    let literal = &self.rest[..=at];
                    let text = crate::downward::unquote(literal);
                    return match text {
                        Some(text) => Ok((Token::Quoted(text), literal.len())),
                        None => self.fail(format!("bad string {literal}")),
                    };
                }
                _ => {}
            }
        }
        self.fail("unterminated quoted string")
    }

    fn raw(&self) -> Result<(Token, usize), TemplateError> {
        match self.rest[1..].find('`') {
            Some(end) => Ok((Token::Quoted(self.rest[1..=end].replace('\r', "")), end + 2)),
            None => self.fail("unterminated raw quoted string"),
        }
    }

    /// A character constant is its code point.
    fn character(&self) -> Result<(Token, usize), TemplateError> {
        let bad = || TemplateError::new(self.line, "bad character constant");
        let start = if self.rest[1..].starts_with('\\') {
            3
        } else {
            2
        };
        let end = self
            .rest
            .char_indices()
            .find(|(at, c)| *at >= start && *c == '\'')
            .map(|(at, _)| at)
            .ok_or_else(bad)?;
        let inner = self.rest[1..end].replace("\\'", "'").replace('"', "\\\"");
        let text = crate::downward::unquote(&format!("\"{inner}\"")).ok_or_else(bad)?;
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) => Ok((Token::Int(i64::from(u32::from(c))), end + 1)),
            _ => Err(bad()),
        }
    }

    fn number(&self) -> Result<(Token, usize), TemplateError> {
        let mut previous = ' ';
        let end = self
            .rest
            .find(|c: char| {
                let sign = matches!(c, '+' | '-')
                    && (previous == ' ' || matches!(previous, 'e' | 'E' | 'p' | 'P'));
                previous = c;
                !(sign || c.is_ascii_alphanumeric() || c == '.' || c == '_')
            })
            .unwrap_or(self.rest.len());
        let text = &self.rest[..end];
        let token = parse_int(text)
            .map(Token::Int)
            .or_else(|| parse_float(text).map(Token::Float));
        match token {
            Some(token) => Ok((token, end)),
            None => self.fail(format!("bad number {text:?}")),
        }
    }
}

/// Integer constants of Go, except that a constant must fit into 64 signed bits.
pub(super) fn parse_int(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some(start) if start.starts_with('0') => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let digits = digits.replace('_', "");
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let value = i128::from_str_radix(&digits, radix).ok()?;
    i64::try_from(if negative { -value } else { value }).ok()
}

/// Decimal floating point constants.
fn parse_float(text: &str) -> Option<f64> {
    let plain = text.replace('_', "");
    let known = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-');
    if !plain.chars().all(known) || !plain.contains(['.', 'e', 'E']) {
        return None;
    }
    plain.parse().ok().filter(|f: &f64| f.is_finite())
}

fn word(text: &str) -> &str {
    let end = text
        .find(|c: char| c != '_' && !c.is_alphanumeric())
        .unwrap_or(text.len());
    &text[..end]
}
