//! The grammar of Go's text/template: items in, nodes out. Evaluates nothing.

use std::collections::BTreeMap;

use super::TemplateError;
use super::ast::{Branch, Command, Node, Operand, Pipeline};
use super::functions;
use super::lexer::{Item, Token, lex};
use super::value::Value;

/// Nesting of actions and parentheses; more is a mistake, and recursion must end.
const MAX_DEPTH: usize = 50;

/// A parsed template and the templates it defines.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) main: Vec<Node>,
    pub(super) definitions: BTreeMap<String, Vec<Node>>,
}

/// Parses `source`.
pub(super) fn parse(source: &str) -> Result<Parsed, TemplateError> {
    let mut parser = Parser {
        items: lex(source)?,
        at: 0,
        depth: 0,
        range_depth: 0,
        variables: vec!["$".to_owned()],
        definitions: BTreeMap::new(),
    };
    let (main, end) = parser.list()?;
    match end {
        None => Ok(Parsed {
            main,
            definitions: parser.definitions,
        }),
        Some((word, line)) => Err(TemplateError::new(
            line,
            format!("unexpected {{{{{word}}}}}"),
        )),
    }
}

/// The word that ended a list, and its line: `end` or `else`.
type ListEnd = Option<(String, usize)>;

struct Parser {
    items: Vec<Item>,
    at: usize,
    depth: usize,
    range_depth: usize,
    variables: Vec<String>,
    definitions: BTreeMap<String, Vec<Node>>,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.items.get(self.at).map(|item| &item.token)
    }

    fn line(&self) -> usize {
        let last = self.items.len().saturating_sub(1);
        self.items
            .get(self.at.min(last))
            .map_or(1, |item| item.line)
    }

    fn next(&mut self) -> Option<Token> {
        let item = self.items.get(self.at).cloned();
        self.at += 1;
        item.map(|item| item.token)
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, TemplateError> {
        Err(TemplateError::new(self.line(), message))
    }

    fn expect(&mut self, token: &Token, context: &str) -> Result<(), TemplateError> {
        if self.peek() == Some(token) {
            self.at += 1;
            return Ok(());
        }
        self.unexpected(context)
    }

    fn unexpected<T>(&self, context: &str) -> Result<T, TemplateError> {
        match self.peek() {
            Some(token) => self.fail(format!("unexpected {} in {context}", spelled(token))),
            None => self.fail(format!("unexpected end of the template in {context}")),
        }
    }

    fn deeper<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, TemplateError>,
    ) -> Result<T, TemplateError> {
        if self.depth == MAX_DEPTH {
            return self.fail(format!("nested more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    /// Nodes up to `end` or `else` (consumed up to the word) or the end of the template.
    fn list(&mut self) -> Result<(Vec<Node>, ListEnd), TemplateError> {
        let mut nodes = Vec::new();
        while let Some(token) = self.next() {
            match token {
                Token::Text(text) => nodes.push(Node::Text(text)),
                _ => {
                    let line = self.line();
                    if let Some(Token::Word(word)) = self.peek().cloned()
                        && matches!(word.as_str(), "end" | "else")
                    {
                        self.at += 1;
                        return Ok((nodes, Some((word, line))));
                    }
                    nodes.extend(self.deeper(Self::action)?);
                }
            }
        }
        Ok((nodes, None))
    }

    fn action(&mut self) -> Result<Option<Node>, TemplateError> {
        let line = self.line();
        let word = match self.peek() {
            Some(Token::Word(word)) => word.clone(),
            _ => String::new(),
        };
        let keyword = matches!(
            word.as_str(),
            "if" | "with" | "range" | "template" | "block" | "define" | "break" | "continue"
        );
        if keyword {
            self.at += 1;
        }
        match word.as_str() {
            "if" => self.branch("if").map(|b| Some(Node::If(b))),
            "with" => self.branch("with").map(|b| Some(Node::With(b))),
            "range" => self.branch("range").map(|b| Some(Node::Range(b))),
            "template" => self.template(line).map(Some),
            "block" => self.block(line).map(Some),
            "define" => self.define().map(|()| None),
            "break" | "continue" => {
                if self.range_depth == 0 {
                    return self.fail(format!("{{{{{word}}}}} outside {{{{range}}}}"));
                }
                self.expect(&Token::Close, &word)?;
                Ok(Some(if word == "break" {
                    Node::Break
                } else {
                    Node::Continue
                }))
            }
            _ => {
                let pipeline = self.pipeline("command", &Token::Close)?;
                Ok(Some(Node::Action(pipeline)))
            }
        }
    }

    /// Everything of `if`, `with` or `range` after the word, its `end` included.
    fn branch(&mut self, context: &'static str) -> Result<Branch, TemplateError> {
        let scope = self.variables.len();
        let pipeline = self.pipeline(context, &Token::Close)?;
        let loops = usize::from(context == "range");
        self.range_depth += loops;
        let (then, end) = self.list()?;
        self.range_depth -= loops;
        let otherwise = match end {
            None => return Err(unclosed(pipeline.line, context)),
            Some((word, _)) if word == "else" => self.otherwise(context, pipeline.line)?,
            Some(_) => {
                self.expect(&Token::Close, "end")?;
                Vec::new()
            }
        };
        self.variables.truncate(scope);
        Ok(Branch {
            pipeline,
            then,
            otherwise,
        })
    }

    /// After `else`: `else if` and `else with` share the `end` of the branch they continue.
    fn otherwise(
        &mut self,
        context: &'static str,
        line: usize,
    ) -> Result<Vec<Node>, TemplateError> {
        let chained = match self.peek() {
            Some(Token::Word(word)) if word == context && context != "range" => true,
            Some(Token::Close) => false,
            _ => return self.unexpected("else"),
        };
        self.at += 1;
        if chained {
            let branch = self.deeper(|parser| parser.branch(context))?;
            return Ok(vec![if context == "if" {
                Node::If(branch)
            } else {
                Node::With(branch)
            }]);
        }
        let (nodes, end) = self.list()?;
        match end {
            Some((word, _)) if word == "end" => self.expect(&Token::Close, "end")?,
            Some((_, line)) => return Err(TemplateError::new(line, "second {{else}}")),
            None => return Err(unclosed(line, context)),
        }
        Ok(nodes)
    }

    fn name(&mut self, context: &str) -> Result<String, TemplateError> {
        match self.peek() {
            Some(Token::Quoted(name)) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            _ => self.unexpected(context),
        }
    }

    fn template(&mut self, line: usize) -> Result<Node, TemplateError> {
        let name = self.name("template clause")?;
        let argument = if self.peek() == Some(&Token::Close) {
            self.at += 1;
            None
        } else {
            Some(self.pipeline("template clause", &Token::Close)?)
        };
        Ok(Node::Template {
            name,
            argument,
            line,
        })
    }

    /// `define` and then `template`, in one.
    fn block(&mut self, line: usize) -> Result<Node, TemplateError> {
        let name = self.name("block clause")?;
        let argument = self.pipeline("block clause", &Token::Close)?;
        self.definition(name.clone(), "block")?;
        Ok(Node::Template {
            name,
            argument: Some(argument),
            line,
        })
    }

    fn define(&mut self) -> Result<(), TemplateError> {
        if self.depth > 1 {
            return self.fail("{{define}} must stand at the top level");
        }
        let name = self.name("define clause")?;
        self.expect(&Token::Close, "define clause")?;
        self.definition(name, "define")
    }

    /// A body with variables of its own, up to its `end`.
    fn definition(&mut self, name: String, context: &str) -> Result<(), TemplateError> {
        let line = self.line();
        let variables = std::mem::replace(&mut self.variables, vec!["$".to_owned()]);
        let range_depth = std::mem::take(&mut self.range_depth);
        let (nodes, end) = self.list()?;
        self.variables = variables;
        self.range_depth = range_depth;
        match end {
            Some((word, _)) if word == "end" => self.expect(&Token::Close, "end")?,
            Some((_, line)) => {
                return Err(TemplateError::new(line, "unexpected {{else}}"));
            }
            None => return Err(unclosed(line, context)),
        }
        self.definitions.insert(name, nodes);
        Ok(())
    }

    /// `[$a [, $b] :=] command | command …`, with its closing token.
    fn pipeline(&mut self, context: &str, close: &Token) -> Result<Pipeline, TemplateError> {
        let line = self.line();
        let (variables, assigns) = self.variables_of(context)?;
        let mut commands = Vec::new();
        loop {
            commands.push(self.command(context, commands.is_empty())?);
            match self.peek() {
                Some(Token::Pipe) => self.at += 1,
                Some(token) if token == close => {
                    self.at += 1;
                    break;
                }
                _ => return self.unexpected(context),
            }
        }
        if !assigns {
            self.variables.extend(variables.iter().cloned());
        }
        Ok(Pipeline {
            line,
            variables,
            assigns,
            commands,
        })
    }

    /// The declaration at the start of a pipeline, if there is one.
    fn variables_of(&mut self, context: &str) -> Result<(Vec<String>, bool), TemplateError> {
        let token = |offset: usize| self.items.get(self.at + offset).map(|item| &item.token);
        let Some(Token::Variable(first)) = token(0).cloned() else {
            return Ok((Vec::new(), false));
        };
        let (variables, length) = match (token(1), token(2), token(3)) {
            (Some(Token::Declare | Token::Assign), ..) => (vec![first], 1),
            (
                Some(Token::Comma),
                Some(Token::Variable(second)),
                Some(Token::Declare | Token::Assign),
            ) => {
                if context != "range" {
                    return self.fail(format!("too many declarations in {context}"));
                }
                (vec![first, second.clone()], 3)
            }
            (Some(Token::Comma), ..) => return self.unexpected(context),
            _ => return Ok((Vec::new(), false)),
        };
        let assigns = token(length) == Some(&Token::Assign);
        self.at += length + 1;
        if assigns {
            for name in &variables {
                self.check_variable(name)?;
            }
        }
        Ok((variables, assigns))
    }

    fn check_variable(&self, name: &str) -> Result<(), TemplateError> {
        if self.variables.iter().any(|known| known == name) {
            return Ok(());
        }
        self.fail(format!("undefined variable {name:?}"))
    }

    fn command(&mut self, context: &str, first: bool) -> Result<Command, TemplateError> {
        let line = self.line();
        let mut operands: Vec<Operand> = Vec::new();
        loop {
            let spaced = self.items.get(self.at).is_some_and(|item| item.spaced);
            let after_operand = !operands.is_empty();
            let Some(operand) = self.operand()? else {
                break;
            };
            if after_operand && !spaced {
                return self.fail(format!("missing space between operands in {context}"));
            }
            operands.push(operand);
        }
        match operands.first() {
            None => {
                if self.peek() == Some(&Token::Close) {
                    return self.fail(format!("missing value for {context}"));
                }
                self.unexpected(context)
            }
            Some(Operand::Nil) if operands.len() == 1 => self.fail("nil is not a command"),
            Some(Operand::Literal(_) | Operand::Nil | Operand::Dot | Operand::Pipeline(_))
                if operands.len() > 1 || !first =>
            {
                self.fail(format!("only a function can take arguments in {context}"))
            }
            Some(_) => Ok(Command { line, operands }),
        }
    }

    /// One operand with the fields that follow it without a space.
    fn operand(&mut self) -> Result<Option<Operand>, TemplateError> {
        let Some(token) = self.peek().cloned() else {
            return self.fail("unclosed action");
        };
        let mut fields = Vec::new();
        let start = match token {
            Token::Field(name) => {
                fields.push(name);
                Operand::Dot
            }
            Token::Dot => Operand::Dot,
            Token::Variable(name) => {
                self.check_variable(&name)?;
                Operand::Variable(name)
            }
            Token::Int(value) => Operand::Literal(Value::Int(value)),
            Token::Float(value) => Operand::Literal(Value::Float(value)),
            Token::Quoted(text) => Operand::Literal(Value::from(text)),
            Token::Word(word) => self.word(&word)?,
            Token::LeftParen => {
                self.at += 1;
                let inner =
                    self.deeper(|p| p.pipeline("parenthesized pipeline", &Token::RightParen))?;
                self.at -= 1;
                Operand::Pipeline(inner)
            }
            _ => return Ok(None),
        };
        self.at += 1;
        while let Some(Item {
            token: Token::Field(name),
            spaced: false,
            ..
        }) = self.items.get(self.at)
        {
            fields.push(name.clone());
            self.at += 1;
        }
        match start {
            start if fields.is_empty() => Ok(Some(start)),
            Operand::Literal(_) | Operand::Nil => self.fail("a constant has no fields"),
            start => Ok(Some(Operand::Fields(Box::new(start), fields))),
        }
    }

    fn word(&self, word: &str) -> Result<Operand, TemplateError> {
        match word {
            "true" => Ok(Operand::Literal(Value::Bool(true))),
            "false" => Ok(Operand::Literal(Value::Bool(false))),
            "nil" => Ok(Operand::Nil),
            "if" | "else" | "end" | "range" | "with" | "define" | "template" | "block"
            | "break" | "continue" => self.fail(format!("unexpected {word} in an action")),
            name if functions::find(name).is_some() => Ok(Operand::Function(name.to_owned())),
            name if functions::exists_elsewhere(name) => self.fail(format!(
                "function {name:?} is not supported in bootstrap templates"
            )),
            name => self.fail(format!("function {name:?} not defined")),
        }
    }
}

fn unclosed(line: usize, context: &str) -> TemplateError {
    TemplateError::new(line, format!("unclosed {{{{{context}}}}}"))
}

fn spelled(token: &Token) -> String {
    match token {
        Token::Text(_) => "text".to_owned(),
        Token::Open => "\"{{\"".to_owned(),
        Token::Close => "\"}}\"".to_owned(),
        Token::Field(name) => format!("\".{name}\""),
        Token::Variable(name) | Token::Word(name) => format!("{name:?}"),
        Token::Dot => "\".\"".to_owned(),
        Token::Int(value) => value.to_string(),
        Token::Float(value) => value.to_string(),
        Token::Quoted(text) => format!("{text:?}"),
        Token::Pipe => "\"|\"".to_owned(),
        Token::Declare => "\":=\"".to_owned(),
        Token::Assign => "\"=\"".to_owned(),
        Token::Comma => "\",\"".to_owned(),
        Token::LeftParen => "\"(\"".to_owned(),
        Token::RightParen => "\")\"".to_owned(),
    }
}
