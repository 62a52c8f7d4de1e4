//! Go's text/template, as far as users' bootstrap templates need it: the whole language, its own
//! functions and the deterministic ones of Sprig. What is missing is an error with its line, never
//! a wrong document. Map: `lexer` → `parser` → `ast` → `eval`; `functions` and `value` serve it.

mod ast;
mod eval;
mod functions;
mod lexer;
mod parser;
mod protobuf;
mod value;

pub(crate) use protobuf::structure;
pub(crate) use value::Value;

/// A template that cannot be parsed or run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct TemplateError {
    /// 1-based.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

impl TemplateError {
    fn new(line: usize, message: impl Into<String>) -> Self {
        Self {
            line,
            message: message.into(),
        }
    }
}

/// A place where a missing parameter was printed, as Go does: `<no value>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoValue {
    /// 1-based.
    pub line: usize,
}

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Template(parser::Parsed);

impl Template {
    /// Parses `source`.
    pub(crate) fn parse(source: &str) -> Result<Self, TemplateError> {
        parser::parse(source).map(Self)
    }

    /// Runs the template with `root` as dot.
    pub(crate) fn render(
        &self,
        root: &Value,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(String, Vec<NoValue>), TemplateError> {
        eval::run(&self.0, root, &functions::Context { environment })
    }
}

#[cfg(test)]
mod tests;
