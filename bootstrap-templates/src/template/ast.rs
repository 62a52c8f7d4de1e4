//! The parsed form of a template.

use super::value::Value;

/// A piece of a template.
#[derive(Debug)]
pub(super) enum Node {
    /// Copied to the output.
    Text(String),
    /// A pipeline whose value is printed, unless it declares or assigns.
    Action(Pipeline),
    /// `if`.
    If(Branch),
    /// `with`.
    With(Branch),
    /// `range`.
    Range(Branch),
    /// `template "name" pipeline`.
    Template {
        /// Name of the definition.
        name: String,
        /// Its dot; nothing without one.
        argument: Option<Pipeline>,
        /// Where it is called.
        line: usize,
    },
    /// Leaves the innermost range.
    Break,
    /// Next round of the innermost range.
    Continue,
}

/// Condition or list, and both outcomes.
#[derive(Debug)]
pub(super) struct Branch {
    pub(super) pipeline: Pipeline,
    pub(super) then: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

/// Commands, each fed with the value of the one before.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) line: usize,
    /// Variables that receive the value, with the dollar sign; two only in `range`.
    pub(super) variables: Vec<String>,
    /// `=` instead of `:=`.
    pub(super) assigns: bool,
    pub(super) commands: Vec<Command>,
}

/// An operand and its arguments.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) line: usize,
    pub(super) operands: Vec<Operand>,
}

/// A value in a command.
#[derive(Debug)]
pub(super) enum Operand {
    /// A constant.
    Literal(Value),
    /// `nil`, only allowed as an argument.
    Nil,
    /// `.`
    Dot,
    /// A function.
    Function(String),
    /// A pipeline in parentheses.
    Pipeline(Pipeline),
    /// `$name`.
    Variable(String),
    /// `.a.b` after another operand; after `Dot` for `.a.b` alone.
    Fields(Box<Self>, Vec<String>),
}
