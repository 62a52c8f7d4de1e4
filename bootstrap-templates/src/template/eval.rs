//! Runs a parsed template: dot, variables, control flow and calls. Output, steps and nesting are
//! bounded, so that a template can fail but neither hang nor exhaust memory.

use super::ast::{Branch, Command, Node, Operand, Pipeline};
use super::functions::{self, Context};
use super::parser::Parsed;
use super::value::Value;
use super::{NoValue, TemplateError};

/// A bootstrap has some 30 kB; Envoy would not start with one of this size.
const MAX_OUTPUT: usize = 16 << 20;
/// Nodes and calls; a bootstrap needs a few thousand.
const MAX_STEPS: usize = 1_000_000;
/// `template` calls inside each other.
const MAX_CALLS: usize = 20;

/// What a list of nodes asks of the range around it.
enum Flow {
    Next,
    Break,
    Continue,
}

/// One execution.
pub(super) struct Evaluation<'a> {
    parsed: &'a Parsed,
    context: &'a Context<'a>,
    output: String,
    no_values: Vec<NoValue>,
    variables: Vec<(String, Value)>,
    steps: usize,
    calls: usize,
    /// Of the latest action.
    line: usize,
}

/// Runs `parsed` with `root` as dot. Also returns the lines that printed `<no value>`.
pub(super) fn run(
    parsed: &Parsed,
    root: &Value,
    context: &Context<'_>,
) -> Result<(String, Vec<NoValue>), TemplateError> {
    let mut evaluation = Evaluation {
        parsed,
        context,
        output: String::new(),
        no_values: Vec::new(),
        variables: vec![("$".to_owned(), root.clone())],
        steps: 0,
        calls: 0,
        line: 1,
    };
    evaluation.list(&parsed.main, root)?;
    Ok((evaluation.output, evaluation.no_values))
}

