//! Evaluates the syntax tree. Panics on a faulty program, since the programs are constants.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::rc::Rc;

use super::tree::{Expression, Function};

/// The value of an expression.
#[derive(Clone)]
pub(super) enum Value {
    Nil,
    Number(i64),
    Text(Rc<str>),
    Pair(Rc<(Value, Value)>),
    Closure(Rc<Function>, Rc<Environment>),
}

impl Value {
    /// Returns the number in this value, and panics if it is none.
    pub(super) fn number(&self) -> i64 {
        match self {
            Self::Number(number) => *number,
            _ => panic!("not a number"),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            _ => panic!("not a text"),
        }
    }

    fn pair(&self) -> &(Self, Self) {
        match self {
            Self::Pair(pair) => pair,
            _ => panic!("not a pair"),
        }
    }
}

/// Variables of one call, and the environment around it.
pub(super) struct Environment {
    variables: HashMap<Rc<str>, Value, BuildHasherDefault<DefaultHasher>>,
    outer: Option<Rc<Environment>>,
}

impl Environment {
    /// Creates the outermost environment, with one variable.
    pub(super) fn global(name: &str, number: i64) -> Rc<Self> {
        Self::with([(Rc::from(name), Value::Number(number))], None)
    }

    fn with(
        variables: impl IntoIterator<Item = (Rc<str>, Value)>,
        outer: Option<Rc<Self>>,
    ) -> Rc<Self> {
        Rc::new(Self { variables: variables.into_iter().collect(), outer })
    }

    fn get(&self, name: &str) -> Option<Value> {
        match self.variables.get(name) {
            Some(value) => Some(value.clone()),
            None => self.outer.as_ref()?.get(name),
        }
    }
}

/// Evaluates expressions and counts calls.
#[derive(Default)]
pub(super) struct Interpreter {
    calls: u64,
}

impl Interpreter {
    /// Returns the number of calls, including those of built-in functions.
    pub(super) fn calls(&self) -> u64 {
        self.calls
    }

    /// Returns the value of `expression` in the environment `scope`.
    pub(super) fn evaluate(&mut self, expression: &Expression, scope: &Rc<Environment>) -> Value {
        match expression {
            Expression::Number(number) => Value::Number(*number),
            Expression::Text(text) => Value::Text(Rc::clone(text)),
            Expression::Variable(name) if &**name == "nil" => Value::Nil,
            Expression::Variable(name) => {
                scope.get(name).unwrap_or_else(|| panic!("{name} is not defined"))
            }
            Expression::If(parts) => {
                let [condition, then, otherwise] = &**parts;
                let holds = !matches!(self.evaluate(condition, scope), Value::Nil);
                self.evaluate(if holds { then } else { otherwise }, scope)
            }
            Expression::Let(name, parts) => {
                let [value, body] = &**parts;
                let value = self.evaluate(value, scope);
                let inner = Environment::with([(Rc::clone(name), value)], Some(Rc::clone(scope)));
                self.evaluate(body, &inner)
            }
            Expression::Function(function) => Value::Closure(Rc::clone(function), Rc::clone(scope)),
            Expression::Call(operator, operands) => self.call(operator, operands, scope),
        }
    }

    fn call(
        &mut self,
        operator: &Expression,
        operands: &[Expression],
        scope: &Rc<Environment>,
    ) -> Value {
        self.calls += 1;
        let values: Vec<Value> =
            operands.iter().map(|operand| self.evaluate(operand, scope)).collect();
        if let Expression::Variable(name) = operator
            && let Some(value) = built_in(name, &values)
        {
            return value;
        }
        match self.evaluate(operator, scope) {
            Value::Closure(function, outer) => {
                let bound = function.parameters.iter().cloned().zip(values);
                let inner = Environment::with(bound, Some(outer));
                self.evaluate(&function.body, &inner)
            }
            _ => panic!("not a function"),
        }
    }
}

/// Calls the built-in function `name`. Returns `None` if there is none for these arguments.
fn built_in(name: &str, values: &[Value]) -> Option<Value> {
    let truth = |holds| if holds { Value::Number(1) } else { Value::Nil };
    Some(match (name, values) {
        ("+", [a, b]) => Value::Number(a.number() + b.number()),
        ("-", [a, b]) => Value::Number(a.number() - b.number()),
        ("*", [a, b]) => Value::Number(a.number() * b.number()),
        ("<", [a, b]) => truth(a.number() < b.number()),
        ("=", [Value::Nil, Value::Nil]) => truth(true),
        ("=", [Value::Nil, _] | [_, Value::Nil]) => truth(false),
        ("=", [a, b]) => truth(a.number() == b.number()),
        ("join", [a, b]) => Value::Text(format!("{}{}", a.text(), b.text()).into()),
        ("length", [text]) => Value::Number(text.text().len() as i64),
        ("pair", [a, b]) => Value::Pair(Rc::new((a.clone(), b.clone()))),
        ("first", [list]) => list.pair().0.clone(),
        ("rest", [list]) => list.pair().1.clone(),
        _ => return None,
    })
}