impl Evaluation<'_> {
    fn step(&mut self, line: usize) -> Result<(), TemplateError> {
        self.steps += 1;
        self.line = line;
        if self.steps > MAX_STEPS {
            return Err(TemplateError::new(
                line,
                format!("more than {MAX_STEPS} steps"),
            ));
        }
        Ok(())
    }

    fn write(&mut self, text: &str) -> Result<(), TemplateError> {
        if self.output.len() + text.len() > MAX_OUTPUT {
            let message = format!("output is larger than {MAX_OUTPUT} bytes");
            return Err(TemplateError::new(self.line, message));
        }
        self.output.push_str(text);
        Ok(())
    }

    fn list(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, TemplateError> {
        for node in nodes {
            match node {
                Node::Text(text) => self.write(text)?,
                Node::Action(pipeline) => self.action(pipeline, dot)?,
                Node::If(branch) | Node::With(branch) => {
                    let with = matches!(node, Node::With(_));
                    let scope = self.variables.len();
                    let flow = self.branch(branch, dot, with)?;
                    self.variables.truncate(scope);
                    if !matches!(flow, Flow::Next) {
                        return Ok(flow);
                    }
                }
                Node::Range(branch) => {
                    let scope = self.variables.len();
                    let flow = self.range(branch, dot)?;
                    self.variables.truncate(scope);
                    if !matches!(flow, Flow::Next) {
                        return Ok(flow);
                    }
                }
                Node::Template {
                    name,
                    argument,
                    line,
                } => self.template(name, argument.as_ref(), *line, dot)?,
                Node::Break => return Ok(Flow::Break),
                Node::Continue => return Ok(Flow::Continue),
            }
        }
        Ok(Flow::Next)
    }

    fn action(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<(), TemplateError> {
        let value = self.pipeline(pipeline, dot)?;
        if !pipeline.variables.is_empty() {
            return Ok(());
        }
        if matches!(value, Value::Nil) {
            self.no_values.push(NoValue {
                line: pipeline.line,
            });
        }
        let text = value
            .print()
            .map_err(|m| TemplateError::new(pipeline.line, m))?;
        self.write(&text)
    }

    fn branch(&mut self, branch: &Branch, dot: &Value, with: bool) -> Result<Flow, TemplateError> {
        let value = self.pipeline(&branch.pipeline, dot)?;
        match (value.is_true(), with) {
            (true, true) => self.list(&branch.then, &value),
            (true, false) => self.list(&branch.then, dot),
            (false, _) => self.list(&branch.otherwise, dot),
        }
    }

    fn range(&mut self, branch: &Branch, dot: &Value) -> Result<Flow, TemplateError> {
        let value = self.commands(&branch.pipeline, dot)?;
        let line = branch.pipeline.line;
        let items: Vec<(Value, Value)> = match &value {
            Value::Nil => Vec::new(),
            Value::List(items) => (0_i64..)
                .map(Value::Int)
                .zip(items.iter().cloned())
                .collect(),
            Value::Int(count) if branch.pipeline.variables.len() < 2 => {
                let count = usize::try_from(*count).unwrap_or(0).min(MAX_STEPS + 1);
                let number = |i: usize| Value::Int(i64::try_from(i).unwrap_or(i64::MAX));
                (0..count).map(|i| (number(i), number(i))).collect()
            }
            other => match other.entries() {
                Some(entries) => entries
                    .into_iter()
                    .map(|(k, v)| (Value::from(k), v))
                    .collect(),
                None => {
                    let message = format!("range can't iterate over {}", other.kind());
                    return Err(TemplateError::new(line, message));
                }
            },
        };
        if items.is_empty() {
            return self.list(&branch.otherwise, dot);
        }
        let scope = self.variables.len();
        for (key, item) in items {
            self.step(line)?;
            match branch.pipeline.variables.as_slice() {
                [] => {}
                [one] => self.set(&branch.pipeline, one, item.clone()),
                [first, second, ..] => {
                    self.set(&branch.pipeline, first, key);
                    self.set(&branch.pipeline, second, item.clone());
                }
            }
            let flow = self.list(&branch.then, &item)?;
            self.variables.truncate(scope);
            if matches!(flow, Flow::Break) {
                break;
            }
        }
        Ok(Flow::Next)
    }

    fn template(
        &mut self,
        name: &str,
        argument: Option<&Pipeline>,
        line: usize,
        dot: &Value,
    ) -> Result<(), TemplateError> {
        let Some(nodes) = self.parsed.definitions.get(name) else {
            return Err(TemplateError::new(
                line,
                format!("template {name:?} not defined"),
            ));
        };
        let dot = match argument {
            Some(pipeline) => self.pipeline(pipeline, dot)?,
            None => Value::Nil,
        };
        if self.calls == MAX_CALLS {
            let message = format!("more than {MAX_CALLS} templates call each other");
            return Err(TemplateError::new(line, message));
        }
        self.step(line)?;
        self.calls += 1;
        let own = vec![("$".to_owned(), dot.clone())];
        let outer = std::mem::replace(&mut self.variables, own);
        self.list(nodes, &dot)?;
        self.variables = outer;
        self.calls -= 1;
        Ok(())
    }

    /// The value of a pipeline; its variable is set.
    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let value = self.commands(pipeline, dot)?;
        for name in &pipeline.variables {
            self.set(pipeline, name, value.clone());
        }
        Ok(value)
    }

    fn set(&mut self, pipeline: &Pipeline, name: &str, value: Value) {
        if pipeline.assigns {
            let known = self
                .variables
                .iter_mut()
                .rev()
                .find(|(known, _)| known == name);
            if let Some((_, slot)) = known {
                *slot = value;
            }
        } else {
            self.variables.push((name.to_owned(), value));
        }
    }

    fn commands(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut value = None;
        for command in &pipeline.commands {
            value = Some(self.command(command, value, dot)?);
        }
        Ok(value.unwrap_or(Value::Nil))
    }

    fn command(
        &mut self,
        command: &Command,
        piped: Option<Value>,
        dot: &Value,
    ) -> Result<Value, TemplateError> {
        self.step(command.line)?;
        let Some((first, rest)) = command.operands.split_first() else {
            return Ok(Value::Nil);
        };
        if let Operand::Function(name) = first {
            return self.call(name, rest, piped, command.line, dot);
        }
        if !rest.is_empty() || piped.is_some() {
            let message = "a value that is no function was given arguments";
            return Err(TemplateError::new(command.line, message));
        }
        self.operand(first, command.line, dot)
    }

    fn operand(
        &mut self,
        operand: &Operand,
        line: usize,
        dot: &Value,
    ) -> Result<Value, TemplateError> {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Nil => Ok(Value::Nil),
            Operand::Dot => Ok(dot.clone()),
            Operand::Function(name) => self.call(name, &[], None, line, dot),
            Operand::Pipeline(pipeline) => {
                let scope = self.variables.len();
                let value = self.pipeline(pipeline, dot);
                self.variables.truncate(scope);
                value
            }
            Operand::Variable(name) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                Ok(found.map_or(Value::Nil, |(_, value)| value.clone()))
            }
            Operand::Fields(start, names) => {
                let mut value = self.operand(start, line, dot)?;
                for name in names {
                    value = value.field(name).map_err(|m| TemplateError::new(line, m))?;
                }
                Ok(value)
            }
        }
    }

    fn call(
        &mut self,
        name: &str,
        operands: &[Operand],
        piped: Option<Value>,
        line: usize,
        dot: &Value,
    ) -> Result<Value, TemplateError> {
        // Both stop at the first argument that decides, so that `and .a .a.b` is safe.
        if let "and" | "or" = name {
            let mut last = Value::Nil;
            for operand in operands {
                last = self.operand(operand, line, dot)?;
                if last.is_true() == (name == "or") {
                    return Ok(last);
                }
            }
            return match (piped, operands) {
                (Some(value), _) => Ok(value),
                (None, []) => Err(TemplateError::new(
                    line,
                    format!("{name} needs an argument"),
                )),
                (None, _) => Ok(last),
            };
        }
        let mut arguments = Vec::with_capacity(operands.len() + 1);
        for operand in operands {
            arguments.push(self.operand(operand, line, dot)?);
        }
        arguments.extend(piped);
        functions::call(name, self.context, &arguments)
            .map_err(|message| TemplateError::new(line, format!("{name}: {message}")))
    }
}
